"""Driver: the supervisor of a fake pool. It has no thread: whoever uses the pool drives it, on a virtual clock.

    settle    carry out what was ordered and take in what is reported, until nothing changes; runs no task
    step      one more thing happens: a task begins (and ends, if it takes no time), or one whose time has come ends
    move      the clock goes on to when the next thing is due, and that happens

Whoever waits for a task drives the pool until it is done, as waiting in the only thread would never end otherwise.
A task that uses its own pool may do so: what it waits for is run by the workers that are free.
Owner: the thread that made the pool. Other threads may wait for tasks, but must not hand anything in.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable

from poolkit._core.options import PoolLimits
from poolkit._core.workforce import AnyTask
from poolkit._workforce.desk import Settled
from poolkit._workforce.line import Place
from poolkit._workforce.supervisor import Supervisor
from poolkit.errors import PoolkitError
from poolkit.task import Task, WaitTimeout
from poolkit.testing.calls import Call, Ending, Timeline
from poolkit.testing.workforce import FakeWorkforce, VirtualClock, named


class FakeTask(Task):  # type: ignore[type-arg]
    """A task of a fake pool: `concurrent.futures.wait` and `as_completed`, too, drive the pool."""

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        owner = self._owner
        if isinstance(owner, FakeSupervisor):
            owner.drive(self, math.inf)
        return super()._condition


class FakeSupervisor(Supervisor):
    """See the file's header. Not thread-safe, unlike its base."""

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
        super().__init__(threading.RLock(), workforce, limits, name=name, clock=clock, rng=random.Random(seed))
        self.calls: list[Call] = []
        self._unended: dict[int, list[Call]] = {}  # by the id of their task
        self.timeline = timeline
        self._eager = eager
        self._owner = threading.get_ident()
        self._depth = 0  # how many tasks are in the midst of their call, each in the one before

    def _start_thread(self) -> None:
        return

    # ===== what the pool asks =====

    def submit(self, task: AnyTask, error: BaseException | None = None, place: Place | None = None) -> bool:
        """Accept a task, and if eager, run all there is. A full queue makes room by itself, if it may wait for that."""
        while place is None and task.options.block and error is None and self._scheduler.is_full() and self._happens():
            pass
        if place is None and self._scheduler.is_full():
            task.options = task.options.changed(block=False)
        call = task.call
        if not super().submit(task, error, place):
            return False
        calls = Call.of(task, call)
        self.calls += calls
        if calls:
            self._unended[task.id] = calls
            self.timeline.note(named(task), "submitted:", *calls)
        self.settle()
        if self._eager and not self._depth:
            self.run_all()
        return True

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
        """Finish or cancel what was accepted; a waiting shutdown runs what is left, as a real one does.

        Raises:
            PoolkitError: it would wait for ever, for a task that hangs.
        """
        with self._lock:
            self._scheduler.shutdown(cancel_queued=cancel_queued, kill=kill, now=self.clock(), kill_after=timeout)
            settled = self._decided()
        self._publish(settled)
        self.settle()
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
        if threading.get_ident() != self._owner:
            return  # another thread drives
        self.drive(task, math.inf if timeout is None else self.clock.now + timeout)
        if task.done():
            return
        if timeout is not None:
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

    def _publish(self, settled: Settled, *, call: bool = True) -> None:
        for task, outcome in settled:
            ending = Ending(outcome)
            self.timeline.note(named(task), ending)
            for each in self._unended.pop(task.id, ()):
                each.end(task, ending)
        super()._publish(settled, call=call)

    def _steps(self, what: Callable[[], bool]) -> bool:
        self._depth += 1
        try:
            happened = what()
        finally:
            self._depth -= 1
        if happened:
            self.settle()
        return happened

    def step(self) -> bool:
        """One thing that can happen now: a run that is over ends, else a task begins; False when there is none."""
        return self._steps(self.workforce.end_one) or self._steps(self.workforce.begin_one)

    def next_due(self) -> float | None:
        """When something happens by itself; None: never."""
        with self._lock:
            deadline = self._scheduler.next_deadline()
        end = self.workforce.next_end()
        return deadline if end is None else end if deadline is None else min(end, deadline)

    def _move(self, end: float) -> bool:
        """Move the clock to what is due next, not beyond `end`; False when nothing is."""
        due = self.next_due()
        if due is None or due > end:
            return False
        self.clock.now = max(self.clock.now, due)
        self.settle()
        return True

    def _is_busy(self) -> bool:
        return self.workforce.is_running() or bool(self._scheduler.waiting)

    def _happens(self, end: float = math.inf) -> bool:
        """One more thing happens, the clock being moved to it; False when nothing would, before `end`."""
        return self.step() or (self._is_busy() and self._move(end))

    def run_next(self) -> bool:
        """Run one task that a real pool could run next; False when none is queued or running.

        One that takes time is only begun, as long as others could begin beside it.
        """
        return self.step() or (self.workforce.is_running() and self._move(math.inf))

    def run_all(self) -> None:
        """Run tasks until none is left, or those that are left hang; the clock is moved as far as that takes."""
        while self._happens():
            pass

    def drive(self, task: AnyTask, end: float) -> None:
        """Run tasks until `task` is done, the clock is at `end`, or nothing happens any more."""
        if threading.get_ident() != self._owner:
            return
        while not task.done() and self._happens(end):
            pass
        if not task.done() and end < math.inf:
            self.clock.now = max(self.clock.now, end)

    def advance(self, seconds: float) -> None:
        """Let so much time pass: what a real pool would do in it is done, in order."""
        end = self.clock.now + seconds
        while self.step() or self._move(end):
            pass
        self.clock.now = end
        self.settle()

    def pending(self) -> list[AnyTask]:
        """The tasks that were accepted and are not settled, in the order of submission."""
        with self._lock:
            return self._scheduler.unsettled_tasks()
