"""Scheduler: what happens to work when its worker dies, or does not come up."""

from __future__ import annotations

import pytest
from unit.scripted import ScriptedPool, crash_once, error_of, up

from poolkit._core.scheduler import PoolPhase
from poolkit.errors import InitializerFailed, WorkerCrashed
from poolkit.task import TaskPhase

# ===== deaths =====


def test_a_crash_costs_the_task_that_was_begun_and_no_other() -> None:
    """What the worker had not claimed runs elsewhere, once."""
    pool = up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
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
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
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


def test_boots_that_one_cause_ends_together_count_once() -> None:
    """Such as the death of the template process: those tasks run on the workers that come after."""
    pool = ScriptedPool(4)
    tasks = [pool.submit() for _ in range(4)]
    assert len(pool.alive()) == 4
    pool.tick(0.1)
    for worker in pool.alive():
        pool.die(worker)
    assert pool.scheduler.boots_failed == 0
    pool.tick(10.0)
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
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


def test_workers_that_are_killed_while_they_are_idle_are_replaced_at_once() -> None:
    """Somebody else kills them, faster than tasks finish; a task that comes then runs."""
    pool = up(2)
    for _ in range(20):
        pool.tick(0.2)
        pool.die(pool.alive()[0], signal="SIGKILL")
        assert len(pool.alive()) == 2
        pool.boot(pool.alive()[-1])
    task = pool.submit()
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


def test_only_from_the_third_in_a_row_on_workers_that_die_as_soon_as_they_are_ready_back_off() -> None:
    """The delays grow; what worked in between begins the row anew."""
    pool = up()

    def die_at_once() -> float:
        """The delay until the next one is started."""
        pool.tick(0.05)
        pool.die(pool.alive()[0])
        since = pool.now
        while not pool.alive():
            due = pool.scheduler.next_deadline()
            assert due is not None
            pool.tick(due - pool.now)
        pool.boot(pool.alive()[0])
        return pool.now - since

    first, second, third, fourth, fifth = [die_at_once() for _ in range(5)]
    assert first == second == 0.0
    assert 0.05 <= third <= 0.1 <= fourth <= 0.2 <= fifth <= 0.4
    pool.tick(0.2)
    pool.die(pool.alive()[0])
    pool.boot(pool.alive()[0])
    assert [die_at_once(), die_at_once()] == [0.0, 0.0]
    crash_once(pool)
    pool.boot(pool.alive()[0])
    assert [die_at_once(), die_at_once()] == [0.0, 0.0]
    pool.end()


def test_workers_that_die_idle_together_are_no_failed_boots() -> None:
    """They had been ready."""
    pool = up(3)
    for worker in pool.alive():
        pool.die(worker)
    assert pool.scheduler.boots_failed == 0
    pool.end()


def test_workers_that_die_together_while_they_boot_are_one_failed_boot() -> None:
    """The template process was killed, say; the next ones get their chance, and soon."""
    pool = ScriptedPool(8)
    tasks = [pool.submit() for _ in range(8)]
    pool.tick(1.0)
    for worker in pool.alive():
        pool.die(worker)
    assert pool.scheduler.boots_failed == 0
    pool.tick(0.1)
    assert pool.alive(), "one failure's back-off, not eight"
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
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
