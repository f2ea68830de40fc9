"""Scheduler: submitting, cancelling, outcomes, and what happens to work when its worker dies."""

from __future__ import annotations

import math
from typing import Any

import pytest
from unit.scripted import AnyTask, ScriptedPool

from poolkit._core.scheduler import PoolPhase
from poolkit._core.workforce import EVENT_NAMES, Begun, Died, Finished, Glance, Ready
from poolkit.errors import (
    InitializerFailed,
    PoolClosed,
    PoolkitError,
    QueueFull,
    SerializationError,
    WorkerCrashed,
)
from poolkit.task import Outcome, TaskPhase


def up(size: int = 1, **limits: Any) -> ScriptedPool:
    pool = ScriptedPool(size, **limits)
    pool.warm_up()
    return pool


def error_of(pool: ScriptedPool, task: AnyTask) -> Any:
    return pool.outcomes[task].payload


# ===== submitting =====


def test_tasks_are_numbered_from_one_in_order() -> None:
    """The number is the order of submission."""
    pool = up()
    assert [pool.submit().id for _ in range(3)] == [1, 2, 3]
    pool.end()


def test_workers_start_on_demand_up_to_the_size() -> None:
    """One for each queued task that no other is starting for."""
    pool = ScriptedPool(3)
    assert pool.alive() == []
    for started in (1, 2, 3, 3, 3):
        pool.submit()
        assert len(pool.alive()) == started
    pool.end()


def test_an_idle_worker_is_used_before_another_is_started() -> None:
    """One task after the other needs one worker."""
    pool = ScriptedPool(3)
    for _ in range(4):
        pool.submit()
        pool.run_to_rest()
    assert len(pool.alive()) == 1
    pool.end()


def test_the_worker_that_was_busy_last_is_used_first() -> None:
    """It is the warmest."""
    pool = up(3)
    first, second = pool.submit(), pool.submit()
    one, two = pool.runner(first), pool.runner(second)
    pool.run(one)
    pool.run(two)
    assert pool.runner(pool.submit()) is two
    pool.end()


def test_a_full_queue_refuses_until_something_is_settled() -> None:
    """Every worker has a task and `max_queue` more wait; the message says so."""
    pool = up(1, max_queue=2)
    tasks = [pool.submit() for _ in range(3)]
    assert pool.scheduler.is_full()
    with pytest.raises(QueueFull, match=r"cannot submit work: .*3 tasks accepted, max_workers=1, max_queue=2"):
        pool.submit()
    pool.cancel(tasks[2])
    assert not pool.scheduler.is_full()
    pool.submit()
    assert pool.scheduler.counters.submitted == 4
    pool.end()


def test_a_pool_without_a_bound_is_never_full() -> None:
    """However much waits."""
    pool = up()
    for _ in range(500):
        pool.submit()
    assert not pool.scheduler.is_full()
    pool.end()


def test_a_burst_orders_nothing_per_task_but_its_place_in_the_queue() -> None:
    """What a submit costs does not grow with what is queued: no glance, no reclaim, no timer beyond its own."""
    pool = up(2)
    for _ in range(1000):
        pool.submit(priority=1, timeout=5.0)
    assert pool.workforce.reclaims == 0
    assert len(pool.scheduler.timers) <= 2
    assert len(pool.scheduler.queue) == 998
    pool.end()


def test_one_timer_a_worker_serves_all_its_limits() -> None:
    """One task after the other with a far limit does not pile up timers."""
    pool = up()
    for _ in range(100):
        task = pool.submit(timeout=60.0)
        pool.run(pool.runner(task))
    assert len(pool.scheduler.timers) == 1
    pool.end()


def test_what_cannot_be_sent_is_accepted_and_fails_at_once() -> None:
    """As with the standard library, the error is the task's."""
    pool = up()
    task, error = pool.task(), SerializationError("args[0]")
    pool.scheduler.refuse(task, error, pool.now)
    pool.collect()
    assert error_of(pool, task) is error
    assert (pool.scheduler.counters.failed, task.attempts, task.id) == (1, 0, 1)
    pool.end()


def test_nothing_is_accepted_after_shutdown() -> None:
    """Neither what could be sent nor what could not."""
    pool = up()
    pool.submit()
    pool.shutdown()
    with pytest.raises(PoolClosed, match=r"cannot submit work: the pool was shut down \(1 tasks are still"):
        pool.submit()
    with pytest.raises(PoolClosed):
        pool.scheduler.refuse(pool.task(), OSError(), pool.now)
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED


# ===== outcomes =====


def test_a_value_and_an_error_are_delivered_as_they_came() -> None:
    """With the times of the run."""
    pool = up()
    good, bad = pool.submit(), pool.submit()
    worker = pool.runner(good)
    pool.claim(worker)
    pool.tick(0.5)
    pool.finish(worker, "value")
    assert (good.started_at, good.ended_at, good.attempts) == (100.0, 100.5, 1)
    error = ValueError()
    pool.run(worker, error=error)
    assert pool.outcomes[good].payload == "value"
    assert error_of(pool, bad) is error
    counters = pool.scheduler.counters
    assert (counters.succeeded, counters.failed) == (1, 1)
    assert counters.run_time.snapshot().largest == 0.5
    pool.end()


def test_a_worker_is_free_before_its_result_is_published() -> None:
    """Who submits at once, from a callback, gets that worker."""
    pool = up()
    task = pool.submit()
    worker = pool.runner(task)
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    pool.scheduler.handle(worker.pipe.popleft(), pool.now)
    assert pool.scheduler.settled
    assert pool.scheduler.roster.idle
    pool.end()


@pytest.mark.parametrize("task_id", [0, 2, 99])
def test_an_outcome_that_is_not_due_is_ignored(task_id: int) -> None:
    """Only a worker that was tampered with says so, and it harms no other task."""
    pool = up()
    first, second = pool.submit(), pool.submit()
    pool.scheduler.handle(Finished(1, task_id, Outcome("forged", ok=True), 0.0, 0.0), pool.now)
    assert pool.scheduler.settled == []
    pool.run_to_rest()
    assert pool.outcomes[first].payload is pool.outcomes[second].payload is None
    pool.scheduler.handle(Finished(1, 1, Outcome("forged", ok=True), 0.0, 0.0), pool.now)
    pool.end()


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf])
def test_times_that_are_none_harm_nothing(nonsense: float) -> None:
    """A worker may write anything into its frames and onto its board."""
    pool = up()
    task = pool.submit(timeout=1.0)
    worker = pool.runner(task)
    pool.claim(worker)
    worker.glance = Glance(task.id, nonsense, 0)
    other = pool.submit(queue_timeout=0.5)
    pool.tick(0.5)
    assert other in pool.outcomes, "its own clock stopped those of others"
    pool.scheduler.handle(Finished(1, task.id, Outcome(1, ok=True), nonsense, nonsense), pool.now)
    pool.collect()
    worker.running = None
    assert pool.scheduler.counters.run_time.snapshot().total == 0.0
    pool.end()


def test_reports_of_workers_that_are_gone_are_ignored() -> None:
    """Late words change nothing."""
    pool = up()
    worker = pool.alive()[0]
    pool.die(worker)
    for report in (Ready(1, 1), Finished(1, 1, Outcome(1, ok=True), 0.0, 0.0), Died(1)):
        pool.scheduler.handle(report, pool.now)
    pool.check()
    pool.end()


def test_a_worker_that_says_twice_that_it_is_ready_is_idle_once() -> None:
    """The second time changes nothing."""
    pool = up()
    pool.scheduler.handle(Ready(1, 1), pool.now)
    pool.check()
    assert len(pool.scheduler.roster.idle) == 1
    pool.submit()
    pool.scheduler.handle(Ready(1, 1), pool.now)
    pool.check()
    assert not pool.scheduler.roster.idle
    pool.end()


def test_a_worker_that_is_killed_while_it_boots_gets_no_work() -> None:
    """It may be up before the kill reaches it."""
    pool = ScriptedPool(2)
    for _ in range(2):
        pool.submit()
    pool.resize(1)
    doomed = next(worker for worker in pool.alive() if worker.killed)
    pool.boot(doomed)
    pool.check()
    assert not doomed.unclaimed
    pool.end()


def test_only_failures_that_may_be_retried_are_read_early() -> None:
    """Unpickling is left to who waits, unless its type decides."""
    pool = up()
    task = pool.submit(retries=1)
    assert pool.scheduler.wants_error(1, task.id)
    assert not pool.scheduler.wants_error(1, 99)
    assert not pool.scheduler.wants_error(99, task.id)
    pool.cancel(task)
    pool.run_to_rest()
    assert not pool.scheduler.wants_error(1, pool.submit().id)
    pool.end()


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
    pool.scheduler._dispatcher.times.measured("work", 1e-6)
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
    pool.scheduler._dispatcher.times.measured("work", 1e-6)
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


# ===== deaths =====


def test_a_crash_costs_the_task_that_was_begun_and_no_other() -> None:
    """What the worker had not claimed runs elsewhere, once."""
    pool = up()
    pool.scheduler._dispatcher.times.measured("work", 1e-6)
    pool.submit()
    tasks = [pool.submit() for _ in range(3)]
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    pool.die(worker, signal="SIGSEGV")
    error = error_of(pool, tasks[0])
    assert isinstance(error, WorkerCrashed)
    assert (error.signal, error.worker_id, error.pid) == ("SIGSEGV", 1, 1001)
    assert "attempt 1" in str(error)
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok and task.attempts == 1 for task in tasks[1:])
    assert pool.scheduler.counters.crashed == 1
    assert pool.scheduler.roster.respawned == 1
    pool.end()


def test_a_worker_that_dies_before_it_began_touches_no_task() -> None:
    """It runs elsewhere, and that is its first attempt."""
    pool = up()
    task = pool.submit()
    pool.die(pool.runner(task))
    assert task.phase is TaskPhase.QUEUED
    assert task.attempts == 0
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    assert task.attempts == 1
    pool.end()


def test_an_outcome_that_was_written_before_the_death_counts() -> None:
    """Only the task that it had begun after that is lost."""
    pool = up()
    pool.scheduler._dispatcher.times.measured("work", 1e-6)
    pool.submit()
    first, second = pool.submit(), pool.submit()
    worker = pool.alive()[0]
    pool.run(worker)
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    pool.claim(worker)
    pool.die(worker)
    assert pool.outcomes[first].ok
    assert isinstance(error_of(pool, second), WorkerCrashed)
    pool.end()


def test_a_worker_that_dies_idle_is_replaced_and_costs_nothing() -> None:
    """The pool keeps its size."""
    pool = up(2)
    task = pool.submit()
    worker = pool.runner(task)
    pool.run(worker)
    pool.die(worker)
    assert len(pool.alive()) == 2
    assert pool.scheduler.counters.failed == 0
    pool.end()


# ===== retries =====


def crash_once(pool: ScriptedPool, **options: Any) -> AnyTask:
    task = pool.submit(**options)
    worker = pool.runner(task)
    pool.claim(worker)
    pool.die(worker)
    return task


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


def test_a_failure_that_nobody_has_read_is_not_retried() -> None:
    """Its type is not known, so it is delivered."""
    pool = up()
    task = pool.submit(retries=1, retry_on=(Exception,))
    worker = pool.runner(task)
    pool.claim(worker)
    unread = Outcome(b"pickled", ok=False, load=lambda _: ValueError())
    pool.scheduler.handle(Finished(1, task.id, unread, pool.now, pool.now), pool.now)
    pool.collect()
    worker.running = None
    assert pool.outcomes[task] is unread
    pool.end()


# ===== boots =====


def test_boots_that_fail_back_off_and_tell_the_tasks_after_three() -> None:
    """The tasks get the reason, each its own error; nothing is started for nobody."""
    pool = ScriptedPool()
    tasks = [pool.submit(), pool.submit()]
    delays = []
    for _ in range(3):
        since = pool.now
        while not pool.alive():
            due = pool.scheduler.next_deadline()
            assert due is not None
            pool.tick(due - pool.now)
        delays.append(pool.now - since)
        pool.check()
        pool.die(pool.alive()[0], exitcode=7)
    assert delays[0] == 0.0
    assert 0.05 <= delays[1] <= 0.1 <= delays[2] <= 0.2
    first, second = (error_of(pool, task) for task in tasks)
    assert first is not second
    assert isinstance(first, WorkerCrashed)
    assert "3 workers in a row" in str(first)
    assert first.exitcode == 7
    assert pool.scheduler.boots_failed == 1
    assert isinstance(pool.scheduler.last_boot_error, WorkerCrashed)
    pool.tick(100.0)
    assert pool.alive() == []
    pool.end()


def test_after_boots_were_given_up_the_next_task_tries_again() -> None:
    """The pool is not broken for ever by what may pass."""
    pool = ScriptedPool()
    pool.submit()
    while not pool.scheduler.boots_failed:
        if pool.alive():
            pool.die(pool.alive()[0], exitcode=1)
        else:
            pool.tick(0.1)
    task = pool.submit()
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


def test_deaths_of_workers_that_were_ready_do_not_count_as_failed_boots() -> None:
    """They back off, but tell no task that booting is hopeless."""
    pool = ScriptedPool()
    for _ in range(5):
        pool.tick(20.0)
        pool.warm_up()
        pool.die(pool.alive()[0])
    assert pool.alive() == [], "no back-off"
    assert pool.scheduler.boots_failed == 0
    task = pool.submit()
    pool.tick(20.0)
    pool.die(pool.alive()[0])
    assert task not in pool.outcomes
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


def test_workers_that_die_idle_together_are_no_failed_boots() -> None:
    """They had been ready."""
    pool = up(3)
    for worker in pool.alive():
        pool.die(worker)
    assert pool.scheduler.boots_failed == 0
    pool.end()


def test_failed_boots_count_in_a_row() -> None:
    """One that works in between, and the count begins anew."""
    pool = ScriptedPool(2)
    task = pool.submit()
    for fails in (True, True, False, True, True):
        pool.tick(20.0)
        worker = pool.alive()[0]
        if not fails:
            pool.boot(worker)
        pool.die(worker)
    assert task not in pool.outcomes
    pool.tick(20.0)
    pool.die(pool.alive()[0])
    assert isinstance(error_of(pool, task), WorkerCrashed)
    pool.end()


def test_while_a_worker_is_up_boots_that_fail_cost_no_task() -> None:
    """The tasks have somebody who runs them."""
    pool = ScriptedPool(2)
    first, second = pool.submit(), pool.submit()
    pool.boot(pool.alive()[0])
    pool.claim(pool.alive()[0])
    for _ in range(5):
        booting = [worker for worker in pool.alive() if not worker.up]
        if booting:
            pool.die(booting[0], exitcode=1)
        pool.tick(30.0)
    assert second not in pool.outcomes
    pool.finish(pool.runner(first))
    pool.run(pool.runner(second))
    assert pool.outcomes[second].ok
    pool.end()


def test_a_crash_at_work_is_replaced_without_backoff() -> None:
    """A task that kills its worker does not slow down the others."""
    pool = up()
    for _ in range(4):
        crash_once(pool)
        assert len(pool.alive()) == 1
        pool.boot(pool.alive()[0])
    assert pool.scheduler.counters.crashed == 4
    pool.end()


def test_a_failed_initializer_stops_the_pool() -> None:
    """What has not begun fails with it, what runs is finished, nothing is started again."""
    pool = ScriptedPool(4)
    running = pool.submit(retries=3, retry_on=(ValueError,))
    for _ in range(3):
        pool.submit()
    one, two, three, four = pool.alive()
    pool.boot(one)
    pool.claim(one)
    pool.boot(two)
    pool.run(two)
    queued = pool.submit()
    pool.run(two)
    pool.run(two)
    assert pool.runner(queued) is two, "sent and not begun"
    cause = OSError("no disk")
    pool.fail_boot(three, cause)
    pool.drain(two)
    assert two.stopped
    assert four.killed
    assert isinstance(error_of(pool, queued), InitializerFailed)
    assert error_of(pool, queued).__cause__ is cause
    assert pool.scheduler.broken is not None
    assert pool.scheduler.broken.error is cause
    with pytest.raises(InitializerFailed) as caught:
        pool.submit()
    assert caught.value.__cause__ is cause
    pool.finish(one, error=ValueError())
    assert isinstance(error_of(pool, running), ValueError), "a broken pool retries nothing"
    pool.run_to_rest()
    assert pool.scheduler.phase is PoolPhase.CLOSED
    assert len(pool.workforce.workers) == 0


def test_the_first_reason_of_a_failed_initializer_stands() -> None:
    """Two workers may fail together."""
    pool = ScriptedPool(2)
    pool.submit()
    pool.submit()
    one, two = pool.alive()
    first = OSError("first")
    pool.fail_boot(one, first)
    pool.fail_boot(two, OSError("second"))
    assert pool.scheduler.broken is not None
    assert pool.scheduler.broken.error is first
    assert pool.scheduler.phase is PoolPhase.CLOSED


# ===== events and looking =====


def test_events_are_told_in_order_to_those_who_listen() -> None:
    """A worker's start, a task's beginning, retry and end, a worker's exit and its cause."""
    pool = ScriptedPool()
    pool.scheduler.listened = frozenset(EVENT_NAMES.values())
    task = pool.submit(retries=1)
    for _ in range(2):
        pool.boot(pool.alive()[0])
        pool.tick(1.0)
        pool.claim(pool.runner(task))
        if task.attempts == 0:
            pool.die(pool.runner(task), exitcode=9)
    pool.finish(pool.runner(task))
    pool.end()
    names = {kind: name for name, kind in EVENT_NAMES.items()}
    assert [names[type(event)] for event in pool.events] == [
        *["worker_started", "task_started", "task_retried", "worker_exited"],
        *["worker_started", "task_started", "task_done", "worker_exited"],
    ]
    exits = [event for event in pool.events if names[type(event)] == "worker_exited"]
    assert [(event.cause, event.exitcode) for event in exits] == [("crashed", 9), ("stopped", 0)]
    assert pool.events[2].task is task
    assert pool.events[2].delay > 0


def test_nothing_is_noted_for_nobody() -> None:
    """Without listeners there are no events, and no beginnings are asked for."""
    pool = up()
    pool.scheduler.listened = frozenset(EVENT_NAMES.values())
    assert pool.scheduler.listened == frozenset(EVENT_NAMES.values())
    pool.scheduler.listened = frozenset()
    task = pool.submit()
    pool.claim(pool.runner(task))
    assert not pool.runner(task).announce
    pool.finish(pool.runner(task))
    pool.end()
    assert pool.events == []


def test_the_beginning_of_a_task_that_is_settled_is_not_told() -> None:
    """Nor that of a task which the worker was not sent."""
    pool = up()
    pool.scheduler.listened = frozenset(EVENT_NAMES.values())
    task = pool.submit()
    worker = pool.runner(task)
    pool.claim(worker)
    pool.cancel(task)
    pool.deliver(worker)
    pool.scheduler.handle(Begun(worker.id, 99, pool.now), pool.now)
    pool.collect()
    assert "TaskStarted" not in [type(event).__name__ for event in pool.events]
    pool.end()


def test_a_task_has_begun_when_its_worker_says_so() -> None:
    """Not when it is queued, sent, done or settled."""
    pool = up()
    task, queued = pool.submit(), pool.submit()
    worker = pool.runner(task)
    has_begun = pool.scheduler.has_begun
    assert not has_begun(task)
    assert not has_begun(queued)
    pool.claim(worker)
    assert has_begun(task)
    pool.finish(worker, deliver=False)
    assert not has_begun(task)
    pool.deliver(worker)
    assert not has_begun(task)
    pool.end()


def test_giving_up_forgets_everything_and_orders_nothing() -> None:
    """As in a forked child, where the workers are the parent's."""
    pool = up(2)
    tasks = [pool.submit(retries=1) for _ in range(4)]
    pool.claim(pool.runner(tasks[0]))
    pool.die(pool.runner(tasks[0]))
    orders = [(worker.killed, worker.stopped) for worker in pool.alive()]
    assert pool.scheduler.give_up() == tasks
    assert [(worker.killed, worker.stopped) for worker in pool.alive()] == orders
    assert pool.scheduler.phase is PoolPhase.CLOSED
    assert pool.scheduler.unsettled_tasks() == []
    assert not pool.scheduler.cancel(tasks[0], pool.now)
    pool.scheduler.tick(pool.now + 100.0)
    pool.shutdown(kill=True)
    with pytest.raises(PoolkitError):
        pool.submit()
