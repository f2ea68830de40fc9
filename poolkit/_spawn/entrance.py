"""Entrance: the writing end of a pipe to a program's input, from before it is started until nobody writes any more."""

from __future__ import annotations

import math
import os
import select
from collections.abc import Callable
from queue import Empty

from poolkit import _os, waiting
from poolkit._clock import monotonic
from poolkit._locks import RLock
from poolkit._owner import Arrivals
from poolkit._select import poll
from poolkit.errors import ChannelClosed
from poolkit.future import WaitTimeout

_LOOK = 1.0  # seconds between two looks whether a program that takes nothing has ended
_PIECE = 64 * 1024


class Entrance:
    """The writing end of a pipe to a program's input; the programs thread opens it.

    Guarded by: `_lock`: all of it. The descriptor is closed by the last who has it.
    """

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self.encode = encode
        self._lock = RLock()  # re-entrant for signal handlers
        self._fd = -1
        self._writers = 0  # who wait until there is room
        self._is_closed = self._has_ended = False
        self._waiters: list[Callable[[], object]] = []

    def open(self, fd: int) -> None:
        """The program is being started: this is its pipe."""
        os.set_blocking(fd, False)
        with self._lock:
            self._fd = fd
            self._close_unused()
        self._ring()

    def end(self) -> None:
        """The program has ended."""
        with self._lock:
            self._has_ended = True
            self._close_unused()
        self._ring()

    def leave_parent(self) -> None:
        """Be a copy in a forked child."""
        self._lock = RLock()
        self._has_ended = True
        fd, self._fd = self._fd, -1
        _os.close_fd(fd)

    def close(self) -> None:
        """Nothing more will be written."""
        with self._lock:
            self._is_closed = True
            self._close_unused()
        self._ring()

    def _ring(self) -> None:
        for waiter in [*self._waiters]:
            waiter()

    def _close_unused(self) -> None:
        if (self._is_closed or self._has_ended) and not self._writers:
            fd, self._fd = self._fd, -1
            _os.close_fd(fd)

    def _begin(self) -> None:
        """Count a writer, as long as whom nothing closes the descriptor."""
        with self._lock:
            if self._is_closed or self._has_ended:
                why = "close_stdin() was called" if self._is_closed else "the program has ended"
                msg = f"cannot write to the program: {why}"
                raise ChannelClosed(msg)
            self._writers += 1

    def _end_writing(self) -> None:
        with self._lock:
            self._writers -= 1
            self._close_unused()

    def _write(self, data: memoryview) -> int:
        """Write what there is room for. By a writer."""
        try:
            return os.write(self._fd, data[:_PIECE])
        except BlockingIOError:
            return 0
        except BrokenPipeError as exc:
            msg = "cannot write to the program: it has closed its input, or ended"
            raise ChannelClosed(msg) from exc

    def write(self, data: bytes, timeout: float | None) -> None:
        """Write all of it. Blocks."""
        view, give_up = memoryview(data), math.inf if timeout is None else monotonic() + timeout
        while view:
            self._begin()
            try:
                count = self._write(view) if self._fd >= 0 else 0
                view = view[count:]
                if not count:
                    left = give_up - monotonic()
                    if left <= 0.0:
                        msg = f"{len(view)} of {len(data)} bytes were not taken within {timeout} s"
                        raise WaitTimeout(msg)
                    self._wait(min(left, _LOOK))
            finally:
                self._end_writing()

    async def write_async(self, data: bytes) -> None:
        """Write all of it, without blocking the event loop."""
        view = memoryview(data)
        while view:
            self._begin()
            try:
                count = self._write(view) if self._fd >= 0 else 0
                view = view[count:]
                if not count and self._fd >= 0:
                    await waiting.wait_ready(self._fd, writes=True)
                elif not count:
                    await self._wait_for_start()
            finally:
                self._end_writing()

    async def _wait_for_start(self) -> None:
        arrivals = Arrivals()
        self._waiters.append(arrivals.ring)
        try:
            if not self._is_ready():
                await waiting.wait_for(arrivals)
        finally:
            self._waiters.remove(arrivals.ring)

    def _is_ready(self) -> bool:
        return self._fd >= 0 or self._is_closed or self._has_ended

    def _wait(self, seconds: float) -> None:
        """Wait until it is started, or there is room, for at most so many seconds."""
        if self._fd >= 0:
            poller = poll()
            poller.register(self._fd, select.POLLOUT)
            poller.poll(math.ceil(seconds * 1000))
            return
        arrivals = Arrivals()
        self._waiters.append(arrivals.ring)
        try:
            if not self._is_ready():
                arrivals.get(timeout=seconds)
        except Empty:
            return
        finally:
            self._waiters.remove(arrivals.ring)
