"""The scheduler and calls that workers die of before they begin them."""

from __future__ import annotations

from collections import deque

from unit.scripted import AnyTask, ScriptedPool

from poolkit._core import policy
from poolkit.errors import WorkerCrashed
from poolkit.task import TaskPhase


def _submit(pool: ScriptedPool, nbytes: int, **options: object) -> AnyTask:
    task = pool.task("work", **options)
    task.nbytes = nbytes
    pool.scheduler.submit(task, pool.now)
    pool.collect()
    return task


def _die_unbegun(pool: ScriptedPool, task: AnyTask) -> None:
    """Have the worker die that was sent `task`, and a new one come up."""
    pool.die(pool.runner(task), exitcode=1)
    pool.tick(policy.BOOT_CAP)
    pool.warm_up()


def test_a_large_call_that_ends_worker_after_worker_fails() -> None:
    pool = ScriptedPool(1)
    pool.warm_up()
    task = _submit(pool, 600_000_000)
    for _ in range(policy.RECEIVE_FAILURES):
        assert task.phase is TaskPhase.SENT
        _die_unbegun(pool, task)
    error = pool.outcomes[task].payload
    assert isinstance(error, WorkerCrashed)
    assert error.exitcode == 1
    assert "600.0 MB" in str(error)
    assert pool.scheduler.counters.crashed == 1
    assert task.attempts == 0
    later = pool.submit()
    pool.run_to_rest()
    assert pool.outcomes[later].ok
    pool.end()


def test_a_large_call_survives_deaths_that_were_not_its_own() -> None:
    """Once or twice is chance."""
    pool = ScriptedPool(1)
    pool.warm_up()
    task = _submit(pool, 600_000_000)
    for _ in range(policy.RECEIVE_FAILURES - 1):
        _die_unbegun(pool, task)
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


def test_a_small_call_is_never_to_blame() -> None:
    """It arrives in one piece, with the read that brings it."""
    pool = ScriptedPool(1)
    pool.warm_up()
    task = _submit(pool, policy.LARGE_CALL)
    for _ in range(policy.RECEIVE_FAILURES + 2):
        _die_unbegun(pool, task)
    pool.run_to_rest()
    assert pool.outcomes[task].ok
    pool.end()


def test_a_call_is_not_to_blame_for_a_death_in_the_task_before_it() -> None:
    pool = ScriptedPool(1)
    pool.warm_up()
    for _ in range(policy.RECEIVE_FAILURES + 1):
        before = pool.submit("work", retries=0)
        worker = pool.runner(before)
        pool.claim(worker)
        task = _submit(pool, 600_000_000)
        pool.die(worker, exitcode=1)
        assert task.deaths == 0
        pool.tick(policy.BOOT_CAP)
        pool.warm_up()
        pool.run_to_rest()
        assert pool.outcomes[task].ok
    pool.end()


def test_a_call_is_not_sent_to_a_worker_whose_death_is_reported_with_its_last_outcome() -> None:
    """It would be laid to that call."""
    pool = ScriptedPool(1)
    pool.warm_up()
    first = pool.submit()
    worker = pool.runner(first)
    large = _submit(pool, 600_000_000)
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    pool.die(worker, deliver=False)
    pool.scheduler.handle_all(deque(list(worker.pipe)), pool.now)
    worker.pipe.clear()
    pool.collect()
    assert large.deaths == 0
    pool.tick(policy.BOOT_CAP)
    pool.run_to_rest()
    assert pool.outcomes[large].ok
    pool.end()
