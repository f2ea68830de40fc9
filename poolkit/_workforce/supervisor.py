"""Supervisor: drives one pool. It owns the lock, the scheduler and the one thread that waits for the workforce.

    any thread         submit, cancel, ... ──> lock ──> Scheduler ──> orders to the workforce
    supervisor thread  Workforce.wait() ──> reports ──> lock ──> Scheduler
    either, afterwards publish what was decided: wake waiters, call callbacks, tell listeners -- without the lock

Lock order: the pool's lock, then `poolkit.task._LOCK`; never the other way. Nothing that can block, no pickling and no
code of the user runs under either. The main thread puts Ctrl-C off while it decides, see `_workforce/interrupts.py`.
Guarded by: `_lock`: the scheduler and everything behind it, `_sleeping_until`, `_callers`, `_rooms`, `_listeners`.
Owner: the supervisor thread: `workforce.wait`.
A kind whose workers report from their own threads calls `deliver` from there; a fake has no thread at all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NoReturn, TypeVar

from poolkit._core.options import PoolLimits
from poolkit._core.scheduler import PoolPhase, Scheduler
from poolkit._core.stats import PoolStats, WorkerInfo
from poolkit._core.workforce import (
    AnyTask,
    BootFailed,
    Finished,
    Report,
)
from poolkit._workforce import lifetime, snapshots
from poolkit._workforce.driven import DrivenWorkforce
from poolkit._workforce.interrupts import Handler, deciding, let_come, put_off
from poolkit._workforce.listeners import Listener, Listeners
from poolkit._workforce.reader import Reader
from poolkit.context import Shield
from poolkit.errors import PoolClosed, PoolkitError, QueueFull
from poolkit.task import Callbacks, Outcome, TaskPhase, WaitTimeout

log = logging.getLogger("poolkit")

T = TypeVar("T")
Settled = list[tuple[AnyTask, Outcome]]

PASSES_BY = 0xF  # one submit in sixteen takes in what is on the links
SHORT_WAIT = 0.02  # seconds; what falls due in so short a wait may come late by as much
LONGEST_WAIT = 86400.0  # seconds; system calls refuse much longer ones, and one wake-up a day is nothing
_publishing = threading.local()  # .depth > 0 while this thread runs callbacks


class SupervisorThread(threading.Thread):
    """The supervisor's thread; its own class, so that poolkit knows its own."""


class Supervisor:
    """Drives one pool; see the file's header. All methods are thread-safe."""

    threaded = True  # whether it has a thread; a fake is driven by its caller

    def __init__(
        self,
        lock: threading.RLock,
        workforce: DrivenWorkforce,
        limits: PoolLimits,
        *,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.workforce = workforce
        self.clock = clock
        self._lock = lock
        self._changed = threading.Condition(lock)
        self._callers = 0  # threads that wait on _changed
        self._rooms: list[Future[None]] = []  # resolved when something is settled: waits for room in the queue
        self._scheduler = Scheduler(workforce, limits, rng or random.Random())
        self._listeners = Listeners(name)
        # Steps that a signal handler or finalizer asked for while its own thread was in the middle of another one, for
        # the supervisor thread to do. Appended to without the lock.
        self._later: deque[Callable[[float], object]] = deque()
        self._due = math.inf  # when the scheduler has something to do by itself
        self._sleeping_until = -math.inf  # when the thread wakes by itself; -inf: soon, and then it looks at `_due`
        self._thread: SupervisorThread | None = None
        self._reader = Reader(workforce.links, workforce.wake)
        self._uncalled: deque[tuple[AnyTask, Callbacks]] = deque()  # left by a leader for the supervisor thread to call
        self._closed = threading.Event()
        self._dropped = False  # the pool object was collected; set without the lock, from wherever that happened
        self.forked = False  # this is a copy in a forked child
        self.pid = os.getpid()
        if self.threaded:
            lifetime.begin(self)

    # ===== entering and leaving the lock =====

    def _decided(self) -> Settled:
        """What is to be published; wakes who must know. Under the lock, as the last thing."""
        scheduler = self._scheduler
        # A list of this thread's own, also when it is empty: the scheduler's is filled by the next thread to come.
        settled, scheduler.settled = scheduler.settled, []
        if scheduler.events:
            self._listeners.untold.extend(scheduler.events)
            scheduler.events.clear()
            self.workforce.wake()
        deadline = scheduler.next_deadline()
        self._due = math.inf if deadline is None else deadline
        if self._due < self._sleeping_until or scheduler.phase is PoolPhase.CLOSED:
            self._sleeping_until = -math.inf  # once is enough
            self.workforce.wake()
        if self._callers:
            self._changed.notify_all()
        return settled

    def _is_torn(self) -> bool:
        """Whether this thread is in the middle of a step already: it was interrupted by a signal or a collection.

        The lock is re-entrant only so that this can be told; a second step inside the first would tear it.
        """
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]  # noqa: SLF001 -- as Condition does

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
        before = put_off()
        try:
            with self._lock:
                result = step(self.clock())
                settled = self._decided()
            self._publish(settled)
        finally:
            let_come(before)
        return result

    def _publish(self, settled: Settled, *, call: bool = True) -> None:
        """Give the tasks their outcomes, and `call` their callbacks or leave that. Never under the lock."""
        if self.workforce.unstarted:
            self.deliver(self.workforce.start_now())
        if self._rooms:
            self._tell_of_room()
        if not settled:
            return
        _publishing.depth = getattr(_publishing, "depth", 0) + 1
        left = deque(settled)
        try:
            while left:
                task, outcome = left.popleft()
                callbacks = task.publish(outcome, call=call)
                if callbacks is not None:
                    self._uncalled.append((task, callbacks))
                    self.workforce.wake()
                    if self._closed.is_set():  # there is nobody else any more
                        self._call_back()
            self._reader.published()
        finally:
            _publishing.depth -= 1
            if left:  # a Ctrl-C came in between: the supervisor thread goes on with the rest
                with self._lock:
                    self._scheduler.settled.extend(left)
                self.workforce.wake()

    def _tell_of_room(self) -> None:
        with self._lock:
            if self._scheduler.is_full() and self._scheduler.phase is PoolPhase.OPEN:
                return
            rooms, self._rooms = self._rooms, []
        for room in rooms:
            if room.set_running_or_notify_cancel():
                room.set_result(None)

    def deliver(self, reports: Sequence[Report]) -> None:
        """Hand reports of workers to the scheduler, and publish what comes of them."""
        self._publish(self._handle(reports))

    def _handle(self, reports: Sequence[Report]) -> Settled:
        """Hand reports of workers to the scheduler; returns what is to be published."""
        if not reports and self._due > self.clock():
            return []
        for report in reports:
            if type(report) is Finished and not report.outcome.ok and report.outcome.load is not None:
                self._read_error(report)
            elif type(report) is BootFailed:
                report.describe()
        with self._lock:
            now = self.clock()
            self._scheduler.handle_all(reports, now)
            if self._due <= now:
                self._scheduler.tick(now)
            return self._decided()

    @deciding
    def _take(self) -> None:
        """Read the links if nobody else does, and publish what comes of it. On any thread; does not block."""
        reader = self._reader
        before = put_off()
        try:
            if not reader.lock.acquire(blocking=False):
                return
            reader.taking = threading.get_ident()
            try:
                settled = self._handle(self.workforce.read())
            finally:
                reader.taking = 0
                reader.lock.release()
            self._publish(settled, call=False)
        finally:
            let_come(before)

    def lead(self, task: AnyTask, timeout: float | None) -> None:
        """Read results until `task` is done, for at most `timeout` seconds, unless another thread does. Blocks."""
        if self._is_torn() or self._reader.taking == threading.get_ident():
            self._refuse_torn("wait for a task")
        self._reader.lead(task, timeout, self._take)

    def relinquish(self) -> None:
        """Somebody wants to be called back, and does not wait."""
        self._reader.relinquish()

    def _read_error(self, report: Finished) -> None:
        """Unpickle a failure that may be retried, depending on its type. Not under the lock: it is the user's code."""
        with self._lock:
            wanted = self._scheduler.wants_error(report.worker_id, report.task_id)
        if wanted:
            report.outcome.error()

    # ===== what the pool asks =====

    @deciding
    def submit(self, task: AnyTask, error: BaseException | None = None) -> None:
        """Accept a task; with `error` it fails at once. Blocks while the queue is full, if its options say so.

        Raises:
            PoolClosed, InitializerFailed, QueueFull: it was not accepted.
        """
        self._check_owner()
        if self._is_torn():
            self._do_later(lambda now: self._submit_late(task, error, now))
            return
        if self._thread is None:
            self._start_thread()
        before = put_off()
        try:
            with self._lock:
                if error is not None:
                    self._scheduler.refuse(task, error, self.clock())
                else:
                    if self._scheduler.is_full() and task.options.block:
                        self._wait_for_room(task, before)
                    self._scheduler.submit(task, self.clock())
                settled = self._decided()
            self._publish(settled)
            if not task.id & PASSES_BY:
                self._reader.pass_by(self._take)
        finally:
            let_come(before)

    def _submit_late(self, task: AnyTask, error: BaseException | None, now: float) -> None:
        """Accept a task that was handed in within another step; what would have been raised there is its outcome."""
        try:
            if error is not None:
                self._scheduler.refuse(task, error, now)
            else:
                self._scheduler.submit(task, now)
        except PoolkitError as exc:
            task.phase = TaskPhase.SETTLED
            self._scheduler.settled.append((task, Outcome.failure(exc)))

    def _wait_for_room(self, task: AnyTask, before: Handler | Shield | None) -> None:
        if getattr(_publishing, "depth", 0) or threading.current_thread() is self._thread:
            msg = (
                f"cannot submit {task.name}: the queue is full, and a callback must not wait for room: "
                "it runs on a thread that makes the room"
            )
            raise QueueFull(msg)
        let_come(before)  # nothing is torn while it waits
        self._wait_until(lambda: not self._scheduler.is_full() or self._scheduler.phase is not PoolPhase.OPEN, None)
        put_off()

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait on `_changed`, under the lock, until `condition` holds."""
        self._callers += 1
        try:
            return self._changed.wait_for(condition, timeout)
        finally:
            self._callers -= 1

    def room(self) -> Future[None] | None:
        """None when a task would be accepted or refused for good; else a future that is done when to try again."""
        with self._lock:
            if not self._scheduler.is_full() or self._scheduler.phase is not PoolPhase.OPEN:
                return None
            room: Future[None] = Future()
            self._rooms.append(room)
            return room

    def cancel(self, task: AnyTask) -> bool:
        """Cancel a task; False when it was settled already."""
        if self._is_copy():
            return False
        if self._is_torn():
            self.cancel_soon(task)
            return task.phase is not TaskPhase.SETTLED
        return bool(self._decide(lambda now: self._scheduler.cancel(task, now)))

    def cancel_soon(self, task: AnyTask) -> None:
        """Have the supervisor thread cancel a task. For finalizers, which should not wait for a lock."""
        self._do_later(lambda now: self._scheduler.cancel(task, now))

    def cancel_all(self) -> None:
        """Cancel all that is queued and running."""
        self._check_owner()
        if self._is_torn():
            self._do_later(lambda now: self._scheduler.cancel_all(begun=True, now=now))
        else:
            self._decide(lambda now: self._scheduler.cancel_all(begun=True, now=now))

    def has_begun(self, task: AnyTask) -> bool:
        """Whether a worker runs this task."""
        if self._is_copy():
            return False
        with self._lock:
            return self._scheduler.has_begun(task)

    def resize(self, size: int) -> None:
        """Change the number of workers."""
        self._check_owner()
        self._refuse_if_torn("resize")

        def step(now: float) -> None:
            if self._scheduler.phase is not PoolPhase.OPEN:
                msg = "cannot resize: the pool was shut down"
                raise PoolClosed(msg)
            self._scheduler.resize(size, now)

        self._decide(step)

    def warm_up(self, timeout: float | None) -> None:
        """Start all workers and wait until they are up.

        Raises:
            TimeoutError: they are not after `timeout` seconds.
            InitializerFailed, WorkerCrashed, PoolClosed: they will not be.
        """
        self._check_owner()
        self._refuse_if_torn("warm up")
        if self._thread is None:
            self._start_thread()
        scheduler = self._scheduler

        def step(now: float) -> int:
            scheduler.check_open("warm up")
            scheduler.warm_up(now)
            scheduler.roster.warming += 1
            return scheduler.boots_failed

        boots = self._decide(step)

        def over() -> bool:
            roster = scheduler.roster
            return (
                scheduler.phase is not PoolPhase.OPEN
                # Not all `size` at once: with a short idle timeout the first are gone before the last are up.
                or (roster.starting == 0 and roster.counted >= roster.wanted)
                or scheduler.boots_failed > boots
            )

        with self._lock:
            try:
                up = self._wait_until(over, timeout)
            finally:
                scheduler.roster.warming -= 1
            if not up:
                msg = f"{scheduler.roster.ready_count()} of {scheduler.roster.size} workers are up after {timeout} s"
                raise WaitTimeout(msg)
            scheduler.check_open("warm up")
            if scheduler.boots_failed > boots and scheduler.last_boot_error is not None:
                raise scheduler.last_boot_error

    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
        """Accept nothing more, and end; see `Pool.shutdown`."""
        if self._is_copy():
            return

        def step(now: float) -> bool:
            self._scheduler.shutdown(cancel_queued=cancel_queued, kill=kill, now=now, kill_after=timeout)
            return self._thread is None

        if self._is_torn():
            self._do_later(step)
        elif self._decide(step):  # it never started
            self._finish()
        elif wait and self._may_wait():
            self._closed.wait()
            thread = self._thread
            if thread is not None:
                thread.join()

    def _may_wait(self) -> bool:
        """Whether this thread may wait for the pool's end: not one that the end itself waits for."""
        if threading.current_thread() is self._thread or getattr(_publishing, "depth", 0) > 0:
            return False
        return not self.workforce.is_own_thread()

    def is_open(self) -> bool:
        """Whether tasks are accepted."""
        return not self._is_copy() and self._scheduler.phase is PoolPhase.OPEN

    def drop(self) -> None:
        """The pool object is gone: finish what was accepted, then end. From a finalizer, so without the lock."""
        self._dropped = True
        if self._thread is None and not self.forked:  # nobody but the finalizer knows this pool
            self.workforce.close()
            self._closed.set()
        else:
            self.workforce.wake()

    # ===== looking =====

    def stats(self) -> PoolStats:
        """A snapshot of the counts."""
        with self._lock:
            return snapshots.pool_stats(self._scheduler, self.workforce.link_bytes())

    def workers(self) -> list[WorkerInfo]:
        """A snapshot of the workers."""
        with self._lock:
            found = snapshots.workers(self._scheduler, self.clock())
        return [snapshots.with_rss(info, self.workforce.resident_bytes(info.id)) for info in found]

    def queued(self) -> int:
        """How many tasks wait in the queue."""
        with self._lock:
            return len(self._scheduler.queue)

    def listen(self, name: str, listener: Listener) -> None:
        """Call `listener` with each event of that name."""
        with self._lock:
            self._scheduler.listened = self._listeners.add(name, listener)

    def unlisten(self, name: str, listener: Listener) -> None:
        """Undo one `listen`. Raises ValueError when it was not listening."""
        with self._lock:
            self._scheduler.listened = self._listeners.remove(name, listener)

    def tell(self) -> None:
        """Call the listeners. On the supervisor thread, without the lock."""
        self._listeners.tell()

    # ===== the thread =====

    def _is_copy(self) -> bool:
        """Whether this process was forked from the owner; also by a fork that Python did not see."""
        return self.forked or os.getpid() != self.pid

    def _refuse_if_torn(self, what: str) -> None:
        if self._is_torn():
            self._refuse_torn(what)

    @staticmethod
    def _refuse_torn(what: str) -> NoReturn:
        msg = f"cannot {what} here: a signal handler or finalizer that interrupted the pool itself must not wait"
        raise PoolkitError(msg)

    def _check_owner(self) -> None:
        if self._is_copy():
            msg = (
                f"pool {self.name} belongs to process {self.pid}; this is process {os.getpid()}, forked from it: "
                "make a pool of its own here"
            )
            raise PoolClosed(msg)

    @deciding
    def _start_thread(self) -> None:
        before = put_off()
        try:
            with self._lock:
                if self._thread is not None or self._scheduler.phase is not PoolPhase.OPEN:
                    return
                thread = SupervisorThread(target=self._run, name=f"poolkit-{self.name}", daemon=True)
                self._thread = thread
            thread.start()
        except RuntimeError as exc:  # no more threads, or the interpreter is ending; the next call tries again
            with self._lock:
                self._thread = None
            msg = f"pool {self.name} cannot start its supervisor thread: {exc}"
            raise PoolClosed(msg) from exc
        finally:
            let_come(before)

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as exc:
            if self.forked:
                return
            log.critical("the supervisor of pool %s failed; its tasks fail with it", self.name, exc_info=True)
            self._abandon_tasks(f"the supervisor of pool {self.name} failed: {exc!r}; this is a bug in poolkit")
        finally:
            if not self.forked:
                self._finish()

    def _step(self) -> bool:
        """Do what is due, then wait for the workforce once; False when the pool is closed."""
        reader = self._reader
        with reader.lock, self._lock:
            now = self.clock()
            if self._dropped:
                self._scheduler.shutdown(cancel_queued=False, kill=False, now=now)
            self._do_what_was_put_off(now)
            self._scheduler.tick(now)
            self._sleeping_until = -math.inf
            settled = self._decided()
            closed = self._scheduler.phase is PoolPhase.CLOSED
        self._publish(settled)
        del settled  # nothing is kept alive while it waits
        self._call_back()
        self.tell()
        if closed:
            return False
        self._wait()
        with reader.lock:
            settled = self._handle(self.workforce.act())
        self._publish(settled)
        return True

    def _wait(self) -> None:
        """Wait until there is something to do. While others read the links, look up now and then, without a lock."""
        while 0.0 < (spared := self._reader.spared()) < SHORT_WAIT:
            left = self._due - self.clock() + self._reader.patience()
            if left <= 0.0 or self.workforce.wait(min(spared, left), links=False):
                return
        with self._lock:
            deadline = self._scheduler.next_deadline()
            self._sleeping_until = math.inf if deadline is None else deadline
        left = LONGEST_WAIT if deadline is None else max(0.0, deadline - self.clock())
        self.workforce.wait(min(left, spared or LONGEST_WAIT), links=not spared)

    def _call_back(self) -> None:
        while self._uncalled:
            task, callbacks = self._uncalled.popleft()
            _publishing.depth = getattr(_publishing, "depth", 0) + 1
            try:
                task.call_back(callbacks)
            finally:
                _publishing.depth -= 1

    def _finish(self) -> None:
        """Release everything. Once; by the thread, or by `shutdown` when there never was one."""
        with self._lock:
            if self._closed.is_set():
                return
        self._reader.close()
        try:
            self.workforce.close()
        finally:
            lifetime.end(self)
            self._closed.set()
            self._call_back()
            with self._lock:
                self._changed.notify_all()

    def _abandon_tasks(self, why: str) -> None:
        with self._lock:
            for task in self._scheduler.give_up():
                self._scheduler.settled.append((task, Outcome.failure(PoolkitError(why))))
            settled = self._decided()
        self._publish(settled)

    # ===== fork and exit =====

    def after_fork_in_child(self) -> None:
        """This copy of the pool has no thread and no workers: fail what was pending, close what was copied."""
        self.forked = True
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 -- as the standard library does
        self._closed = threading.Event()  # a thread that is not here may have been inside the old one
        self._reader = Reader(None, self.workforce.wake)
        self._uncalled.clear()
        with contextlib.suppress(Exception):
            self.workforce.close_in_forked_child()
        for task in self._scheduler.give_up():
            task.leave_parent()
            why = f"task {task.id} ({task.name}) belongs to process {self.pid}, which forked this one ({os.getpid()})"
            task.publish(Outcome.failure(PoolClosed(why)))
        self._closed.set()

    def hold(self) -> None:
        """Take the lock before a fork, so that the child sees a whole state."""
        self._lock.acquire()

    def let_go(self) -> None:
        """Release the lock after a fork, in the parent."""
        self._lock.release()

    def at_exit(self) -> None:
        """Finish what was accepted, as the standard library's executors do."""
        self.shutdown(wait=True, cancel_queued=False, kill=False, timeout=None)

    def stop_now(self) -> None:
        """Stop everything, without waiting."""
        self.shutdown(wait=False, cancel_queued=True, kill=True, timeout=None)
