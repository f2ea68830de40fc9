"""Cluster rules: which workers a cluster has, what becomes of each, and when. They decide; `Acts` carries out.

    member   STARTING ── ready ──> READY ── drain ──> DRAINING ── gone, or killed after its grace ──> -
    slot     0 to N-1; one current member, or a time at which it gets one; at most one coming, to take its place
    cluster  STARTING ──> SERVING <──> RELOADING ──> STOPPING ──> STOPPED

Guarantees: no plan (a reload, a recycling, a resize that keeps the slot) takes a ready member away before another one
is ready in its place; a slot without a member has a time at which it gets one, until the cluster stops; a reload ends
as done or as undone, once; a member is started, drained and killed at most once each; a member that may have accepted
a connection is told to stop, and has its grace, before it is killed, but for `stop(kill=True)` and what hangs.
A ready that was sent must be told before a later `tick`: what drains and never was ready is killed without a grace.
Guarded by: the one lock of the cluster. Knows no clock: `now` is an argument, in seconds.
"""

from __future__ import annotations

import random
from collections import Counter

from poolkit._core import policy
from poolkit._core.slots import DRAINING, KILLED, READY, STARTING, Acts, Member, Slot

__all__ = ["DRAINING", "KILLED", "READY", "STARTING", "Acts", "Member", "Rules", "Slot"]

SERVING, RELOADING, STOPPING, STOPPED = "serving", "reloading", "stopping", "stopped"  # of clusters, beside STARTING

NO_MORE_FOR = 0.1  # seconds without new connections before a member is told to stop, or killed if it was never ready
RETRY_AFTER = 1.0  # seconds after which a recycling is tried again whose new member did not come up
EARLY = 1.0  # seconds after it was ready in which the death of a member counts as a failed start
FIRST_DEATHS = 3  # with so many before all were ready at once the first start fails
NOBODY_FOR = 10.0  # seconds without a ready member after which a crash loop ends the cluster
BOOT_FAILED, CRASH_LOOP = 3, 4  # exit codes
DYING = {"hung", "unresponsive"}  # causes of ends that nobody planned


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
        self._first_deaths = 0  # during the first start
        self._failed_starts = 0  # in a row
        self._nobody_since: float | None = None  # since when no member is ready
        self._last: object = None  # what the last member that failed to start ended of
        self._newest = 1  # generation that was begun
        self._wants_reload = False  # one more, once that can begin
        self._reload_timeout = 0.0  # of that one
        self._give_up_at: float | None = None  # when the reload is undone

    # ===== what happens =====

    def start(self, now: float) -> None:
        """Start the first generation."""
        self._begin(self.generation)
        self._fill(now)
        self._go_on(now)

    def ready(self, number: int, now: float) -> None:
        """A member serves."""
        member = self.members.get(number)
        if member is None or member.ready_at is not None or member.state == KILLED:
            return
        member.ready_at = now
        if member.state == DRAINING:  # it may have accepted a connection before: it is not killed, but told to stop
            member.stop_at, member.kill_at = member.kill_at, None
            return
        member.move(READY, now)
        member.kill_at = None
        self._failed_starts = 0
        self._acts.tell("ready", member)
        slot = self.slots[member.slot]
        if slot.coming is member and self.state != RELOADING:
            self.counts["recycled"] += 1
            self._replace(slot, slot.current.is_due if slot.current is not None else "", now)
        self._go_on(now)

    def gone(self, number: int, why: object, now: float) -> None:
        """A member has ended, and why: `why` is what errors are told with."""
        member = self.members.pop(number, None)
        if member is None:
            return
        was_planned = member.state in (DRAINING, KILLED) and member.cause not in DYING
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
        self._go_on(now)

    def hung(self, number: int, now: float) -> None:
        """A member gives no sign of life."""
        member = self.members.get(number)
        if member is not None and member.state == READY:
            self.counts["hung"] += 1
            self._kill(member, "hung", now, want_stack=True)
            self._go_on(now)

    def due(self, number: int, why: str, now: float) -> None:
        """A member is to be replaced, once another one is ready."""
        member = self.members.get(number)
        if member is not None and not member.is_due:
            member.is_due = why
            self._go_on(now)

    def reload(self, now: float, timeout: float | None) -> int:
        """Replace all members by such of a new generation; returns the number that it will have.

        During a reload, and the first start, there is one after it for all who ask, with the longest of their limits.
        A cluster that stops makes no more of it.
        """
        number = self._newest + 1
        wanted = self._boot_timeout if timeout is None else timeout
        self._reload_timeout = max(wanted, self._reload_timeout) if self._wants_reload else wanted
        self._wants_reload = True
        self._go_on(now)
        return number

    def resize(self, size: int, now: float) -> None:
        """Have another number of members."""
        if self.state in (STOPPING, STOPPED):
            return
        self.size = size
        for number in [number for number in self.slots if number >= size]:
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
            if self._wants_reload:
                self._wants_reload = False
                self._finish_reload("undone", (self._newest + 1, None))
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
            if slot.retry_at is not None and slot.retry_at <= now:
                slot.retry_at = None
        for member in list(self.members.values()):
            if member.stop_at is not None and member.stop_at <= now:
                member.stop_at, member.kill_at = None, now + self._grace  # from now: a tick may be late
                self._acts.stop(member)
            if member.kill_at is not None and member.kill_at <= now:
                is_slow = member.ready_at is not None or member.cause in ("", *DYING)
                self._kill(member, member.cause or "unresponsive", now, want_stack=is_slow)
        if self.state == RELOADING and self._give_up_at is not None and self._give_up_at <= now:
            self._undo_late(now)
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
            times += [slot.retry_at for slot in self.slots.values()]
        return min((when for when in times if when is not None and when < float("inf")), default=None)

    def ready_count(self) -> int:
        """How many members serve."""
        return sum(slot.current is not None and slot.current.state == READY for slot in self.slots.values())

    # ===== members =====

    def _fill(self, now: float) -> None:
        for number in range(self.size):
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
        """Have a member end: no more connections; then it is told to stop, or killed if it turns out not to serve."""
        if member is None or member.state in (DRAINING, KILLED):
            return
        member.move(DRAINING, now)
        member.cause = cause
        soon = now + NO_MORE_FOR
        member.stop_at, member.kill_at = (None, soon) if member.ready_at is None else (soon, None)
        self._acts.drain(member)

    def _kill(self, member: Member, cause: str, now: float, *, want_stack: bool) -> None:
        if member.state != KILLED:
            member.move(KILLED, now)
            member.cause = cause
            member.stop_at = member.kill_at = None
            self._acts.kill(member, want_stack=want_stack)

    def _replace(self, slot: Slot, cause: str, now: float) -> None:
        """The coming member, which is ready, is the current one from now on."""
        old, slot.current, slot.coming = slot.current, slot.coming, None
        slot.start_at = slot.retry_at = None
        slot.failures = 0
        self._end(old, cause, now)

    def _failed(self, member: Member, why: object, now: float) -> None:
        """A member ended that was not to; see whether the cluster goes on."""
        if member.cause != "hung":
            self.counts["crashed"] += 1
        if member.ready_at is None:
            self._failed_starts += 1
            self._last = why
        if self.state == STARTING:
            self._first_deaths += 1
            has_raised = member.ready_at is None and getattr(why, "raised", False)
            if has_raised or self._first_deaths >= FIRST_DEATHS:
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
            slot.start_at, slot.waits_since = now + wait, now

    def _fail(self, why: object, code: int, now: float) -> None:
        self.failure, self.exit_code = why, code
        self.stop(now)

    def _loop_ends_at(self) -> float | None:
        if self._nobody_since is None or self._failed_starts < max(3, self.size):
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
            self._replace(slot, "reloaded", now)
        self.counts["reloads"] += 1
        self._finish_reload("reloaded", self.generation)

    def _undo_late(self, now: float) -> None:
        late = {slot.number: slot.coming for slot in self.slots.values() if slot.coming and slot.coming.state != READY}
        for member in late.values():
            self._end(member, "unresponsive", now)
        places = ", ".join(map(str, late))
        self._undo(TimeoutError(f"{len(late)} of {self.size} new workers were not ready in time: {places}"), now)

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
        if any(member.state == READY for member in self.members.values()):
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = now
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
            if slot.current is not None and slot.current.is_due and slot.current.state == READY
            if slot.retry_at is None or slot.retry_at <= now
        ]
        if due:
            slot = min(due, key=lambda slot: slot.current.since if slot.current is not None else 0.0)
            slot.coming = self._new(slot, self.generation, now)
