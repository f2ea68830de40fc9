"""Snapshots: the records, log lines and errors that tell what a cluster does, made by its thread. No state."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Any

from poolkit import errors
from poolkit._clock import monotonic
from poolkit._cluster.acceptor import Acceptor
from poolkit._cluster.binding import Bound
from poolkit._cluster.logger import log
from poolkit._cluster.member import Running, Why
from poolkit._cluster.records import ClusterStats, ClusterWorkerInfo
from poolkit._core.cluster import KILLED, Member, Rules


def info_of(member: Member, running: Running | None, rules: Rules, *, is_passed: bool) -> ClusterWorkerInfo:
    """What a member does; `is_passed`: the owner passes connections on, so that they are counted."""
    now = monotonic()
    slot = rules.slots.get(member.slot)
    slate = None if running is None else running.slate
    return ClusterWorkerInfo(
        worker_id=member.slot,
        pid=None if running is None else running.pid,
        generation=member.generation,
        state="draining" if member.state == KILLED else member.state,
        since=now - member.since,
        served=0 if slate is None else slate.served,
        connections=None if slate is None or not is_passed else slate.taken - slate.closed,
        rss=0 if running is None else running.memory(),
        alive_ago=None if slate is None or not slate.ready else max(0.0, now - slate.alive),
        restarts=0 if slot is None else slot.restarts,
    )


def waiting_places(rules: Rules) -> list[ClusterWorkerInfo]:
    """The slots that have no member now, and are to get one."""
    now = monotonic()
    return [
        ClusterWorkerInfo(
            slot.number, None, rules.generation, "waiting", now - slot.waits_since, 0, None, 0, None, slot.restarts
        )
        for slot in rules.slots.values()
        if slot.current is None and slot.start_at is not None
    ]  # fmt: skip


def stats_of(
    rules: Rules, acceptor: Acceptor | None, bound: Sequence[Bound], *, served: int, uptime: float
) -> ClusterStats:
    """What a cluster does, and did."""
    counts = rules.counts
    return ClusterStats(
        state=rules.state,
        generation=rules.generation,
        workers=rules.size,
        ready=rules.ready_count(),
        started=counts["started"],
        crashed=counts["crashed"],
        hung=counts["hung"],
        recycled=counts["recycled"],
        reloads=counts["reloads"],
        reloads_failed=counts["reloads_failed"],
        passed=0 if acceptor is None else acceptor.passed,
        passed_again=0 if acceptor is None else acceptor.passed_again,
        served=served,
        queued=tuple(_queued(each.socket) for each in bound),
        uptime=uptime,
    )


def log_table(infos: Sequence[ClusterWorkerInfo]) -> None:
    """Log what each worker does."""
    for info in infos:
        log.info(
            "worker=%d gen=%d pid=%s %s for %.1f s, served %d, %.1f MB, restarts %d",
            *(info.worker_id, info.generation, info.pid, info.state, info.since, info.served),
            *(info.rss / 1e6, info.restarts),
        )


def reload_error(name: str, generation: int, serves: int, why: Any) -> errors.ReloadFailed:
    """What a reload that failed is told with; `serves`: the generation that goes on."""
    text = getattr(why, "text", str(why))
    error = errors.ReloadFailed(
        f"generation {generation} of cluster {name} did not come up, and generation {serves} goes on: a worker {text}"
        if isinstance(why, Why)
        else f"generation {generation} of cluster {name} did not come up: {text}",
        generation=generation,
        worker_id=getattr(why, "worker_id", None),
    )
    error.__cause__ = why.error if isinstance(why, Why) else why if isinstance(why, BaseException) else None
    return error


def _queued(listener: socket.socket) -> int | None:
    """How many connections wait in the kernel; None where that is not known. Linux: `tcpi_unacked` of a listener."""
    with contextlib.suppress(OSError, AttributeError, struct.error):
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int(struct.unpack_from("I", info, 24)[0])
    return None
