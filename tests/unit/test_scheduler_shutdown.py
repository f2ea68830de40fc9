"""Scheduler: the ways to shut down."""

from __future__ import annotations

from typing import Any

import pytest
from unit.quick_tasks import causes, occupied, up
from unit.scripted import AnyTask, ScriptedPool

from poolkit._core.policy import STOP_GRACE
from poolkit._core.scheduler import PoolPhase
from poolkit._core.workforce import WorkerExited, WorkerState
from poolkit.errors import InitializerFailed, PoolClosed

# ===== shutting down =====


def test_a_graceful_shutdown_finishes_what_was_accepted() -> None:
    """Queued, running and waiting for a retry alike; then the workers are asked to go."""
    pool = up(2)
    tasks = [pool.submit(retries=1, retry_on=(ValueError,)) for _ in range(5)]
    pool.run(pool.runner(tasks[0]), error=ValueError())
    pool.shutdown()
    assert pool.scheduler.phase is PoolPhase.SHUTTING
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED
    assert all(pool.outcomes[task].ok for task in tasks)
    assert tasks[0].attempts == 2


def test_shutting_down_an_idle_pool_asks_its_workers_to_go() -> None:
    """A pool without any is closed at once."""
    pool = ScriptedPool()
    pool.shutdown()
    assert pool.scheduler.phase is PoolPhase.CLOSED
    pool = up(2)
    pool.shutdown()
    assert pool.scheduler.phase is PoolPhase.CLOSING
    assert all(worker.stopped for worker in pool.alive())
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED


def test_what_has_not_begun_can_be_cancelled_by_a_shutdown() -> None:
    """What runs is finished, and not retried: that would begin something."""
    pool = up(1)
    running, queued = pool.submit(retries=1), pool.submit()
    worker = pool.runner(running)
    pool.claim(worker)
    pool.shutdown(cancel_queued=True)
    assert pool.outcomes[queued].cancelled
    assert not worker.killed
    pool.die(worker)
    assert not pool.outcomes[running].cancelled
    assert not pool.outcomes[running].ok
    assert pool.scheduler.phase is PoolPhase.CLOSED


@pytest.mark.parametrize("after", [0.0, 2.0])
def test_a_killing_shutdown_stops_everything(after: float) -> None:
    """At once, or after what was left for a graceful end."""
    pool = up(2)
    running, done, queued = pool.submit(), pool.submit(), pool.submit()
    pool.claim(pool.runner(running))
    pool.claim(pool.runner(done))
    pool.finish(pool.runner(done), deliver=False)
    if after:
        pool.shutdown(kill_after=after)
        pool.tick(after)
    else:
        pool.shutdown(kill=True)
    assert all(pool.outcomes[task].cancelled for task in (running, done, queued))
    assert all(worker.killed for worker in pool.alive())
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED


def test_workers_that_are_starting_are_not_waited_for() -> None:
    """When everything is settled they are ended."""
    pool = ScriptedPool(2)
    task = pool.submit()
    pool.submit()
    pool.boot(pool.alive()[0])
    pool.shutdown()
    assert not pool.alive()[1].killed
    pool.run(pool.runner(task))
    pool.run(pool.alive()[0])
    assert pool.alive()[1].killed
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED


def test_a_worker_that_dies_while_nothing_is_queued_is_not_replaced_by_a_closing_pool() -> None:
    """Workers are started for tasks only."""
    pool = up(2)
    task = pool.submit()
    pool.claim(pool.runner(task))
    pool.shutdown()
    pool.die(next(worker for worker in pool.alive() if worker.running is None))
    assert len(pool.alive()) == 1
    pool.end()


def test_a_worker_that_is_killed_while_nothing_is_queued_is_not_replaced_either() -> None:
    """The cancel of a running task frees a place that nobody needs."""
    pool = up(2)
    cancelled = pool.submit()
    worker = pool.runner(cancelled)
    pool.claim(worker)
    occupied(pool)
    pool.shutdown()
    pool.cancel(cancelled)
    pool.die(worker)
    assert len(pool.alive()) == 1
    pool.end()


def test_a_worker_that_dies_is_replaced_while_something_is_queued() -> None:
    """What was accepted is finished."""
    pool = up(1)
    first, second = pool.submit(), pool.submit()
    pool.claim(pool.runner(first))
    pool.shutdown()
    pool.die(pool.runner(first))
    pool.run_to_rest()
    assert pool.outcomes[second].ok
    assert pool.scheduler.phase is PoolPhase.CLOSED


def test_a_worker_that_does_not_go_is_killed() -> None:
    """After a grace period, while the pool is open too."""
    pool = up(2)
    pool.scheduler.listened = frozenset([WorkerExited])
    pool.resize(1)
    worker = next(each for each in pool.alive() if each.stopped)
    pool.tick(STOP_GRACE)
    assert worker.killed
    pool.die(worker)
    assert causes(pool) == ["unresponsive"]
    pool.end()


def test_a_worker_that_does_not_even_drain_is_killed_by_a_closing_pool() -> None:
    """It is busy with nothing, and does not say so."""
    pool = up(1)
    task = pool.submit()
    worker = pool.runner(task)
    pool.cancel(task)
    pool.shutdown()
    assert pool.scheduler.roster.workers[worker.id].state is WorkerState.BUSY
    pool.tick(STOP_GRACE)
    assert worker.killed
    pool.die(worker)
    assert pool.scheduler.phase is PoolPhase.CLOSED


def test_a_worker_that_cannot_be_killed_is_given_up_in_the_end() -> None:
    """A process stuck in the kernel does not keep the pool from closing."""
    pool = up(1)
    task = pool.submit()
    pool.claim(pool.runner(task))
    pool.shutdown(kill=True)
    assert pool.scheduler.phase is PoolPhase.CLOSING
    pool.tick(2 * STOP_GRACE)
    assert pool.scheduler.phase is PoolPhase.CLOSED
    assert pool.scheduler.counters.abandoned == 1
    assert pool.workforce.workers == {}


@pytest.mark.parametrize("again", [{}, {"cancel_queued": True}, {"kill": True}, {"kill_after": 1.0}])
def test_shutting_down_again_only_goes_further(again: dict[str, Any]) -> None:
    """It is idempotent, and never opens what is closing."""
    pool = up(1)
    task = pool.submit()
    pool.claim(pool.runner(task))
    pool.shutdown(kill=True)
    pool.shutdown(**again)
    pool.run_to_rest()
    pool.tick(10.0)
    pool.shutdown(**again)
    assert pool.scheduler.phase is PoolPhase.CLOSED
    assert len(pool.outcomes) == 1


# ===== lingering =====


def _lingering(**limits: Any) -> ScriptedPool:
    pool = up(**limits)
    pool.scheduler.shutdown(cancel_queued=False, kill=False, now=pool.now, lingers=True)
    return pool


def _late(pool: ScriptedPool) -> AnyTask:
    task = pool.task()
    task.late = True
    return task


def test_a_pool_that_lingers_accepts_late_tasks_alone_and_closes_when_no_more_come() -> None:
    pool = _lingering(max_queue=1)
    with pytest.raises(PoolClosed):
        pool.submit()
    tasks = [_late(pool) for _ in range(5)]  # more than the queue is to hold: nobody else fills it any more
    for task in tasks:
        pool.scheduler.submit(task, pool.now)
    pool.scheduler.refuse(_late(pool), OSError(), pool.now)
    pool.collect()
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    assert pool.scheduler.phase is PoolPhase.SHUTTING
    pool.scheduler.end_lingering(pool.now)
    with pytest.raises(PoolClosed):
        pool.scheduler.submit(_late(pool), pool.now)
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED


@pytest.mark.parametrize("how", [{"cancel_queued": True}, {"kill": True}])
def test_a_less_patient_shutdown_ends_the_lingering_for_good(how: dict[str, bool]) -> None:
    pool = _lingering()
    pool.shutdown(**how)
    pool.scheduler.shutdown(cancel_queued=False, kill=False, now=pool.now, lingers=True)
    with pytest.raises(PoolClosed):
        pool.scheduler.submit(_late(pool), pool.now)
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED


def test_a_failed_initializer_ends_the_lingering() -> None:
    pool = ScriptedPool()
    pool.submit()
    pool.scheduler.shutdown(cancel_queued=False, kill=False, now=pool.now, lingers=True)
    (worker,) = pool.alive()
    pool.fail_boot(worker, ValueError("mine"))
    with pytest.raises(InitializerFailed):
        pool.scheduler.submit(_late(pool), pool.now)
