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
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from poolkit._core.scheduler import CLOSED, OPEN, Scheduler
from poolkit._core.workforce import AnyTask
from poolkit._engine.listeners import Listeners, Traces
from poolkit._engine.maps import Maps
from poolkit._kinds.loggers import log
from poolkit.errors import InitializerFailed, PoolClosed, PoolkitError, QueueFull
from poolkit.future import WaitTimeout
from poolkit.testing.calls import Call, Ending, Timeline
from poolkit.testing.waits import Until
from poolkit.testing.workforce import FakeWorkforce, named

if TYPE_CHECKING:
    from poolkit.testing.command_script import WhenCommand
    from poolkit.testing.programs import CommandCall

DECIDING, PUBLISHING, TAKING_UP_MAPS, IN_A_CALL, IN_A_CALLBACK, RUNNING_ALL = range(6)
_REFUSALS = (PoolClosed, QueueFull, InitializerFailed)


class Driver:
    """What runs a fake pool; see the file's header. What is asked of it is in `engine.py`. Thread-safe."""

    def __init__(self, scheduler: Scheduler, workforce: FakeWorkforce, timeline: Timeline, name: str) -> None:
        self.name = name
        self.pid = os.getpid()
        self.workforce = workforce
        self.clock = timeline
        self.eager = False
        self.calls: list[Call] = []
        self.maps = Maps(name, self._wake, self.is_open)
        self._unended: dict[int, Sequence[Call | CommandCall]] = {}  # by the id of their task
        self.turn = workforce.turn
        self.scheduler = scheduler
        self.has_begun = scheduler.has_begun  # which reads, and waits for nobody's turn
        self.note_progress = scheduler.note_progress
        self._listeners = Listeners(name)
        self.traces = Traces(self.turn, scheduler, timeline)
        self._asked: deque[Callable[[float], object]] = deque()  # steps that are to be done
        self._callbacks: deque[tuple[Callable[[Any], object], Any]] = deque()  # what is to be called, with what
        self._doing: list[int] = []  # what goes on, each within the one before
        self.peers = [self]  # those of the same clock and thread: this, and what runs the programs of `spawn`
        self.commands: list[CommandCall] = []
        self.command_script: list[WhenCommand] = []
        self.worker_script: list[Any] = []
        self.doomed: weakref.WeakSet[AnyTask] = weakref.WeakSet()  # to be cancelled at some time
        self._inconsistent = False  # an exception interrupted a step, or publishing: the next step repairs that first

    # ===== from anywhere =====

    def ask_soon(self, step: Callable[[float], object]) -> None:
        """Have this done when the pool settles next, which may be now; an eager pool goes on."""
        with self.turn:
            self._asked.append(step)
            self.settle()
            if DECIDING not in self._doing:
                self._run_if_eager()

    def deliver(self, exchange: Any, entry: Any) -> None:
        """Have a message handed to its callback where the pool settles."""
        self._callbacks.append((self._call_back, (exchange, entry)))

    def _call_back(self, called: tuple[Any, Any]) -> None:
        exchange, entry = called
        try:
            exchange.call_back(entry)
        except Exception:
            log.exception("a callback for messages of a task of pool %s raised", self.name)

    def cancel_all(self) -> None:
        """Cancel all that is queued and running."""
        self._asked.append(lambda now: self.scheduler.cancel_all(begun=True, now=now))
        self.settle()

    def is_open(self) -> bool:
        """Whether tasks are accepted."""
        return self.scheduler.phase is OPEN and not self._is_copy()

    def is_unused(self) -> bool:
        """No worker takes over a fake pool."""
        return False

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
        for peer in self.peers:
            if peer._asked or peer._inconsistent:  # noqa: SLF001 -- one of its own
                peer.settle()
        with self._while(IN_A_CALL):
            happened = any(peer.workforce.end_one() or peer.workforce.begin_one() for peer in self.peers)
        if happened:
            self._settle_all()
        return happened

    def _settle_all(self) -> None:
        for peer in self.peers:
            peer.settle()

    def move(self, end: float) -> bool:
        """Move the clock to what is due next, not beyond `end`; False when nothing is."""
        deadlines = [peer.scheduler.next_deadline() for peer in self.peers]
        ends = [due for peer in self.peers for due in peer.workforce.dues()]
        due = min([*(deadline for deadline in deadlines if deadline is not None), *ends], default=math.inf)
        if due > end or due == math.inf:
            return False
        self.clock.now = max(self.clock.now, due)
        self._settle_all()
        return True

    def _is_full(self) -> bool:
        self.scheduler.make_room(self.clock.now)
        return self.scheduler.is_full()

    def go_on(self, end: float = math.inf) -> bool:
        """One more thing happens, the clock being moved to it; False when nothing would, before `end`.

        By somebody who waits: a program that waits for him meets its limits.
        """
        with self.turn:
            return self.step() or (self._moves(waits=True) and self.move(end))

    def _moves(self, *, waits: bool) -> bool:
        """Return True if something happens by itself; what waits for its reader, or for its input, does nothing."""
        for peer in self.peers:
            if peer.scheduler.waiting or min(peer.workforce.dues(actors=waits), default=math.inf) < math.inf:
                return True
        for peer in self.peers:
            stalled = peer.workforce.stalled(programs=not waits)
            for task in peer.scheduler.unsettled_tasks():
                if (waits and task in peer.doomed) or (task.id not in stalled and peer.workforce.is_limited(task)):
                    return True
        return False

    def is_running(self) -> bool:
        """Whether something runs."""
        return any(peer.workforce.dues() for peer in self.peers)

    def run_all(self) -> None:
        """Run tasks until none is left, or those that are left hang; the clock is moved as far as that takes."""
        with self.turn, self._while(RUNNING_ALL):
            while self.step() or (self._moves(waits=False) and self.move(math.inf)):
                pass

    def lead(self, task: AnyTask | Until, timeout: float | None) -> None:
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
            why = "it hangs, or waits for its reader or its input, and no limit stops it"
            if IN_A_CALL in self._doing:
                why = "it needs a worker, and a task that waits has the last one: a real pool would stand still"
            raise PoolkitError(f"{task!r} would never be done: {why}\n{self.clock}")
