"""Outgoing: what a task in a process worker sends while it runs, and what it is told meanwhile.

A stream counts its items against a window, which the owner moves: CREDIT says how many were taken. So what the owner
keeps of a stream is bounded, and its link never waits for a reader of one stream.
Owner: the worker's main thread.
"""

from __future__ import annotations

import math

from poolkit._child.window import Window
from poolkit._clock import monotonic
from poolkit._typing import Any
from poolkit._wire import messages

LOOK_EVERY = 0.001  # seconds between two looks whether the owner has said something


class Outgoing(Window):
    """The stream that runs in this worker."""

    def __init__(self, loop: Any, task_id: int, most: int, most_bytes: float) -> None:
        super().__init__(most, most_bytes)
        self.task_id = task_id
        self._loop = loop
        self._look_at = 0.0
        loop.board.stamp_made(monotonic())

    def put(self, item: object) -> bool:
        """Send an item, and wait until there is room for the next; False when no more are wanted.

        Raises SerializationError: it cannot be pickled.
        """
        if self.is_to_end:
            return False
        self._send(item)
        loop = self._loop
        now = monotonic()
        if len(self._sizes) >= self._most or self._untaken >= self._most_bytes:
            if self.is_full():
                loop.board.stamp_made(math.inf)
                while self.must_wait():
                    loop.receive()
                now = monotonic()
        elif now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            loop.look()
        loop.board.stamp_made(now)
        return not self.is_to_end

    async def put_async(self, item: object) -> bool:
        """Do the same in a coroutine, without blocking its event loop."""
        if self.is_to_end:
            return False
        self._send(item)
        loop = self._loop
        if self.is_full():
            loop.board.stamp_made(math.inf)
            await loop.until(lambda: not self.must_wait())
        else:
            loop.look()
        loop.board.stamp_made(monotonic())
        return not self.is_to_end

    def _send(self, item: object) -> None:
        loop = self._loop
        payload: Any = loop.transport.pack_value(item)
        if type(payload) is bytes:
            kind, nbytes = messages.ITEM, len(payload)
        else:
            kind, nbytes, payload = messages.ITEM_OUT_OF_BAND, payload.nbytes + len(payload.body), payload.body
            loop.board.stamp_memory(loop.transport.arena.reserved)
        header = messages.FRAME_TO_OWNER.pack(kind, self.task_id, 0.0, 0.0, nbytes, len(payload))
        loop.outbox.send(header, payload)
        self._sizes.append(nbytes)
        self._untaken += nbytes

    def finish(self) -> None:
        """Note that it has ended."""
        self._loop.running = None
        self._loop.board.stamp_made(monotonic())  # its limit goes on counting, for its outcome
