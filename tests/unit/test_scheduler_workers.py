"""Scheduler: batches, priorities and stealing; recycling, idle workers and resizing; the ways to shut down."""

from __future__ import annotations

from typing import Any

import pytest
from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker

from poolkit._core.policy import STOP_GRACE
from poolkit._core.scheduler import PoolPhase
from poolkit._core.workforce import WorkerExited, WorkerState
from poolkit.task import TaskPhase


def up(size: int = 1, **limits: Any) -> ScriptedPool:
    """A pool whose workers are up, and that knows `work` to be quick."""
    pool = ScriptedPool(size, **limits)
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured("work", 1e-6)
    return pool


def sent_ahead(pool: ScriptedPool, count: int, **options: Any) -> tuple[ScriptedWorker, list[AnyTask]]:
    """A worker that runs the first of `count` tasks and has been sent the others.

    The other workers have to be busy; for each of them as many tasks are left in the queue.
    """
    blocker = pool.submit(priority=9)
    worker = pool.runner(blocker)
    tasks = [pool.submit(**options) for _ in range(count * pool.scheduler.roster.ready_count())]
    pool.run(worker)
    pool.claim(worker)
    assert all(task.worker_id == worker.id for task in tasks[:count])
    assert not any(task.worker_id for task in tasks[count:])
    return worker, tasks[:count]


def occupied(pool: ScriptedPool) -> ScriptedWorker:
    """A worker that runs a task."""
    worker = pool.runner(pool.submit())
    pool.claim(worker)
    return worker


def finish_all(pool: ScriptedPool, worker: ScriptedWorker) -> None:
    """Let a worker finish what it runs and all that it is sent."""
    pool.finish(worker)
    while worker.unclaimed:
        pool.run(worker)


def causes(pool: ScriptedPool) -> list[str]:
    return [event.cause for event in pool.events if isinstance(event, WorkerExited)]


# ===== batches =====


def test_quick_tasks_go_out_several_at_once_shared_by_the_workers() -> None:
    """Nobody gets more than its part."""
    pool = up(2)
    first = pool.submit()
    pool.submit()
    for _ in range(20):
        pool.submit()
    worker = pool.runner(first)
    pool.run(worker)
    assert len(worker.unclaimed) == 10
    pool.end()


def test_an_unknown_function_goes_out_alone() -> None:
    """It may run for hours."""
    pool = ScriptedPool(1)
    pool.warm_up()
    first = pool.submit("new")
    for _ in range(9):
        pool.submit("new")
    assert len(pool.runner(first).unclaimed) == 1
    pool.end()


def test_a_worker_gets_more_before_it_has_finished_what_it_has() -> None:
    """So it need not wait for the next message."""
    pool = up(max_batch=2)
    tasks = [pool.submit() for _ in range(8)]
    worker = pool.runner(tasks[0])
    pool.run(worker)
    assert len(worker.unclaimed) == 2
    pool.run(worker)
    assert len(worker.unclaimed) == 3
    pool.end()


def test_nothing_more_is_sent_behind_work_for_a_while() -> None:
    """What is queued can still go anywhere."""
    pool = up(max_batch=3)
    tasks = [pool.submit() for _ in range(8)]
    worker = pool.runner(tasks[0])
    pool.run(worker)
    pool.scheduler._dispatcher.times.measured("work", 0.01)
    pool.run(worker)
    assert len(worker.unclaimed) == 2
    pool.end()


def test_one_that_is_large_is_not_sent_ahead() -> None:
    """It would fill the pipe."""
    pool = up(max_batch=2)
    pool.submit()
    pool.submit()
    pool.submit()
    large = pool.task()
    large.nbytes = 10**6
    pool.scheduler.submit(large, pool.now)
    worker = pool.alive()[0]
    pool.run(worker)
    pool.run(worker)
    assert large.phase is TaskPhase.QUEUED
    pool.end()


def test_kinds_that_gain_nothing_by_it_get_one_task_at_a_time() -> None:
    """As threads do."""
    pool = up(max_batch=1)
    for _ in range(5):
        pool.submit()
    worker = pool.alive()[0]
    pool.run(worker)
    assert len(worker.unclaimed) == 1
    pool.end()


# ===== stealing =====


def test_what_stands_behind_a_slow_task_goes_to_an_idle_worker() -> None:
    """A batch never owns its tasks."""
    pool = up(2, max_batch=64)
    idle = occupied(pool)
    worker, tasks = sent_ahead(pool, 3)
    finish_all(pool, idle)
    assert tasks[1].worker_id == worker.id, "it may be quick"
    pool.tick(0.001)
    assert [task.worker_id for task in tasks[1:]] == [idle.id, None], "each its share"
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_a_look_comes_again_while_the_first_task_has_not_begun() -> None:
    """Nothing is stolen from who has just been sent something."""
    pool = up(2)
    idle = occupied(pool)
    worker, tasks = sent_ahead(pool, 3)
    pool.finish(worker)
    unbegun = list(worker.unclaimed)
    assert len(unbegun) > 2
    finish_all(pool, idle)
    pool.tick(0.01)
    assert list(worker.unclaimed) == unbegun, "the first of them has not begun"
    pool.claim(worker)
    pool.tick(0.01)
    assert not worker.unclaimed
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_a_worker_is_started_for_what_stands_behind_a_slow_task() -> None:
    """It is demand as if it were queued."""
    pool = ScriptedPool(1)
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured("work", 1e-6)
    worker, tasks = sent_ahead(pool, 3)
    pool.resize(2)
    pool.tick(0.002)
    assert len(pool.alive()) == 2
    assert tasks[1].phase is TaskPhase.QUEUED
    pool.finish(worker)
    pool.end()


def test_everybody_who_is_stuck_is_relieved_while_there_is_room() -> None:
    """One stolen task does not fill two idle workers."""
    pool = up(4)
    idle = [occupied(pool), occupied(pool)]
    stuck = [occupied(pool), occupied(pool)]
    tasks = [pool.submit() for _ in range(8)]
    for worker in stuck:
        pool.finish(worker)
        pool.claim(worker)
        while len(worker.unclaimed) > 1:
            pool.finish(worker)
            pool.claim(worker)
    for worker in idle:
        finish_all(pool, worker)
    assert [len(worker.unclaimed) for worker in stuck] == [1, 1]
    pool.tick(0.001)
    assert [len(worker.unclaimed) for worker in [*stuck, *idle]] == [0, 0, 1, 1]
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_several_slow_workers_are_relieved_by_one_look() -> None:
    """One timer, whoever is stuck."""
    pool = up(4)
    workers = [occupied(pool) for _ in range(4)]
    tasks = [pool.submit() for _ in range(16)]
    for worker in workers[:3]:
        pool.finish(worker)
        pool.claim(worker)
    assert all(worker.unclaimed for worker in workers[:3])
    finish_all(pool, workers[3])
    timers = len(pool.scheduler.timers)
    pool.tick(0.0005)
    assert len(pool.scheduler.timers) == timers == 1
    pool.tick(0.001)
    assert workers[3].unclaimed
    assert sum(not worker.unclaimed for worker in workers[:3]) == 1, "one is enough for one idle worker"
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


# ===== priorities =====


def test_a_more_urgent_task_takes_back_what_was_sent_ahead() -> None:
    """Priority is strict: it runs before everything that has not begun."""
    pool = up()
    worker, tasks = sent_ahead(pool, 3)
    urgent = pool.submit(priority=5)
    assert not worker.unclaimed
    pool.finish(worker)
    pool.drain(worker)
    assert pool.claim(worker) is urgent
    pool.finish(worker)
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok and task.attempts == 1 for task in tasks)
    pool.end()


def test_an_equal_or_less_urgent_task_takes_nothing_back() -> None:
    """First in, first out."""
    pool = up()
    worker, tasks = sent_ahead(pool, 3, priority=2)
    assert len(worker.unclaimed) == 2
    for priority in (2, 1, 0, -3):
        pool.submit(priority=priority)
    assert [task for task, _ in worker.unclaimed] == tasks[1:]
    assert pool.workforce.reclaims == 0
    pool.end()


def test_the_last_of_a_mixed_batch_is_taken_back_too() -> None:
    """What was sent ahead is as urgent as its least urgent task."""
    pool = up()
    blocker = pool.submit(priority=9)
    worker = pool.runner(blocker)
    for priority in (3, 3, 1):
        pool.submit(priority=priority)
    pool.run(worker)
    assert [task.options.priority for task, _ in worker.unclaimed] == [3, 3, 1]
    pool.submit(priority=2)
    assert not worker.unclaimed
    pool.end()


def test_urgent_tasks_in_a_row_look_for_what_was_sent_ahead_once() -> None:
    """A burst of them costs one look, not one each."""
    pool = up()
    sent_ahead(pool, 3)
    for _ in range(50):
        pool.submit(priority=1)
    assert pool.workforce.reclaims == 1
    pool.end()


def test_an_urgent_task_that_comes_back_takes_way_too() -> None:
    """From a retry as well as from a submit."""
    pool = up()
    urgent = pool.submit(priority=5, retries=1, retry_on=(ValueError,))
    pool.run(pool.runner(urgent), error=ValueError())
    worker, _ = sent_ahead(pool, 3)
    assert worker.unclaimed
    pool.tick(0.1)
    assert urgent.phase is TaskPhase.QUEUED
    assert not worker.unclaimed
    pool.end()


def test_only_what_is_less_urgent_is_taken_back() -> None:
    """Who was sent nothing less urgent keeps it."""
    pool = up(2)
    workers = [occupied(pool), occupied(pool)]
    urgent = [pool.submit(priority=3) for _ in range(6)]
    pool.finish(workers[0])
    pool.claim(workers[0])
    for _ in range(6):
        pool.submit(priority=1)
    pool.finish(workers[1])
    assert {task.options.priority for task, _ in workers[0].unclaimed} == {3}
    pool.claim(workers[1])
    for task in urgent:
        if task.phase is TaskPhase.QUEUED:
            pool.cancel(task)
    while {task.options.priority for task, _ in workers[1].unclaimed} != {1}:
        pool.run(workers[1]) if workers[1].running is None else pool.finish(workers[1])
    kept = list(workers[0].unclaimed)
    pool.submit(priority=2)
    assert not workers[1].unclaimed
    assert list(workers[0].unclaimed) == kept
    pool.end()


def test_urgent_tasks_that_are_gone_again_take_nothing_back() -> None:
    """The queue knows what is left in it."""
    pool = up()
    blocker = pool.submit(priority=5)
    pool.claim(pool.runner(blocker))
    pool.cancel(pool.submit(priority=5))
    pool.submit()
    pool.submit()
    assert pool.workforce.reclaims == 0
    pool.end()


# ===== recycling =====


@pytest.mark.parametrize("limit", [1, 2, 5, 30])
def test_no_worker_gets_more_tasks_than_its_limit(limit: int) -> None:
    """And nobody waits for a boot while others could work; never are more than `size` busy."""
    pool = ScriptedPool(2, max_tasks_per_child=limit)
    pool.scheduler._dispatcher.times.measured("work", 1e-6)
    tasks = [pool.submit() for _ in range(100)]
    most: dict[int, int] = {}
    while pool.step():
        pool.check()
        assert pool.scheduler.roster.busy <= 2
        for worker in pool.workforce.workers.values():
            most[worker.id] = len(worker.claims)
    assert all(pool.outcomes[task].ok for task in tasks)
    assert max(most.values()) <= limit
    assert sum(most.values()) == 100
    pool.end()


def test_what_was_taken_back_does_not_count_towards_the_limit() -> None:
    """A worker is worn by what it ran."""
    pool = up(max_tasks_per_child=5)
    worker, _ = sent_ahead(pool, 4)
    pool.submit(priority=5)
    pool.finish(worker)
    pool.drain(worker)
    assert worker.unclaimed
    assert not worker.stopped
    pool.end()


def test_slow_tasks_with_one_task_a_worker_do_not_multiply_the_workers() -> None:
    """A replacement is warm, and waits until a place is free."""
    pool = up(2, max_tasks_per_child=1)
    for _ in range(10):
        pool.submit()
    for _ in range(5):
        for worker in pool.alive():
            if not worker.up:
                pool.boot(worker)
            elif worker.unclaimed:
                pool.claim(worker)
        pool.check()
    running = [worker for worker in pool.alive() if worker.running is not None]
    assert len(running) == 2
    assert len(pool.alive()) == 4
    pool.finish(running[0])
    assert sum(bool(worker.unclaimed) for worker in pool.alive()) == 1
    pool.end()


def test_there_are_never_more_than_twice_as_many_workers_as_places() -> None:
    """A replacement that wears out while its predecessors still work gets none of its own yet."""
    pool = up(3, max_memory_per_child=100)
    for worker in [occupied(pool) for _ in range(3)]:
        pool.finish(worker, rss=101)
    assert len(pool.alive()) == 6
    first, _, last = sorted((occupied(pool) for _ in range(3)), key=lambda worker: worker.id)
    pool.finish(last)
    new = pool.alive()[3]
    pool.boot(new)
    assert occupied(pool) is new
    pool.finish(new, rss=101)
    assert pool.scheduler.roster.recycled == 4
    assert len(pool.alive()) == 6
    pool.finish(first)
    pool.die(first)
    assert len(pool.alive()) == 6, "now there is room for it"
    pool.end()


def test_a_worker_leaves_when_its_replacement_is_warm() -> None:
    """Not before, so that the pool keeps serving."""
    pool = up(1, max_memory_per_child=100)
    worker = pool.alive()[0]
    pool.submit()
    pool.run(worker, rss=101)
    assert not worker.stopped
    replacement = next(each for each in pool.alive() if each is not worker)
    meanwhile = pool.submit()
    assert pool.runner(meanwhile) is worker
    pool.boot(replacement)
    assert not worker.stopped, "it has work"
    pool.run(worker)
    assert worker.stopped
    assert pool.runner(pool.submit()) is replacement
    assert pool.scheduler.roster.recycled == 1
    pool.end()


def test_an_idle_worker_leaves_as_soon_as_its_replacement_is_warm() -> None:
    """Which is when its exit is told, with its cause."""
    pool = up(1, max_memory_per_child=100)
    pool.scheduler.listened = frozenset([WorkerExited])
    worker = pool.alive()[0]
    pool.submit()
    pool.run(worker, rss=101)
    pool.boot(pool.alive()[1])
    assert worker.stopped
    pool.die(worker)
    assert causes(pool) == ["recycled"]
    pool.end()


def test_a_worker_within_its_memory_stays() -> None:
    """And one above it is marked once."""
    pool = up(1, max_memory_per_child=100)
    worker = pool.alive()[0]
    for rss in (100, 0, 101, 102):
        pool.submit()
        pool.run(worker, rss=rss)
    assert pool.scheduler.roster.recycled == 1
    assert len(pool.alive()) == 2
    pool.end()


def test_a_worker_that_crashes_while_it_is_to_leave_has_crashed() -> None:
    """The event says what happened, not what was planned."""
    pool = up(1, max_tasks_per_child=1)
    pool.scheduler.listened = frozenset([WorkerExited])
    task = pool.submit()
    worker = pool.runner(task)
    pool.claim(worker)
    pool.die(worker)
    assert causes(pool) == ["crashed"]
    assert pool.scheduler.roster.respawned == 0, "its replacement is on its way"
    assert len(pool.alive()) == 1
    pool.end()


def test_growth_is_no_replacement() -> None:
    """A worker that was started for something else lets nobody go."""
    pool = ScriptedPool(3, max_memory_per_child=100)
    first = pool.submit()
    pool.boot(pool.alive()[0])
    worker = pool.runner(first)
    pool.claim(worker)
    pool.scheduler.warm_up(pool.now)
    pool.finish(worker, rss=101)
    booting = [each for each in pool.alive() if each is not worker]
    assert len(booting) == 3
    pool.boot(booting[0])
    pool.boot(booting[1])
    assert not worker.stopped
    pool.boot(booting[2])
    assert worker.stopped
    pool.end()


# ===== idle workers =====


def test_idle_workers_leave_down_to_the_least() -> None:
    """The longest idle first; they come back on demand."""
    pool = up(3, min_workers=1, idle_timeout=10.0)
    pool.scheduler.listened = frozenset([WorkerExited])
    pool.tick(5.0)
    warmest = pool.runner(pool.submit())
    pool.run(warmest)
    pool.tick(5.0)
    leaving = [worker for worker in pool.alive() if worker.stopped]
    assert len(leaving) == 2
    assert warmest not in leaving
    for worker in leaving:
        pool.die(worker)
    assert causes(pool) == ["idle", "idle"]
    pool.tick(100.0)
    assert pool.alive() == [warmest], "the least stays, and the others are not replaced"
    for _ in range(3):
        pool.submit()
    assert len(pool.alive()) == 3
    pool.end()


def test_a_worker_that_is_used_is_not_idle() -> None:
    """Its time begins anew; it leaves in its turn when none has to stay."""
    pool = up(1, min_workers=0, idle_timeout=10.0)
    worker = pool.alive()[0]
    pool.tick(9.0)
    pool.submit()
    pool.run(worker)
    pool.tick(9.0)
    assert not worker.stopped
    pool.tick(1.0)
    assert worker.stopped
    pool.die(worker)
    assert pool.scheduler.next_deadline() is None, "an idle pool wakes nobody"
    pool.end()


# ===== resizing =====


def test_shrinking_lets_what_runs_end() -> None:
    """Idle ones go first; what a busy one has not begun runs elsewhere."""
    pool = up(3)
    idle = [occupied(pool), occupied(pool)]
    worker, tasks = sent_ahead(pool, 4)
    for each in idle:
        finish_all(pool, each)
    pool.resize(1)
    assert sum(each.stopped for each in pool.alive()) == 2
    assert not worker.stopped
    for each in pool.alive():
        if each.stopped:
            pool.die(each)
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    assert len(pool.alive()) == 1
    pool.end()


def test_shrinking_busy_workers_takes_back_what_they_have_not_begun() -> None:
    """Nothing new is sent to anybody while more are busy than there are places."""
    pool = up(2)
    staying = occupied(pool)
    leaving, tasks = sent_ahead(pool, 3)
    assert leaving.id < staying.id
    pool.resize(1)
    assert not leaving.unclaimed
    pool.finish(leaving)
    pool.drain(leaving)
    assert leaving.stopped
    assert [task.phase for task in tasks[1:]] == [TaskPhase.QUEUED] * 2
    pool.finish(staying)
    assert tasks[1].worker_id == staying.id
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_shrinking_ends_those_that_are_starting_first() -> None:
    """They have done nothing yet."""
    pool = ScriptedPool(3)
    pool.scheduler.listened = frozenset([WorkerExited])
    for _ in range(3):
        pool.submit()
    pool.boot(pool.alive()[0])
    pool.resize(1)
    assert [worker.killed for worker in pool.alive()] == [False, True, True]
    for worker in pool.alive()[1:]:
        pool.die(worker)
    assert causes(pool) == ["shrunk", "shrunk"]
    assert len(pool.alive()) == 1
    pool.end()


def test_growing_serves_what_waits_at_once() -> None:
    """Workers are started for the queue."""
    pool = up(1)
    blocker = pool.submit()
    pool.claim(pool.runner(blocker))
    for _ in range(2):
        pool.submit()
    pool.resize(3)
    assert len(pool.alive()) == 3
    pool.end()


def test_shrinking_does_not_leave_a_worker_over_that_waits_for_its_replacement() -> None:
    """With the replacement gone and enough workers left, it goes too."""
    pool = up(2, max_memory_per_child=100)
    task = pool.submit()
    worker = pool.runner(task)
    pool.run(worker, rss=101)
    pool.resize(1)
    pool.run_to_rest()
    pool.step()
    assert worker.dead
    assert len(pool.alive()) == 1
    pool.end()


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
