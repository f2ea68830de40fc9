"""Driver: the supervisor of a fake pool. It has no thread: whoever uses the pool drives it, on a virtual clock.

    settle    carry out what was ordered and take in what is reported, until nothing changes; runs no task
    step      one more thing happens: a task begins (and ends, if it takes no time), or one whose time has come ends
    move      the clock goes on to when the next thing is due, and that happens

Whoever waits for a task drives the pool until it is done, as waiting in the only thread would never end otherwise.
A task that uses its own pool may do so: what it waits for is run by the workers that are free.
Guarded by: the workforce's `turn`: all of it. One thread drives at a time, and the others wait until it is done; the
turn is taken before the pool's lock.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures._base import _AsCompletedWaiter, _Waiter
from typing import Any, TypeVar

from poolkit._core.options import PoolLimits
from poolkit._core.workforce import AnyTask
from poolkit._engine.callbacks import Calls, publishing
from poolkit._engine.engine import Settled
from poolkit._engine.maps import Maps
from poolkit._engine.supervisor import Supervisor
from poolkit._engine.waiters import Waiter
from poolkit._locks import RLock
from poolkit.errors import PoolkitError
from poolkit.future import WaitTimeout
from poolkit.task import Task
from poolkit.testing.calls import Call, Ending, Timeline
from poolkit.testing.workforce import FakeWorkforce, VirtualClock, named

T = TypeVar("T")


class DrivingEvent(threading.Event):
    """What `concurrent.futures.wait` and `as_completed` sleep on: its waiter drives the pools of the tasks.

    The end of the first wait is that of all: `as_completed` waits for what is left, which it counts in real time.
    """

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.pools: list[FakeSupervisor] = []
        self._last = last  # after a wait that was in vain comes no other
        self._ends: dict[FakeSupervisor, float] = {}

    def wait(self, timeout: float | None = None) -> bool:
        """Drive until it is set, for so many virtual seconds. Raises PoolkitError when it would never be."""
        if timeout is not None and not self._last:
            timeout = math.ceil(timeout * 100) / 100  # a little of it has passed in real time
        for pool in self.pools:
            self._ends.setdefault(pool, math.inf if timeout is None else pool.clock.now + timeout)
        while not self.is_set() and any(pool.go_on(self._ends[pool]) for pool in self.pools):
            pass
        if self.is_set():
            return True
        if timeout is None:
            msg = "what is waited for would never be done:\n" + "\n".join(str(pool.timeline) for pool in self.pools)
            raise PoolkitError(msg)
        for pool in self.pools:
            pool.clock.now = max(pool.clock.now, self._ends[pool])
        if self._last:
            return False
        msg = f"not all tasks were done {timeout} s of virtual time later"
        raise WaitTimeout(msg)


class Waiters(list[_Waiter]):
    """Where `wait` and `as_completed` enlist with a task of a fake pool."""

    def __init__(self, pool: FakeSupervisor) -> None:
        super().__init__()
        self._pool = pool

    def append(self, waiter: _Waiter) -> None:
        """Have the waiter drive the pool."""
        event: threading.Event = waiter.event
        if not isinstance(event, DrivingEvent):
            event = waiter.event = DrivingEvent(last=not isinstance(waiter, _AsCompletedWaiter))
        if self._pool not in event.pools:
            event.pools.append(self._pool)
        super().append(waiter)


class FakeTask(Task):  # type: ignore[type-arg]
    """A task of a fake pool: `concurrent.futures.wait` and `as_completed`, too, drive the pool."""

    def __init__(self, owner: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(owner, *args, **kwargs)
        self._pool = weakref.ref(owner)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Do what a task does; what `fn` submits is run after it, or a chain of such calls would be a recursion."""
        pool = self._pool()
        with pool.accepting() if pool is not None and self.done() else contextlib.nullcontext():
            super().add_done_callback(fn)

    @property
    def _waiters(self) -> list[_Waiter]:  # type: ignore[override]
        if self._waiting is None and isinstance(self._owner, FakeSupervisor):
            self._waiting = Waiters(self._owner)
        return super()._waiters


class FakeSupervisor(Supervisor):
    """See the file's header."""

    new_task = FakeTask
    threaded = False
    chunksize = 1
    clock: VirtualClock
    workforce: FakeWorkforce

    def __init__(
        self,
        workforce: FakeWorkforce,
        limits: PoolLimits,
        *,
        name: str,
        timeline: Timeline,
        eager: bool,
        seed: int,
    ) -> None:
        clock = timeline.clock
        super().__init__(RLock(), workforce, limits, name=name, clock=clock, rng=random.Random(seed))
        self.calls: list[Call] = []
        self._unended: dict[int, list[Call]] = {}  # by the id of their task
        self.timeline = timeline
        self._eager = eager
        self._running_all = False
        self._taking_up = False
        self._depth = 0  # how many tasks are in the midst of their call, each in the one before
        self._turn = workforce.turn
        self.maps = Maps(name, self._wake_for_maps, self.is_open)

    def _start_thread(self) -> None:
        return

    # ===== what the pool asks =====

    def submit(self, task: AnyTask, error: BaseException | None = None, waiter: Waiter | None = None) -> bool:
        """Accept a task, and if eager, run all there is."""
        with self._turn:
            call = task.call
            if not super().submit(task, error, waiter):
                return False
            calls = Call.of(task, call)
            self.calls += calls
            if calls:
                self._unended[task.id] = calls
                self.timeline.note(named(task), "submitted:", *calls)
            self.settle()
            self._run_if_eager()
        return True

    def submit_waiting(self, task: AnyTask, error: BaseException | None) -> None:
        """Accept a task. A full queue makes room by itself, if the task may wait for that."""
        with self._turn:
            if task.options.block and error is None and not getattr(publishing, "depth", 0):
                while self._scheduler.is_full() and self.go_on():
                    pass
                if self._scheduler.is_full():  # for ever: a real one would stand still
                    task.options = task.options.changed(block=False)
            super().submit_waiting(task, error)

    def _run_if_eager(self) -> None:
        if self._eager and not self._depth and not self._running_all:  # else who runs all comes to it
            self.run_all()

    @contextlib.contextmanager
    def accepting(self) -> Iterator[None]:
        """Run what is submitted meanwhile afterwards, if eager."""
        with self._turn:
            with self._runs_all():
                yield
            self._run_if_eager()

    @contextlib.contextmanager
    def _runs_all(self) -> Iterator[None]:
        before, self._running_all = self._running_all, True
        try:
            yield
        finally:
            self._running_all = before

    def watch(self, task: AnyTask) -> tuple[int, Callable[[], bool]] | None:
        """Somebody awaits `task`: within a task he drives, as nobody else can; else another coroutine may."""
        if self._depth:
            self.lead(task, None)
        return super().watch(task)

    def _decide(self, step: Callable[[float], T]) -> T:
        with self._turn:
            result = super()._decide(step)
            self.settle()
        return result

    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
        """Finish or cancel what was accepted; a waiting shutdown runs what is left, as a real one does.

        Raises:
            PoolkitError: it would wait for ever, for a task that hangs.
        """
        with self._turn:
            self._decide(lambda now: self._end(now, cancel_queued, kill, timeout, takes_up=False, waits=wait))
            if wait and not self._depth:
                self.run_all()
                if left := self.pending():
                    msg = f"shutdown() would wait for ever, for {left[0]!r}: it hangs, and nothing will stop it"
                    raise PoolkitError(msg)

    def lead(self, task: AnyTask, timeout: float | None) -> None:
        """Drive the pool until `task` is done, for `timeout` virtual seconds at most.

        Raises:
            TimeoutError: it is not done by then.
            PoolkitError: it would never be done.
        """
        with self._turn:
            end = math.inf if timeout is None else self.clock.now + timeout
            while not task.done() and self.go_on(end):
                pass
            if task.done():
                return
            if timeout is not None:
                self.clock.now = max(self.clock.now, end)
                msg = f"{task!r} is not done after {timeout} s of virtual time"
                raise WaitTimeout(msg)
        if self._depth:
            why = "it needs a worker, and a task that waits has the last one: a real pool would stand still"
        else:
            why = "it hangs, and no limit stops it"
        msg = f"{task!r} would never be done: {why}\n{self.timeline}"
        raise PoolkitError(msg)

    # ===== driving =====

    def settle(self) -> None:
        """Carry out what was ordered and take in what is reported, until nothing changes. Runs no task."""
        with self._turn:
            while True:
                changes = self._take_up_maps()
                with self._lock:
                    self._do_postponed(self.clock())
                    self._scheduler.tick(self.clock())
                    if self._scheduler.lingers and not self.maps.open:
                        self._scheduler.end_lingering(self.clock())
                    settled = self._decided()
                calls: Calls = deque()
                self._publish(settled, calls)
                self.callbacks.call(calls)
                if self._scheduler.unread:
                    self._read_errors()
                reports = self.workforce.act()
                if not reports and not settled and not changes:
                    break
                self.deliver(reports)
            self.callbacks.call_all()

    def _wake_for_maps(self) -> None:
        """A map was dropped: an eager pool runs the rest at once; where somebody drives, he does."""
        if self._eager and self._turn.is_free() and not self._is_reentrant():
            self.settle()

    def _take_up_maps(self) -> bool:
        """Go on with maps that nobody reads; not from the input of one of them. False when nothing changes."""
        if self._taking_up:
            return False
        self._taking_up = True
        try:
            self.maps.warn_if_slow()
            return self.maps.take_up()
        finally:
            self._taking_up = False

    def _publish(self, settled: Settled, calls: Calls | None = None) -> None:
        for task, outcome in settled:
            ending = Ending(outcome)
            self.timeline.note(named(task), ending)
            for each in self._unended.pop(task.id, ()):
                each.end(task, ending)
        super()._publish(settled, calls)

    def step(self) -> bool:
        """One thing that can happen now: a run that is over ends, else a task begins; False when there is none."""
        self._depth += 1
        try:
            happened = self.workforce.end_one() or self.workforce.begin_one()
        finally:
            self._depth -= 1
        if happened:
            self.settle()
        return happened

    def _move(self, end: float) -> bool:
        """Move the clock to what is due next, not beyond `end`; False when nothing is."""
        with self._lock:
            deadline = self._scheduler.next_deadline()
        due = min(self.workforce.next_end(), math.inf if deadline is None else deadline)
        if due > end or due == math.inf:
            return False
        self.clock.now = max(self.clock.now, due)
        self.settle()
        return True

    def go_on(self, end: float = math.inf) -> bool:
        """One more thing happens, the clock being moved to it; False when nothing would, before `end`."""
        with self._turn:
            return self.step() or ((self.workforce.is_running() or bool(self._scheduler.waiting)) and self._move(end))

    def run_next(self) -> bool:
        """Run one task that a real pool could run next; False when none is queued or running.

        One that takes time is only begun, as long as others could begin beside it.
        """
        with self._turn:
            return self.step() or (self.workforce.is_running() and self._move(math.inf))

    def run_all(self) -> None:
        """Run tasks until none is left, or those that are left hang; the clock is moved as far as that takes."""
        with self._turn, self._runs_all():
            while self.go_on():
                pass

    def advance(self, seconds: float) -> None:
        """Let so much time pass: what a real pool would do in it is done, in order."""
        with self._turn:
            end = self.clock.now + seconds
            while self.step() or self._move(end):
                pass
            self.clock.now = max(self.clock.now, end)
            self.settle()

    def pending(self) -> list[AnyTask]:
        """The tasks that were accepted and are not settled, in the order of submission."""
        self.settle()  # the results of a `map` that were dropped have it cancelled then
        with self._lock:
            return self._scheduler.unsettled_tasks()
