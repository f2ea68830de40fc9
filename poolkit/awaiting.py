"""Awaiting: futures of other threads under asyncio, with one wake-up of the loop for many of them.

`asyncio.wrap_future` wakes the loop once for each future, by a byte through a socket and a call of its own. Here each
loop has a mailbox: who finishes puts the future in, and only the first since the loop last emptied it wakes the loop.
Guarantees: what is put in is taken out, also while the loop empties the box: `_told` is taken back before the first
one is taken out, and set after one was put in. Each step on the two is atomic.
Owner: the loop's thread: `_empty`. `put` is for any thread.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

_Pair = tuple["asyncio.Future[Any]", "Future[Any]"]


class _Mailbox:
    """What was finished for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # the table of mailboxes must not keep it
        self._finished: deque[_Pair] = deque()
        self._told = False

    def put(self, waiting: asyncio.Future[Any], future: Future[Any]) -> None:
        """`future` is done; have `waiting` know."""
        self._finished.append((waiting, future))
        if not self._told:
            self._told = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._empty)
            except RuntimeError:  # the loop was closed: nobody waits any more
                self._finished.clear()

    def _empty(self) -> None:
        self._told = False
        while self._finished:
            waiting, future = self._finished.popleft()
            if not waiting.done():
                _hand_over(waiting, future)


def _hand_over(waiting: asyncio.Future[Any], future: Future[Any]) -> None:
    if future.cancelled():
        waiting.cancel()
        return
    try:
        error = future.exception()
        if error is None:
            waiting.set_result(future.result())
        elif isinstance(error, StopIteration):  # which no asyncio future takes
            raise RuntimeError(f"{future!r} raised StopIteration") from error
        else:
            waiting.set_exception(error)
    except Exception as exc:  # noqa: BLE001 -- the others in the box must have their turn
        waiting.set_exception(exc)


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()


def wait_for(future: Future[Any]) -> Generator[Any, None, Any]:
    """Wait for `future` in a coroutine; cancelling the coroutine cancels it."""
    loop = asyncio.get_running_loop()
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        mailbox = _mailboxes[loop] = _Mailbox(loop)
    waiting: asyncio.Future[Any] = loop.create_future()

    def pass_on(waited: asyncio.Future[Any]) -> None:
        if waited.cancelled():
            future.cancel()

    waiting.add_done_callback(pass_on)
    future.add_done_callback(lambda done: mailbox.put(waiting, done))
    return (yield from waiting)
