"""Scheduler: the limit on the run time of a task."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from unit.scripted import ScriptedPool, error_of, running

from poolkit._core.policy import DEATH_GRACE, LOOK_AGAIN
from poolkit._core.workforce import Died, Status
from poolkit.errors import DeadlineExceeded, TaskTimeout, WorkerCrashed
from poolkit.task import TaskPhase

# ===== timeout =====


def test_a_task_that_runs_too_long_is_stopped_with_its_worker() -> None:
    """The error carries the stack, and another worker is started while this one dies."""
    pool = ScriptedPool()
    task, worker = running(pool, timeout=1.0)
    pool.tick(0.99)
    assert not worker.killed
    pool.tick(0.01)
    assert worker.killed
    assert worker.want_stack
    assert len(pool.alive()) == 2
    assert task not in pool.outcomes, "the stack is still to come"
    pool.die(worker, signal="SIGKILL", stack="  File f")
    error = error_of(pool, task)
    assert isinstance(error, TaskTimeout)
    assert (error.timeout, error.stack) == (1.0, "  File f")
    assert (task.attempts, task.started_at, task.ended_at) == (1, 100.0, 101.0)
    assert pool.scheduler.counters.timed_out == 1
    assert pool.scheduler.counters.crashed == 0
    pool.end()


def test_time_before_the_beginning_does_not_count() -> None:
    """Not in the queue, and not at a worker that has not claimed it."""
    pool = ScriptedPool()
    task = pool.submit(timeout=1.0)
    pool.tick(5.0)
    worker = pool.alive()[0]
    pool.boot(worker)
    pool.tick(5.0)
    pool.claim(worker)
    pool.tick(0.99)
    assert not worker.killed
    pool.tick(1.0)
    assert worker.killed
    assert task.attempts == 0, "its run has not ended"
    pool.end()


def test_a_limit_behind_another_task_counts_from_its_own_beginning() -> None:
    """The worker is looked at again when the task before has ended."""
    pool = ScriptedPool()
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    pool.submit()
    tasks = [pool.submit(timeout=10.0), pool.submit(timeout=0.5)]
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    pool.tick(5.0)
    pool.finish(worker)
    pool.claim(worker)
    pool.tick(0.5)
    assert worker.killed
    pool.die(worker)
    assert isinstance(error_of(pool, tasks[1]), TaskTimeout)
    assert pool.outcomes[tasks[0]].ok
    pool.end()


def test_a_beginning_that_is_reported_late_counts_from_when_it_was() -> None:
    """The board tells since when, whatever the owner was doing."""
    pool = ScriptedPool()
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    pool.submit()
    pool.submit(), pool.submit(timeout=1.0)
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    pool.claim(worker)
    pool.tick(0.7)
    pool.deliver(worker)
    pool.tick(0.3)
    assert worker.killed
    pool.end()


def test_a_task_that_ended_in_time_is_not_punished() -> None:
    """Its outcome is in the pipe; the owner was slow, not the task."""
    pool = ScriptedPool()
    task, worker = running(pool, timeout=1.0)
    pool.tick(0.9)
    pool.finish(worker, "value", deliver=False)
    pool.tick(5.0)
    assert not worker.killed
    assert pool.scheduler.next_deadline() is None, "there is nothing to look at"
    pool.deliver(worker)
    assert pool.outcomes[task].payload == "value"
    pool.end()


def test_a_task_that_ends_while_it_is_looked_at_is_not_punished() -> None:
    """Between the look and the reclaim it may end and the next one begin: nobody is killed, and that one is watched."""
    pool = ScriptedPool()
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    pool.submit()
    tasks = [pool.submit(timeout=1.0) for _ in range(4)]
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    reclaim = pool.workforce.reclaim

    def reclaim_too_late(worker_id: int, taken: list[Any], told: list[Any]) -> None:
        if worker.running is tasks[0]:
            pool.finish(worker, deliver=False)
            pool.claim(worker)
        reclaim(worker_id, taken, told)

    pool.workforce.reclaim = reclaim_too_late  # type: ignore[method-assign]
    pool.tick(1.0)
    assert worker.running is tasks[1]
    assert not worker.killed
    assert [task.phase for task in tasks[2:]] == [TaskPhase.QUEUED] * 2
    pool.deliver(worker)
    assert pool.outcomes[tasks[0]].ok
    pool.tick(1.0)
    assert worker.killed
    pool.end()


def test_a_condemned_task_is_not_saved_by_a_late_outcome() -> None:
    """The kill_reason stands, so that a task has one outcome however the race ends."""
    pool = ScriptedPool()
    task, worker = running(pool, timeout=1.0)
    pool.tick(1.0)
    pool.check()
    pool.finish(worker, "late")
    assert task not in pool.outcomes
    pool.check()
    pool.die(worker)
    assert isinstance(error_of(pool, task), TaskTimeout)
    pool.end()


def test_an_outcome_before_that_of_the_condemned_task_is_delivered() -> None:
    """A timeout touches one task only."""
    pool = ScriptedPool()
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    pool.submit()
    first, second = pool.submit(), pool.submit(deadline=1.0)
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    pool.finish(worker, "first", rss=10**9, deliver=False)
    pool.claim(worker)
    pool.tick(1.0)
    assert worker.killed
    pool.deliver(worker)
    assert pool.outcomes[first].payload == "first"
    pool.die(worker)
    assert isinstance(error_of(pool, second), DeadlineExceeded)
    pool.end()


def test_a_sentence_is_for_one_task_even_when_more_are_lost() -> None:
    """An outcome that never arrived was lost in a crash, not to somebody else's limit."""
    pool = ScriptedPool()
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    pool.submit()
    lost, slow = pool.submit(timeout=9.0), pool.submit(deadline=1.0)
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    pool.claim(worker)
    pool.tick(1.0)
    worker.pipe.clear()
    pool.die(worker)
    assert isinstance(error_of(pool, lost), WorkerCrashed)
    assert isinstance(error_of(pool, slow), DeadlineExceeded)
    pool.end()


def test_a_timeout_is_retried_only_when_named() -> None:
    """And then from the start, with the whole limit."""
    pool = ScriptedPool()
    task, worker = running(pool, timeout=1.0, retries=1, retry_on=(TaskTimeout,))
    pool.tick(1.0)
    pool.die(worker)
    assert task.phase is TaskPhase.WAITING
    while task.phase is not TaskPhase.SENT:
        pool.step()
        pool.tick(0.1)
    worker = pool.runner(task)
    if worker.running is None:
        pool.claim(worker)
    pool.tick(0.5)
    pool.finish(worker, "at last")
    assert pool.outcomes[task].payload == "at last"
    assert task.attempts == 2
    pool.end()


def test_a_board_that_lies_costs_nobody_else_anything() -> None:
    """It says that a task runs for ages which was not even claimed: that one is taken back, and runs."""
    pool = ScriptedPool()
    pool.warm_up()
    task = pool.submit(timeout=1.0)
    worker = pool.runner(task)
    worker.status = Status(task.id, 0.0, 0)
    pool.tick(1.0)
    assert not worker.killed
    assert task.phase is TaskPhase.QUEUED
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


@pytest.mark.parametrize("limit", [1e-300, 1e-9])
def test_the_smallest_limits_do_not_spin(limit: float) -> None:
    """A task that was sent and has not begun is looked at now and then."""
    pool = ScriptedPool()
    pool.warm_up()
    task = pool.submit(timeout=limit)
    pool.scheduler.tick(pool.now)
    pool.tick(limit)
    due = pool.scheduler.next_deadline()
    assert due is not None
    assert due >= pool.now + LOOK_AGAIN / 2
    pool.claim(pool.runner(task))
    pool.tick(LOOK_AGAIN)
    assert pool.runner(task).killed
    pool.end()


def test_a_worker_that_is_done_when_it_is_looked_at_is_left_alone() -> None:
    """The timer was for a task that is long settled; the next task gets its own."""
    pool = ScriptedPool()
    _, worker = running(pool, timeout=1.0)
    pool.finish(worker)
    pool.tick(2.0)
    pool.claim(pool.runner(pool.submit(timeout=1.0)))
    pool.tick(0.5)
    assert not worker.killed
    pool.tick(0.5)
    assert worker.killed
    pool.end()


def test_a_task_without_a_limit_behind_one_with_is_not_stopped() -> None:
    """The timer that is left over is not for it."""
    pool = ScriptedPool()
    _, worker = running(pool, timeout=1.0)
    pool.finish(worker)
    free = pool.submit()
    pool.claim(worker)
    pool.tick(50.0)
    assert not worker.killed
    pool.finish(worker)
    assert pool.outcomes[free].ok
    pool.end()


def test_a_nearer_limit_is_looked_at_first() -> None:
    """A timer set for a far one does not make it wait."""
    pool = ScriptedPool()
    _, worker = running(pool, timeout=50.0)
    pool.finish(worker)
    pool.submit(timeout=1.0)
    pool.claim(worker)
    pool.tick(1.0)
    assert worker.killed
    pool.end()


def test_a_far_limit_that_a_nearer_one_overtook_stops_nobody() -> None:
    """Its timer fires and finds that another look is set for later."""
    pool = ScriptedPool()
    _, worker = running(pool, timeout=50.0)
    pool.finish(worker)
    pool.submit(timeout=1.0)
    pool.claim(worker)
    pool.finish(worker)
    pool.tick(20.0)
    late = pool.submit(timeout=40.0)
    pool.claim(worker)
    pool.tick(39.9)
    assert not worker.killed
    pool.finish(worker)
    assert pool.outcomes[late].ok
    pool.end()


# ===== a worker that does not die =====


@pytest.mark.parametrize("option", ["timeout", "deadline"])
def test_a_task_does_not_wait_for_ever_for_the_death_of_its_worker(option: str) -> None:
    """It is settled after a grace period, and never retried: its run has not ended."""
    pool = ScriptedPool()
    task, worker = running(pool, retries=1, retry_on=(TaskTimeout,), **{option: 1.0})
    pool.tick(1.0 + DEATH_GRACE)
    error = error_of(pool, task)
    assert isinstance(error, TaskTimeout if option == "timeout" else DeadlineExceeded)
    assert task.attempts == 1
    pool.die(worker)
    assert task.attempts == 1
    pool.end()


def test_a_thread_that_would_not_stop_is_counted() -> None:
    """Abandoned, and its task says so."""
    pool = ScriptedPool()
    task, worker = running(pool, timeout=1.0)
    pool.tick(1.0)
    worker.dead = True
    pool.scheduler.handle_all(deque([Died(worker.id, abandoned=True)]), pool.now)
    pool.collect()
    assert "given up" in str(error_of(pool, task))
    assert pool.scheduler.counters.abandoned == 1
    pool.end()
