"""The stream of a worker thread: its items go straight to who reads it, by reference.

Owner: the worker thread: `put`. `credit` and `end` come under the pool's lock, `wake` from any thread.
"""

from __future__ import annotations

import contextlib
import math
from _thread import allocate_lock
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolkit._clock import monotonic

if TYPE_CHECKING:
    from poolkit.incoming import Incoming


class ThreadStream:
    """What is to be said of one stream while it runs."""

    def __init__(self, worker: Any, task_id: int, incoming: Incoming, most: int) -> None:
        self.task_id = task_id
        self.is_to_end = False
        self._worker = worker
        self._incoming = incoming
        self._most = most
        self._sent = 0  # items, in all
        self._taken = 0  # of them
        self._waker: Callable[[], object] | None = None  # of a coroutine that waits
        self._turn = allocate_lock()  # free: something has changed
        incoming.by_reference = True
        worker.made = monotonic()

    def put(self, item: object) -> bool:
        """Hand an item out, and wait until there is room for the next; False when no more are wanted."""
        if self.is_to_end:
            return False
        worker = self._worker
        self._hand_out(item)
        while self._sent - self._taken >= self._most and not self.is_to_end:
            worker.made = math.inf
            self._turn.acquire()
        worker.made = monotonic()
        return not self.is_to_end

    async def put_async(self, item: object) -> bool:
        """Do the same in a coroutine, without blocking its event loop."""
        import asyncio  # noqa: PLC0415 -- only for `async def` functions

        if self.is_to_end:
            return False
        self._hand_out(item)
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._waker = lambda: loop.call_soon_threadsafe(woken.set)
        try:
            while self._sent - self._taken >= self._most and not self.is_to_end:
                self._worker.made = math.inf
                await woken.wait()
                woken.clear()
        finally:
            self._waker = None
        self._worker.made = monotonic()
        return not self.is_to_end

    def _hand_out(self, item: object) -> None:
        incoming = self._incoming
        incoming.come += 1
        incoming.count(self._worker.received)
        if not incoming.closed:
            incoming.items.append(item)
        self._sent += 1
        incoming.ring()

    def credit(self, taken: int) -> None:
        """So many items were taken, in all."""
        self._taken = taken
        self.wake()

    def end(self) -> None:
        """No more items are wanted."""
        self.is_to_end = True
        self.wake()

    def wake(self) -> None:
        """Have the thread look up, if it waits."""
        with contextlib.suppress(RuntimeError):  # it is free
            self._turn.release()
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(RuntimeError):  # its event loop was closed
                waker()

    def finish(self) -> None:
        """Note that it has ended."""
        self._worker.stream = None
        self._worker.made = monotonic()  # its limit goes on counting, for its outcome
