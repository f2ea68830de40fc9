"""Snapshots: the frozen pictures of a pool that users get. Made under the pool's lock, from the scheduler's records."""

from __future__ import annotations

from collections.abc import Sequence

from poolkit._core.scheduler import Scheduler
from poolkit._core.stats import PoolStats, WorkerInfo
from poolkit._core.workforce import AnyTask, Status, Worker, WorkerState
from poolkit.task import SENT


def pool_stats(
    scheduler: Scheduler,
    posted: int,
    received: Sequence[int],
    link_bytes: tuple[int, int] = (0, 0),
    memory_use: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0),
) -> PoolStats:
    """The counts of a pool; `received`: items and messages."""
    states = {state.name.lower(): 0 for state in WorkerState}
    sent = running = 0
    for worker in scheduler.roster:
        states[worker.state.name.lower()] += not worker.is_program
        status = worker.workforce.status(worker.id)
        sent += sum(task.phase is SENT for task in worker.sent)
        running += _current(worker, status) is not None
    counters = scheduler.counters
    return PoolStats(
        workers=states,
        queued=posted + len(scheduler.queue) + len(scheduler.waiting) + sent - running,
        running=running,
        submitted=counters.submitted + posted,
        succeeded=counters.succeeded,
        failed=counters.failed,
        cancelled=counters.cancelled,
        timed_out=counters.timed_out,
        crashed=counters.crashed,
        retried=counters.retried,
        respawned=scheduler.roster.respawned,
        recycled=scheduler.roster.recycled,
        abandoned=counters.abandoned,
        wait_time=counters.wait_time.snapshot(),
        run_time=counters.run_time.snapshot(),
        link_bytes_sent=link_bytes[0],
        link_bytes_received=link_bytes[1],
        arena_bytes_sent=memory_use[0],
        arena_bytes_received=memory_use[1],
        arena_blocks_leased=memory_use[2],
        arena_bytes=memory_use[3],
        arena_bytes_kept=memory_use[4],
        items=received[0],
        messages=received[1],
    )


def workers(scheduler: Scheduler, now: float) -> list[WorkerInfo]:
    """What each worker is doing."""
    found = []
    for worker in scheduler.roster:
        if worker.is_program:
            continue
        status = worker.workforce.status(worker.id)
        task = _current(worker, status)
        if task is not None:
            scheduler.note_progress(task)
        since = status.since if task is not None else worker.idle_since
        found.append(
            WorkerInfo(
                id=worker.id,
                pid=worker.pid,
                state=worker.state.name.lower(),
                task=task,
                since=max(0.0, now - since),
                tasks_done=worker.tasks_done,
                rss=None,  # to be read without the lock
                progress=None if task is None else task.reported,
            )
        )
    return found


def _current(worker: Worker, status: Status) -> AnyTask | None:
    """The task that the worker runs, by its board."""
    if status.begun in {0, status.done}:
        return None
    for task in worker.sent:
        if task.id == status.begun and task.phase is SENT:
            return task
    return None
