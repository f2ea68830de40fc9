"""Scheduler: workers that stand for others on another machine, where limits are kept and crashes are seen to."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker, error_of, up

from poolkit.errors import DeadlineExceeded, PoolkitError, QueueTimeout, WorkerCrashed
from poolkit.task import TaskPhase


class NodeLost(WorkerCrashed):
    """A node is gone."""


def elsewhere(size: int = 1, **limits: Any) -> ScriptedPool:
    """A pool whose workers keep limits themselves, and begin what they are sent at once."""
    pool = up(size, max_batch=1, **limits)
    pool.workforce.keeps_limits = True
    return pool


def begun(pool: ScriptedPool, **options: Any) -> tuple[AnyTask, ScriptedWorker]:
    task = pool.submit(**options)
    worker = pool.runner(task)
    pool.claim(worker)
    return task, worker


# ===== limits =====


@pytest.mark.parametrize("limit", [{"timeout": 1.0}, {"memory_limit": 10}, {"timeout": 1.0, "memory_limit": 10}])
def test_limits_are_left_to_workers_that_keep_them(limit: dict[str, Any]) -> None:
    """Nothing is ever due for them, and nobody asks for the memory of a worker."""
    pool = elsewhere()
    pool.workforce.memory = None  # type: ignore[assignment]  # not to be called
    first, worker = begun(pool, **limit)
    second = pool.submit(**limit)
    worker.memory = 1000
    assert pool.scheduler.next_deadline() is None
    pool.tick(1000.0)
    pool.finish(worker)
    assert pool.runner(second) is worker
    assert pool.scheduler.next_deadline() is None
    pool.claim(worker)
    pool.tick(1000.0)
    assert not worker.killed
    pool.finish(worker)
    assert pool.outcomes[first].ok
    assert pool.outcomes[second].ok
    pool.end()


def test_deadlines_and_limits_on_the_time_in_the_queue_are_the_schedulers_all_the_same() -> None:
    pool = elsewhere()
    late, worker = begun(pool, deadline=2.0, timeout=60.0)
    waiting = pool.submit(queue_timeout=1.0)
    pool.tick(1.0)
    assert isinstance(error_of(pool, waiting), QueueTimeout)
    pool.tick(1.0)
    assert worker.killed
    pool.die(worker)
    assert isinstance(error_of(pool, late), DeadlineExceeded)
    pool.end()


def test_limits_and_what_was_sent_are_left_alone_after_a_repair() -> None:
    pool = elsewhere()
    task, worker = begun(pool, timeout=1.0, priority=-1)
    pool.scheduler.repair(deque(), pool.now)
    pool.submit(priority=1)
    pool.tick(10.0)
    assert pool.workforce.reclaims == 0
    assert not worker.killed
    pool.finish(worker)
    assert pool.outcomes[task].ok
    pool.end()


def test_what_was_sent_has_begun_and_is_not_taken_back_for_what_is_more_urgent() -> None:
    """So tasks may be posted without the lock, too, whatever the priority of what runs."""
    pool = elsewhere(2)
    _, worker = begun(pool, priority=-1)
    begun(pool, priority=-2)
    low = pool.submit(priority=-5)
    urgent = [pool.submit(priority=priority) for priority in (0, 3, 1)]
    pool.tick(10.0)
    assert pool.workforce.reclaims == 0
    assert pool.scheduler.all_busy()
    pool.finish(worker)
    assert pool.runner(urgent[1]) is worker
    pool.run(worker)
    assert pool.runner(urgent[2]) is worker
    assert low.phase is TaskPhase.QUEUED
    pool.end()


# ===== crashes =====


def test_a_death_may_bring_the_error_of_its_task() -> None:
    """Which counts as the crash that it is."""
    pool = elsewhere()
    task, worker = begun(pool)
    error = NodeLost("node tcp://10.0.0.7:8786 is gone")
    pool.die(worker, error=error)
    assert error_of(pool, task) is error
    assert (task.attempts, pool.scheduler.counters.crashed, pool.scheduler.roster.respawned) == (1, 1, 1)
    pool.end()


def test_a_death_that_brings_an_error_is_retried_as_a_crash() -> None:
    pool = elsewhere()
    task, worker = begun(pool, retries=1)
    pool.die(worker, error=NodeLost("gone"))
    assert task.phase is TaskPhase.WAITING
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    assert (task.attempts, pool.scheduler.counters.crashed, pool.scheduler.counters.retried) == (2, 1, 1)
    pool.end()


def test_the_error_of_a_death_is_not_told_of_what_was_ended_for_another_reason() -> None:
    pool = elsewhere()
    task, worker = begun(pool, deadline=1.0)
    pool.tick(1.0)
    pool.die(worker, error=NodeLost("gone"))
    assert isinstance(error_of(pool, task), DeadlineExceeded)
    assert pool.scheduler.counters.crashed == 0
    pool.end()


def test_the_error_of_a_death_is_not_told_of_what_had_not_begun() -> None:
    """It runs elsewhere."""
    pool = up()
    task = pool.submit()
    pool.die(pool.runner(task), error=NodeLost("gone"))
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    assert task.attempts == 1
    pool.end()


# ===== nobody is there =====


def test_what_has_not_begun_fails_with_an_error_of_its_own_and_the_pool_goes_on() -> None:
    """Both what is queued and what waits for its retry; what runs is left alone."""
    pool = elsewhere(2)
    retried, worker = begun(pool, retries=3)
    pool.die(worker, error=WorkerCrashed("gone"))
    running, other = begun(pool)
    queued = [pool.submit() for _ in range(2)]
    assert retried.phase is TaskPhase.WAITING

    pool.scheduler.fail_unbegun(lambda: PoolkitError("no node for 60 s"), pool.now)
    pool.collect()
    errors = [error_of(pool, task) for task in [retried, *queued]]
    assert [str(error) for error in errors] == ["no node for 60 s"] * 3
    assert len(set(map(id, errors))) == 3
    assert running not in pool.outcomes
    pool.check()

    pool.tick(60.0)  # the timer of the retry finds nothing
    pool.finish(other)
    assert pool.outcomes[running].ok
    later = pool.submit()
    pool.run_to_rest()
    assert pool.outcomes[later].ok
    pool.end()


def test_what_was_sent_ahead_has_not_begun() -> None:
    """It is taken back, and fails with the rest."""
    pool = up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    tasks = [pool.submit() for _ in range(4)]
    worker = pool.alive()[0]
    pool.run(worker)
    assert len(worker.unclaimed) > 1
    pool.claim(worker)
    pool.scheduler.fail_unbegun(lambda: PoolkitError("no"), pool.now)
    pool.collect()
    assert [task in pool.outcomes for task in tasks] == [True, False, True, True]
    pool.finish(worker)
    pool.drain(worker)
    assert [pool.outcomes[task].ok for task in tasks] == [True, True, False, False]
    pool.end()
