"""Desk: the pool's one lock, the scheduler behind it, and what whoever held the lock publishes afterwards.

    step      take the lock, hand something to the scheduler, take out what it decided, let go of the lock
    hand in   while all workers are busy a new task is only left here, without the lock, for the next step
    leave     a worker thread's report is only left here where another thread has the lock, which looks afterwards
    publish   give tasks their outcomes, wake who waits; callbacks are called by the thread that ended the task by a
              call of its own, such as cancel(), else by a thread of their own, see `_workforce/callbacks.py`;
              there listeners are told of events, too
    take      read the links, by whoever waits or passes by, and publish
    defer     outcomes of tasks that logged are published behind their records, see `_workforce/logs.py`

Lock order: the reader's locks, the pool's lock, then `poolkit.task._LOCK`; never the other way. Nothing that can block,
no pickling and no code of the user runs under the last two. The main thread puts signals off while it decides, see
`_workforce/interrupts.py`.
Guarded by: `_lock`: the scheduler and everything behind it, `_sleeping_until`, `_line`, the listeners.
`_due` and `_all_busy` are written under it and read by anybody. `_later`, `_uncalled`, `_handed_in` and `_left` are
appended to by anybody.

Why nothing that was handed in is forgotten: who hands in looks at `_all_busy`, leaves the task, and looks again. If it
holds both times, a worker will report, and the step for that begins by taking the task in. A step takes `_all_busy`
back before it takes anything in, so that who comes later sees that, and makes a step of its own.
Longer than most: entering, leaving and publishing are one protocol around one lock, and half of it says why it holds.
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from poolkit import _os, errors
from poolkit._clock import monotonic
from poolkit._core.options import PoolLimits
from poolkit._core.scheduler import CLOSED, OPEN, Scheduler
from poolkit._core.workforce import AnyTask, BootFailed, Died, Logged, Report
from poolkit._locks import RLock
from poolkit._workforce.callbacks import Caller
from poolkit._workforce.driven import DrivenWorkforce
from poolkit._workforce.interrupts import deciding, let_come, put_off
from poolkit._workforce.line import Line, Place
from poolkit._workforce.listeners import Listener, Listeners
from poolkit._workforce.logs import Records, log
from poolkit._workforce.maps import Maps
from poolkit._workforce.reader import Reader
from poolkit.errors import PoolClosed, PoolkitError
from poolkit.outcome import Outcome
from poolkit.task import Task

if TYPE_CHECKING:
    from poolkit._core.stats import PoolStats, WorkerInfo


HANDING_IN = "handing-in" not in _os.SWITCHED_OFF  # False: each task is accepted in a step of its own
LEAVING = "leaving" not in _os.SWITCHED_OFF  # False: who reports waits for the lock

T = TypeVar("T")
Ready = Sequence[tuple[int, int]]  # as `poll` has them: descriptors, and what is the matter with them
Settled = list[tuple[AnyTask, Outcome]]
Calls = deque[tuple[Callable[[Any], object], Any]]  # what is to be called, with what

publishing = threading.local()  # .depth > 0 while this thread runs callbacks


class Desk:
    """Where threads hand things in to the scheduler of one pool; see the file's header. Thread-safe."""

    new_task = Task
    threaded = True  # whether a thread waits for the workforce; a fake is driven by its caller
    chunksize: int | None = None  # items of `map` in one task; None: by their measured times

    def __init__(
        self,
        lock: RLock,
        workforce: DrivenWorkforce,
        limits: PoolLimits,
        *,
        name: str,
        clock: Callable[[], float] = monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.workforce = workforce
        self.clock = clock
        self._lock = lock
        self._owns_lock: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 -- as Condition does
        self._changed = threading.Condition(lock)  # for callers of `warm_up`, whom the roster counts
        self._line = Line()
        self._scheduler = Scheduler(workforce, limits, rng or random.Random())
        self._listeners = Listeners(name)
        # Steps that a signal handler or finalizer asked for while its own thread was in the middle of another one, for
        # the supervisor thread to do. Appended to without the lock.
        self._later: deque[Callable[[float], object]] = deque()
        self.bounded = limits.max_queue is not None
        self._handed_in: deque[AnyTask] = deque()  # numbered, and not yet known to the scheduler
        self._left: deque[Report] = deque()  # what workers have said, and nobody has taken in
        self._torn = False  # an exception tore a step, or what follows it: the next one repairs that first
        self._all_busy = False  # the scheduler's word, between two steps
        self._due = math.inf  # when the scheduler has something to do by itself
        self._sleeping_until = -math.inf  # when the thread wakes by itself; -inf: soon, and then it looks at `_due`
        self._reader = Reader(workforce.links, workforce.wake, self._take)
        self._uncalled: Calls = deque()  # left to the callback thread
        self.records = Records(name, self._uncalled, self._publish, workforce.wake, workforce.links)
        self._caller = Caller(f"poolkit-{name}-callbacks", self._call_back)
        self._error_reader = Caller(f"poolkit-{name}-errors", self._read_errors)
        self.maps = Maps(name, workforce.wake, self.is_open)
        self._closed = threading.Event()
        self.forked = False  # this is a copy in a forked child
        self.pid = os.getpid()

    # ===== entering and leaving the lock =====

    def _enter(self) -> float:
        """Begin a step, under the lock, by taking in what was handed in. Returns the moment."""
        self._all_busy = False
        if self._torn:
            self._torn = False
            try:
                self._scheduler.repair(self._handed_in, self.clock())
            except BaseException:
                self._torn = True
                raise
        if self._handed_in:
            self._scheduler.take_in(self._handed_in)
        return self.clock()

    def _decided(self) -> Settled:
        """What is to be published; wakes who must know. Under the lock, as the last thing."""
        scheduler = self._scheduler
        self._all_busy = not scheduler.roster.idle and self.threaded and HANDING_IN and scheduler.all_busy()
        settled = [*scheduler.settled]  # a list of its own, also when it is empty
        scheduler.settled.clear()
        if scheduler.events:
            self._uncalled.extend([(self._listeners.tell, event) for event in scheduler.events])
            scheduler.events.clear()
        timers = scheduler.timers.heap
        self._due = timers[0][0] if timers else math.inf
        if self._due < self._sleeping_until or scheduler.phase is CLOSED:
            self._sleeping_until = -math.inf  # once is enough
            self.workforce.wake()
        if scheduler.roster.warming:
            self._changed.notify_all()
        if scheduler.unread and not self._error_reader.wake():
            self.workforce.wake()  # the supervisor thread starts that thread
        return settled

    def _is_torn(self) -> bool:
        """Whether this thread is in the middle of a step already: it was interrupted by a signal or a collection.

        The lock is re-entrant only so that this can be told; a second step inside the first would tear it.
        """
        if self._reader.taking == threading.get_ident():
            return True
        return self._owns_lock()

    def _do_later(self, step: Callable[[float], object]) -> None:
        self._later.append(step)
        self.workforce.wake()

    def _do_what_was_put_off(self, now: float) -> None:
        while self._later:
            step = self._later.popleft()
            try:
                step(now)
            except Exception:
                log.exception("pool %s could not do what a signal handler or finalizer asked for", self.name)

    @deciding
    def _decide(self, step: Callable[[float], T]) -> T:
        """Do a step of the scheduler, at a moment, and publish what comes of it. Not when `_is_torn`."""
        calls: Calls = deque()
        try:
            before = put_off()
            try:
                with self._lock:
                    result = step(self._enter())
                    settled = self._decided()
                self._publish(settled, calls)
                if self._left:
                    self._take_left()
            except BaseException as exc:
                if not isinstance(exc, PoolkitError):  # which was refused
                    self._tear()
                raise
            finally:
                let_come(before)
            if calls:
                self._call(calls)
        except BaseException:  # mostly what a signal handler raised, once signals came again
            self._leave_calls(calls)
            raise
        return result

    def _tear(self) -> None:
        """Note that an exception has torn a step, or the publishing of what it decided; somebody will repair that."""
        self._torn = True
        self.workforce.wake()

    def _leave_calls(self, calls: Calls) -> None:
        """Leave what is still to be called to the pool's thread."""
        if calls and calls is not self._uncalled:
            self._uncalled.extend(calls)
            calls.clear()
            self.workforce.wake()

    def _publish(self, settled: Settled, calls: Calls | None = None) -> None:
        """Give the tasks their outcomes, and add their callbacks to `calls`, or leave them. Never under the lock.

        Where it is torn, `Scheduler.repair` has it done again for the tasks that are still `accepted`.
        """
        if self.workforce.unstarted:
            self.deliver(self.workforce.start_now())
        if self._line.places:
            self._call_next()
        if settled:
            accepted = self._scheduler.accepted
            if calls is None:
                calls = self._uncalled
            publishing.depth = getattr(publishing, "depth", 0) + 1  # a call that is let go of may run a `__del__`
            try:
                for task, outcome in settled:
                    callbacks = task.publish(outcome)
                    if callbacks:
                        calls.append((task.call_back, callbacks))
                    accepted.pop(task, None)
            finally:
                publishing.depth -= 1
        if self._reader.awaited is not None:  # also where nothing was settled: what was read may have been for him
            self._reader.published()
        if self._uncalled:
            self._have_called()

    def _have_called(self) -> None:
        """Have the thread for callbacks call what was left to it."""
        if self._caller.wake():
            return
        if self._closed.is_set():  # there is nobody else any more
            self._call_back()
        else:
            self.workforce.wake()  # the supervisor thread starts that thread

    def _call_next(self) -> None:
        """Call as many of those who wait as there is room for."""
        left = True
        while left:
            with self._lock:
                line, scheduler = self._line, self._scheduler
                count = min(len(line), max(0, scheduler.room())) if scheduler.phase is OPEN else len(line)
                called = line.take(count)
            left = sum(place.call() for place in called) < count

    def leave_line(self, place: Place) -> None:
        """Somebody does not wait any more. If he was called, the next is. From a finalizer too, so without the lock."""
        place.gone = True
        if place.called:
            self.workforce.wake()  # a step calls

    def deliver(self, reports: list[Report]) -> None:
        """Hand reports of workers to the scheduler, and publish what comes of them."""
        calls: Calls | None = None if self.threaded else deque()
        self._publish(self._handle(reports), calls)
        if calls:
            self._call(calls)

    def leave(self, report: Report) -> None:
        """Hand a report in, which is at hand as it is, on a worker's own thread. Never blocks.

        Where another thread has the lock, the report is only left for it, or for the supervisor thread: to wait would
        cost each task a turn of the interpreter's lock between two CPUs, some 40 us.
        """
        if not LEAVING:
            self.deliver([report])
            return
        self._left.append(report)
        self._take_left()

    def _take_left(self) -> None:
        """Take in what was left, unless another thread has the lock."""
        if not self._lock.acquire(blocking=False):
            self.workforce.wake()  # whoever has it may have looked already
            return
        try:
            try:
                settled = self._take_in()
            finally:
                self._lock.release()
            self._publish(settled)
        except BaseException:
            self._tear()
            raise

    def _take_in(self) -> Settled:
        """Hand the scheduler what was left, and have it do what is due. Under the lock."""
        self._all_busy = False  # before the look at what was handed in, as in `_enter`; that call is for few steps
        now = self._enter() if self._torn or self._handed_in else self.clock()
        if self._left:
            self._scheduler.handle_all(self._left, now)
        if self._due <= now:
            self._scheduler.tick(now)
        return self._decided()

    def _handle(self, reports: list[Report]) -> Settled:
        """Hand reports of workers to the scheduler, and empty the list; returns what is to be published at once."""
        if not reports and not self._handed_in and not self._left and self._due > self.clock():
            return []
        logged: list[Logged] = []
        for report in reports:
            if type(report) is Logged:
                logged.append(report)
            elif type(report) is BootFailed or type(report) is Died:
                self._prepare_errors(report)
        if logged:
            self.records.add(logged)
        with self._lock:
            self._left.extend([report for report in reports if type(report) is not Logged] if logged else reports)
            reports.clear()
            settled = self._take_in()
        return self.records.defer(settled) if settled and self.records.pending else settled

    @deciding
    def _take(self, ready: Ready | None = None) -> bool:
        """Read the links and publish what comes of it, unless somebody else reads: False. Any thread. Does not block.

        With `ready`, only those that were found to have something a moment ago.
        """
        reader = self._reader
        before = put_off()
        try:
            if not reader.lock.acquire(blocking=False):
                return False
            try:
                reader.taking = threading.get_ident()
                links = reader.links
                settled = [] if links is None else self._handle(links.read(ready))
            finally:
                reader.taking = 0
                reader.lock.release()
            self._publish(settled)
        except BaseException:
            self._tear()
            raise
        finally:
            let_come(before)
        return True

    def lead(self, task: AnyTask, timeout: float | None) -> None:
        """Read results until `task` is done, for at most `timeout` seconds, unless another thread does. Blocks."""
        here = threading.get_ident()
        if self._reader.taking == here or self._owns_lock():
            self._refuse_if_torn("wait for a task")
        if self.forked or os.getpid() != self.pid:
            self._check_owner()  # decided in the parent, and published there alone
        if self._caller.ident == here:
            self.records.step_aside()
        self._reader.lead(task, timeout)

    def relinquish(self) -> None:
        """Somebody wants to be called back, or waits in a way of his own."""
        if self._caller.ident == threading.get_ident():
            self.records.step_aside()
        self._reader.relinquish()

    def watch(self, _task: AnyTask) -> tuple[int, Callable[[], bool]] | None:
        """For an event loop: the descriptor of the links, and what reads them; None where there is no such thing."""
        if self._caller.ident == threading.get_ident():
            self.records.step_aside()
        fd = None if self._is_copy() else self._reader.watch()
        if fd is None:
            self._reader.relinquish()
            return None
        return fd, self._look_in

    def _look_in(self) -> bool:
        """Take in what is on the links, on an event loop's thread; false when there are none any more."""
        self._reader.pass_by()
        return not self._reader.closed

    def _read_errors(self) -> None:
        """Unpickle failures that may be retried, depending on their types. Under no lock: it is the user's code."""
        publishing.depth = getattr(publishing, "depth", 0) + 1
        try:
            while unread := list(self._scheduler.unread.items()):
                task, outcome = unread[0]
                outcome.error()
                with self._reader.lock:
                    with self._lock:
                        self._scheduler.read(task, self._enter())
                        settled = self._decided()
                    settled = self.records.defer(settled)
                self._publish(settled)
        except BaseException:
            self._tear()
            raise
        finally:
            publishing.depth -= 1

    def _prepare_errors(self, report: BootFailed | Died) -> None:
        """Import what a crash is told with. Not under the lock: who imports it just now may be about to want that."""
        with self._lock:
            wanted = type(report) is BootFailed or self._scheduler.may_break(report.worker_id)
        if wanted:
            errors.WorkerCrashed  # noqa: B018 -- made at its first use

    def _call_back(self) -> None:
        """Call the callbacks that were left, and tell the events."""
        if self._uncalled:
            self._call(self._uncalled)

    def _call(self, calls: Calls) -> None:
        """Call callbacks. What they have called by ending tasks is called after them, by the same loop."""
        outer: Calls | None = getattr(publishing, "calls", None)
        if outer is not None:
            while calls and outer is not calls:
                outer.append(calls.popleft())
            return
        depth = getattr(publishing, "depth", 0)
        try:
            publishing.calls, publishing.depth = calls, depth + 1  # in here, as a signal handler may raise before
            is_shared = calls is self._uncalled
            while calls:
                try:
                    call, what = calls.popleft() if is_shared else calls[0]
                except IndexError:  # another thread was faster
                    return
                try:
                    call(what)
                except BaseException:  # a Ctrl-C; what is left of them is for the pool's threads
                    if is_shared:
                        calls.appendleft((call, what))
                    raise
                if not is_shared:  # not before: a signal handler may raise between the two
                    calls.popleft()
                elif self.records.pass_by:
                    self.records.pass_by = False
        finally:
            publishing.depth = depth
            publishing.calls = None
            self._leave_calls(calls)

    def is_open(self) -> bool:
        """Whether tasks are accepted."""
        # In this order: the finalizer of a pool that was ended asks, too, when modules have lost their globals.
        return self._scheduler.phase is OPEN and not self._is_copy()

    def _is_copy(self) -> bool:
        """Whether this process was forked from the owner; also by a fork that Python did not see."""
        return self.forked or os.getpid() != self.pid

    def _refuse_if_torn(self, what: str) -> None:
        if self._is_torn():
            msg = f"cannot {what} here: a signal handler or finalizer that interrupted the pool itself must not wait"
            raise PoolkitError(msg)

    def _check_owner(self) -> None:
        if self._is_copy():
            msg = (
                f"pool {self.name} belongs to process {self.pid}; this is process {os.getpid()}, forked from it: "
                "make a pool of its own here"
            )
            raise PoolClosed(msg)

    # ===== looking =====

    def stats(self) -> PoolStats:
        """A snapshot of the counts."""
        from poolkit._workforce import snapshots  # noqa: PLC0415 -- most programs never look, and it takes 15 ms

        with self._lock:  # looks, and changes nothing: signals are not put off here
            workforce = self.workforce
            use = workforce.memory_use()
            return snapshots.pool_stats(self._scheduler, len(self._handed_in), workforce.link_bytes(), use)

    def workers(self) -> list[WorkerInfo]:
        """A snapshot of the workers."""
        import dataclasses  # noqa: PLC0415 -- see above

        from poolkit._workforce import snapshots  # noqa: PLC0415 -- see above

        with self._lock:
            found = snapshots.workers(self._scheduler, self.clock())
        return [dataclasses.replace(info, rss=self.workforce.resident_bytes(info.id)) for info in found]

    def queued(self) -> int:
        """How many tasks wait in the queue."""
        with self._lock:
            return len(self._scheduler.queue) + len(self._handed_in)

    def listen(self, name: str, listener: Listener) -> None:
        """Call `listener` with each event of that name."""
        with self._lock:
            self._scheduler.listened = self._listeners.add(name, listener)

    def unlisten(self, name: str, listener: Listener) -> None:
        """Undo one `listen`. Raises ValueError when it was not listening."""
        with self._lock:
            self._scheduler.listened = self._listeners.remove(name, listener)

    def has_begun(self, task: AnyTask) -> bool:
        """Whether a worker runs this task."""
        if self._is_copy():
            return False
        with self._lock:
            return self._scheduler.has_begun(task)
