"""Scheduler: a task that is cancelled delivers nothing, and nobody else notices."""

from __future__ import annotations

import pytest
from unit.scripted import ScriptedPool, up

from poolkit._child.coroutines import RUNS
from poolkit._core.policy import COROUTINE_GRACE
from poolkit._core.workforce import Status
from poolkit.task import TaskPhase

# ===== cancelling =====


def test_a_queued_task_is_cancelled_and_never_begins() -> None:
    """Nobody is asked for it."""
    pool = ScriptedPool()
    task = pool.submit()
    assert pool.cancel(task)
    assert pool.outcomes[task].cancelled
    assert not pool.cancel(task)
    pool.end()
    assert pool.workforce.begun[task] == 0


def test_a_task_that_was_sent_and_not_begun_is_taken_back() -> None:
    """The worker is not killed, and what was sent along with it runs."""
    pool = up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    warm = pool.submit()
    tasks = [pool.submit() for _ in range(3)]
    worker = pool.runner(warm)
    pool.run(worker)
    assert all(task.phase is TaskPhase.SENT for task in tasks)
    assert pool.cancel(tasks[1])
    assert not worker.killed
    pool.run_to_rest()
    assert pool.outcomes[tasks[0]].ok
    assert pool.outcomes[tasks[2]].ok
    pool.end()


def test_a_task_that_runs_is_stopped_and_settled_at_once() -> None:
    """Its worker is killed without being asked for its stack, and replaced at once."""
    pool = up()
    task = pool.submit()
    worker = pool.runner(task)
    pool.claim(worker)
    pool.tick(0.5)
    assert pool.cancel(task)
    assert worker.killed
    assert not worker.want_stack
    assert pool.outcomes[task].cancelled
    assert (task.attempts, task.started_at, task.ended_at) == (1, 100.0, 100.5)
    assert len(pool.alive()) == 2
    pool.die(worker)
    assert pool.scheduler.counters.crashed == 0
    pool.end()


def test_a_task_that_was_claimed_counts_as_running_before_the_board_says_so() -> None:
    """The token is what decides."""
    pool = up()
    task = pool.submit()
    worker = pool.runner(task)
    pool.claim(worker, stamp=False)
    assert not pool.scheduler.has_begun(task)
    pool.cancel(task)
    assert worker.killed
    assert (task.attempts, task.started_at) == (1, None)
    pool.end()


def test_a_task_whose_outcome_is_on_its_way_is_cancelled_without_a_kill() -> None:
    """It delivers nothing, and its worker goes on."""
    pool = up()
    task = pool.submit()
    worker = pool.runner(task)
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    assert pool.cancel(task)
    assert not worker.killed
    pool.deliver(worker)
    assert pool.outcomes[task].cancelled
    assert pool.scheduler.roster.idle
    pool.end()


def test_a_kill_is_not_aimed_at_the_successor() -> None:
    """The worker has gone on to the next task: cancelling the one before must not end that."""
    pool = up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    pool.submit()
    first, second = pool.submit(), pool.submit()
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    pool.claim(worker)
    pool.cancel(first)
    assert not worker.killed
    pool.deliver(worker)
    pool.finish(worker)
    assert pool.outcomes[second].ok
    pool.end()


def test_a_task_that_was_killed_for_its_limit_can_still_be_cancelled() -> None:
    """The caller's word is faster than the worker's death."""
    pool = up()
    task = pool.submit(timeout=1.0, retries=1)
    worker = pool.runner(task)
    pool.claim(worker)
    pool.tick(1.0)
    assert worker.killed
    assert pool.cancel(task)
    assert task.attempts == 1
    pool.tick(10.0)
    pool.die(worker)
    assert pool.outcomes[task].cancelled
    pool.end()


def test_cancelling_everything_leaves_the_pool_open() -> None:
    """Queued, waiting, sent and running tasks end; new ones are accepted."""
    pool = up(2)
    waiting = pool.submit(retries=1)
    pool.claim(pool.runner(waiting))
    pool.die(pool.runner(waiting))
    assert waiting in pool.scheduler.waiting
    pool.warm_up()
    running, sent, queued = pool.submit(), pool.submit(), pool.submit()
    worker = pool.runner(running)
    pool.claim(worker)
    pool.cancel_all()
    assert all(pool.outcomes[task].cancelled for task in (waiting, running, sent, queued))
    assert worker.killed
    after = pool.submit()
    pool.run_to_rest()
    assert pool.outcomes[after].ok
    pool.tick(100.0)
    assert pool.scheduler.counters.cancelled == 4
    pool.end()


def test_cancelling_what_has_not_begun_lets_the_rest_run() -> None:
    """`begun=False` stops nobody."""
    pool = up()
    running, queued = pool.submit(), pool.submit()
    pool.claim(pool.runner(running))
    pool.cancel_all(begun=False)
    assert pool.outcomes[queued].cancelled
    assert running not in pool.outcomes
    pool.finish(pool.runner(running))
    assert pool.outcomes[running].ok
    pool.end()


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_what_is_sent_behind_a_coroutine_does_not_save_it(how: str) -> None:
    """It was told to end when the outcome before it had not been read, which then lets more be sent."""
    pool = up(max_batch=2)
    limit = {"deadline": 1.0} if how == "deadline" else {}
    for _ in range(12):
        pool.submit(**limit)
    worker = pool.alive()[0]
    while len(worker.unclaimed) < 2:
        pool.run(worker)
    pool.run(worker, deliver=False)
    task = pool.claim(worker)
    worker.status = Status(task.id, pool.now, 0, RUNS)
    if how == "cancel":
        pool.cancel(task)
    else:
        pool.tick(1.0)
    assert worker.told_to_end
    pool.deliver(worker)
    pool.tick(COROUTINE_GRACE)
    assert worker.killed
    pool.end()
