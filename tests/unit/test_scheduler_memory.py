"""Scheduler: the limit on the memory of a task, and workers that earlier tasks left too large for it."""

from __future__ import annotations

from typing import Any

import pytest
from unit.scripted import ScriptedPool, error_of, running, up

from poolkit._core.policy import CHECK_MEMORY_FAR, CHECK_MEMORY_NEAR, DEATH_GRACE, GROWTH, check_memory_in
from poolkit._core.workforce import EVENT_NAMES, WorkerExited
from poolkit.errors import MemoryLimitExceeded, TaskTimeout
from poolkit.task import TaskPhase

MB = 10**6


def test_a_task_that_grows_beyond_its_limit_is_stopped_at_once() -> None:
    """No time is lost over its stack; the outcome comes with the death, as with other limits."""
    pool = ScriptedPool()
    pool.scheduler.listened = frozenset(EVENT_NAMES.values())
    task, worker = running(pool, memory_limit=100 * MB)
    worker.memory = 99 * MB
    pool.tick(1.0)
    assert not worker.killed
    worker.memory = 101 * MB
    pool.tick(CHECK_MEMORY_NEAR)
    assert worker.killed
    assert not worker.want_stack
    assert task not in pool.outcomes
    pool.die(worker, signal="SIGKILL")
    error = error_of(pool, task)
    assert isinstance(error, MemoryLimitExceeded)
    assert (error.limit, error.used, task.attempts) == (100 * MB, 101 * MB, 1)
    assert "101.0 MB, beyond the task's memory_limit of 100.0 MB; it had 0.0 MB when" in str(error)
    counters = pool.scheduler.counters
    assert (counters.failed, counters.timed_out, counters.crashed) == (1, 0, 0)
    assert [event.cause for event in pool.events if isinstance(event, WorkerExited)] == ["memory"]
    pool.end()


def test_it_is_looked_at_often_near_the_limit_and_seldom_far_from_it() -> None:
    """And not at all when nobody has a limit, or nobody who has one runs."""
    assert check_memory_in(-1) == check_memory_in(0) == CHECK_MEMORY_NEAR
    assert check_memory_in(0.02 * GROWTH) == pytest.approx(0.02)
    assert check_memory_in(10**12) == CHECK_MEMORY_FAR
    pool = ScriptedPool()
    _, worker = running(pool, memory_limit=10**12)
    assert pool.scheduler.next_deadline() == pytest.approx(pool.now + CHECK_MEMORY_NEAR)
    pool.tick(CHECK_MEMORY_NEAR)
    assert pool.scheduler.next_deadline() == pytest.approx(pool.now + CHECK_MEMORY_FAR)
    pool.finish(worker)
    pool.tick(CHECK_MEMORY_FAR)
    assert pool.scheduler.next_deadline() is None
    running(pool)
    assert pool.scheduler.next_deadline() is None
    pool.end()


def test_a_worker_that_cannot_be_weighed_just_now_is_looked_at_again() -> None:
    """For want of a descriptor, say."""
    pool = ScriptedPool()
    task, worker = running(pool, memory_limit=100)
    worker.memory = None
    pool.tick(1.0)
    worker.memory = 101
    pool.tick(CHECK_MEMORY_FAR)
    pool.die(worker)
    assert isinstance(error_of(pool, task), MemoryLimitExceeded)
    pool.end()


def test_a_worker_that_an_earlier_task_left_too_large_is_exchanged_first() -> None:
    """Neither the task that left it so nor the next one fails for it."""
    pool = up(1)
    big, fat = pool.submit(), pool.alive()[0]
    assert pool.runner(big) is fat
    pool.claim(fat)
    fat.memory = 500
    pool.finish(fat, "big")
    task = pool.submit(memory_limit=100)
    assert fat.stopped
    pool.run_to_rest()
    assert pool.outcomes[big].ok
    assert pool.outcomes[task].ok
    assert pool.scheduler.counters.failed == 0
    assert pool.scheduler.roster.recycled == 1
    pool.end()


def idle_workers(size: int, memory: int) -> ScriptedPool:
    """A pool whose workers have all run something that left them so large."""
    pool = up(size)
    for task in [pool.submit() for _ in range(size)]:
        worker = pool.runner(task)
        worker.memory = memory
        pool.claim(worker)
    for worker in pool.alive():
        pool.finish(worker)
    return pool


def test_one_task_with_a_limit_costs_one_worker_at_most() -> None:
    """However many others were left too large; and none while one of them was not."""
    pool = idle_workers(6, 500)
    first = pool.submit(memory_limit=100)
    assert first.phase is TaskPhase.QUEUED
    assert (sum(worker.stopped for worker in pool.alive()), len(pool.alive())) == (1, 7)
    second = pool.submit(memory_limit=100)
    pool.tick(1.0)
    assert sum(worker.stopped for worker in pool.alive()) == 1, "one is on its way"
    pool.run_to_rest()
    assert pool.outcomes[first].ok
    assert pool.outcomes[second].ok
    assert pool.scheduler.roster.recycled <= 2
    before = pool.scheduler.roster.recycled
    third = pool.submit(memory_limit=100)
    assert pool.runner(third).memory == 0
    assert pool.scheduler.roster.recycled == before
    pool.end()


def test_a_worker_is_started_for_it_also_where_idle_ones_would_do_for_others() -> None:
    """While the pool finishes, and while workers that died are waited for."""
    pool = idle_workers(3, 500)
    held = pool.submit()
    pool.claim(pool.runner(held))
    task = pool.submit(memory_limit=100)
    pool.shutdown()
    (new,) = (worker for worker in pool.alive() if not worker.up)
    pool.die(new)
    assert pool.scheduler.roster.recycled == 1, "there is a place, so no other one goes"
    pool.tick(1.0)
    (new,) = (worker for worker in pool.alive() if not worker.up)
    pool.boot(new)
    assert pool.runner(task) is new
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    assert pool.scheduler.roster.recycled == 1
    pool.end()


def test_a_place_that_is_free_is_taken_before_a_worker_goes() -> None:
    """Two of at most three are up."""
    pool = ScriptedPool(3)
    task = pool.submit()
    pool.boot(pool.alive()[0])
    pool.runner(task).memory = 500
    pool.run(pool.runner(task))
    task = pool.submit(memory_limit=100)
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    assert (pool.scheduler.roster.recycled, len(pool.alive())) == (0, 2)
    pool.end()


def test_the_only_worker_is_exchanged_too_also_while_the_pool_finishes() -> None:
    """Accepted tasks are finished after a shutdown."""
    pool = up(1)
    worker = pool.alive()[0]
    pool.submit()
    pool.claim(worker)
    worker.memory = 500
    task = pool.submit(memory_limit=100)
    pool.shutdown()
    pool.finish(worker)
    assert worker.stopped
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


def test_a_limit_below_what_a_new_worker_needs_is_told_as_that() -> None:
    """A new one would be no smaller, so it is not exchanged."""
    pool = up(1)
    pool.alive()[0].memory = 50 * MB
    task, worker = running(pool, memory_limit=10 * MB)
    pool.tick(CHECK_MEMORY_NEAR)
    pool.die(worker)
    assert "it had 50.0 MB when it was sent the task; the limit is below" in str(error_of(pool, task))
    pool.end()


def test_a_task_with_a_limit_is_sent_alone_to_an_idle_worker() -> None:
    """What its worker had before is known then."""
    pool = up(1)
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    held = pool.submit()
    tasks = [pool.submit(), pool.submit(memory_limit=100), pool.submit(memory_limit=100), pool.submit()]
    worker = pool.runner(held)
    pool.run(worker)
    pool.claim(worker)
    assert [task.phase for task in tasks] == [TaskPhase.SENT] + [TaskPhase.QUEUED] * 3
    pool.finish(worker)
    assert [task.phase for task in tasks[1:]] == [TaskPhase.SENT] + [TaskPhase.QUEUED] * 2
    pool.run_to_rest()
    assert all(outcome.ok for outcome in pool.outcomes.values())
    pool.end()


def test_none_is_sent_ahead_behind_tasks_that_take_no_time() -> None:
    """None that could be measured."""
    pool = up(1)
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 0.0)
    worker = pool.runner(pool.submit())
    others = [pool.submit(), pool.submit()]
    limited = pool.submit(memory_limit=100)
    pool.run(worker)
    assert [task.phase for task in others] == [TaskPhase.SENT] * 2
    pool.run(worker)
    assert limited.phase is TaskPhase.QUEUED
    pool.run_to_rest()
    assert pool.outcomes[limited].ok
    pool.end()


def test_a_task_that_has_not_begun_is_not_laid_what_its_worker_takes() -> None:
    """Nor is it taken back for that."""
    pool = up(1)
    worker = pool.runner(pool.submit(memory_limit=100))
    worker.memory = 101
    pool.tick(CHECK_MEMORY_FAR * 4)
    assert not worker.killed
    assert worker.unclaimed
    assert pool.workforce.reclaims == 0
    worker.memory = 0
    pool.run_to_rest()
    pool.end()


def test_a_task_that_ended_in_time_is_not_punished_for_what_it_left() -> None:
    """Its outcome is in the pipe; nor is the next one."""
    pool = up(1)
    task, worker = running(pool, memory_limit=100)
    worker.memory = 200
    pool.finish(worker, "value", deliver=False)
    pool.tick(1.0)
    assert not worker.killed
    pool.deliver(worker)
    assert pool.outcomes[task].payload == "value"
    pool.end()


def test_a_task_that_ends_while_it_is_weighed_is_not_punished() -> None:
    """Between the look and the reclaim."""
    pool = up(1)
    task, worker = running(pool, memory_limit=100)
    worker.memory = 200
    reclaim = pool.workforce.reclaim

    def reclaim_too_late(worker_id: int, taken: list[Any], told: list[Any]) -> None:
        if worker.running is task:
            pool.finish(worker, deliver=False)
        reclaim(worker_id, taken, told)

    pool.workforce.reclaim = reclaim_too_late  # type: ignore[method-assign]
    pool.tick(CHECK_MEMORY_NEAR)
    assert not worker.killed
    pool.deliver(worker)
    assert pool.outcomes[task].ok
    pool.end()


def test_whichever_limit_is_passed_first_is_told() -> None:
    """A time limit beside one on memory is kept to the moment."""
    pool = ScriptedPool()
    task, worker = running(pool, memory_limit=100, timeout=1.0)
    pool.tick(0.999)
    assert not worker.killed
    pool.tick(0.001)
    pool.die(worker)
    assert isinstance(error_of(pool, task), TaskTimeout)
    task, worker = running(pool, memory_limit=100, timeout=1.0)
    worker.memory = 101
    pool.tick(CHECK_MEMORY_NEAR)
    pool.tick(1.0)
    pool.die(worker)
    assert isinstance(error_of(pool, task), MemoryLimitExceeded)
    pool.end()


def test_a_cancel_between_the_kill_and_the_death_wins() -> None:
    """The task is settled once, and nobody else is killed."""
    pool = ScriptedPool()
    task, worker = running(pool, memory_limit=100)
    worker.memory = 101
    pool.tick(CHECK_MEMORY_NEAR)
    assert pool.cancel(task)
    pool.die(worker)
    assert pool.outcomes[task].cancelled
    pool.end()


def test_it_is_retried_when_named_and_only_then() -> None:
    """On another worker, from the start."""
    pool = ScriptedPool()
    once, worker = running(pool, memory_limit=100, retries=1)
    worker.memory = 101
    pool.tick(CHECK_MEMORY_NEAR)
    pool.die(worker)
    assert isinstance(error_of(pool, once), MemoryLimitExceeded)
    again, worker = running(pool, memory_limit=100, retries=1, retry_on=(MemoryLimitExceeded,))
    worker.memory = 101
    pool.tick(CHECK_MEMORY_NEAR)
    pool.die(worker)
    assert again.phase is TaskPhase.WAITING
    while again not in pool.outcomes:
        pool.step()
        pool.tick(0.1)
    assert pool.outcomes[again].ok
    assert again.attempts == 2
    pool.end()


def test_it_does_not_wait_for_ever_for_the_death_of_its_worker() -> None:
    """And is never retried then."""
    pool = ScriptedPool()
    task, worker = running(pool, memory_limit=100, retries=1, retry_on=(MemoryLimitExceeded,))
    worker.memory = 101
    pool.tick(CHECK_MEMORY_NEAR + DEATH_GRACE)
    assert isinstance(error_of(pool, task), MemoryLimitExceeded)
    pool.die(worker)
    pool.end()
