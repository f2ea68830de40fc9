"""Scheduler: streams that wait for their readers give their places away, and come back."""

from __future__ import annotations

import pytest
from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker, error_of, up

from poolkit import MemoryLimitExceeded, PoolClosed, TaskTimeout
from poolkit._core.workforce import WorkerState


def given_up(pool: ScriptedPool, **options: object) -> tuple[AnyTask, ScriptedWorker]:
    """A stream that waits for its reader, and whose place another task has got."""
    stream = pool.submit("stream", is_stream=True, buffersize=1, **options)
    worker = pool.runner(stream)
    pool.claim(worker)
    pool.give(worker)
    pool.submit("other")
    assert pool.scheduler.roster.workers[worker.id].state is WorkerState.STALLED
    return stream, worker


@pytest.mark.parametrize(
    ("limit", "error"), [({"timeout": 2.0}, TaskTimeout), ({"memory_limit": 100}, MemoryLimitExceeded)]
)
def test_a_stream_that_goes_on_is_under_its_limits_again(limit: dict[str, float], error: type[Exception]) -> None:
    pool = up()
    stream, worker = given_up(pool, **limit)
    pool.tick(60.0)  # which its reader takes for other things
    assert stream not in pool.outcomes
    pool.take(stream)
    pool.go_on(worker)
    worker.memory = 200 if "memory_limit" in limit else 0
    pool.tick(2.0)
    pool.die(worker)
    assert isinstance(error_of(pool, stream), error)


def test_a_stream_that_nobody_reads_is_settled_once_also_if_its_worker_does_not_die() -> None:
    pool = up()
    stream = pool.submit("stream", is_stream=True, buffersize=1)
    worker = pool.runner(stream)
    pool.claim(worker)
    pool.give(worker)
    pool.shutdown()
    pool.tick(1.5)
    assert worker.told_to_end
    pool.tick(10.0)
    assert worker.killed
    assert isinstance(error_of(pool, stream), PoolClosed)
    pool.die(worker)
    pool.end()
