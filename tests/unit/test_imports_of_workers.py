"""What a worker has to import before the first result: next to nothing, as every program waits for it."""

from __future__ import annotations

import pytest

import poolkit
import support_workers
from support import WATCHDOG

HEAVY = {"asyncio", "cloudpickle", "poolkit.task", "poolkit.results", "tblib"}


def test_a_worker_that_ran_calls_and_maps_has_not_imported_the_owners_half() -> None:
    with poolkit.Pool(1) as pool:
        assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]
        loaded = set(pool.submit(eval, "list(__import__('sys').modules)").result())
    assert not HEAVY & loaded
    assert "poolkit._child.loop" in loaded


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import sys; sys.path[:] = []; raise ValueError", ValueError),
        ("import sys; sys.meta_path[:] = []; raise ValueError", ValueError),
        ("import os\nwhile True: os.dup(0)", OSError),
    ],
)
def test_a_task_that_took_away_what_imports_need_fails_with_its_own_exception(
    code: str, error: type[Exception]
) -> None:
    """All that a worker needs to tell of a failure is there before the first task."""
    with poolkit.Pool(1) as pool:
        assert type(pool.submit(exec, code).exception()) is error
        assert pool.submit(abs, -1).result() == 1
        assert pool.stats().crashed == 0


def test_a_dedicated_worker_finds_what_it_needs_imported() -> None:
    """Else each would import it, which takes longer than all the rest of its start."""
    with poolkit.Worker(support_workers.own_imports, preload=["support_imports"]) as worker:
        assert worker.recv(WATCHDOG) == []
