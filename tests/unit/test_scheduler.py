"""Scheduler: submitting, cancelling, outcomes, and who hears of them."""

from __future__ import annotations

import math
from collections import deque

import pytest
from unit.scripted import ScriptedPool, error_of, up

from poolkit._core.scheduler import PoolPhase
from poolkit._core.workforce import EVENT_NAMES, Begun, Died, Finished, Ready, Status
from poolkit.errors import PoolClosed, PoolkitError, QueueFull, SerializationError

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
    """What a submit costs does not grow with what is queued: no status, no reclaim, no timer beyond its own."""
    pool = up(2)
    for _ in range(1000):
        pool.submit(priority=1, timeout=5.0)
    assert pool.workforce.reclaims == 0
    assert len(pool.scheduler.timers) <= 3  # two limits, and one look at whether what was sent has begun
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
    with pytest.raises(PoolClosed, match=r"cannot submit work: the pool was shut down, .* \(1 tasks are still"):
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
    pool.scheduler.handle_all(deque([worker.pipe.popleft()]), pool.now)
    assert pool.scheduler.settled
    assert pool.scheduler.roster.idle
    pool.end()


@pytest.mark.parametrize("task_id", [0, 2, 99])
def test_an_outcome_that_is_not_due_is_ignored(task_id: int) -> None:
    """Only a worker that was tampered with says so, and it harms no other task."""
    pool = up()
    first, second = pool.submit(), pool.submit()
    pool.scheduler.handle_all(deque([Finished(1, task_id, 0.0, 0.0, 0, "forged", True)]), pool.now)
    assert pool.scheduler.settled == []
    pool.run_to_rest()
    assert pool.outcomes[first].payload is pool.outcomes[second].payload is None
    pool.scheduler.handle_all(deque([Finished(1, 1, 0.0, 0.0, 0, "forged", True)]), pool.now)
    pool.end()


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf])
def test_times_that_are_none_harm_nothing(nonsense: float) -> None:
    """A worker may write anything into its frames and onto its board."""
    pool = up()
    task = pool.submit(timeout=1.0)
    worker = pool.runner(task)
    pool.claim(worker)
    worker.status = Status(task.id, nonsense, 0)
    other = pool.submit(queue_timeout=0.5)
    pool.tick(0.5)
    assert other in pool.outcomes, "its own clock stopped those of others"
    pool.scheduler.handle_all(deque([Finished(1, task.id, nonsense, nonsense, 0, 1, True)]), pool.now)
    pool.collect()
    worker.running = None
    assert pool.scheduler.counters.run_time.snapshot().total == 0.0
    pool.end()


def test_reports_of_workers_that_are_gone_are_ignored() -> None:
    """Late words change nothing."""
    pool = up()
    worker = pool.alive()[0]
    pool.die(worker)
    for report in (Ready(1, 1), Finished(1, 1, 0.0, 0.0, 0, 1, True), Died(1)):
        pool.scheduler.handle_all(deque([report]), pool.now)
    pool.check()
    pool.end()


def test_a_worker_that_says_twice_that_it_is_ready_is_idle_once() -> None:
    """The second time changes nothing."""
    pool = up()
    pool.scheduler.handle_all(deque([Ready(1, 1)]), pool.now)
    pool.check()
    assert len(pool.scheduler.roster.idle) == 1
    pool.submit()
    pool.scheduler.handle_all(deque([Ready(1, 1)]), pool.now)
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
    pool.scheduler.handle_all(deque([Begun(worker.id, 99)]), pool.now)
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
