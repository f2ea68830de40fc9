"""Awaiting: tasks under asyncio, with one wake-up of the loop for many of them, and often none.

`asyncio.wrap_future` wakes the loop once for each future, by a byte through a socket and a call of its own. Here each
loop has a mailbox: who settles a task puts it in, and only the first since the loop last emptied it wakes the loop.
And while something is awaited, the loop watches the links of its pool and reads them itself, like any other descriptor:
then no other thread comes in between, which halves the time of an `await`.
Guarantees: what is put in is taken out, also while the loop empties the box: `_told` is taken back before the first
one is taken out, and set after one was put in; the same with `_reading`. Each step on them is atomic. A loop that is
busy with something else, or cannot watch descriptors, delays nothing: the pool's own thread looks up after a lease.
Owner: the loop's thread: all but `put` and `close`, which are for any thread; the latter once the loop is closed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Protocol

from poolkit._owner import Target


class Watched(Protocol):
    """A pool, as far as a loop reads for it."""

    def watch(self, task: Any) -> tuple[int, Callable[[], bool]] | None:
        """A descriptor that is readable when results are there, and what reads them, without blocking.

        Looks for the result of `task` itself for a little while, where that has paid lately.
        What is returned is false when there is nothing to watch any more. None: the pool reads them by itself.
        """

    def end_lease(self) -> None:
        """See to it that outcomes are published without anybody reading."""


class _Mailbox:
    """What was settled for one event loop, and the pools that it watches."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # the table of mailboxes must not keep it
        self._settled: deque[tuple[asyncio.Future[Any], Target[Any]]] = deque()
        self._told = False
        self._reading = False  # the loop is just reading links, and empties the box afterwards
        self._watching: dict[Watched, int] = {}  # copies of their descriptors
        self._awaiting: dict[Watched, int] = {}  # how many tasks of each are awaited
        self._dropping = False

    def put(self, waiting: asyncio.Future[Any], task: Target[Any]) -> None:
        """`task` is done; have `waiting` know."""
        self._settled.append((waiting, task))
        if not self._reading and not self._told:
            self._told = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._empty)
            except RuntimeError:  # the loop was closed: nobody waits any more
                self._told = False
                self.close()

    def _empty(self) -> None:
        self._told = False
        waiting: asyncio.Future[Any] | None = None
        try:
            while self._settled:
                waiting, task = self._settled.popleft()
                if not waiting.done():
                    _hand_over(waiting, task)
        except BaseException:  # an interrupt, or a result that exits when it is unpickled: the others have their turn
            if waiting is not None and not waiting.done():
                waiting.cancel()
            self._empty_soon()
            raise

    def _empty_soon(self) -> None:
        loop = self._loop()
        if self._settled and not self._told and loop is not None:
            self._told = True
            loop.call_soon(self._empty)

    # ===== watching links =====

    def attend(self, pool: Watched, task: Target[Any]) -> None:
        """One more task of `pool` is awaited."""
        count = self._awaiting[pool] = self._awaiting.get(pool, 0) + 1
        if count > 1:
            return
        self._reading = True
        try:
            watch = pool.watch(task)
        finally:
            self._reading = False
            self._empty_soon()  # not now: what is fast must not keep the others from having their turn
        if watch is not None and pool not in self._watching:
            self._watch(pool, *watch)

    def leave(self, pool: Watched) -> None:
        """One task less. What is not watched for any more is dropped a little later: mostly, the next one comes."""
        if pool not in self._awaiting:  # the loop was closed meanwhile
            return
        self._awaiting[pool] -= 1
        loop = self._loop()
        if not self._awaiting[pool] and not self._dropping and loop is not None:
            self._dropping = True
            try:
                loop.call_soon(self._drop)
            except RuntimeError:  # it was closed
                self._drop()

    def _drop(self) -> None:
        self._dropping = False
        for pool in [pool for pool, count in self._awaiting.items() if not count]:
            del self._awaiting[pool]
            self._unwatch(pool)

    def _watch(self, pool: Watched, fd: int, read: Callable[[], bool]) -> None:
        loop = self._loop()
        copy = -1
        try:
            copy = os.dup(fd)  # the pool closes its own when it ends, in its own time
            assert loop is not None  # noqa: S101 -- it runs this
            loop.add_reader(copy, self._read, pool, read)
        except (OSError, NotImplementedError):
            if copy >= 0:
                os.close(copy)
            pool.end_lease()
        else:
            self._watching[pool] = copy

    def _unwatch(self, pool: Watched) -> None:
        fd, loop = self._watching.pop(pool, -1), self._loop()
        if fd >= 0:
            try:
                if loop is not None and not loop.is_closed():
                    loop.remove_reader(fd)
            finally:
                os.close(fd)

    def _read(self, pool: Watched, read: Callable[[], bool]) -> None:
        self._reading = True
        try:
            if not read():
                self._unwatch(pool)
        finally:
            self._reading = False
            self._empty()

    def close(self) -> None:
        """Drop everything: the loop was closed, maybe in the middle. Idempotent."""
        self._settled.clear()
        self._awaiting.clear()
        while True:
            try:
                _, fd = self._watching.popitem()  # one step, as two threads may find the loop closed
            except KeyError:
                return
            os.close(fd)

    __del__ = close


def _hand_over(waiting: asyncio.Future[Any], task: Target[Any]) -> None:
    try:
        error = task.exception()
        if error is None:
            waiting.set_result(task.result())
        elif isinstance(error, StopIteration):  # which no asyncio future takes
            raise RuntimeError(f"{task!r} raised StopIteration") from error
        else:
            waiting.set_exception(error)
    except Exception as exc:  # noqa: BLE001 -- `TaskCancelled`, too; the others in the box must have their turn
        waiting.set_exception(exc)
    finally:
        del waiting, task  # what was raised here holds this frame


class Scheduled:
    """A callback of asyncio's own, which only has its loop do something: called where the task is published.

    That of `asyncio.futures` (`wrap_future`, `run_in_executor`) knows that it is called in another thread; those of
    `asyncio.tasks` (`asyncio.wait`) are for the thread of their loop alone.
    """

    __slots__ = ("_fn", "_loop")

    def __init__(self, fn: Callable[[Any], object], loop: asyncio.AbstractEventLoop | None) -> None:
        self._fn = fn
        self._loop = loop

    def __call__(self, task: Future[Any]) -> None:
        """Have the loop do it. From any thread; does not block or raise."""
        try:
            if self._loop is None:
                self._fn(task)
            else:
                self._loop.call_soon_threadsafe(self._fn, task)
        except Exception:
            if self._loop is None or not self._loop.is_closed():  # else nobody waits any more
                logging.getLogger("poolkit").exception("a done callback of %r raised", task)

    def __eq__(self, other: object) -> bool:
        """Whether `other` is what was added."""
        return other is self or other == self._fn

    __hash__ = None  # type: ignore[assignment]


def scheduled(fn: Callable[[Any], object]) -> Scheduled | None:
    """A callback of asyncio's own; None when there is no such thing to be called."""
    if fn.__module__ == "asyncio.futures":
        return Scheduled(fn, None)
    try:
        return Scheduled(fn, asyncio.get_running_loop())
    except RuntimeError:
        return None


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()


def wait_for(
    task: Target[Any], add_waker: Callable[[Callable[[Any], object]], Watched | None]
) -> Generator[Any, None, Any]:
    """Wait for `task` in a coroutine; cancelling the coroutine cancels it. For `add_waker` see `Task`."""
    loop = asyncio.get_running_loop()
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        for reference in _mailboxes.keyrefs():  # a list, whatever other threads do with the table
            other = reference()
            if other is not None and other.is_closed() and other in _mailboxes:
                _mailboxes[other].close()
        mailbox = _mailboxes[loop] = _Mailbox(loop)
    waiting: asyncio.Future[Any] = loop.create_future()

    def pass_on(waited: asyncio.Future[Any]) -> None:
        if waited.cancelled():
            task.cancel()

    waiting.add_done_callback(pass_on)
    pool = add_waker(functools.partial(mailbox.put, waiting))
    if pool is None:
        return (yield from waiting)
    try:
        mailbox.attend(pool, task)
        return (yield from waiting)
    finally:
        mailbox.leave(pool)
