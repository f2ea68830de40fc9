"""Fake workforce: workers that exist in the books only. Calls run in the caller's thread, on a virtual clock.

It obeys the same orders and gives the same reports as a real workforce, so the scheduler cannot tell. Nothing happens
by itself: `FakeSupervisor` carries out what was ordered and runs one task when it is told to.
A call takes no virtual time. What moves the clock is `advance`, which fires what falls due on the way, in order.
Owner: the one thread that uses the pool.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from poolkit._child.loop import run_call
from poolkit._core.options import PoolLimits
from poolkit._core.workforce import AnyTask, Begun, BootFailed, Died, Drained, Finished, Glance, Ready, Report
from poolkit._wire import codec
from poolkit._wire.buffers import Found
from poolkit._workforce.logs import mark_records
from poolkit._workforce.references import by_reference
from poolkit._workforce.supervisor import Supervisor
from poolkit.context import TaskContext
from poolkit.errors import SerializationError
from poolkit.outcome import Outcome


class VirtualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds since the pool was made."""
        return self.now


class Member:
    """One worker in the books."""

    __slots__ = ("begun", "claims", "done", "since")

    def __init__(self) -> None:
        self.claims: deque[tuple[AnyTask, bool]] = deque()  # sent, not claimed
        self.begun, self.since, self.done = 0, 0.0, 0


class FakeWorkforce:
    """Workers of the fake kind behind the Workforce protocol."""

    kind = "fake"
    max_batch = 1
    links = None
    why_not_weighed = None
    unstarted = ()

    def __init__(
        self,
        clock: VirtualClock,
        rng: random.Random,
        *,
        check_pickle: bool,
        initializer: Callable[[], object] | None,
    ) -> None:
        mark_records()
        self._clock = clock
        self._rng = rng
        self._check_pickle = check_pickle
        self.by_reference = not check_pickle
        self._initializer = initializer
        self._members: dict[int, Member] = {}
        self._reports: list[Report] = []  # what the workers will say when they are asked

    # ===== orders =====

    def pack(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
        """Send a call through the real codec, so that what would not travel fails here too."""
        if not self._check_pickle:
            return by_reference(fn, args, kwargs), 0
        with Found() as found:  # handles and read-only arrays go as they would to a worker
            call = codec.pack_call(fn, args, kwargs, found)
        return (call, found.regions), len(call[0]) + len(call[1])

    def start(self, worker_id: int) -> None:
        """A worker comes up at once, unless the initializer raises."""
        self._members[worker_id] = Member()
        try:
            if self._initializer is not None:
                self._initializer()
        except BaseException as exc:  # noqa: BLE001 -- whatever it raises is what the pool is told
            self._reports += [BootFailed(worker_id, exc), Died(worker_id, exitcode=1)]
        else:
            self._reports.append(Ready(worker_id, None))

    def send(self, worker_id: int, tasks: Sequence[AnyTask], *, announce: bool) -> None:
        """Note what was sent."""
        self._members[worker_id].claims.extend((task, announce) for task in tasks)

    def reclaim(self, worker_id: int) -> int:
        """Take back what has not begun; a fake worker has always dropped it already."""
        member = self._members.get(worker_id)
        count = 0
        if member is not None and member.claims:
            count = len(member.claims)
            member.claims.clear()
            self._reports.append(Drained(worker_id))
        return count

    def glance(self, worker_id: int) -> Glance:
        """What the worker runs."""
        member = self._members.get(worker_id)
        return Glance() if member is None else Glance(member.begun, member.since, member.done)

    def memory(self, _worker_id: int) -> None:
        """Fake workers have no memory."""

    def stop(self, worker_id: int) -> None:
        """The worker leaves at once."""
        self._reports.append(Died(worker_id, exitcode=0))

    def kill(self, worker_id: int, *, want_stack: bool) -> None:  # noqa: ARG002 -- there is no stack to take
        """The worker dies at once."""
        self._reports.append(Died(worker_id, signal="SIGKILL"))

    def forget(self, worker_id: int) -> None:
        """Strike the worker out."""
        self._members.pop(worker_id, None)

    # ===== what the supervisor asks =====

    def wait(self, timeout: float, *, links: bool) -> bool:  # noqa: ARG002 -- nothing comes later
        """There is always something to do: nobody waits."""
        return True

    def act(self) -> list[Report]:
        """What the workers have to say."""
        reports, self._reports = self._reports, []
        return reports

    def read(self, ready: Sequence[int] | None = None) -> list[Report]:  # noqa: ARG002
        """There are no links."""
        return []

    def run_one(self) -> bool:
        """Let one worker claim and run its next task; False when none has one. A real pool could run this one next."""
        able = [worker_id for worker_id, member in self._members.items() if member.claims]
        if not able:
            return False
        worker_id = self._rng.choice(able)
        member = self._members[worker_id]
        task, announce = member.claims.popleft()
        member.begun, member.since = task.id, self._clock()
        if announce:
            self._reports.append(Begun(worker_id, task.id, member.since))
        outcome = self._outcome(task, worker_id)
        member.done = task.id
        how = outcome.payload, outcome.ok, outcome.load
        self._reports.append(Finished(worker_id, task.id, member.since, self._clock(), 0, *how))
        return True

    def _outcome(self, task: AnyTask, worker_id: int) -> Outcome:
        try:
            fn, args, kwargs = codec.load_call(*task.call[0]) if self._check_pickle else task.call
        except Exception as exc:  # noqa: BLE001 -- unpickling runs the user's code
            return Outcome.failure(exc)
        limit = task.options.timeout
        deadline = None if limit is None else self._clock() + limit
        context = TaskContext(task.id, task.name, task.attempts + 1, deadline, self._clock, None, worker_id)
        ok, value = run_call(context, fn, args, kwargs)
        try:
            if not self._check_pickle:
                return Outcome(value, ok=ok)
            if not ok:
                return Outcome(codec.pack_error(value), ok=False, load=codec.load_error)
            with Found() as found:
                packed = codec.pack_value(value, found)
            return Outcome((packed, found.regions), ok=True, load=_load_value)
        except SerializationError as exc:
            exc.args = (f"task {task.id} ({task.name}, attempt {context.attempt}): {exc}",)  # as in `_child/loop.py`
            return Outcome(codec.pack_error(exc), ok=False, load=codec.load_error)
        finally:
            del value  # an exception's traceback holds this frame

    def start_now(self) -> list[Report]:
        """Fake workers start at once."""
        return []

    def is_own_thread(self) -> bool:
        """There are no threads."""
        return False

    def wake(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Strike all workers out."""
        self._members.clear()

    def close_in_forked_child(self) -> None:
        """Nothing is shared with the parent."""

    def link_bytes(self) -> tuple[int, int]:
        """Nothing goes over links."""
        return 0, 0

    def memory_use(self) -> tuple[int, int, int, int, int]:
        """There is no shared memory."""
        return 0, 0, 0, 0, 0

    def resident_bytes(self, _worker_id: int) -> None:
        """Fake workers have no memory."""
        return


def _load_value(packed: tuple[bytes, object]) -> Any:
    """The value of a result, while the shared memory that it refers to is held."""
    return codec.load_value(packed[0])


class FakeSupervisor(Supervisor):
    """A supervisor without a thread: whoever uses the pool drives it. Not thread-safe, unlike its base."""

    threaded = False
    clock: VirtualClock
    workforce: FakeWorkforce

    def __init__(
        self, workforce: FakeWorkforce, limits: PoolLimits, *, name: str, clock: VirtualClock, eager: bool, seed: int
    ) -> None:
        super().__init__(threading.RLock(), workforce, limits, name=name, clock=clock, rng=random.Random(seed))
        self._eager = eager
        self._driving = False

    def _start_thread(self) -> None:
        return

    def submit(
        self, task: AnyTask, error: BaseException | None = None, *, wait: bool = True, called: bool = False
    ) -> Future[None] | None:
        """Accept a task, and if eager, run all there is. Only a full queue of a manual pool would block: it raises."""
        if wait and self._scheduler.is_full():
            task.options = task.options.changed(block=False)
        room = super().submit(task, error, wait=wait, called=called)
        self.settle()
        if self._eager:
            self.run_all()
        return room

    def cancel(self, task: AnyTask) -> bool:
        """Cancel a task."""
        cancelled = super().cancel(task)
        self.settle()
        return cancelled

    def warm_up(self, timeout: float | None) -> None:
        """Start all workers; they are up at once."""
        with self._lock:
            self._scheduler.check_open("warm up")
            self._scheduler.warm_up(self.clock())
        self.settle()
        super().warm_up(timeout)

    def resize(self, size: int) -> None:
        """Change the number of workers."""
        super().resize(size)
        self.settle()

    def cancel_all(self) -> None:
        """Cancel everything."""
        super().cancel_all()
        self.settle()

    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
        """Finish or cancel what was accepted. A waiting shutdown of a manual pool runs what is left, as a real one."""
        with self._lock:
            self._scheduler.shutdown(cancel_queued=cancel_queued, kill=kill, now=self.clock(), kill_after=timeout)
            settled = self._decided()
        self._publish(settled)
        self.settle()
        if wait and not self._driving:
            self.run_all()

    def settle(self) -> None:
        """Carry out what was ordered and take in what is reported, until nothing changes. Runs no task."""
        while True:
            with self._lock:
                self._do_what_was_put_off(self.clock())
                self._scheduler.tick(self.clock())
                settled = self._decided()
            self._publish(settled)
            reports = self.workforce.act()
            if not reports and not settled:
                break
            self.deliver(reports)
        self._call_back()
        self.tell()

    def run_next(self) -> bool:
        """Run one task that a real pool could run next; False when none can."""
        if self._driving:  # a task of this pool uses the pool: one after the other
            return False
        self._driving = True
        try:
            ran = self.workforce.run_one()
        finally:
            self._driving = False
        self.settle()
        return ran

    def run_all(self) -> None:
        """Run tasks until none is left; for those that wait for a retry the clock is moved."""
        while not self._driving:
            if self.run_next():
                continue
            with self._lock:
                deadline = self._scheduler.next_deadline() if self._scheduler.waiting else None
            if deadline is None:
                return
            self.advance(max(0.0, deadline - self.clock.now))

    def advance(self, seconds: float) -> None:
        """Move the clock, and do what falls due on the way, in order."""
        end = self.clock.now + seconds
        while True:
            with self._lock:
                deadline = self._scheduler.next_deadline()
            if deadline is None or deadline > end:
                break
            self.clock.now = max(self.clock.now, deadline)
            self.settle()
        self.clock.now = end
        self.settle()

    def pending(self) -> list[AnyTask]:
        """The tasks that were accepted and are not settled, in the order of submission."""
        with self._lock:
            return self._scheduler.unsettled_tasks()


def build_fake(
    limits: PoolLimits,
    *,
    name: str,
    eager: bool,
    seed: int,
    check_pickle: bool,
    initializer: Callable[[], object] | None,
) -> FakeSupervisor:
    """Make the supervisor of a fake pool."""
    clock = VirtualClock()
    workforce = FakeWorkforce(clock, random.Random(seed), check_pickle=check_pickle, initializer=initializer)
    return FakeSupervisor(workforce, limits, name=name, clock=clock, eager=eager, seed=seed)
