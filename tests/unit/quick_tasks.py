"""A pool that knows its tasks to be quick, so that several go out at once."""

from __future__ import annotations

from typing import Any

from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker

from poolkit._core.workforce import WorkerExited


def up(size: int = 1, **limits: Any) -> ScriptedPool:
    """A pool whose workers are up, and that knows `work` to be quick."""
    pool = ScriptedPool(size, **limits)
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
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
