"""Supervisor: drives one pool. It owns the lock, the scheduler and the one thread that waits for the workforce.

    any thread         submit, cancel, ... ──> lock ──> Scheduler ──> orders to the workforce
    supervisor thread  Workforce.wait() ──> reports ──> lock ──> Scheduler
    either, afterwards publish what was decided: wake waiters, call callbacks, tell listeners -- without the lock

Lock order: the pool's lock, then `poolkit.task._LOCK`; never the other way. Nothing that can block, no pickling and no
code of the user runs under either.
Guarded by: `_lock`: the scheduler and everything behind it, `_sleeping_until`, `_callers`, `_rooms`, `_listeners`.
Owner: the supervisor thread: `workforce.wait`.
A kind whose workers report from their own threads calls `deliver` from there; a fake has no thread at all.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from poolkit._core.options import PoolLimits
from poolkit._core.scheduler import PoolPhase, Scheduler
from poolkit._core.stats import PoolStats, WorkerInfo
from poolkit._core.workforce import (
    EVENT_NAMES,
    AnyTask,
    Finished,
    PoolEvent,
    Report,
    Workforce,
)
from poolkit._workforce import snapshots
from poolkit.errors import PoolClosed, PoolkitError, QueueFull
from poolkit.task import Outcome, WaitTimeout

log = logging.getLogger("poolkit")

Listener = Callable[[Any], object]
Settled = list[tuple[AnyTask, Outcome]]

_live: weakref.WeakSet[Supervisor] = weakref.WeakSet()  # those with a thread; guarded by _live_lock
_live_lock = threading.Lock()
_publishing = threading.local()  # .depth > 0 while this thread runs callbacks


class DrivenWorkforce(Workforce, Protocol):
    """A workforce that the supervisor thread waits on."""

    def pack(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
        """Turn a call into what `send` takes, and its size in bytes. On the caller's thread, without the lock."""

    def wait(self, timeout: float | None) -> list[Report]:
        """Carry out what was ordered and wait for reports, for at most `timeout` seconds."""

    def wake(self) -> None:
        """Make `wait` return soon. From any thread."""

    def close(self) -> None:
        """Release everything; workers that are left are ended. Blocks."""

    def close_in_forked_child(self) -> None:
        """Close the descriptors that a forked child of the owner has copies of."""

    def link_bytes(self) -> tuple[int, int]:
        """Bytes sent to and received from the workers over links."""

    def resident_bytes(self, worker_id: int) -> int | None:
        """Resident memory of a worker; None when not known."""


class SupervisorThread(threading.Thread):
    """The supervisor's thread; its own class, so that poolkit knows its own."""


class Supervisor:
    """Drives one pool; see the file's header. All methods are thread-safe."""

    threaded = True  # whether it has a thread; a fake is driven by its caller

    def __init__(
        self,
        lock: threading.Lock,
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
        self._scheduler = Scheduler(workforce, limits, rng or random.Random())  # noqa: S311 -- jitter
        self._listeners: dict[type, tuple[Listener, ...]] = {}
        self._untold: deque[PoolEvent] = deque()  # events that the supervisor thread is to tell
        self._sleeping_until = -math.inf  # when the thread wakes by itself; -inf: it is awake and looks again anyway
        self._thread: SupervisorThread | None = None
        self._closed = threading.Event()
        self._dropped = False  # the pool object was collected; set without the lock, from wherever that happened
        self.forked = False  # this is a copy in a forked child
        self.pid = os.getpid()

    # ===== entering and leaving the lock =====

    def _decided(self) -> Settled:
        """What is to be published; wakes who must know. Under the lock, as the last thing."""
        scheduler = self._scheduler
        settled = scheduler.settled
        if settled:
            scheduler.settled = []
        if scheduler.events:
            self._untold.extend(scheduler.events)
            scheduler.events.clear()
            self.workforce.wake()
        deadline = scheduler.next_deadline()
        if (deadline is not None and deadline < self._sleeping_until) or scheduler.phase is PoolPhase.CLOSED:
            self.workforce.wake()
        if self._callers:
            self._changed.notify_all()
        return settled

    def _publish(self, settled: Settled) -> None:
        """Give the tasks their outcomes. Never under the lock: callbacks run in here."""
        if not settled:
            return
        _publishing.depth = getattr(_publishing, "depth", 0) + 1
        try:
            for task, outcome in settled:
                task.publish(outcome)
        finally:
            _publishing.depth -= 1
        if self._rooms:
            with self._lock:
                rooms, self._rooms = self._rooms, []
            for room in rooms:
                if room.set_running_or_notify_cancel():
                    room.set_result(None)

    def deliver(self, reports: Sequence[Report]) -> None:
        """Hand reports of workers to the scheduler, and publish what comes of them."""
        if not reports:
            return
        for report in reports:
            if type(report) is Finished and not report.outcome.ok and report.outcome.load is not None:
                self._read_error(report)
        with self._lock:
            now = self.clock()
            for report in reports:
                self._scheduler.handle(report, now)
            settled = self._decided()
        self._publish(settled)

    def _read_error(self, report: Finished) -> None:
        """Unpickle a failure that may be retried, depending on its type. Not under the lock: it is the user's code."""
        with self._lock:
            wanted = self._scheduler.wants_error(report.worker_id, report.task_id)
        if wanted:
            report.outcome.error()

    # ===== what the pool asks =====

    def submit(self, task: AnyTask, error: BaseException | None = None) -> None:
        """Accept a task; with `error` it fails at once. Blocks while the queue is full, if its options say so.

        Raises:
            PoolClosed, InitializerFailed, QueueFull: it was not accepted.
        """
        self._check_owner()
        if self._thread is None:
            self._start_thread()
        with self._lock:
            if error is not None:
                self._scheduler.refuse(task, error, self.clock())
            else:
                if self._scheduler.is_full() and task.options.block:
                    self._wait_for_room(task)
                self._scheduler.submit(task, self.clock())
            settled = self._decided()
        self._publish(settled)

    def _wait_for_room(self, task: AnyTask) -> None:
        if getattr(_publishing, "depth", 0) or threading.current_thread() is self._thread:
            msg = (
                f"cannot submit {task.name}: the queue is full, and a callback must not wait for room: "
                "it runs on a thread that makes the room"
            )
            raise QueueFull(msg)
        self._wait_until(lambda: not self._scheduler.is_full() or self._scheduler.phase is not PoolPhase.OPEN, None)

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
        if self.forked:
            return False
        with self._lock:
            cancelled = self._scheduler.cancel(task, self.clock())
            settled = self._decided()
        self._publish(settled)
        return cancelled

    def cancel_all(self) -> None:
        """Cancel all that is queued and running."""
        self._check_owner()
        with self._lock:
            self._scheduler.cancel_all(begun=True, now=self.clock())
            settled = self._decided()
        self._publish(settled)

    def has_begun(self, task: AnyTask) -> bool:
        """Whether a worker runs this task."""
        if self.forked:
            return False
        with self._lock:
            return self._scheduler.has_begun(task)

    def resize(self, size: int) -> None:
        """Change the number of workers."""
        self._check_owner()
        with self._lock:
            if self._scheduler.phase is not PoolPhase.OPEN:
                msg = "cannot resize: the pool was shut down"
                raise PoolClosed(msg)
            self._scheduler.resize(size, self.clock())
            settled = self._decided()
        self._publish(settled)

    def warm_up(self, timeout: float | None) -> None:
        """Start all workers and wait until they are up.

        Raises:
            TimeoutError: they are not after `timeout` seconds.
            InitializerFailed, WorkerCrashed, PoolClosed: they will not be.
        """
        self._check_owner()
        if self._thread is None:
            self._start_thread()
        with self._lock:
            scheduler = self._scheduler
            scheduler.check_open("warm up")
            scheduler.warm_up(self.clock())
            boots = scheduler.boots_failed
            self._decided()

            def over() -> bool:
                return (
                    scheduler.phase is not PoolPhase.OPEN
                    or scheduler.roster.ready_count() >= scheduler.roster.size
                    or scheduler.boots_failed > boots
                )

            if not self._wait_until(over, timeout):
                msg = f"{scheduler.roster.ready_count()} of {scheduler.roster.size} workers are up after {timeout} s"
                raise WaitTimeout(msg)
            scheduler.check_open("warm up")
            if scheduler.boots_failed > boots and scheduler.last_boot_error is not None:
                raise scheduler.last_boot_error

    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
        """Accept nothing more, and end; see `Pool.shutdown`."""
        if self.forked:
            return
        with self._lock:
            self._scheduler.shutdown(cancel_queued=cancel_queued, kill=kill, now=self.clock(), kill_after=timeout)
            never_started = self._thread is None
            settled = self._decided()
        self._publish(settled)
        if never_started:
            self._finish()
        elif wait and threading.current_thread() is not self._thread and not getattr(_publishing, "depth", 0):
            self._closed.wait()
            thread = self._thread
            if thread is not None:
                thread.join()

    def is_open(self) -> bool:
        """Whether tasks are accepted."""
        return not self.forked and self._scheduler.phase is PoolPhase.OPEN

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
        kind = EVENT_NAMES[name]
        with self._lock:
            self._listeners[kind] = (*self._listeners.get(kind, ()), listener)
            self._scheduler.listened = frozenset(self._listeners)

    def unlisten(self, name: str, listener: Listener) -> None:
        """Undo one `listen`. Raises ValueError when it was not listening."""
        kind = EVENT_NAMES[name]
        with self._lock:
            left = list(self._listeners.get(kind, ()))
            if listener not in left:
                msg = f"{listener!r} does not listen to {name!r}"
                raise ValueError(msg)
            left.remove(listener)
            if left:
                self._listeners[kind] = tuple(left)
            else:
                del self._listeners[kind]
            self._scheduler.listened = frozenset(self._listeners)

    def tell(self) -> None:
        """Call the listeners. On the supervisor thread, without the lock."""
        while self._untold:
            event = self._untold.popleft()
            for listener in self._listeners.get(type(event), ()):
                try:
                    listener(event)
                except Exception:
                    log.exception("a listener of pool %s raised at %r", self.name, event)

    # ===== the thread =====

    def _check_owner(self) -> None:
        if self.forked:
            msg = (
                f"pool {self.name} belongs to process {self.pid}; this is process {os.getpid()}, forked from it: "
                "make a pool of its own here"
            )
            raise PoolClosed(msg)

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is not None or self._scheduler.phase is not PoolPhase.OPEN:
                return
            thread = SupervisorThread(target=self._run, name=f"poolkit-{self.name}", daemon=True)
            self._thread = thread
        with _live_lock:
            _live.add(self)
        try:
            thread.start()
        except RuntimeError as exc:  # the interpreter is ending
            self._finish()
            msg = f"pool {self.name} cannot start: the interpreter is shutting down"
            raise PoolClosed(msg) from exc

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
        with self._lock:
            now = self.clock()
            if self._dropped:
                self._scheduler.shutdown(cancel_queued=False, kill=False, now=now)
            self._scheduler.tick(now)
            self._sleeping_until = -math.inf
            settled = self._decided()
            closed = self._scheduler.phase is PoolPhase.CLOSED
        self._publish(settled)
        self.tell()
        if closed:
            return False
        with self._lock:  # callbacks took their time, and may have submitted
            deadline = self._scheduler.next_deadline()
            self._sleeping_until = math.inf if deadline is None else deadline
        timeout = None if deadline is None else max(0.0, deadline - self.clock())
        reports = self.workforce.wait(timeout)
        self.deliver(reports)
        return True

    def _finish(self) -> None:
        """Release everything. Once; by the thread, or by `shutdown` when there never was one."""
        with self._lock:
            if self._closed.is_set():
                return
        try:
            self.workforce.close()
        finally:
            with _live_lock:
                _live.discard(self)
            self._closed.set()
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
        self._lock.release()
        with contextlib.suppress(Exception):
            self.workforce.close_in_forked_child()
        for task in self._scheduler.give_up():
            task.forget_callbacks()  # they belong to the parent, where the task goes on
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
        """Finish what was accepted, as the standard library's executors do; one Ctrl-C ends that."""
        try:
            self.shutdown(wait=True, cancel_queued=False, kill=False, timeout=None)
        except KeyboardInterrupt:
            self.shutdown(wait=True, cancel_queued=True, kill=True, timeout=None)


def _all_live() -> list[Supervisor]:
    with _live_lock:
        return sorted(_live, key=id)


def _finish_all() -> None:
    for supervisor in _all_live():
        supervisor.at_exit()


_held: list[Supervisor] = []  # owner: the thread that forks


def _before_fork() -> None:
    _held[:] = _all_live()
    for supervisor in _held:
        supervisor.hold()
    _live_lock.acquire()


def _after_fork_in_parent() -> None:
    _live_lock.release()
    for supervisor in _held:
        supervisor.let_go()
    _held.clear()


def _after_fork_in_child() -> None:
    _live_lock.release()
    for supervisor in _held:
        supervisor.after_fork_in_child()
    _held.clear()
    with _live_lock:
        _live.clear()


atexit.register(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
