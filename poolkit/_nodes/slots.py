"""Slots and nodes: what the owner knows of each, and what it decides by that alone.

A *slot* stands for one worker of a node's own pool, and has one task at a time. While a node's tasks are short it has
*spare* slots beside: tasks that are sent ahead to these begin when a worker is free.
Guarded by: the pool's lock, but for what `workforce.py` says of the provider's thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from poolkit._core.workforce import AnyTask
from poolkit._nodes.interfaces import Channel, NodeFacts
from poolkit._nodes.lease import Landlord
from poolkit._wire.plans import Sent
from poolkit.task import Progress

SHORT = 0.02  # seconds; only where tasks run for less, some are sent ahead
FEWEST_SAMPLES = 16  # tasks of a node before some are sent ahead

Claim = deque[None]  # of one order: whoever gets what is in there may write the task, or take it back


def nothing() -> None:
    """Stand for a reference to what is gone."""


class Slot:
    """What stands for one worker of a node's pool."""

    __slots__ = (
        "begun",
        "claim",
        "done",
        "id",
        "is_alone",
        "is_closed",
        "is_ready",
        "is_spare",
        "last",
        "node",
        "pid",
        "progress",
        "rss",
        "since",
        "task",
    )

    def __init__(self, slot_id: int) -> None:
        self.id = slot_id
        self.node: Node | None = None  # while it waits for one
        self.task: AnyTask | None = None  # sent, and not answered for
        self.last: Callable[[], AnyTask | None] = nothing  # that was sent to it, as long as somebody else has it
        self.claim: Claim = deque()  # of that
        self.begun = self.done = 0  # ids of tasks
        self.since = 0.0
        self.progress: tuple[int, Progress] | None = None
        self.is_ready = False  # that was reported
        self.is_closed = False  # nothing is written for it any more
        self.is_spare = False  # its node has no worker for it, but will have soon
        self.is_alone = False  # its task was sent when its node had a worker for it
        self.pid: int | None = None  # of the node's worker that runs, or ran, its task
        self.rss: int | None = None  # the same

    def withhold(self) -> bool:
        """Have what it was sent not be written any more; False if that was, or is being written. Under the lock."""
        if not self.claim:
            return False
        try:
            self.claim.pop()
        except IndexError:  # it is being written
            return False
        self.claim = deque((None,))  # by which it is taken back; what is in the outbox has the old one
        return True


Order = tuple[tuple[Slot, Claim] | None, tuple[Any, ...], Sequence[Any]]  # an entry, its buffers; of a task, whose


class Node:
    """What the owner knows of one node."""

    def __init__(self, facts: NodeFacts, channel: Channel, lease: float, now: float) -> None:
        self.facts = facts
        self.channel = channel
        self.landlord = Landlord(lease, now)
        self.slots: dict[int, Slot] = {}
        self.outbox: deque[Order] = deque()
        self.sent = Sent()  # of the script
        self.memories: set[int] = set()  # that it has
        self.warm = 0  # so many of its workers have come up: of its slots, as many may be ready
        self.ready = 0  # slots
        self.broken: BaseException | None = None  # what its initializer raised
        self.state = "up"  # then "leaving", "lost"
        self.reason = ""
        self.dead_at = math.inf  # when what it ran has certainly ended
        self.heard = now
        self.busy_at = 0.0  # when it ran something last
        self.tasks_done = 0
        self.used = False  # it is held, as far as its provider goes
        self.plain = self.spare = 0  # how many of its slots are
        self.offer = 0  # number of the last one, see `_offer` of the workforce
        self.extra = 0  # spare slots for each worker
        self.shown = 0  # bytes that its tasks printed and that were written, of which it has not been told
        self.running = 0  # tasks that were written, and not answered for
        self.way = self.mean = 0.0  # seconds: on the way there and back; that a task runs
        self.samples = 0

    def is_busy(self) -> bool:
        """Whether it runs something."""
        return any(slot.task is not None for slot in list(self.slots.values()))

    def count_slots(self) -> None:
        """Take note of how many of its slots are of which kind."""
        self.spare = sum(slot.is_spare for slot in self.slots.values())
        self.plain = len(self.slots) - self.spare
        self.ready = sum(slot.is_ready and not slot.is_spare for slot in self.slots.values())

    def may_begin(self) -> bool:
        """Whether more of its slots may be ready than are."""
        return self.warm > 0 and (self.ready < min(self.warm, self.plain) or self.spare > 0)

    def room(self, *, spare: bool) -> int:
        """How many more slots of this kind may be placed on it."""
        if self.state != "up":
            return 0
        if spare:
            return self.facts.workers * self.extra - self.spare
        return self.facts.workers - self.plain - (0 if self.extra else self.spare)  # those still run something long

    def ran(self, slot: Slot, seconds: float, now: float) -> bool:
        """A task ran for so long; return True if another count of spare slots would be better."""
        self.running -= 1
        self.samples += 1
        self.mean += (seconds - self.mean) / min(self.samples, 16)
        if slot.is_alone:
            self.way += (max(0.0, now - slot.since - seconds) - self.way) / min(self.samples, 16)
        if self.samples < FEWEST_SAMPLES:
            return False
        wanted = 0
        if self.mean <= SHORT:
            wanted = 1 << min(6, math.ceil(math.log2(max(1.0, self.way / max(self.mean, 1e-6)))))
        if wanted == self.extra or (self.extra // 4 < wanted <= self.extra * 2 and wanted):
            return False
        self.extra = wanted
        return True

    def __repr__(self) -> str:
        return f"{self.facts.address} (pid {self.facts.pid} on {self.facts.host})"
