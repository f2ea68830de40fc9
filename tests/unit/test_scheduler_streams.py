"""Scheduler: streams that wait for their readers give their places away, and come back."""

from __future__ import annotations

import pytest
from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker, error_of, up

from poolkit import MemoryLimitExceeded, PoolClosed, QueueFull, TaskTimeout
from poolkit._core.dispatch import GIVE_WAY_EVERY
from poolkit._core.workforce import WorkerState
from poolkit.task import TaskPhase


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


def test_a_stream_that_waits_for_its_reader_takes_no_room_of_the_queue() -> None:
    """Whoever wants room has it give way."""
    pool = up(max_queue=1)
    streams = [pool.submit("stream", is_stream=True, buffersize=1) for _ in range(2)]
    worker = pool.runner(streams[0])
    pool.claim(worker)
    with pytest.raises(QueueFull):
        pool.submit("other")
    pool.give(worker)
    assert pool.submit("other").phase is TaskPhase.QUEUED


def test_two_that_were_resumed_make_room_when_they_wait_again() -> None:
    """Nothing is queued then: it is who waits for room that has them looked at."""
    pool = up(max_queue=1)
    stream, worker = given_up(pool, timeout=None)
    pool.boot(other := pool.alive()[-1])
    pool.claim(other)
    pool.take(stream)
    pool.go_on(worker)
    pool.scheduler.make_room(pool.now)
    assert (pool.scheduler.room(), len(pool.scheduler.queue)) == (0, 0)
    pool.give(worker)
    pool.tick(GIVE_WAY_EVERY)
    pool.scheduler.make_room(pool.now)  # as each step does while somebody waits
    assert pool.scheduler.room() == 1
