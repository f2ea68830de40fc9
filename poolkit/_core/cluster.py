"""Cluster rules: which workers a cluster has, what becomes of each, and when. They decide; `Acts` carries out.

    member   STARTING ── ready ──> READY ── drain ──> DRAINING ── gone, or killed after its grace ──> -
    slot     one current member; at most one coming, which is to take its place; or a time at which the next one starts
    cluster  STARTING ──> SERVING <──> RELOADING ──> STOPPING ──> STOPPED

Guarantees: no plan (a reload, a recycling, a resize that keeps the slot) takes a ready member away before another one
is ready in its place; a slot without a member has a time at which it gets one, until the cluster stops; a reload ends
as done or as undone, once; a member is started, drained and killed at most once each, and told gone once.
Guarded by: the one lock of the cluster. Knows no clock: `now` is an argument, in seconds.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Protocol

from poolkit._core import policy

STARTING, READY, DRAINING, KILLED = "starting", "ready", "draining", "killed"  # of members
SERVING, RELOADING, STOPPING, STOPPED = "serving", "reloading", "stopping", "stopped"  # of clusters, beside STARTING

NO_MORE_FOR = 0.1  # seconds that a member gets no more connections before it is told to stop
RETRY_AFTER = 1.0  # seconds after which a recycling is tried again whose new member did not come up
EARLY = 1.0  # seconds after it was ready in which the death of a member counts as a failed start
FIRST_DEATHS = 3  # of members that were never ready, with which the first start fails
NOBODY_FOR = 10.0  # seconds without a ready member after which a crash loop ends the cluster
BOOT_FAILED, CRASH_LOOP = 3, 4  # exit codes


class Member:
    """One worker of a cluster, from its start until it is gone."""

    __slots__ = ("cause", "generation", "is_due", "kill_at", "number", "ready_at", "since", "slot", "state", "stop_at")

    def __init__(self, number: int, slot: int, generation: int, now: float, boot_timeout: float) -> None:
        self.number, self.slot, self.generation = number, slot, generation
        self.state = STARTING
        self.since = now  # when it came into its state
        self.ready_at: float | None = None
        self.cause = ""  # why it is to end, once it is
        self.is_due = ""  # why it is to be replaced, when there is time for that
        self.stop_at: float | None = None  # when it is to be told to stop
        self.kill_at: float | None = now + boot_timeout  # when it is to be killed: of too long a boot, or drain

    def move(self, state: str, now: float) -> None:
        """Go into another state."""
        self.state, self.since = state, now


class Slot:
    """One place of a cluster."""

    __slots__ = ("coming", "current", "failures", "number", "restarts", "retry_at", "start_at")

    def __init__(self, number: int) -> None:
        self.number = number
        self.current: Member | None = None
        self.coming: Member | None = None
        self.failures = 0  # starts that failed, in a row
        self.start_at: float | None = None  # when the next member is to start
        self.retry_at = 0.0  # no recycling before
        self.restarts = 0


class Acts(Protocol):
    """What carries out the orders. None of it blocks or calls the rules."""

    def start(self, member: Member) -> None:
        """Start a member."""

    def drain(self, member: Member) -> None:
        """Give a member no more connections."""

    def stop(self, member: Member) -> None:
        """Tell a member to stop."""

    def kill(self, member: Member, *, want_stack: bool) -> None:
        """Kill a member."""

    def begin(self, generation: int) -> None:
        """Have the code of a new generation imported anew."""

    def drop(self, generation: int) -> None:
        """Let go of a generation: it has no member any more, and starts none."""

    def close(self) -> None:
        """Take no more connections."""

    def tell(self, event: str, subject: object) -> None:
        """Something has happened.

        "ready" (with the member), "started", "reloaded" (the generation), "undone" (it, and why), "stopped".
        """


class Rules:
    """The rules of one cluster; see the file's header."""

    def __init__(self, size: int, acts: Acts, *, grace: float, boot_timeout: float, rng: random.Random) -> None:
        self._acts, self._rng = acts, rng
        self._grace, self._boot_timeout = grace, boot_timeout
        self.size = size
        self.state = STARTING
        self.generation = 1
        self.slots: dict[int, Slot] = {}
        self.members: dict[int, Member] = {}
        self.counts: Counter[str] = Counter()
        self.exit_code = 0
        self.failure: object = None  # what the cluster failed of
        self._generations: set[int] = set()  # that were begun, and not dropped
        self._numbers = 0
        self._failed_starts = 0  # in a row
        self._nobody_since: float | None = None  # since when no member is ready
        self._last: object = None  # what the last member that failed to start ended of
        self._newest = 1  # generation that was begun
        self._wants_reload = False  # one more, once that can begin
        self._reload_timeout = boot_timeout
        self._give_up_at: float | None = None  # when the reload is undone

    # ===== what happens =====

    def start(self, now: float) -> None:
        """Start the first generation."""
        self._nobody_since = now
        self._begin(self.generation)
        self._fill(now)

    def ready(self, number: int, now: float) -> None:
        """A member serves."""
        member = self.members.get(number)
        if member is None or member.state != STARTING:
            return
        member.move(READY, now)
        member.ready_at, member.kill_at = now, None
        self._failed_starts, self._nobody_since = 0, None
        self._acts.tell("ready", member)
        slot = self.slots[member.slot]
        if slot.coming is member and self.state != RELOADING:
            self._replace(slot, now)
        self._go_on(now)

    def gone(self, number: int, why: object, now: float) -> None:
        """A member has ended, and why: `why` is what errors are told with."""
        member = self.members.pop(number, None)
        if member is None:
            return
        was_planned = member.state in (DRAINING, KILLED) and member.cause not in {"hung", "unresponsive"}
        slot = self.slots.get(member.slot)
        if slot is not None and slot.coming is member:
            slot.coming = None
            if not was_planned:
                self._failed(member, why, now)
                slot.retry_at = now + RETRY_AFTER
                if self.state == RELOADING:
                    self._undo(why, now)
        elif slot is not None and slot.current is member:
            slot.current = None
            if not was_planned:
                self._failed(member, why, now)
                self._make_good(slot, member, now)
        self._note_nobody(now)
        self._go_on(now)

    def hung(self, number: int, now: float) -> None:
        """A member gives no sign of life."""
        member = self.members.get(number)
        if member is not None and member.state == READY:
            self.counts["hung"] += 1
            self._kill(member, "hung", now, want_stack=True)

    def due(self, number: int, why: str, now: float) -> None:
        """A member is to be replaced, once another one is ready."""
        member = self.members.get(number)
        if member is not None and not member.is_due:
            member.is_due = why
            self._go_on(now)

    def reload(self, now: float, timeout: float | None) -> int:
        """Replace all members by such of a new generation; returns the number that it will have.

        During a reload there is one more after it, for all who ask.
        """
        number = self._newest + 1
        self._reload_timeout = self._boot_timeout if timeout is None else timeout
        self._wants_reload = True
        self._go_on(now)
        return number

    def resize(self, size: int, now: float) -> None:
        """Have another number of members."""
        if self.state in (STOPPING, STOPPED):
            return
        self.size = size
        for number in [number for number in self.slots if number > size]:
            slot = self.slots.pop(number)
            for member in (slot.current, slot.coming):
                self._end(member, "shrunk", now)
        self._fill(now)
        self._go_on(now)

    def stop(self, now: float, *, kill: bool = False) -> None:
        """Drain all, or kill them."""
        if self.state == STOPPED:
            return
        if self.state != STOPPING:
            if self.state == RELOADING:
                self._finish_reload("undone", (self._newest, None))
            self.state = STOPPING
            self._acts.close()
        for member in list(self.members.values()):
            if kill:
                self._kill(member, "stopped", now, want_stack=False)
            else:
                self._end(member, "stopped", now)
        self._go_on(now)

    def tick(self, now: float) -> None:
        """Do what is due."""
        for slot in self.slots.values():
            if slot.retry_at <= now:
                slot.retry_at = 0.0
        for member in list(self.members.values()):
            if member.stop_at is not None and member.stop_at <= now:
                member.stop_at = None
                self._acts.stop(member)
            if member.kill_at is not None and member.kill_at <= now:
                self._kill(member, member.cause or "unresponsive", now, want_stack=True)
        if self.state == RELOADING and self._give_up_at is not None and self._give_up_at <= now:
            self._undo(TimeoutError("not all new workers were ready in time"), now)
        if self.state not in (STOPPING, STOPPED):
            for slot in self.slots.values():
                if slot.start_at is not None and slot.start_at <= now:
                    self._start(slot, now)
            self._look_for_crash_loop(now)
        self._go_on(now)

    def next_deadline(self) -> float | None:
        """When `tick` is to be called next; None: nothing is due."""
        times = [when for member in self.members.values() for when in (member.stop_at, member.kill_at)]
        if self.state not in (STOPPING, STOPPED):
            times += [slot.start_at for slot in self.slots.values()]
            times += [self._give_up_at if self.state == RELOADING else None, self._loop_ends_at()]
            times += [slot.retry_at or None for slot in self.slots.values()]
        return min((when for when in times if when is not None), default=None)

    def ready_count(self) -> int:
        """How many members serve."""
        return sum(slot.current is not None and slot.current.state == READY for slot in self.slots.values())

    # ===== members =====

    def _fill(self, now: float) -> None:
        for number in range(1, self.size + 1):
            if number not in self.slots:
                slot = self.slots[number] = Slot(number)
                self._start(slot, now)
                if self.state == RELOADING:
                    slot.coming = self._new(slot, self._newest, now)

    def _start(self, slot: Slot, now: float) -> None:
        slot.start_at = None
        slot.current = self._new(slot, self.generation, now)

    def _new(self, slot: Slot, generation: int, now: float) -> Member:
        self._numbers += 1
        member = Member(self._numbers, slot.number, generation, now, self._boot_timeout)
        self.members[member.number] = member
        self.counts["started"] += 1
        self._acts.start(member)
        return member

    def _end(self, member: Member | None, cause: str, now: float) -> None:
        """Have a member end: what serves is drained, what starts is killed."""
        if member is None or member.state in (DRAINING, KILLED):
            return
        if member.state == STARTING:
            self._kill(member, cause, now, want_stack=False)
            return
        member.move(DRAINING, now)
        member.cause = cause
        member.stop_at = now + NO_MORE_FOR
        member.kill_at = member.stop_at + self._grace
        self._acts.drain(member)

    def _kill(self, member: Member, cause: str, now: float, *, want_stack: bool) -> None:
        if member.state != KILLED:
            member.move(KILLED, now)
            member.cause = cause
            member.stop_at = member.kill_at = None
            self._acts.kill(member, want_stack=want_stack)

    def _replace(self, slot: Slot, now: float) -> None:
        """The coming member is the current one from now on."""
        old, slot.current, slot.coming, slot.start_at = slot.current, slot.coming, None, None
        if old is not None:
            cause = old.is_due or "reloaded"
            if cause == "recycled":
                self.counts["recycled"] += 1
            self._end(old, cause, now)

    def _failed(self, member: Member, why: object, now: float) -> None:
        """A member ended that was not to; see whether the cluster goes on."""
        if member.cause != "hung":
            self.counts["crashed"] += 1
        if member.ready_at is None:
            self._failed_starts += 1
            self._last = why
            first = self.state == STARTING
            if first and (getattr(why, "raised", False) or self._failed_starts >= FIRST_DEATHS):
                self._fail(why, BOOT_FAILED, now)

    def _make_good(self, slot: Slot, member: Member, now: float) -> None:
        """The current member of a slot is gone: another one takes its place, at once or after a while."""
        if self.state in (STOPPING, STOPPED):
            return
        slot.restarts += 1
        if self.state != RELOADING and slot.coming is not None:  # it was to be replaced anyway
            slot.current, slot.coming = slot.coming, None
            return
        if member.ready_at is not None and now - member.ready_at > EARLY:
            slot.failures = 0
            self._start(slot, now)
        else:
            slot.failures += 1
            wait = policy.backoff(slot.failures, self._rng, base=policy.BOOT_BASE, cap=policy.BOOT_CAP)
            slot.start_at = now + wait

    def _fail(self, why: object, code: int, now: float) -> None:
        self.failure, self.exit_code = why, code
        self.stop(now)

    def _note_nobody(self, now: float) -> None:
        if self._nobody_since is None and not self.ready_count():
            self._nobody_since = now

    def _loop_ends_at(self) -> float | None:
        if self._nobody_since is None or self.state == STARTING or self._failed_starts < max(3, self.size):
            return None
        return self._nobody_since + NOBODY_FOR

    def _look_for_crash_loop(self, now: float) -> None:
        ends_at = self._loop_ends_at()
        if ends_at is not None and ends_at <= now:
            self._fail(self._last, CRASH_LOOP, now)

    # ===== generations =====

    def _begin(self, generation: int) -> None:
        self._generations.add(generation)
        self._acts.begin(generation)

    def _begin_reload(self, now: float) -> None:
        self._wants_reload = False
        self.state = RELOADING
        for slot in self.slots.values():
            self._end(slot.coming, "reloaded", now)
            slot.coming = None
        self._newest += 1
        self._give_up_at = now + self._reload_timeout
        self._begin(self._newest)
        for slot in self.slots.values():
            slot.coming = self._new(slot, self._newest, now)

    def _commit_if_all_ready(self, now: float) -> None:
        coming = [slot.coming for slot in self.slots.values()]
        if any(member is None or member.state != READY for member in coming):
            return
        self.generation = self._newest
        for slot in self.slots.values():
            slot.failures = 0
            self._replace(slot, now)
        self.counts["reloads"] += 1
        self._finish_reload("reloaded", self.generation)

    def _undo(self, why: object, now: float) -> None:
        for slot in self.slots.values():
            coming, slot.coming = slot.coming, None
            self._end(coming, "reloaded", now)
        self._finish_reload("undone", (self._newest, why))

    def _finish_reload(self, event: str, subject: object) -> None:
        self.state = SERVING
        self._give_up_at = None
        self.counts["reloads_failed"] += event == "undone"
        self._acts.tell(event, subject)

    # ===== moving on =====

    def _go_on(self, now: float) -> None:
        """After each event: whatever has become possible."""
        if self.state == STARTING and self.ready_count() == self.size:
            self.state = SERVING
            self._acts.tell("started", None)
        if self.state == RELOADING:
            self._commit_if_all_ready(now)
        if self.state == SERVING and self._wants_reload:
            self._begin_reload(now)
        if self.state == SERVING:
            self._recycle_one(now)
        left = {member.generation for member in self.members.values()}
        for generation in [*self._generations]:
            is_wanted = self.state != STOPPING and (
                generation == self.generation or (self.state == RELOADING and generation == self._newest)
            )
            if generation not in left and not is_wanted:
                self._generations.discard(generation)
                self._acts.drop(generation)
        if self.state == STOPPING and not self.members:
            self.state = STOPPED
            self._acts.tell("stopped", None)

    def _recycle_one(self, now: float) -> None:
        """One at a time; the oldest that is due first."""
        if any(slot.coming is not None for slot in self.slots.values()):
            return
        due = [
            slot
            for slot in self.slots.values()
            if slot.current is not None and slot.current.is_due and slot.current.state == READY and slot.retry_at <= now
        ]
        if due:
            slot = min(due, key=lambda slot: slot.current.since if slot.current is not None else 0.0)
            slot.coming = self._new(slot, self.generation, now)
