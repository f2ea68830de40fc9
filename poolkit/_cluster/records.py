"""Records: what a cluster tells about itself and its workers. Frozen; no state of its own."""

from __future__ import annotations

from poolkit._core.records import record


@record(frozen=True)
class ClusterWorkerInfo:
    """What a worker of a cluster does now.

    Attributes:
        worker_id: the number of its place, from 0.
        pid: its process id; None before it is up, and of a thread.
        generation: of the code that it runs.
        state: "starting", "ready", "draining", or "waiting" for the end of its place's back-off.
        since: seconds that it has been in that state.
        served: requests that it has counted.
        connections: those that it has open; None where the kernel hands them out.
        rss: its resident memory in bytes; 0 where that is not known.
        alive_ago: seconds since its last sign of life; None before it was ready.
        restarts: how often a worker of its place was replaced after it had died.
    """

    worker_id: int
    pid: int | None
    generation: int
    state: str
    since: float
    served: int
    connections: int | None
    rss: int
    alive_ago: float | None
    restarts: int


@record(frozen=True)
class ClusterStats:
    """What a cluster does now, and what it did so far.

    Attributes:
        state: "starting", "serving", "reloading", "stopping" or "stopped".
        generation: how often the code was loaded.
        workers: how many workers it is to have.
        ready: how many of them serve.
        started, crashed, hung, recycled: workers, so far.
        reloads, reloads_failed: so far.
        passed, passed_again: connections that the owner has passed on; those that a worker had not taken, once more.
        served: requests that were counted, of workers that are gone, too.
        queued: connections in the kernel's queue, of each listener; None where that is not known.
        uptime: seconds since `start`.
    """

    state: str
    generation: int
    workers: int
    ready: int
    started: int
    crashed: int
    hung: int
    recycled: int
    reloads: int
    reloads_failed: int
    passed: int
    passed_again: int
    served: int
    queued: tuple[int | None, ...]
    uptime: float
