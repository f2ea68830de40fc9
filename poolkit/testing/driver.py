"""Driver: what runs a fake pool. It has no thread: whoever uses the pool drives it, on a virtual clock.

    settle    do what was asked for, take in what workers report, publish, until nothing changes; runs no task
    step      one more thing happens: a task begins (and ends, if it takes no time), or one whose time has come ends
    move      the clock goes on to when the next thing is due, and that happens

Whoever waits for a task drives the pool until it is done, as waiting in the only thread would never end otherwise.
A task that uses its own pool may do so: what it waits for is run by the workers that are free.
Done callbacks and listeners are called, one after the other, where the pool has settled, by the thread that drives.
Guarded by: `turn`: all but `_asked`, which anybody may append to. One thread drives at a time, and the others wait
until it is done. What a signal handler or finalizer asks for that interrupts a step of the scheduler in its own thread
is done after that, if it needs no answer, and else refused.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from poolkit._core import snapshots
from poolkit._core.scheduler import CLOSED, OPEN, Scheduler
from poolkit._core.stats import PoolStats, WorkerInfo
from poolkit._core.workforce import AnyTask
from poolkit._engine.listeners import Listener, Listeners, Traces
from poolkit._engine.maps import Maps
from poolkit._engine.waiters import Waiter
from poolkit._kinds.loggers import log
from poolkit.errors import InitializerFailed, PoolClosed, PoolkitError, QueueFull
from poolkit.exchange import MOST_MAIL, Exchange
from poolkit.future import WaitTimeout
from poolkit.task import SETTLED
from poolkit.testing.calls import Call, Ending, Timeline
from poolkit.testing.waits import FakeTask
from poolkit.testing.workforce import FakeWorkforce, named

DECIDING, PUBLISHING, TAKING_UP_MAPS, IN_A_CALL, IN_A_CALLBACK, RUNNING_ALL = range(6)
_REFUSALS = (PoolClosed, QueueFull, InitializerFailed)


class Driver:
    """What runs a fake pool; its `PoolEngine`. See the file's header. Thread-safe."""

    bounded = False  # as far as callers go: `submit` itself makes room

    def __init__(self, scheduler: Scheduler, workforce: FakeWorkforce, timeline: Timeline, name: str) -> None:
        self.name = name
        self.pid = os.getpid()
        self.workforce = workforce
        self.clock = timeline
        self.eager = False
        self.calls: list[Call] = []
        self.maps = Maps(name, self._wake, self.is_open)
        self._unended: dict[int, list[Call]] = {}  # calls by the id of their task
        self.turn = workforce.turn
        self.scheduler = scheduler
        self.has_begun = scheduler.has_begun  # which reads, and waits for nobody's turn
        self.note_progress = scheduler.note_progress
        self._listeners = Listeners(name)
        self.traces = Traces(self.turn, scheduler, timeline)
        self._asked: deque[Callable[[float], object]] = deque()  # steps that are to be done
        self._callbacks: deque[tuple[Callable[[Any], object], Any]] = deque()  # what is to be called, with what
        self._doing: list[int] = []  # what goes on, each within the one before
        self._inconsistent = False  # an exception interrupted a step, or publishing: the next step repairs that first

    # ===== what the pool asks =====

    def submit(self, task: AnyTask, error: BaseException | None = None, waiter: Waiter | None = None) -> bool:  # noqa: ARG002 -- nobody has to wait
        """Accept a task; with `error` it fails at once. A full queue makes room, if the task may wait for that."""

        def step(now: float) -> None:
            FakeTask.adopt(task, self)
            if error is None:
                self.scheduler.submit(task, now)
            else:
                self.scheduler.refuse(task, error, now)
            if calls := Call.of(task, task.call):
                self.calls += calls
                self._unended[task.id] = calls
                self.clock.note(named(task), "submitted:", *calls)

        self._check_owner()
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

    def credit(self, task: AnyTask, taken: int) -> None:
        """So many items of a stream were taken: it goes on."""
        self._ask_soon(lambda now: self.scheduler.credit(task, taken, now))

    def end(self, task: AnyTask, grace: float) -> None:
        """Have a stream closed, and after `grace` virtual seconds its worker killed."""
        if grace:
            self._ask_soon(lambda now: self.scheduler.end(task, grace, now))
        else:
            self.cancel(task)

    def end_soon(self, task: AnyTask, grace: float) -> None:
        """Do the same when the pool settles next."""
        self._asked.append(lambda now: self.scheduler.end(task, grace, now))

    def _ask_soon(self, step: Callable[[float], object]) -> None:
        with self.turn:
            self._asked.append(step)
            self.settle()
            if DECIDING not in self._doing:
                self._run_if_eager()

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

    def deliver(self, exchange: Exchange, entry: Any) -> None:
        """Have a message handed to its callback where the pool settles."""
        self._callbacks.append((self._call_back, (exchange, entry)))

    def _call_back(self, called: tuple[Exchange, Any]) -> None:
        exchange, entry = called
        try:
            exchange.call_back(entry)
        except Exception:
            log.exception("a callback for messages of a task of pool %s raised", self.name)

    def open_programs(self) -> None:
        """Refuse: a fake runs no programs."""
        msg = f"pool {self.name} is a fake, and a fake runs no programs"
        raise PoolkitError(msg)

    def finish(self, task: AnyTask, grace: float) -> None:
        """Have a command end."""

    def cancel_all(self) -> None:
        """Cancel all that is queued and running."""
        self._asked.append(lambda now: self.scheduler.cancel_all(begun=True, now=now))
        self.settle()

    def lead(self, task: AnyTask, timeout: float | None) -> None:
        """Drive the pool until `task` is done, for `timeout` virtual seconds at most. PoolkitError: it never is."""
        self._check_owner()
        with self.turn:
            end = math.inf if timeout is None else self.clock.now + timeout
            while not task.done() and self.go_on(end):
                pass
            if task.done():
                return
            if timeout is not None:
                self.clock.now = max(self.clock.now, end)
                raise WaitTimeout(f"{task!r} is not done after {timeout} s of virtual time")
            why = "it hangs, and no limit stops it"
            if IN_A_CALL in self._doing:
                why = "it needs a worker, and a task that waits has the last one: a real pool would stand still"
            raise PoolkitError(f"{task!r} would never be done: {why}\n{self.clock}")

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

    def is_open(self) -> bool:
        """Whether tasks are accepted."""
        return self.scheduler.phase is OPEN and not self._is_copy()

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

    def _is_copy(self) -> bool:
        return os.getpid() != self.pid

    def _check_owner(self) -> None:
        if self._is_copy():
            raise PoolClosed(f"pool {self.name} belongs to process {self.pid}, from which this one was forked")

    # ===== settling =====

    @contextlib.contextmanager
    def _while(self, what: int) -> Iterator[None]:
        """Note what goes on, and what an exception interrupted that is no refusal."""
        self._doing.append(what)
        try:
            yield
        except BaseException as exc:
            self._inconsistent |= what in {DECIDING, PUBLISHING} and not isinstance(exc, _REFUSALS)
            raise
        finally:
            self._doing.pop()

    def _ask(self, what: str, step: Callable[[float], object]) -> None:
        """Do a step of the scheduler that may be refused, and settle."""
        self._check_owner()
        with self.turn:
            self._refuse_reentrant(what)
            self._decide(step)
            self.settle()

    def _refuse_reentrant(self, what: str) -> None:
        if DECIDING in self._doing:
            raise PoolkitError(f"cannot {what} here: a signal handler or finalizer interrupted the pool itself")

    def _decide(self, step: Callable[[float], object]) -> None:
        """Do a step of the scheduler."""
        with self._while(DECIDING):
            if self._inconsistent:
                self.scheduler.repair(deque(), self.clock.now)
                self._inconsistent = False
            step(self.clock.now)

    def settle(self) -> None:
        """Do what was asked for and take in what is reported, until nothing changes. Runs no task."""
        with self.turn:
            if DECIDING in self._doing:  # whoever is interrupted by this comes to it
                return
            while self._settle_once():
                pass
            if self._callbacks and IN_A_CALLBACK not in self._doing:
                with self._while(IN_A_CALLBACK):
                    while self._callbacks:
                        call, what = self._callbacks[0]
                        call(what)
                        self._callbacks.popleft()  # not before: a Ctrl-C leaves what it has not called
                self._run_if_eager()

    def _settle_once(self) -> bool:
        """Do each of it once; False when nothing more comes of it."""
        self._decide(self._take_in)
        for task, outcome in [*self.scheduler.unread.items()]:
            outcome.error()  # unpickles it: the user's code
            self._decide(functools.partial(self.scheduler.read, task))
        with self._while(PUBLISHING):
            self._publish()
        if self.scheduler.phase is CLOSED:
            self.traces.end()
        self.maps.warn_if_slow()
        changes = False
        if not self.maps.left.empty() and TAKING_UP_MAPS not in self._doing:  # else this is asked by the input of one
            with self._while(TAKING_UP_MAPS):
                changes = self.maps.take_up()
        return bool(changes or self._asked or self.workforce.reports)

    def _take_in(self, now: float) -> None:
        scheduler = self.scheduler
        while self._asked:
            self._asked.popleft()(now)
        scheduler.handle_all(self.workforce.reports, now)
        scheduler.tick(now)
        if scheduler.lingers and not self.maps.open:
            scheduler.end_lingering(now)

    def _publish(self) -> None:
        """Give tasks their outcomes, and note what is to be called."""
        scheduler, settled = self.scheduler, [*self.scheduler.settled]
        self._callbacks += [(self._listeners.tell, event) for event in scheduler.events]
        scheduler.events.clear()
        scheduler.settled.clear()
        for task, outcome in settled:
            ending = Ending(outcome)
            self.clock.note(named(task), ending)
            for call in self._unended.pop(task.id, ()):
                call.end(task, ending)
            if callbacks := task.publish(outcome):
                self._callbacks.append((task.call_back, callbacks))
            scheduler.accepted.pop(task, None)

    def _wake(self) -> None:
        """Go on with maps that were dropped, unless somebody drives, who comes to that. From finalizers too."""
        if self.turn.is_free():
            self.settle()

    # ===== driving =====

    def _run_if_eager(self) -> None:
        """Run what was submitted; within a call, a callback or `run_all`, that is done by whoever drives that."""
        if self.eager and not {IN_A_CALL, IN_A_CALLBACK, RUNNING_ALL} & {*self._doing}:
            self.run_all()

    @contextlib.contextmanager
    def accepting(self) -> Iterator[None]:
        """Run what is submitted meanwhile afterwards, if eager."""
        with self.turn:
            with self._while(RUNNING_ALL):
                yield
            self._run_if_eager()

    def step(self) -> bool:
        """One thing that can happen now: a run that is over ends, else a task begins; False when there is none."""
        self._refuse_reentrant("wait for a task")
        if self._asked or self._inconsistent:
            self.settle()
        with self._while(IN_A_CALL):
            happened = self.workforce.end_one() or self.workforce.begin_one()
        if happened:
            self.settle()
        return happened

    def move(self, end: float) -> bool:
        """Move the clock to what is due next, not beyond `end`; False when nothing is."""
        deadline = self.scheduler.next_deadline()
        ends = [run.ends_at for run, _ in self.workforce.running()]
        due = min([math.inf if deadline is None else deadline, *ends])
        if due > end or due == math.inf:
            return False
        self.clock.now = max(self.clock.now, due)
        self.settle()
        return True

    def _is_full(self) -> bool:
        self.scheduler.make_room(self.clock.now)
        return self.scheduler.is_full()

    def go_on(self, end: float = math.inf) -> bool:
        """One more thing happens, the clock being moved to it; False when nothing would, before `end`."""
        with self.turn:
            return self.step() or (self._moves() and self.move(end))

    def _moves(self) -> bool:
        """Return True if something happens by itself; a stream that waits for its reader does nothing."""
        running = self.workforce.running()
        return bool(self.scheduler.waiting) or (bool(running) and not self.workforce.is_stalled())

    def run_all(self) -> None:
        """Run tasks until none is left, or those that are left hang; the clock is moved as far as that takes."""
        with self.turn, self._while(RUNNING_ALL):
            while self.go_on():
                pass
