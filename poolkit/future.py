"""LazyFuture: a `concurrent.futures.Future` that costs little until somebody waits for it in an unusual way.

Guarantees: it is published exactly once; `result()` after that costs no lock that others wait for.
A `Future` of the standard library builds a Condition for every call (several microseconds); here it is made only
for `concurrent.futures.wait` and `as_completed`. Who waits in `result()` sleeps on a bare lock. The outcome may be
bytes until somebody asks for it, who unpickles it, once.

How a waiter and the publisher meet: the publisher stores the final state under _LOCK and looks who has enlisted
(`_wakers`, `_cond`); the waiter looks at the state under _LOCK and enlists. One of the two sees the other.
Guarded by: _LOCK until `_cond` exists, then by both.
"""

from __future__ import annotations

import os
import sys
import threading
from _thread import allocate_lock
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from poolkit._clock import monotonic
from poolkit._locks import RLock
from poolkit._owner import TaskOwner
from poolkit._waits import until, wait_for
from poolkit.context import CURRENT
from poolkit.errors import PoolkitError, TaskCancelled
from poolkit.outcome import Outcome

if TYPE_CHECKING:
    from concurrent.futures._base import _Waiter

T = TypeVar("T")

Callbacks = list[Callable[["Future[Any]"], object]]

PENDING, CANCELLED, FINISHED = "PENDING", "CANCELLED_AND_NOTIFIED", "FINISHED"  # what `wait` and `as_completed` read

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


os.register_at_fork(after_in_child=_new_lock_in_child)


class LazyFuture(Future[T]):
    """See the file's header. Thread-safe. Its fields are set by the subclass, in one go."""

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
        "call",
    )

    if TYPE_CHECKING:
        _cond: threading.Condition | None
        _waiting: list[_Waiter] | None
        _callbacks: Callbacks | None
        _wakers: list[Callable[[Any], object]] | None
        _result: Any
        _exception: BaseException | None
        _load: Any  # what unpickles the outcome; while a thread does that, its number
        _ok: bool
        _owner: TaskOwner | None
        call: Any  # let go of when it is published
        incoming: Any  # this and those below: see `Task`
        exchange: Any
        _wait_aloud: Any

    # ===== what users ask =====

    def cancelled(self) -> bool:
        """Tell whether the task was cancelled. Thread-safe; does not block."""
        return self._state == CANCELLED

    def done(self) -> bool:
        """Tell whether the task has its outcome. Thread-safe; does not block."""
        return self._state is not PENDING

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
            if self._state is PENDING:
                self._wait(timeout)
            if self._load is not None:
                self._read(timeout)
            if self._exception is not None:
                raise self._exception
            if self._state == CANCELLED:
                raise TaskCancelled(self._why_cancelled())
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
            if self._state is PENDING:
                self._wait(timeout)
            if self._load is not None:
                self._read(timeout)
            if self._state == CANCELLED:
                raise TaskCancelled(self._why_cancelled())
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
            owner, pending = self._owner, self._state is PENDING
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
                count += len(enlisted)
                enlisted[:] = filter(lambda each: not any(each is other for other in removed), enlisted)
                count -= len(enlisted)
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

    def _why_cancelled(self) -> str:
        return "it was cancelled"

    # ===== what the pool calls =====

    def publish(self, outcome: Outcome) -> Callbacks | None:
        """Make `outcome` the task's own and wake whoever waits. Without the pool's lock.

        Called again with the same outcome, maybe at the same time, it does what may not have been done.
        Returns what is to be given to `call_back` by a thread that may.
        Lets go of the call here, as dropping a thread task's arguments may run the user's `__del__`.
        """
        self.call = None
        # Before a handler that interrupts this can have published it; under `_LOCK`, only stores: see `_locks.py`.
        ok, payload, load = outcome.ok, outcome.payload, outcome.load
        has_value = ok or load is not None
        result, error = payload if has_value else None, None if has_value or outcome.cancelled else payload
        state = CANCELLED if outcome.cancelled else FINISHED
        while True:
            cond = self._cond
            with allocate_lock() if cond is None else cond._lock:  # type: ignore[attr-defined]  # noqa: SLF001
                with _LOCK:
                    if self._cond is not cond:  # somebody made one meanwhile
                        continue
                    if self._state is PENDING:
                        self._ok = ok
                        self._result = result
                        self._load = load
                        self._exception = error
                        self._state = state
                        self._owner = None  # a result that is kept does not keep the pool
                        outcome.payload = None  # handed over: whoever publishes must not keep it alive
                if cond is not None:
                    self._tell_waiters(cond, outcome)
            break
        wakers = self._wakers
        if wakers is not None:
            for waker in tuple(wakers):
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

    def leave_parent(self) -> None:
        """Be a copy in a forked child: the callbacks are the parent's, and so is whoever held the condition."""
        self._callbacks = self._wakers = None
        if self._cond is not None:
            self._cond = threading.Condition(RLock())

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
        if (owner := self._owner) is not None:
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
            fresh = threading.Condition(RLock())  # which is what is entered: see `_locks.py`
            with _LOCK:
                if self._cond is None:
                    self._cond = fresh
                cond = self._cond
        return cond

    def _wait(self, timeout: float | None) -> None:
        try:
            give_up = None if timeout is None else monotonic() + timeout
        except TypeError:
            msg = f"timeout must be a number of seconds or None, was {timeout!r}"
            raise TypeError(msg) from None
        left = self._wait_aloud(timeout) if self.incoming or self.exchange or CURRENT.get() else timeout
        if (owner := self._owner) is not None:
            owner.lead(self, left)
        if self._state is not PENDING:
            return
        # Another thread leads, or nobody can. A bare lock, as a Condition costs 5 us more a task.
        lock = allocate_lock()
        lock.acquire()

        def wake(_task: object) -> None:
            if lock.locked():
                lock.release()

        if not self._enlist(wake):
            return
        try:
            seconds = None if give_up is None else give_up - monotonic()
            if until(partial(lock.acquire, True), seconds) or self._state is not PENDING:
                return
        finally:
            with _LOCK:
                if self._wakers is not None and wake in self._wakers:  # not woken: it must not stay
                    self._wakers.remove(wake)
        msg = f"{self!r} is not done after {timeout} s; it goes on (task.cancel() stops it)"
        raise WaitTimeout(msg)

    def _enlist(self, waker: Callable[[Any], object]) -> bool:
        """Have `waker` called by the publisher; False when it has come already."""
        with _LOCK:
            if self._state is not PENDING:
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
        with cond._lock:  # type: ignore[attr-defined]  # noqa: SLF001
            if not wait_for(cond, lambda: type(self._load) is not int, timeout):
                msg = f"the outcome of {self!r} is still being unpickled by another thread after {timeout} s"
                raise WaitTimeout(msg)

    def _read_done(self, load: Callable[[Any], Any] | None) -> None:
        self._load = load
        cond = self._cond  # in this order; who comes later with a condition looks at `_load` after making it
        if cond is not None:
            with cond._lock:  # type: ignore[attr-defined]  # noqa: SLF001
                cond.notify_all()
