"""A worker for the scripts of a file's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support_scripts import WorkerHalf


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHalf]:
    """One for all tests of a file: each script is a module of its own name."""
    worker = WorkerHalf()
    yield worker
    worker.close()
