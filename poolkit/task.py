"""Task: the handle of one accepted call, a Future that can be awaited.

Guarantees: a task is published exactly once; `result()` after that costs no lock that others wait for.
A `Future` of the standard library builds a Condition for every call (several microseconds); here it is made only
for `concurrent.futures.wait` and `as_completed`. Who waits in `result()` sleeps on a bare lock.

Fields in the task, and who may touch them:
  the handle      id, name, options, call ...   frozen after __init__, but for what the scheduler drops when it settles
  the scheduler's phase, worker_id, attempts ... guarded by: the pool's one lock
  the future's    _state, _cond, _wakers ...     guarded by: _LOCK until `_cond` exists, then by both

How a waiter and the publisher meet: the publisher stores the final state under _LOCK and looks who has enlisted
(`_wakers`, `_cond`); the waiter looks at the state under _LOCK and enlists. One of the two sees the other.
Where the waiter can read the results itself, it does that instead (`TaskOwner.lead`).
Longer than most: it is one class, all of whose parts share the future's state, and half of it says what users rely on.
"""

from __future__ import annotations

import enum
import os
import sys
import threading
from _thread import allocate_lock
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from poolkit._clock import monotonic, wait_for
from poolkit._locks import RLock
from poolkit.errors import PoolkitError, TaskCancelled
from poolkit.outcome import Outcome

if TYPE_CHECKING:
    from concurrent.futures._base import _Waiter

T = TypeVar("T")

Callbacks = list[Callable[["Future[Any]"], object]]

# The states of concurrent.futures, which `wait` and `as_completed` read.
_PENDING, _CANCELLED, _FINISHED = "PENDING", "CANCELLED_AND_NOTIFIED", "FINISHED"

if sys.version_info >= (3, 11):
    WaitTimeout = TimeoutError
else:  # two classes there; whoever waits may expect either

    class WaitTimeout(FutureTimeoutError, TimeoutError):
        """A wait ended before the task did."""


# Held for a few instructions. Re-entrant, as a garbage collection inside may run a finalizer that asks for it.
_LOCK = RLock()


def _new_lock_in_child() -> None:
    global _LOCK  # noqa: PLW0603 -- another thread may have held it when the process forked
    _LOCK = RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, where importing must work
    os.register_at_fork(after_in_child=_new_lock_in_child)


class TaskPhase(enum.IntEnum):
    """Where the scheduler holds a task; every task is in exactly one place.

    QUEUED  -> SENT     dispatched to a worker           SENT -> QUEUED   reclaimed before it began
    SENT    -> WAITING  it failed and is to be retried   WAITING -> QUEUED   its back-off is over
    any     -> SETTLED  an outcome was decided; for ever
    """

    QUEUED = 0
    WAITING = 1
    SENT = 2
    SETTLED = 3


QUEUED, WAITING, SENT, SETTLED = TaskPhase  # to look a member up in its class takes ten times as long


class TaskOwner(Protocol):
    """What a task asks of the pool that accepted it."""

    def cancel(self, task: Task[Any]) -> bool:
        """Cancel `task`; False when it was settled already."""

    def has_begun(self, task: Task[Any]) -> bool:
        """Tell whether a worker has begun to run `task`."""

    def lead(self, task: Task[Any], timeout: float | None) -> None:
        """Read results, for at most `timeout` seconds, until `task` has its own. May return at any moment. Blocks."""

    def end_lease(self) -> None:
        """See to it that outcomes are published without anybody leading."""

    def watch(self, task: Task[Any]) -> tuple[int, Callable[[], bool]] | None:
        """What an event loop may watch and call to read results; see `poolkit/awaiting.py`."""


class Task(Future[T]):
    """One accepted call: a `concurrent.futures.Future` that can also be awaited under asyncio.

    Thread-safe. Attributes set by the pool:
        id: number of the task in its pool, from 1.
        name: the function's qualified name, or the `name` option.
        attempts: how many runs of it began.
        worker_id: the worker that runs or ran it last, or None.
    """

    late = False  # the rest of a `map`, accepted also where a graceful shutdown has begun

    __slots__ = (
        "_callbacks",
        "_cond",
        "_exception",
        "_load",
        "_ok",
        "_owner",
        "_result",
        "_state",
        "_waiting",
        "_wakers",
        "attempts",
        "call",
        "code",
        "deaths",
        "ended_at",
        "id",
        "name",
        "nbytes",
        "options",
        "phase",
        "started_at",
        "submitted_at",
        "worker_id",
    )

    def __init__(
        self, owner: TaskOwner | None, name: str, call: Any, options: Any, nbytes: int = 0, code: Any = None
    ) -> None:
        # No super().__init__(): it would build the Condition that this class exists to avoid.
        self._state = _PENDING
        self._cond: threading.Condition | None = None
        self._waiting: list[_Waiter] | None = None
        self._callbacks: Callbacks | None = None
        self._wakers: list[Callable[[Any], object]] | None = None
        self._result: Any = None
        self._exception: BaseException | None = None
        self._load: Any = None  # what unpickles the outcome; while a thread does that, its number
        self._ok = False
        self._owner = owner
        self.id = 0
        self.name = name
        self.call = call
        self.nbytes = nbytes
        self.code = code  # of the function
        self.options = options
        self.phase = QUEUED
        self.attempts = 0
        self.deaths = 0  # workers that died before they began it, and had nothing else to die of
        self.worker_id: int | None = None
        self.submitted_at = 0.0
        self.started_at: float | None = None
        self.ended_at: float | None = None

    # ===== what users ask =====

    def cancel(self) -> bool:
        """Cancel a queued task, or stop a running one. Thread-safe; does not block.

        Returns:
            True if the task will not deliver a result, False if it was already done.
        """
        owner = self._owner
        if owner is None:
            return self._state == _CANCELLED
        return owner.cancel(self) or self._state == _CANCELLED

    def cancelled(self) -> bool:
        """Tell whether the task was cancelled. Thread-safe; does not block."""
        return self._state == _CANCELLED

    def running(self) -> bool:
        """Tell whether a worker runs the task now. Thread-safe; does not block."""
        return self.state == "running"

    def done(self) -> bool:
        """Tell whether the task has its outcome. Thread-safe; does not block."""
        return self._state is not _PENDING

    @property
    def state(self) -> str:
        """One of "queued", "running", "succeeded", "failed", "cancelled"."""
        if self._state is _PENDING:
            owner = self._owner
            return "running" if owner is not None and owner.has_begun(self) else "queued"
        if self._state == _CANCELLED:
            return "cancelled"
        return "failed" if self.exception() is not None else "succeeded"

    @property
    def wait_time(self) -> float | None:
        """Seconds from `submit` until the last run began; None when the task is not known to have begun."""
        return None if self.started_at is None else max(0.0, self.started_at - self.submitted_at)

    @property
    def run_time(self) -> float | None:
        """Seconds the last run took; None until it ended."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, self.ended_at - self.started_at)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the outcome and return the value, or raise what the task raised.

        Thread-safe. Blocks for at most `timeout` seconds (None: for ever).

        Raises:
            TimeoutError: the task is not done after `timeout` seconds; the task goes on.
            TaskCancelled: the task was cancelled.
            TaskTimeout, QueueTimeout, DeadlineExceeded, WorkerCrashed, SerializationError, InitializerFailed:
                what stopped the task, when it was not its own exception.
        """
        try:
            if self._state is _PENDING:
                self._wait(timeout)
            if self._load is not None:
                self._read(timeout)
            if self._exception is not None:
                raise self._exception
            if self._state == _CANCELLED:
                raise TaskCancelled(_cancelled_text(self))
            return self._result  # type: ignore[no-any-return]
        finally:
            # A raised exception holds this frame, and this frame would hold the task that holds the exception.
            self = None  # type: ignore[assignment]  # noqa: PLW0642

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome and return the exception, None when there is none.

        Thread-safe. Blocks for at most `timeout` seconds (None: for ever).

        Raises:
            TimeoutError: the task is not done after `timeout` seconds.
            TaskCancelled: the task was cancelled.
        """
        try:
            if self._state is _PENDING:
                self._wait(timeout)
            if self._load is not None:
                self._read(timeout)
            if self._state == _CANCELLED:
                raise TaskCancelled(_cancelled_text(self))
            return self._exception
        finally:
            self = None  # type: ignore[assignment]  # noqa: PLW0642

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn(task)` when the task is done, or now if it is. Thread-safe; blocks only for `fn` itself.

        Callbacks run on a thread of the pool's own, one at a time, or on the one whose call ended the task. What they
        raise is logged and harms nothing. Those of `asyncio.wait` run in its loop.
        """
        if getattr(fn, "__module__", None) in {"asyncio.futures", "asyncio.tasks"}:
            from poolkit import awaiting  # noqa: PLC0415 -- see below

            waker = awaiting.scheduled(fn)
            if waker is not None:
                owner = self.add_waker(waker)
                if owner is not None:
                    owner.end_lease()
                return
        with _LOCK:
            owner, pending = self._owner, self._state is _PENDING
            if pending:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
        if not pending:
            self.call_back([fn])
        elif owner is not None:
            owner.end_lease()

    def remove_done_callback(self, fn: Callable[[Future[T]], object]) -> int:
        """Take back what `add_done_callback` was given; returns how often it was there. Thread-safe; does not block.

        As asyncio's futures have it, which is what `asyncio.wait` relies on.
        """
        count = 0
        for name in ("_callbacks", "_wakers"):
            with _LOCK:
                found = list(getattr(self, name) or ())
            removed = [each for each in found if each == fn]  # without the lock: it is the user's code
            with _LOCK:
                enlisted = getattr(self, name) or []
                kept = [each for each in enlisted if not any(each is other for other in removed)]
                count += len(enlisted) - len(kept)
                enlisted[:] = kept
        return count

    def add_waker(self, waker: Callable[[Any], object]) -> TaskOwner | None:
        """Call `waker(task)` when the task is done, at once if it is; on any thread, so it must not block or raise.

        Returns the pool whose links may be read meanwhile; None when there is nothing to wait for.
        """
        owner = self._owner
        if self._enlist(waker):
            return owner
        waker(self)
        return None

    def _get_snapshot(self) -> tuple[bool, bool, T | None, BaseException | None]:
        """Whether it is done, or cancelled, result and exception: what asyncio copies from CPython 3.15 on."""
        if self._state is _PENDING:
            return False, False, None, None
        if self._state == _CANCELLED:
            return True, True, None, None
        error = self.exception()
        return True, False, None if error is not None else self.result(), error

    def __await__(self) -> Generator[Any, None, T]:
        """Wait under asyncio; cancelling the awaiting coroutine cancels the task."""
        from poolkit import awaiting  # noqa: PLC0415 -- a worker half that never awaits should not pay for asyncio

        return awaiting.wait_for(self, self.add_waker)

    def __repr__(self) -> str:
        """Show id, name and state."""
        if self._state is _PENDING:
            state = self.state
        elif self._state == _CANCELLED:
            state = "cancelled"
        else:
            state = "succeeded" if self._ok else "failed"
        return f"<poolkit.Task {self.id} {self.name!r} {state}>"

    def __reduce__(self) -> NoReturn:
        """Refuse: a task belongs to the process that submitted it."""
        msg = f"{self!r} cannot be pickled: pass its result, or submit the follow-up from the process that owns it"
        raise TypeError(msg)

    # ===== what the pool calls =====

    @property
    def function(self) -> int:
        """What its run time says something about.

        By code and name: decorators make functions of one code, and lambdas have one name.
        """
        return id(self.code) ^ hash(self.name)

    def publish(self, outcome: Outcome) -> Callbacks | None:
        """Make `outcome` the task's own and wake whoever waits. Without the pool's lock.

        Called again with the same outcome, maybe at the same time, it does what may not have been done.
        Returns what is to be given to `call_back` by a thread that may.
        Lets go of the call here, as dropping a thread task's arguments may run the user's `__del__`.
        """
        self.call = None
        while True:
            cond = self._cond
            with cond or _LOCK:
                with _LOCK:
                    if self._cond is not cond:  # somebody made one meanwhile
                        continue
                    if self._state is _PENDING:
                        self._ok = outcome.ok
                        if outcome.ok or outcome.load is not None:
                            self._result = outcome.payload
                            self._load = outcome.load
                        elif not outcome.cancelled:
                            self._exception = outcome.payload
                        self._state = _CANCELLED if outcome.cancelled else _FINISHED
                        self._owner = None  # a result that is kept does not keep the pool
                        outcome.payload = None  # handed over: whoever publishes must not keep it alive
                if cond is not None:
                    self._tell_waiters(cond, outcome)
            break
        if self._wakers is not None:
            for waker in tuple(self._wakers):
                waker(self)
            self._wakers = None
        return self._callbacks

    def call_back(self, callbacks: Callbacks) -> None:
        """Call what was added by `add_done_callback`, in that order, and take it out."""
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:  # another thread was faster
                return
            try:
                callback(self)
            except BaseException as exc:
                if isinstance(exc, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise  # it is for the program, not for the callback
                import logging  # noqa: PLC0415 -- only when something is wrong

                logging.getLogger("poolkit").exception("a done callback of %r raised", self)

    def has_failed(self) -> bool:
        """Tell whether it ended with an error, without unpickling what it gave."""
        return self._state == _FINISHED and not self._ok

    def forget_result(self) -> None:
        """Drop a result that was read, for a reader who has the only handle."""
        self._result = None

    def leave_parent(self) -> None:
        """Be a copy in a forked child: the callbacks are the parent's, and so is whoever held the condition."""
        self._callbacks = self._wakers = None
        if self._cond is not None:
            self._cond = threading.Condition()

    def _tell_waiters(self, cond: threading.Condition, outcome: Outcome) -> None:
        """Tell those who wait by `concurrent.futures.wait` and `as_completed`, under their condition."""
        for waiter in self._waiting or ():
            if self in waiter.finished_futures:
                continue
            if outcome.cancelled:
                waiter.add_cancelled(self)
            elif outcome.ok:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
        cond.notify_all()

    # ===== the future's own parts =====

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        """The Condition that `concurrent.futures.wait` and `as_completed` lock; made on first use."""
        owner = self._owner
        if owner is not None:
            owner.end_lease()
        return self._new_condition()

    @property
    def _waiters(self) -> list[_Waiter]:  # type: ignore[override]
        """Where `wait` and `as_completed` enlist, under the condition; made on first use."""
        if self._waiting is None:
            self._waiting = []
        return self._waiting

    def _new_condition(self) -> threading.Condition:
        cond = self._cond
        if cond is None:
            fresh = threading.Condition()
            with _LOCK:
                if self._cond is None:
                    self._cond = fresh
                cond = self._cond
        return cond

    def _wait(self, timeout: float | None) -> None:
        give_up = None if timeout is None else monotonic() + timeout
        owner = self._owner
        if owner is not None:
            owner.lead(self, timeout)
            if self._state is not _PENDING:
                return
        self._sleep(-1.0 if give_up is None else max(0.0, give_up - monotonic()))
        if self._state is _PENDING:
            msg = f"{self!r} is not done after {timeout} s; it goes on (task.cancel() stops it)"
            raise WaitTimeout(msg)

    def _sleep(self, seconds: float) -> None:
        """Wait to be woken by the publisher, as another thread leads or nobody can; -1.0: for ever.

        A bare lock, as a Condition costs 5 us more a task.
        """
        lock = allocate_lock()
        lock.acquire()

        def wake(_task: object) -> None:
            if lock.locked():
                lock.release()

        if not self._enlist(wake):
            return
        try:
            lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))
        finally:
            with _LOCK:
                if self._wakers is not None and wake in self._wakers:  # not woken: it must not stay
                    self._wakers.remove(wake)

    def _enlist(self, waker: Callable[[Any], object]) -> bool:
        """Have `waker` called by the publisher; False when it has come already."""
        with _LOCK:
            if self._state is not _PENDING:
                return False
            if self._wakers is None:
                self._wakers = []
            self._wakers.append(waker)
        return True

    def _read(self, timeout: float | None) -> None:  # noqa: C901 -- what must come in one order
        """Unpickle the outcome, once, in the thread that wants it: a slow unpickling costs its reader only."""
        load: Any = None
        payload: Any = None
        value: Any = None
        error: BaseException | None = None
        mark = threading.get_ident()
        try:
            with _LOCK:
                payload, load = self._result, self._load
                if load is None:
                    return
                if type(load) is not int:  # only who owns the mark may set it: `_read_done` takes no lock
                    if self._load is not load:  # a handler that interrupted this has read it
                        return
                    self._load = mark
            if type(load) is int:
                self._wait_for_reader(load, timeout)
                self._read(timeout)
                return
            try:
                value = load(payload)
                if not self._ok:
                    value, error = None, value
            except (MemoryError, RecursionError):  # as below
                raise
            except Exception as exc:  # noqa: BLE001 -- whatever else unpickling raises is this task's exception
                error = exc
            self._exception = error
            if self._load == mark:  # else a handler that interrupted this has read it
                self._result = value
                self._load = None
                if self._cond is not None:  # in this order, as in `_read_done`
                    self._read_done(None)
        except BaseException:  # the reader's own, as an interrupt is: the next one tries again
            if load is not None and type(load) is not int and self._load == mark:
                self._result = payload
                self._read_done(load)
            raise
        finally:
            error = None

    def _wait_for_reader(self, reader: int, timeout: float | None) -> None:
        if reader == threading.get_ident():
            msg = f"the outcome of {self!r} is asked for by what runs while this thread unpickles it"
            raise PoolkitError(msg)
        cond = self._new_condition()
        with cond:
            if not wait_for(cond, lambda: type(self._load) is not int, timeout):
                msg = f"the outcome of {self!r} is still being unpickled by another thread after {timeout} s"
                raise WaitTimeout(msg)

    def _read_done(self, load: Callable[[Any], Any] | None) -> None:
        self._load = load
        cond = self._cond  # in this order; who comes later with a condition looks at `_load` after making it
        if cond is not None:
            with cond:
                cond.notify_all()


def _cancelled_text(task: Task[Any]) -> str:
    how = "before it began" if task.attempts == 0 else f"in attempt {task.attempts}"
    return f"task {task.id} ({task.name}) was cancelled {how}"


def settled_task(name: str, outcome: Outcome) -> Task[Any]:
    """Make a task that is done already and belongs to no pool."""
    task: Task[Any] = Task(None, name, None, None)
    task.phase = SETTLED
    task.publish(outcome)
    return task
