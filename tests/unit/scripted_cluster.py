"""A cluster whose workers and clock do what a test says: it checks each order of the rules as it is given.

What its workers are like is kept here a second time, from orders and events alone, and must agree with the rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from poolkit._core.cluster import (
    CRASH_LOOP,
    DRAINING,
    DYING,
    FIRST_DEATHS,
    KILLED,
    NO_MORE_FOR,
    NOBODY_FOR,
    READY,
    RELOADING,
    SERVING,
    STARTING,
    STOPPED,
    STOPPING,
    Member,
    Rules,
)


@dataclass
class Why:
    """What a member ended of."""

    raised: bool = False


@dataclass
class Worker:
    """A worker as its cluster treated it."""

    member: Member
    ready_at: float | None = None
    drained_at: float | None = None
    stopped_at: float | None = None
    killed_at: float | None = None
    want_stack: bool = False

    @property
    def serves(self) -> bool:
        return self.ready_at is not None and self.drained_at is None and self.killed_at is None


class ScriptedCluster:
    """The rules, with what carries out their orders."""

    def __init__(self, size: int = 2, *, grace: float = 5.0, boot_timeout: float = 60.0, seed: int = 0) -> None:
        self.now = 0.0
        self.grace, self.boot_timeout = grace, boot_timeout
        self.live: dict[int, Worker] = {}
        self.ended: list[int] = []
        self.orders: list[tuple[str, int]] = []  # "start", "drain", "stop", "kill", "begin", "drop", "close"
        self.told: list[tuple[str, object]] = []
        self.limits: dict[int, list[float]] = {}  # of the reloads that were asked for
        self.answers: dict[int, tuple[str, object]] = {}
        self.begun: dict[int, float] = {}
        self.dropped: list[int] = []
        self.nobody_since: float | None = 0.0
        self.was_killed = False
        self.rules = Rules(size, self, grace=grace, boot_timeout=boot_timeout, rng=random.Random(seed))
        self.happen(self.rules.start)

    # ===== orders =====

    def start(self, member: Member) -> None:
        assert member.number not in self.live
        assert member.number not in self.ended
        assert member.state == STARTING
        assert member.generation in self.begun, "no code to start it with"
        assert member.generation not in self.dropped
        assert self.rules.state not in (STOPPING, STOPPED)
        self.live[member.number] = Worker(member)
        self.orders.append(("start", member.number))

    def drain(self, member: Member) -> None:
        worker = self.live[member.number]
        assert worker.drained_at is None
        assert worker.killed_at is None
        assert member.cause
        worker.drained_at = self.now
        self.orders.append(("drain", member.number))

    def stop(self, member: Member) -> None:
        worker = self.live[member.number]
        assert worker.stopped_at is None
        assert worker.killed_at is None
        assert worker.ready_at is not None
        assert worker.drained_at is not None, "it may be about to take a connection"
        assert worker.drained_at + NO_MORE_FOR <= self.now
        worker.stopped_at = self.now
        self.orders.append(("stop", member.number))

    def kill(self, member: Member, *, want_stack: bool) -> None:
        worker = self.live[member.number]
        assert worker.killed_at is None
        if self.was_killed:
            assert not want_stack
        elif worker.stopped_at is not None:
            assert worker.stopped_at + self.grace <= self.now
            assert want_stack
        elif worker.drained_at is not None:
            assert worker.ready_at is None, "it was not told to stop"
            assert worker.drained_at + NO_MORE_FOR <= self.now
        else:
            assert member.cause in DYING
            assert want_stack
        worker.killed_at, worker.want_stack = self.now, want_stack
        self.orders.append(("kill", member.number))

    def begin(self, generation: int) -> None:
        assert generation == len(self.begun) + 1
        self.begun[generation] = self.now
        self.orders.append(("begin", generation))

    def drop(self, generation: int) -> None:
        assert generation in self.begun
        assert generation not in self.dropped
        assert all(worker.member.generation != generation for worker in self.live.values())
        self.dropped.append(generation)
        self.orders.append(("drop", generation))

    def close(self) -> None:
        assert ("close", 0) not in self.orders
        self.orders.append(("close", 0))

    def tell(self, event: str, subject: object) -> None:
        self.told.append((event, subject))
        if event == "reloaded":
            assert isinstance(subject, int)
            self._answer(subject, event, None)
            assert all(
                slot.current is not None and slot.current.generation == subject and slot.current.state == READY
                for slot in self.rules.slots.values()
            )
        elif event == "undone":
            assert isinstance(subject, tuple)
            number, why = subject
            if isinstance(why, TimeoutError):
                assert self.begun[number] + max(self.limits[number]) <= self.now, "it had more time"
            self._answer(number, event, why)
        elif event == "ready":
            assert isinstance(subject, Member)
            assert subject.state == READY
        else:
            assert event in ("started", "stopped")
            assert self.count(event) == 1

    def _answer(self, number: int, event: str, why: object) -> None:
        assert number in self.limits, "nobody asked for it"
        assert number not in self.answers, "it has ended before"
        self.answers[number] = (event, why)

    def count(self, event: str) -> int:
        """How often something was told."""
        return sum(told == event for told, _ in self.told)

    # ===== what happens =====

    def ready(self, number: int) -> None:
        worker = self.live[number]
        if worker.killed_at is None and worker.ready_at is None:
            worker.ready_at = self.now
        self.happen(lambda now: self.rules.ready(number, now))

    def gone(self, number: int, *, raised: bool = False) -> Why:
        worker, why = self.live.pop(number), Why(raised)
        self.ended.append(number)
        self.happen(lambda now: self.rules.gone(number, why, now), loses={worker.member.slot})
        return why

    def hung(self, number: int) -> None:
        self.happen(lambda now: self.rules.hung(number, now), loses={self.live[number].member.slot})

    def due(self, number: int, why: str = "recycled") -> None:
        self.happen(lambda now: self.rules.due(number, why, now))

    def reload(self, timeout: float | None = None) -> int:
        numbers: list[int] = []
        was_running = self.rules.state not in (STOPPING, STOPPED)
        limit = self.boot_timeout if timeout is None else timeout
        if was_running:
            self.limits.setdefault(self._next_reload(), []).append(limit)
        self.happen(lambda now: numbers.append(self.rules.reload(now, timeout)))
        if was_running:
            assert numbers == [max(self.limits)]
        return numbers[0]

    def _next_reload(self) -> int:
        return len(self.begun) + 1

    def resize(self, size: int) -> None:
        self.happen(lambda now: self.rules.resize(size, now), loses=set(range(size, 100)))

    def end(self, *, kill: bool = False) -> None:
        self.was_killed |= kill
        self.happen(lambda now: self.rules.stop(now, kill=kill))

    def tick(self) -> None:
        """Tick now: only what is due changes anything, and then nothing is left that is due."""
        deadline, before = self.rules.next_deadline(), self.looks()
        self.happen(self.rules.tick)
        if deadline is None or deadline > self.now:
            assert self.looks() == before, "something was due of which nobody knew"
        for _ in range(3):  # a reload that waited may begin and have no time at all
            deadline = self.rules.next_deadline()
            if deadline is None or deadline > self.now:
                return
            self.happen(self.rules.tick)
        raise AssertionError(f"still due at {deadline}, and it is {self.now}")

    def looks(self) -> object:
        """Everything that a tick could change."""
        return len(self.orders), len(self.told), self.rules.state, self.rules.next_deadline()

    def wait(self, seconds: float) -> None:
        """Let time pass, and tick exactly when something is due."""
        until = self.now + seconds
        for _ in range(10_000):
            deadline = self.rules.next_deadline()
            if deadline is None or deadline > until:
                self.now = until
                return
            self.now = max(self.now, deadline)
            self.tick()
        raise AssertionError("busy")

    def happen(self, event: Callable[[float], object], loses: set[int] | None = None) -> None:
        """Have something happen; of the slots that served before, none does not any more but for those of `loses`."""
        before = self.serving()
        event(self.now)
        if any(worker.serves for worker in self.live.values()):
            self.nobody_since = None
        elif self.nobody_since is None:
            self.nobody_since = self.now
        if self.rules.state not in (STOPPING, STOPPED):
            assert before - self.serving() <= (loses or set()), "a plan took a worker away before there was another one"
        self.check()

    def serving(self) -> set[int]:
        """The slots whose current member serves."""
        return {
            slot.number
            for slot in self.rules.slots.values()
            if slot.current is not None and slot.current.number in self.live and self.live[slot.current.number].serves
        }

    # ===== what always holds =====

    def check(self) -> None:
        rules = self.rules
        assert {number: worker.member for number, worker in self.live.items()} == rules.members
        assert rules.state == STOPPED or len(rules.slots) == rules.size
        assert set(rules.slots) == set(range(rules.size))
        assert rules.ready_count() == len(self.serving())
        for worker in self.live.values():
            self._check_worker(worker)
        if rules.state not in (STOPPING, STOPPED):
            self._check_slots()
        self._check_answers()
        self._check_generations()
        self._check_end()
        self._check_deadline()

    def _check_worker(self, worker: Worker) -> None:
        member = worker.member
        if worker.killed_at is not None:
            assert member.state == KILLED
        elif worker.drained_at is not None:
            assert member.state == DRAINING
            assert (worker.stopped_at is None and worker.ready_at is not None) == (member.stop_at is not None)
            assert (member.kill_at is None) == (member.stop_at is not None)
        else:
            assert member.state == (STARTING if worker.ready_at is None else READY)
            assert self.rules.state not in (STOPPING, STOPPED)
        has_slot = any(member in (slot.current, slot.coming) for slot in self.rules.slots.values())
        assert has_slot or member.state in (DRAINING, KILLED), "nobody's member"

    def _check_slots(self) -> None:
        slots = self.rules.slots.values()
        for slot in slots:
            assert (slot.current is None) == (slot.start_at is not None), "no future"
            for member in (slot.current, slot.coming):
                if member is not None:
                    assert member.slot == slot.number
                    assert member.state in (STARTING, READY) or (member.state == KILLED and member.cause in DYING)
            if slot.current is not None:
                assert slot.current.generation == self.rules.generation
                assert slot.current is not slot.coming
            if self.rules.state == RELOADING:
                assert slot.coming is not None
                assert slot.coming.generation == len(self.begun)
            elif slot.coming is not None:
                assert slot.coming.state != READY
                assert slot.coming.generation == self.rules.generation
        if self.rules.state == RELOADING:
            assert any(slot.coming is None or slot.coming.state != READY for slot in slots)
        else:
            assert sum(slot.coming is not None for slot in slots) <= 1, "one recycling at a time"

    def _check_answers(self) -> None:
        left = set(self.limits) - set(self.answers)
        if self.rules.state in (STOPPING, STOPPED):
            assert not left
        elif self.rules.state == SERVING:
            assert not left, "it could begin now"
        elif self.rules.state == RELOADING:
            assert len(self.begun) in left
            assert left <= {len(self.begun), len(self.begun) + 1}
        else:
            assert left <= {2}

    def _check_generations(self) -> None:
        wanted = {worker.member.generation for worker in self.live.values()}
        if self.rules.state not in (STOPPING, STOPPED):
            wanted.add(self.rules.generation)
            wanted |= {len(self.begun)} if self.rules.state == RELOADING else set()
        assert set(self.begun) - set(self.dropped) == wanted

    def _check_end(self) -> None:
        rules = self.rules
        is_ending = rules.state in (STOPPING, STOPPED)
        assert (("close", 0) in self.orders) == is_ending
        assert self.count("stopped") == (rules.state == STOPPED) == (is_ending and not self.live)
        assert self.count("started") or rules.state in (STARTING, STOPPING, STOPPED)
        if rules.exit_code == CRASH_LOOP:
            assert self.count("started")
        elif rules.exit_code:
            assert not self.count("started")
            assert isinstance(rules.failure, Why)
            assert rules.failure.raised or len(self.ended) >= FIRST_DEATHS
        if rules.exit_code == CRASH_LOOP and rules.state == STOPPING:
            assert self.nobody_since is not None
            assert self.nobody_since + NOBODY_FOR <= self.now

    def _check_deadline(self) -> None:
        rules = self.rules
        if rules.next_deadline() is not None:
            assert rules.state != STOPPED
            return
        assert rules.state != RELOADING
        assert all(worker.member.state in (READY, KILLED) for worker in self.live.values())
        if rules.state not in (STOPPING, STOPPED):
            for slot in rules.slots.values():
                assert slot.start_at is None
                due = slot.current is not None and slot.current.state == READY and slot.current.is_due
                assert not (due and rules.state == SERVING) or any(one.coming for one in rules.slots.values())

    # ===== its end =====

    def behave(self) -> None:
        """Have all workers do what they are to do, until nothing is due any more."""
        for _ in range(1000):
            deadline = self.rules.next_deadline()
            if self._obey():
                continue
            if deadline is None:
                return
            self.now = max(self.now, deadline)
            self.tick()
        raise AssertionError("it does not come to rest")

    def _obey(self) -> bool:
        """Have each worker do what it is to do; whether there was anything."""
        is_idle = True
        for number, worker in list(self.live.items()):
            if worker.killed_at is not None or worker.stopped_at is not None:
                self.gone(number)
                is_idle = False
            elif worker.ready_at is None:
                self.ready(number)
                is_idle = False
        return not is_idle

    def finish(self) -> None:
        """Come to rest, stop, and be gone."""
        self.behave()
        if self.rules.state not in (STOPPING, STOPPED):
            assert self.rules.state == SERVING
            assert self.rules.ready_count() == self.rules.size == len(self.live)
            assert not any(worker.member.is_due for worker in self.live.values())
        self.end()
        self.behave()
        assert self.rules.state == STOPPED
        assert self.rules.next_deadline() is None
        before = self.looks()
        self.resize(self.rules.size)
        self.reload()
        self.end(kill=True)
        self.tick()
        assert self.looks() == before
