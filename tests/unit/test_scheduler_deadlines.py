"""Scheduler: limits on the time in the queue, and on all of it."""

from __future__ import annotations

import pytest
from unit.scripted import ScriptedPool, error_of, running

from poolkit.errors import DeadlineExceeded, QueueTimeout, TaskTimeout
from poolkit.task import TaskPhase

# ===== queue_timeout =====


def test_a_task_that_waits_too_long_fails_and_never_begins() -> None:
    """Also when no worker is up."""
    pool = ScriptedPool()
    task = pool.submit(queue_timeout=1.0)
    pool.tick(0.99)
    assert task not in pool.outcomes
    pool.tick(0.01)
    assert isinstance(error_of(pool, task), QueueTimeout)
    assert pool.scheduler.counters.timed_out == 1
    pool.end()


def test_a_task_sent_ahead_still_waits_and_its_neighbours_go_on() -> None:
    """It is taken back; so are those behind it, which run all the same."""
    pool = ScriptedPool()
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    pool.submit()
    slow, hurried, last = pool.submit(), pool.submit(queue_timeout=1.0), pool.submit()
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    assert hurried.phase is TaskPhase.SENT
    pool.tick(1.0)
    assert isinstance(error_of(pool, hurried), QueueTimeout)
    pool.finish(worker)
    pool.run_to_rest()
    assert pool.outcomes[slow].ok
    assert pool.outcomes[last].ok
    pool.end()


def test_a_task_that_has_begun_waits_no_more() -> None:
    """Neither one that runs nor one that was claimed and has not said so."""
    pool = ScriptedPool(2)
    pool.warm_up()
    tasks = [pool.submit(queue_timeout=1.0), pool.submit(queue_timeout=1.0)]
    pool.claim(pool.runner(tasks[0]))
    pool.claim(pool.runner(tasks[1]), stamp=False)
    pool.tick(5.0)
    assert not pool.outcomes
    assert pool.workforce.reclaims == 1
    pool.end()


def test_waiting_for_a_retry_is_not_waiting_in_the_queue() -> None:
    """It has begun once; a deadline is for the rest."""
    pool = ScriptedPool()
    task, worker = running(pool, queue_timeout=0.001, retries=1)
    pool.die(worker)
    pool.tick(0.002)
    assert task not in pool.outcomes
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


def test_nor_is_waiting_in_the_queue_for_the_second_run() -> None:
    """The time of the first wait is over."""
    pool = ScriptedPool()
    task, worker = running(pool, queue_timeout=1.0, retries=1, retry_on=(ValueError,))
    pool.finish(worker, error=ValueError())
    pool.submit()
    pool.claim(worker)
    pool.tick(2.0)
    assert task.phase is TaskPhase.QUEUED
    pool.end()


# ===== deadline =====


def test_a_deadline_holds_in_the_queue() -> None:
    """The task never begins."""
    pool = ScriptedPool()
    task = pool.submit(deadline=1.0)
    pool.tick(1.0)
    assert isinstance(error_of(pool, task), DeadlineExceeded)
    assert task.attempts == 0
    pool.end()


def test_a_deadline_holds_while_the_task_is_sent_ahead() -> None:
    """It is taken back, and nobody is killed."""
    pool = ScriptedPool()
    pool.warm_up()
    task = pool.submit(deadline=1.0)
    worker = pool.runner(task)
    pool.tick(1.0)
    assert isinstance(error_of(pool, task), DeadlineExceeded)
    assert not worker.killed
    pool.end()


def test_a_deadline_stops_what_runs_and_is_not_retried() -> None:
    """It counts retries, so there is no time for another."""
    pool = ScriptedPool()
    task, worker = running(pool, deadline=1.0, retries=5, retry_on=(DeadlineExceeded,))
    pool.tick(1.0)
    assert worker.killed
    assert worker.want_stack
    pool.die(worker)
    assert isinstance(error_of(pool, task), DeadlineExceeded)
    pool.end()


def test_a_deadline_holds_while_the_task_waits_for_a_retry() -> None:
    """The back-off is not waited for."""
    pool = ScriptedPool()
    task, worker = running(pool, deadline=0.01, retries=5)
    pool.die(worker)
    assert task.phase is TaskPhase.WAITING
    pool.tick(0.01)
    assert isinstance(error_of(pool, task), DeadlineExceeded)
    pool.tick(100.0)
    assert task.attempts == 1
    pool.end()


def test_an_outcome_that_was_on_its_way_at_the_deadline_is_delivered() -> None:
    """It was done in time."""
    pool = ScriptedPool()
    task, worker = running(pool, deadline=1.0)
    pool.finish(worker, "value", deliver=False)
    pool.tick(2.0)
    pool.deliver(worker)
    assert pool.outcomes[task].payload == "value"
    pool.end()


@pytest.mark.parametrize("end", ["fails", "times out"])
def test_nothing_is_retried_after_its_deadline(end: str) -> None:
    """The timer of the deadline has fired, and nothing else would stop the next run."""
    pool = ScriptedPool()
    task, worker = running(pool, timeout=1.0, deadline=1.5, retries=1, retry_on=(ValueError, TaskTimeout))
    if end == "fails":
        pool.finish(worker, error=ValueError(), deliver=False)
    pool.tick(1.6)
    if end == "fails":
        pool.deliver(worker)
    else:
        pool.die(worker)
    assert isinstance(error_of(pool, task), ValueError if end == "fails" else TaskTimeout)
    pool.tick(100.0)
    assert task.attempts == 1
    pool.end()


def test_deadlines_of_settled_tasks_wake_nobody() -> None:
    """And do not keep the tasks alive."""
    pool = ScriptedPool()
    pool.warm_up()
    for _ in range(200):
        task = pool.submit(deadline=1000.0, queue_timeout=500.0)
        pool.run(pool.runner(task))
    assert pool.scheduler.next_deadline() is None
    assert len(pool.scheduler.timers) == 0
    pool.end()
