"""Stats: the frozen snapshots that users get of a pool's counts. Times in seconds, sizes in bytes."""

from __future__ import annotations

import dataclasses

from poolkit.task import Progress


@dataclasses.dataclass(frozen=True)
class HistogramSnapshot:
    """Times seen so far, in seconds.

    Attributes:
        count: how many.
        total: their sum.
        largest: the largest one; 0.0 when there is none.
        buckets: (upper bound, count) of every bucket that holds something, in order.
    """

    count: int
    total: float
    largest: float
    buckets: tuple[tuple[float, int], ...]

    @property
    def mean(self) -> float:
        """The average; 0.0 when there is none."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """A time that `percent` (0 to 100) of the values do not exceed, to within a fifth; 0.0 when there is none.

        A snapshot never changes, so threads may share it; does not block. Raises ValueError: no such percentage.
        """
        if not 0 <= percent <= 100:  # noqa: PLR2004
            msg = f"percent must be from 0 to 100, was {percent!r}"
            raise ValueError(msg)
        wanted = self.count * percent / 100
        seen = 0
        for bound, count in self.buckets:
            seen += count
            if seen >= wanted:
                return min(bound, self.largest)
        return self.largest


@dataclasses.dataclass(frozen=True)
class PoolStats:
    """What a pool did and does, at one moment.

    Every accepted task is in exactly one of `queued`, `running`, `succeeded`, `failed` and `cancelled`;
    `timed_out` is among the failed ones.

    Attributes:
        workers: number of workers by state: "starting", "idle", "busy", "stopping", "dying", "stalled".
        queued: accepted and not begun, those that wait for a retry included.
        running: begun and not done.
        submitted: accepted in all.
        succeeded: tasks that returned a value.
        failed: tasks that ended in an exception, of whatever kind.
        cancelled: tasks that were cancelled.
        timed_out: tasks stopped by `timeout`, `queue_timeout` or `deadline`.
        crashed: runs whose worker died, retried ones included.
        retried: runs that were repeated.
        respawned: workers replaced after a death that nobody asked for.
        recycled: workers replaced on plan, by task count or memory.
        abandoned: threads given up because they would not stop.
        wait_time: from `submit` until the task began.
        run_time: of every run that ended by itself.
        items: of streams, that came from the workers, taken or not.
        messages: of tasks, the same.
        link_bytes_sent: bytes of calls sent to the workers.
        link_bytes_received: bytes of outcomes received from them.
        arena_bytes_sent: bytes of calls that went through shared memory.
        arena_bytes_received: bytes of values that came through shared memory.
        arena_blocks_leased: blocks of shared memory that somebody may still see, or that are on their way.
        arena_bytes: shared memory of the pool and its workers in all, leased or kept for the next call.
        arena_bytes_kept: what of it is free.
        nodes: machines that take work, of a pool on several.
        network_bytes_sent, network_bytes_received, network_messages: between them and their owner.
    """

    workers: dict[str, int]
    queued: int
    running: int
    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    timed_out: int
    crashed: int
    retried: int
    respawned: int
    recycled: int
    abandoned: int
    wait_time: HistogramSnapshot
    run_time: HistogramSnapshot
    link_bytes_sent: int
    link_bytes_received: int
    arena_bytes_sent: int = 0
    arena_bytes_received: int = 0
    arena_blocks_leased: int = 0
    arena_bytes: int = 0
    arena_bytes_kept: int = 0
    items: int = 0
    messages: int = 0
    nodes: int = 0
    network_bytes_sent: int = 0
    network_bytes_received: int = 0
    network_messages: int = 0


@dataclasses.dataclass(frozen=True)
class WorkerInfo:
    """One worker at one moment.

    Attributes:
        id: its number in the pool; never given twice.
        pid: its process id; of a thread its native thread id; None while it starts.
        state: "starting", "idle", "busy", "stopping", "dying" or "stalled".
        task: the task it runs, or None. It may have ended since.
        since: seconds since it began that task, or since it came into its state.
        tasks_done: how many tasks it has finished.
        rss: its resident memory in bytes; None when not known, as for threads.
        progress: what its task has reported, see `Task.progress`.
        node: the address of the node that it is on; None where there are none.
    """

    id: int
    pid: int | None
    state: str
    task: object
    since: float
    tasks_done: int
    rss: int | None
    progress: Progress | None = None
    node: str | None = None
