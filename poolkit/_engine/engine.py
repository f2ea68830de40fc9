"""Engine: the pool's one lock, the scheduler behind it, and what whoever held the lock publishes afterwards.

    step      take the lock, call the scheduler, take out what it decided, release the lock: the critical section
    post      while all workers are busy a new task is only appended to an inbox, without the lock, for the next step;
              so is a worker thread's report where another thread has the lock, which looks at the inbox afterwards
    publish   give tasks their outcomes and wake who waits; done callbacks are called by the thread that ended the task
              by a call of its own, such as cancel(), else on the callback thread (`callbacks.py`), as listeners are
    take      read the links, by whoever waits, and publish
    defer     outcomes of tasks that logged are published behind their records (`log_records.py`)

Lock order: the reader's locks, the pool's lock, then `poolkit.future._LOCK`; never the other way. Nothing that can
block, no pickling and no code of the user runs under the last two.
Guarded by: `_lock`: the scheduler and everything behind it, `_sleeping_until`, `_waiters`, the listeners.
`_due` and `_all_busy` are written under it and read by anybody. `_postponed`, `_posted_tasks` and `_posted_reports` are
appended to by anybody.

Why no posted task is forgotten: a submitter looks at `_all_busy`, posts the task, and looks again. If it holds both
times, a worker will report, and the step for that report begins by taking the task in. A step clears `_all_busy` before
it takes anything in, so a later submitter sees that and makes a step of its own.
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import TypeVar

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._core.options import PoolLimits
from poolkit._core.scheduler import CLOSED, OPEN, Scheduler
from poolkit._core.workforce import AnyTask, Report
from poolkit._engine.callbacks import Callbacks, Caller, Calls, publishing
from poolkit._engine.listeners import Listeners, Traces
from poolkit._engine.log_records import Records
from poolkit._engine.maps import Maps
from poolkit._engine.reader import Reader
from poolkit._engine.waiters import Waiter, Waiters, wake_each
from poolkit._kinds.driven import DrivenWorkforce
from poolkit._kinds.loggers import log
from poolkit._locks import RLock
from poolkit.errors import PoolClosed, PoolkitError
from poolkit.outcome import Outcome

POSTING_TASKS = "posting-tasks" not in _os.SWITCHED_OFF  # False: each task is accepted in a step of its own
POSTING_REPORTS = "posting-reports" not in _os.SWITCHED_OFF  # False: who reports waits for the lock

T = TypeVar("T")
Ready = Sequence[tuple[int, int]]  # as `poll` has them: descriptors, and what is the matter with them
Settled = list[tuple[AnyTask, Outcome]]


class Engine:
    """The scheduler of one pool and its lock; see the file's header. Thread-safe."""

    def __init__(
        self,
        lock: RLock,
        workforce: DrivenWorkforce,
        limits: PoolLimits,
        *,
        name: str,
    ) -> None:
        self.name = name
        self.workforce = workforce
        self.clock: Callable[[], float] = monotonic
        self._lock = lock
        self._owns_lock: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 -- as Condition does
        self._scheduler = Scheduler(workforce, limits, random.Random())
        self._listeners = Listeners(name)
        self.traces = Traces(lock, self._scheduler, self.clock)
        # For the supervisor thread: what a signal handler or finalizer asked for that had interrupted a step.
        self._postponed: deque[Callable[[float], object]] = deque()
        self.bounded = limits.max_queue is not None
        self._posted_tasks: deque[AnyTask] = deque()  # numbered, and not yet known to the scheduler
        self._posted_reports: deque[Report] = deque()  # what workers have said, and nobody has taken in
        self._inconsistent = False  # an exception interrupted a step or publishing: the next step begins with a repair
        self._all_busy = False  # the scheduler's word, between two steps
        self._due = math.inf  # when the scheduler has something to do by itself
        self._sleeping_until = -math.inf  # when the thread wakes by itself; -inf: soon, and then it looks at `_due`
        self.forked = False  # this is a copy in a forked child
        self._settle_in()

    def _settle_in(self) -> None:
        """Make what belongs to the process that has the pool: of a new one, or one that was taken over, unused."""
        workforce, name = self.workforce, self.name
        self._changed = threading.Condition(self._lock)  # for callers of `warm_up`, whom the roster counts
        self._waiters = Waiters()
        self._reader = Reader(workforce.links, workforce.wake, self._take)
        self._reader.look = self._publish_if_decided
        if workforce.links is not None:
            workforce.links.find = self._running
            workforce.links.may_pause = lambda: self._scheduler.phase is OPEN and not self.callbacks.has_waited
        self.callbacks = Callbacks(name, workforce.wake)
        self.records = Records(self.callbacks, name, self._publish, workforce.wake, workforce.links)
        self._error_reader = Caller(f"poolkit-{name}-errors", self._read_errors)
        self.maps = Maps(name, workforce.wake, self.is_open)
        self._closed = threading.Event()
        self.pid = os.getpid()

    # ===== entering and leaving the lock =====

    def _enter(self) -> float:
        """Begin a step, under the lock, by taking in the tasks that were posted. Returns the moment."""
        self._all_busy = False
        if self._scheduler.is_changing or self._inconsistent:
            self._inconsistent = False  # first, as any thread may set it again
            self._scheduler.repair(self._posted_tasks, self.clock())
        if self._posted_tasks:
            self._scheduler.take_in(self._posted_tasks)
        return self.clock()

    def _decided(self) -> Settled:
        """What is to be published; wakes who must know. Under the lock, as the last thing."""
        scheduler = self._scheduler
        if self._waiters.waiting:
            scheduler.make_room(self.clock())
        self._all_busy = not scheduler.roster.idle and POSTING_TASKS and scheduler.all_busy()
        settled = [*scheduler.settled]  # a list of its own, also when it is empty
        scheduler.settled.clear()
        if scheduler.events:
            queue = self.callbacks.queue
            queue += zip(repeat(self._listeners.tell), scheduler.events)
            scheduler.events.clear()  # of which no exception comes in between
        timers = scheduler.timers.heap
        self._due = timers[0][0] if timers else math.inf
        if self._due < self._sleeping_until or scheduler.phase is CLOSED:
            self._sleeping_until = -math.inf  # once is enough
            self.workforce.wake()
        if scheduler.roster.warming:
            self._changed.notify_all()
        if scheduler.unread and not self._error_reader.wake():
            self.workforce.wake()  # the supervisor thread starts that thread
        scheduler.is_changing = False
        return settled

    def _is_reentrant(self) -> bool:
        """Return True if this thread already holds the lock, because a signal handler or finalizer interrupted a step.

        The lock is re-entrant only so that this can be told; a second step inside the first would find half a state.
        """
        return self._reader.taking == threading.get_ident() or self._owns_lock()

    def _postpone(self, step: Callable[[float], object]) -> None:
        self._postponed.append(step)
        self.workforce.wake()

    def _do_postponed(self, now: float) -> None:
        while self._postponed:
            step = self._postponed.popleft()
            try:
                step(now)
            except Exception:
                log.exception("pool %s could not do what a signal handler or finalizer asked for", self.name)

    def _decide(self, step: Callable[[float], T]) -> T:
        """Do a step of the scheduler, at a moment, and publish what comes of it. Not when `_is_reentrant`."""
        calls: Calls = deque()
        try:
            try:
                with self._lock:
                    result = step(self._enter())
                    settled = self._decided()
                self._publish(settled, calls)
                if self._posted_reports:
                    self._take_posted()
            except PoolkitError:  # it was refused
                raise
            except BaseException:
                self._inconsistent = True  # here and below, the first thing in the handler: nothing comes before it
                self.workforce.wake()
                raise
            if calls:
                self.callbacks.call(calls)
        except BaseException:
            self.callbacks.leave(calls)
            raise
        return result

    def _publish(self, settled: Settled, calls: Calls | None = None) -> None:
        """Give the tasks their outcomes, and add their callbacks to `calls`, or leave them. Never under the lock.

        Where it is interrupted, `Scheduler.repair` has it done again for the tasks that are still `accepted`.
        """
        if self.workforce.unstarted:
            self.workforce.start_now()
        if self._waiters.waiting:
            self._wake_waiters()
        if settled:
            accepted = self._scheduler.accepted
            if calls is None:
                calls = self.callbacks.queue
            publishing.depth = getattr(publishing, "depth", 0) + 1  # a call that is let go of may run a `__del__`
            try:
                for task, outcome in settled:
                    callbacks = task.publish(outcome)
                    if callbacks:
                        calls.append((task.call_back, callbacks))
                    accepted.pop(task, None)
            finally:
                publishing.depth -= 1
        if self._reader.awaited is not None:  # also where nothing was settled: what was read may settle its task
            self._reader.published()
        if self.callbacks.queue and not self.callbacks.thread.wake():
            if self._closed.is_set():  # there is nobody else any more
                self.callbacks.call_all()
            else:
                self.workforce.wake()  # the supervisor thread starts that thread

    def _wake_waiters(self) -> None:
        """Wake as many of those who wait for room as there is room for."""
        waiters, scheduler, left = self._waiters, self._scheduler, True
        while left:
            with self._lock:
                count = min(len(waiters), max(0, scheduler.room())) if scheduler.phase is OPEN else len(waiters)
                woken = waiters.first(count)
            left = wake_each(woken) < count
            with self._lock:
                waiters.remove(woken)  # not before: an exception may have come in between

    def stop_waiting(self, waiter: Waiter) -> None:
        """A waiter gives up. If it was woken, the next one is. From a finalizer too, so without the lock."""
        waiter.gone = True
        if waiter.woken:
            self.workforce.wake()  # a step wakes it

    def post(self, report: Report) -> None:
        """Take in a report, on a worker's own thread. Never blocks.

        Where another thread has the lock, the report is only posted for it, or for the supervisor thread: to wait would
        cost each task a turn of the interpreter's lock between two CPUs, some 40 us.
        """
        self._posted_reports.append(report)
        if POSTING_REPORTS:
            self._take_posted()
        else:
            self._publish(self._handle())

    def post_all(self, reports: Iterable[Report]) -> None:
        """Do the same with several at once: no step comes in between."""
        self._posted_reports.extend(reports)
        if POSTING_REPORTS:
            self._take_posted()
        else:
            self._publish(self._handle())

    def leave(self, report: Report) -> None:
        """Leave a report to the supervisor thread. From anywhere."""
        self._posted_reports.append(report)
        self.workforce.wake()

    def _take_posted(self) -> None:
        """Take in the reports that were posted, unless another thread has the lock."""
        held: list[bool] = []
        try:
            try:
                held += map(self._lock.acquire, (False,))  # taken and noted by one instruction
                if True not in held:
                    self.workforce.wake()  # whoever has it may have looked already
                    return
                settled = self._take_in()
            finally:
                if True in held:
                    self._lock.release()
            if settled and self.records.pending:
                settled = self.records.defer(settled)
            self._publish(settled)
        except BaseException:
            self._inconsistent = True
            self.workforce.wake()
            raise

    def _take_in(self, read: deque[Report] | None = None) -> Settled:
        """Give the scheduler what was read and what was posted, and have it do what is due. Under the lock."""
        self._all_busy = False  # before the look at the posted tasks, as in `_enter`; that call is for few steps
        scheduler = self._scheduler
        looks = self._inconsistent or self._posted_tasks or scheduler.is_changing
        now = self._enter() if looks else self.clock()
        if read:
            scheduler.handle_all(read, now)
        if self._posted_reports:
            scheduler.handle_all(self._posted_reports, now)
        if self._due <= now:
            scheduler.tick(now)
        return self._decided()

    def _handle(self, read: deque[Report] | None = None) -> Settled:
        """Give the scheduler what was read and what was posted; returns what is to be published at once."""
        logged = self.workforce.logged
        if not (read or logged or self._posted_tasks or self._posted_reports) and self._due > self.clock():
            return []
        if logged:
            self.records.add(logged)
        with self._lock:
            settled = self._take_in(read)
        return self.records.defer(settled) if settled and self.records.pending else settled

    def _take(self, ready: Ready | None = None) -> bool:
        """Read the links, or those found `ready`, and publish what comes of it; False if somebody else reads now."""
        reader, here = self._reader, threading.get_ident()
        settled: Settled = []
        held: list[bool] = []
        try:
            try:
                held += map(reader.lock.acquire, (False,))  # as above
                if True in held:  # from the taking to the next line, no exception comes and no handler runs
                    reader.taking = here
                else:
                    return False
                links = reader.links
                if links is not None:
                    read = links.read(ready)
                    if links.logged or not read:
                        settled = self._handle(read)
                    else:
                        with self._lock:
                            settled = self._take_in(read)
                        if settled and self.records.pending:
                            settled = self.records.defer(settled)
            finally:
                if True in held:
                    reader.taking = 0
                    reader.lock.release()
            self._publish(settled)
        except BaseException:
            self._inconsistent = True
            self.workforce.wake()
            raise
        return True

    def lead(self, task: AnyTask, timeout: float | None) -> None:
        """Read results until `task` is done, for at most `timeout` seconds, unless another thread does. Blocks."""
        here = threading.get_ident()
        if self._reader.taking == here or self._owns_lock():
            self._refuse_reentrant("wait for a task")
        if self.forked or os.getpid() != self.pid:
            self._check_owner()  # decided in the parent, and published there alone
        if self.callbacks.thread.ident == here:
            self.records.step_aside()
        self._publish_if_decided(task)
        if self._reader.links is not None and not task.done():
            self._reader.lead(task, timeout)

    def _publish_if_decided(self, task: AnyTask) -> None:
        """Publish a task that was decided, and not published: who was to do it may be what this thread interrupted."""
        outcome = self._scheduler.accepted.get(task)
        if outcome is not None and not self.records.pending:
            self._publish([(task, outcome)])

    def end_lease(self) -> None:
        """Somebody wants to be called back, or waits in a way of his own."""
        if self.callbacks.thread.ident == threading.get_ident():
            self.records.step_aside()
        self._reader.end_lease()

    def watch(self, _task: AnyTask) -> tuple[int, Callable[[], bool]] | None:
        """For an event loop: the descriptor of the links, and what reads them; None where there is no such thing."""
        if self.callbacks.thread.ident == threading.get_ident():
            self.records.step_aside()
        fd = None if self._is_copy() else self._reader.watch()
        if fd is None:
            self._reader.end_lease()
            return None
        return fd, self._look_in

    def _look_in(self) -> bool:
        """Take in what is on the links, on an event loop's thread; false when there are none any more."""
        self._reader.pass_by()
        return not self._reader.closed

    def _running(self, worker_id: int, task_id: int) -> AnyTask | None:
        """The task that a worker says something about while it runs. With the reader's lock."""
        with self._lock:
            worker = self._scheduler.roster.workers.get(worker_id)
            return None if worker is None else next((task for task in worker.sent if task.id == task_id), None)

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
            self._inconsistent = True
            self.workforce.wake()
            raise
        finally:
            publishing.depth -= 1

    def is_open(self) -> bool:
        """Whether tasks are accepted."""
        # In this order: the finalizer of a pool that was ended asks, too, when modules have lost their globals.
        return self._scheduler.phase is OPEN and not self._is_copy()

    def _is_copy(self) -> bool:
        """Whether this process was forked from the owner; also by a fork that Python did not see."""
        return self.forked or os.getpid() != self.pid

    def _refuse_reentrant(self, what: str) -> None:
        if self._is_reentrant():
            msg = f"cannot {what} here: a signal handler or finalizer that interrupted the pool itself must not wait"
            raise PoolkitError(msg)

    def _check_owner(self) -> None:
        if self._is_copy():
            here = f"this is process {os.getpid()}, forked from it: make a pool of its own here"
            msg = f"pool {self.name} belongs to process {self.pid}; {here}"
            raise PoolClosed(msg)
