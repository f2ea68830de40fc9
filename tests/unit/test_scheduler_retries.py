"""Scheduler: tasks that run again, and the limits of their later runs."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker, crash_once, error_of, running, up

from poolkit._core.workforce import Finished
from poolkit.errors import DeadlineExceeded, TaskTimeout
from poolkit.task import TaskPhase

# ===== retries =====


def test_a_crash_is_retried_after_a_backoff_when_asked_for() -> None:
    """And counted: `attempts` are the runs that began."""
    pool = up()
    task = crash_once(pool, retries=1)
    assert task.phase is TaskPhase.WAITING
    assert task.worker_id is None
    pool.tick(0.01)
    assert task.phase is TaskPhase.WAITING
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    assert (task.attempts, pool.scheduler.counters.retried, pool.scheduler.counters.crashed) == (2, 1, 1)
    pool.end()


def test_the_last_failure_is_the_tasks_own() -> None:
    """No more often than asked for."""
    pool = up()
    task = pool.submit(retries=2, retry_on=(ValueError,))
    errors = [ValueError(number) for number in range(3)]
    for error in errors:
        pool.tick(10.0)
        pool.run(pool.runner(task), error=error)
    assert error_of(pool, task) is errors[2]
    assert task.attempts == 3
    pool.end()


def test_only_what_is_named_is_retried() -> None:
    """An exception of the task is its outcome."""
    pool = up()
    task = pool.submit(retries=5, retry_on=(OSError,))
    pool.run(pool.runner(task), error=ValueError())
    assert isinstance(error_of(pool, task), ValueError)
    assert task.attempts == 1
    pool.end()


def test_a_retried_task_takes_its_old_place() -> None:
    """It is older than what was submitted since."""
    pool = up()
    task = pool.submit(retries=1, retry_on=(ValueError,))
    pool.run(pool.runner(task), error=ValueError())
    running = pool.submit()
    pool.claim(pool.runner(running))
    younger = pool.submit()
    pool.tick(10.0)
    assert list(pool.scheduler.queue) == [task, younger]
    pool.end()


def test_a_task_that_waits_for_its_retry_is_cancelled_at_once() -> None:
    """And does not come back."""
    pool = up()
    task = crash_once(pool, retries=1)
    assert pool.cancel(task)
    pool.tick(100.0)
    assert pool.outcomes[task].cancelled
    assert task.attempts == 1
    pool.end()


def fail_unread(pool: ScriptedPool, error: BaseException, **options: Any) -> AnyTask:
    """A task whose failure has arrived, pickled."""
    task = pool.submit(**options)
    worker = pool.runner(task)
    pool.claim(worker)
    report = Finished(1, task.id, pool.now, pool.now, 0, b"pickled", False, lambda _: error)
    pool.scheduler.handle_all(deque([report]), pool.now)
    worker.running = None
    pool.collect()
    pool.check()
    return task


def read(pool: ScriptedPool, task: AnyTask) -> None:
    outcome = pool.scheduler.unread.get(task)
    if outcome is not None:
        outcome.error()
    pool.scheduler.read(task, pool.now)
    pool.collect()
    pool.check()


def test_only_a_failure_that_may_be_retried_is_read_before_it_is_delivered() -> None:
    """Unpickling is left to who waits, unless its type decides. The worker goes on meanwhile."""
    pool = up()
    task = fail_unread(pool, ValueError())
    assert task in pool.outcomes
    assert not pool.scheduler.unread
    task = fail_unread(pool, ValueError(), retries=1, retry_on=(ValueError,))
    assert task not in pool.outcomes
    assert list(pool.scheduler.unread) == [task]
    other = pool.submit()
    pool.claim(pool.runner(other))
    read(pool, task)
    assert not pool.scheduler.unread
    assert task.phase is TaskPhase.WAITING
    read(pool, task)  # nothing is to be read
    assert pool.scheduler.counters.retried == 1
    pool.end()


def test_a_failure_of_another_type_is_delivered_when_it_was_read() -> None:
    pool = up()
    task = fail_unread(pool, KeyError(), retries=1, retry_on=(ValueError,))
    read(pool, task)
    assert isinstance(error_of(pool, task), KeyError)
    assert not pool.scheduler.waiting
    pool.end()


def test_a_task_may_be_ended_before_its_failure_was_read() -> None:
    pool = up()
    task = fail_unread(pool, ValueError(), retries=1, retry_on=(ValueError,))
    assert pool.cancel(task)
    assert pool.outcomes[task].cancelled
    read(pool, task)
    task = fail_unread(pool, ValueError(), retries=1, retry_on=(ValueError,), deadline=5.0)
    pool.tick(5.0)
    assert isinstance(error_of(pool, task), DeadlineExceeded)
    read(pool, task)
    assert pool.scheduler.counters.retried == 0
    pool.end()


# ===== the limits of a second run =====


def test_a_second_run_on_the_same_worker_meets_its_limit_too() -> None:
    """That the board says the task was done before does not save it."""
    pool = ScriptedPool()
    task, worker = running(pool, timeout=1.0, retries=1, retry_on=(ValueError,))
    pool.finish(worker, error=ValueError())
    while not worker.unclaimed:
        pool.tick(0.01)
    pool.claim(worker)
    pool.tick(1.0)
    assert worker.killed
    pool.die(worker)
    assert isinstance(error_of(pool, task), TaskTimeout)
    pool.end()


def second_run(pool: ScriptedPool, **options: Any) -> tuple[AnyTask, ScriptedWorker]:
    """A task that is sent to its worker for the second time, and not begun; the board tells of its first run still."""
    task, worker = running(pool, retries=1, retry_on=(ValueError,), **options)
    pool.finish(worker, error=ValueError())
    while not worker.unclaimed:
        pool.tick(0.001)
    assert worker.status.done == task.id
    return task, worker


def test_a_second_run_that_begins_late_meets_its_limit_too() -> None:
    """A look before it has begun is not the last one."""
    pool = ScriptedPool()
    _, worker = second_run(pool, timeout=0.5)
    pool.tick(0.7)
    pool.claim(worker)
    pool.tick(1.0)
    assert worker.killed
    pool.end()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_second_run_is_stopped_before_the_board_tells_of_it(how: str) -> None:
    """That the first run is done does not save the second."""
    pool = ScriptedPool()
    task, worker = second_run(pool, deadline=1.0)
    pool.claim(worker, stamp=False)
    if how == "cancel":
        pool.cancel(task)
    else:
        pool.tick(1.0)
    assert worker.killed
    pool.die(worker)
    assert task.attempts == 2
    pool.end()
