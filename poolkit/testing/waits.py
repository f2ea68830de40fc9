"""Waits: how a fake pool is waited for. Whoever waits drives it (`driver.py`); other threads wait for their turn."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures._base import _AsCompletedWaiter, _Waiter
from typing import Any, Protocol

from poolkit._locks import RLock
from poolkit.errors import PoolkitError
from poolkit.future import WaitTimeout
from poolkit.task import Task


class Driven(Protocol):
    """A fake pool, as far as who waits for it is concerned; see `driver.py`."""

    clock: Any  # its `Timeline`
    workforce: Any
    command_script: list[Any]

    def go_on(self, end: float) -> bool:
        """Do the next thing before that virtual second; false when there is none."""

    def lead(self, task: Any, timeout: float | None) -> None:
        """Go on until that is done, for so many virtual seconds."""

    def ask_soon(self, step: Callable[[float], object]) -> None:
        """Have this done as the pool settles."""

    def accepting(self) -> contextlib.AbstractContextManager[None]:
        """Only accept what is submitted meanwhile; it is run afterwards."""


class Until:
    """What a fake pool is driven to."""

    def __init__(self, what: str, done: Callable[[], bool]) -> None:
        self._what, self.done = what, done

    def __repr__(self) -> str:
        """Say what it is."""
        return self._what


class Turn:
    """The one lock of a fake pool, which one thread at a time drives. It may be lent to a thread that is waited for."""

    def __init__(self) -> None:
        self._lock: Any = RLock()
        self._guest = 0  # the thread to which it is lent

    def __enter__(self) -> None:
        if self._guest != threading.get_ident():
            self._lock.acquire()

    def __exit__(self, *_exc: object) -> None:
        if self._guest != threading.get_ident():
            self._lock.release()

    def is_free(self) -> bool:
        """Whether no thread has it, this one included."""
        if self._lock._is_owned() or not self._lock.acquire(blocking=False):  # noqa: SLF001 -- as Condition does
            return False
        self._lock.release()
        return True

    @contextlib.contextmanager
    def lent(self, thread: int | None = None) -> Iterator[None]:
        """Lend it to this thread, or to that one."""
        before, self._guest = self._guest, threading.get_ident() if thread is None else thread
        try:
            yield
        finally:
            self._guest = before


class DrivingEvent(threading.Event):
    """What `concurrent.futures.wait` and `as_completed` sleep on: its waiter drives the pools of the tasks.

    The end of the first wait is that of all: `as_completed` waits for what is left, which it counts in real time.
    """

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.pools: list[Driven] = []
        self._last = last  # after a wait that was in vain comes no other
        self._made = time.monotonic()  # as `as_completed` tells the time, whoever has patched it
        self._ends: dict[Driven, float] = {}

    def wait(self, timeout: float | None = None) -> bool:
        """Drive until it is set, for so many virtual seconds. Raises PoolkitError when it would never be."""
        if timeout is not None and not self._last:
            timeout = math.ceil((timeout + time.monotonic() - self._made) * 100) / 100  # some of it was real time
        for pool in self.pools:
            self._ends.setdefault(pool, math.inf if timeout is None else pool.clock.now + timeout)
        while not self.is_set() and any(pool.go_on(end) for pool, end in self._ends.items()):
            pass
        if self.is_set():
            return True
        if timeout is None:
            timelines = "\n".join(str(pool.clock) for pool in self.pools)
            raise PoolkitError(f"what is waited for would never be done:\n{timelines}")
        for pool, end in self._ends.items():
            pool.clock.now = max(pool.clock.now, end)
        if self._last:
            return False
        raise WaitTimeout(f"not all tasks were done {timeout} s of virtual time later")


class DrivingWaiters(list[_Waiter]):
    """Where `wait` and `as_completed` enlist with a task of a fake pool."""

    def __init__(self, pool: Driven) -> None:
        super().__init__()
        self.pool = weakref.ref(pool)  # a task that is kept does not keep the pool

    def append(self, waiter: _Waiter) -> None:
        """Have the waiter drive the pool."""
        pool, event = self.pool(), waiter.event
        if pool is not None:
            if not isinstance(event, DrivingEvent):
                event = waiter.event = DrivingEvent(last=not isinstance(waiter, _AsCompletedWaiter))
            if pool not in event.pools:
                event.pools.append(pool)
        super().append(waiter)


class FakeTask(Task):  # type: ignore[type-arg]
    """What a task becomes that is submitted to a fake pool."""

    is_fake = True
    __slots__ = ()
    _waiting: DrivingWaiters

    @classmethod
    def adopt(cls, task: Task[Any], pool: Driven) -> None:
        """Make it one, so that `concurrent.futures.wait` and `as_completed` drive the pool, too."""
        task.__class__ = cls
        task._waiting = DrivingWaiters(pool)  # noqa: SLF001 -- it is one now

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Do what a task does; what `fn` submits is run after it, or a chain of such calls would be a recursion."""
        pool = self._waiting.pool()
        with pool.accepting() if pool is not None and self.done() else contextlib.nullcontext():
            super().add_done_callback(fn)
