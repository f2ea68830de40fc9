"""Engine: what a fake pool, its views and maps ask of what runs it; its `PoolEngine`.

Each question is a step of the scheduler, after which the pool settles; see `driver.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from poolkit._core import snapshots
from poolkit._core.options import PoolLimits
from poolkit._core.scheduler import Scheduler
from poolkit._core.stats import PoolStats, WorkerInfo
from poolkit._core.workforce import AnyTask
from poolkit._engine.listeners import Listener
from poolkit._engine.waiters import Waiter
from poolkit.errors import PoolkitError, QueueFull
from poolkit.exchange import MOST_MAIL
from poolkit.task import SETTLED
from poolkit.testing.calls import Call
from poolkit.testing.driver import DECIDING, IN_A_CALL, IN_A_CALLBACK, Driver
from poolkit.testing.waits import FakeTask
from poolkit.testing.workforce import FakeWorkforce, named

if TYPE_CHECKING:
    from poolkit.testing.programs import CommandCall

MOST = 1_000_000  # places of the hidden pool


class FakeEngine(Driver):
    """See the file's header. Thread-safe."""

    bounded = False  # as far as callers go: `submit` itself makes room

    def submit(self, task: AnyTask, error: BaseException | None = None, waiter: Waiter | None = None) -> bool:  # noqa: ARG002 -- nobody has to wait
        """Accept a task; with `error` it fails at once. A full queue makes room, if the task may wait for that."""
        programs = None if task.options.grace is None else self.workforce.commands

        def step(now: float) -> None:
            FakeTask.adopt(task, self) if programs is None else programs.adopt(task)
            if error is None:
                self.scheduler.submit(task, now)
            else:
                self.scheduler.refuse(task, error, now)
            calls: Sequence[Call | CommandCall]
            if programs is None:
                self.calls += (calls := Call.of(task, task.call))
            else:
                self.commands += (calls := programs.calls_of(task))
            if calls:
                self._unended[task.id] = calls
                self.clock.note(named(task), "submitted:", *calls)

        self._check_owner()
        if programs is not None:
            programs.check(task)
        with self.turn:
            while task.options.block and error is None and self.is_open() and self._is_full():
                why = "a callback must not wait" if IN_A_CALLBACK in self._doing else "a real pool would stand still"
                if IN_A_CALLBACK in self._doing or not self.go_on():
                    raise QueueFull(f"cannot submit {task.name}: the queue is full, and {why}")
            self._ask(f"submit {task.name}", step)
            self._run_if_eager()
        return True

    submit_waiting = submit

    def cancel(self, task: AnyTask) -> bool:
        """Cancel a task; False when it was settled already."""
        with self.turn:
            if task.phase is SETTLED or self._is_copy():
                return False
            self.cancel_soon(task)
            self.settle()
        return True

    def cancel_soon(self, task: AnyTask) -> None:
        """Cancel a task when the pool settles next."""
        self._asked.append(lambda now: self.scheduler.cancel(task, now))

    def cancel_after(self, task: AnyTask, grace: float) -> None:
        """Cancel a task in so many virtual seconds."""

        def cancel(task: AnyTask, now: float) -> None:
            self.doomed.discard(task)
            self.scheduler.cancel(task, now)

        self.doomed.add(task)
        self.ask_soon(lambda now: self.scheduler.timers.add(now + grace, cancel, task))

    def credit(self, task: AnyTask, taken: int) -> None:
        """So many items of a stream were taken: it goes on."""
        self.ask_soon(lambda now: self.scheduler.credit(task, taken, now))

    def end(self, task: AnyTask, grace: float) -> None:
        """Have a stream closed, and after `grace` virtual seconds its worker killed."""
        if grace:
            self.ask_soon(lambda now: self.scheduler.end(task, grace, now))
        else:
            self.cancel(task)

    def end_soon(self, task: AnyTask, grace: float) -> None:
        """Do the same when the pool settles next."""
        self._asked.append(lambda now: self.scheduler.end(task, grace, now))

    def send(self, task: AnyTask, message: object) -> bool:
        """Send a message to a task."""
        self._check_owner()
        exchange = task.open_exchange()
        if len(exchange.mail) >= MOST_MAIL:
            raise QueueFull(f"cannot send {task!r} a message: it has not asked for the last {MOST_MAIL}")
        packed = self.workforce.pack_mail(message)
        if not task.done():
            exchange.mail.append(packed)
        return not task.done()

    def open_programs(self) -> None:
        """Be ready for commands."""
        from poolkit.testing.commands import FakeProgramForce  # noqa: PLC0415 -- for those who run programs

        self._check_owner()
        if self.workforce.programs is None:
            self.workforce.programs = self.workforce.commands = FakeProgramForce(self)

    def finish(self, task: AnyTask, grace: float) -> None:
        """Have a command end, by SIGKILL after `grace` virtual seconds, and deliver what it did."""
        self.ask_soon(lambda now: self.scheduler.finish(task, grace, now))

    def spawner(self) -> FakeEngine:
        """What runs the programs of `spawn`, and dedicated workers: a hidden fake pool, by the same clock and script.

        It has a place for each.
        """
        with self.turn:
            if len(self.peers) == 1:
                workforce = FakeWorkforce(self.clock, 0, None, check_pickle=True)
                workforce.turn = self.turn
                scheduler = Scheduler(
                    workforce, PoolLimits(MOST, max_tasks_per_child=1, on_demand=True), random.Random(0)
                )
                spawned = FakeEngine(scheduler, workforce, self.clock, "spawned")
                spawned.eager, spawned.peers, spawned._doing = self.eager, self.peers, self._doing
                spawned._callbacks = self._callbacks
                spawned.commands, spawned.command_script = self.commands, self.command_script
                spawned.worker_script = self.worker_script
                self.peers.append(spawned)
            return cast("FakeEngine", self.peers[-1])

    def end_spawned(self) -> None:
        """Cancel what was started by `spawn`, and dedicated workers."""
        for peer in () if self._is_copy() else self.peers[1:]:
            peer.cancel_all()

    def end_lease(self, *_: object) -> None:
        """Do nothing: no outcome comes of itself, nobody waits for room, no thread is to end; nor does anybody wait."""

    stop_waiting = drop = say_if_stuck = end_lease

    def watch(self, task: AnyTask) -> None:
        """Somebody awaits `task`: within a task he drives, as nobody else can; else another coroutine may."""
        if IN_A_CALL in self._doing:
            self.lead(task, None)

    def resize(self, size: int) -> None:
        """Change the number of workers."""
        self.scheduler.check_open("resize")
        self._ask("resize", lambda now: self.scheduler.resize(size, now))

    def warm_up(self, timeout: float | None) -> None:  # noqa: ARG002 -- it takes no time
        """Start all workers."""
        self.scheduler.check_open("warm up")
        self._ask("warm up", self.scheduler.warm_up)
        self.scheduler.check_open("warm up")  # the initializer may have raised

    def stats(self) -> PoolStats:
        """A snapshot of the counts."""
        with self.turn:
            return snapshots.pool_stats(self.scheduler, 0, self.workforce.received)

    def workers(self) -> list[WorkerInfo]:
        """A snapshot of the workers."""
        with self.turn:
            return snapshots.workers(self.scheduler, self.clock.now)

    def stacks(self, timeout: float) -> dict[int, str]:  # noqa: ARG002 -- it takes none
        """Nothing of each busy worker: between two steps, no call is under way."""
        return {info.id: "" for info in self.workers() if info.state == "busy"}

    def listen(self, name: str, listener: Listener) -> None:
        """Call `listener` with each event of that name."""
        with self.turn:
            self.scheduler.listened = self._listeners.add(name, listener)

    def unlisten(self, name: str, listener: Listener) -> None:
        """Undo one `listen`. Raises ValueError when it was not listening."""
        with self.turn:
            self.scheduler.listened = self._listeners.remove(name, listener)

    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
        """Finish or cancel what was accepted; if it is to `wait`, by running it. PoolkitError where something hangs."""

        def step(now: float) -> None:
            scheduler = self.scheduler
            scheduler.shutdown(cancel_queued=cancel_queued, kill=kill, now=now, kill_after=timeout, lingers=True)
            if scheduler.lingers:
                self.maps.end(leaves=True, warns=wait)

        if self._is_copy():
            return
        with self.turn:
            self._asked.append(step)
            self.settle()
            if not wait or IN_A_CALL in self._doing or DECIDING in self._doing:
                return
            self.run_all()
            while self.workforce.is_stalled() and self.move(math.inf):  # until the streams that nobody reads are closed
                self.run_all()
            if left := self.scheduler.unsettled_tasks():
                raise PoolkitError(f"shutdown() would wait for ever: {left[0]!r} hangs, and nothing will stop it")
