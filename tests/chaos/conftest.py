"""Fixtures of the chaos tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One for all, as workers hear of it by a variable: pools with the same variables share their template process.
    return tmp_path_factory.mktemp("traps")


@pytest.fixture
def traps(_traps: Path) -> Path:
    """An empty directory for traps."""
    for path in _traps.iterdir():
        path.unlink()
    return _traps
