"""Stopping: that a worker of a cluster is to stop, for whatever waits: threads, coroutines, callbacks, pollers.

Guarantees: set once and for ever; `set` takes no lock and may be called by any thread, and by a signal handler that has
interrupted any method here; each callback is called once, whether it was added before or after.
Owner: a counter in the kernel, which is written to and never read, so that whoever polls it is woken.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
from collections import deque

from poolkit._clock import monotonic
from poolkit._os import Wakeup
from poolkit._select import poll

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

_LOOKS, _LOOK = 1000, 0.001  # how often `close` looks whether somebody polls yet, and seconds between that


class Stopping:
    """True once the worker is to stop."""

    def __init__(self) -> None:
        self._is_set = False
        self._bell = Wakeup()
        self._callbacks: deque[Callable[[], object]] = deque()
        self._wakers: dict[object, Callable[[], object]] = {}  # of coroutines that wait
        self._polling: deque[None] = deque()  # one for each thread that polls the descriptor just now
        self._signals = self._writing = -1  # readable when a signal has come whose handler is still to be called

    def __bool__(self) -> bool:
        """Whether the worker is to stop."""
        return self._is_set

    def is_set(self) -> bool:
        """Whether the worker is to stop."""
        return self._is_set

    def set(self) -> None:
        """Wake all who wait, and call the callbacks. Idempotent. Thread-safe; also for signal handlers."""
        self._is_set = True
        self._wake()
        self._call_back()

    def _wake(self) -> None:
        self._bell.set()
        while self._wakers:
            try:
                _, wake = self._wakers.popitem()
            except KeyError:  # another thread was faster
                return
            wake()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                fn = self._callbacks.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                fn()
            except Exception:
                import logging  # noqa: PLC0415 -- few need it

                logging.getLogger("poolkit").exception("a callback of `stopping`, %r, raised", fn)
            except BaseException:
                self._call_back()
                raise

    def add_callback(self, fn: Callable[[], object]) -> None:
        """Have `fn()` called once, by the thread that sets this, or at once if it is set. Thread-safe.

        For a worker that is a process, that is the main thread, in a signal handler: be quick, and wait for no lock.
        One that raises is logged.
        """
        self._callbacks.append(fn)
        if self._is_set:
            self._call_back()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for at most `timeout` seconds; return whether it is. Blocks. Thread-safe."""
        give_up = None if timeout is None else monotonic() + timeout
        while not self._is_set:
            left = None if give_up is None else max(0.0, give_up - monotonic())
            self.poll_with(-1, left)
            if left == 0.0:
                break
        return self._is_set

    def poll_with(self, fd: int, seconds: float | None) -> None:
        """Return when this is set, the descriptor (-1: none) is readable or closed, or time is over. Blocks."""
        self._polling.append(None)
        try:
            if self._is_set:  # looked at since `close` can see this thread
                return
            poller = poll()
            for own in self.fds():
                poller.register(own, select.POLLIN)
            if fd >= 0:
                poller.register(fd, select.POLLIN)
            # At most a day: the number of milliseconds is an int of C.
            with self.heeding():
                poller.poll(None if seconds is None else min(seconds, 86400.0) * 1000)
        finally:
            self._polling.pop()

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until it is set, under asyncio, trio or anyio; a wait that is cancelled changes nothing."""
        return self._wait_async().__await__()

    async def _wait_async(self) -> None:
        while self._signals >= 0 and not self._is_set:
            with self.heeding():
                await any_readable(self.fds(), None)
        from poolkit import waiting  # noqa: PLC0415 -- a worker that never awaits should not pay for it
        from poolkit._owner import Arrivals  # noqa: PLC0415 -- see above

        arrivals = Arrivals()
        try:
            self._wakers[arrivals] = arrivals.ring
            if self._is_set:
                self._wake()
            await waiting.wait_for(arrivals)
        finally:
            self._wakers.pop(arrivals, None)

    # ===== signals =====

    def heed_signals(self) -> None:
        """Have waits of the main thread end also at a signal that comes just before they begin, and may set this.

        Such a wait would sleep, and the signal's handler wait for its end. For a worker that is a process.
        """
        self._signals, self._writing = os.pipe()
        for fd in (self._signals, self._writing):
            os.set_blocking(fd, False)

    @contextlib.contextmanager
    def heeding(self) -> Iterator[None]:
        """While this lasts, a signal makes one of `fds` readable; where nobody else, such as trio, has that already."""
        before = None
        if self._signals >= 0:
            with contextlib.suppress(ValueError):  # this is not the main thread
                before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        if before not in (None, -1, self._writing):
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            before = None
        try:
            yield
        finally:
            if before is not None:
                now = signal.set_wakeup_fd(before, warn_on_full_buffer=False)
                if now not in (-1, self._writing):
                    signal.set_wakeup_fd(now, warn_on_full_buffer=False)
            self._note_signals()

    def fds(self) -> list[int]:
        """What to poll for it: readable once it is set, or when a signal has come."""
        return [self._bell.fileno(), *([self._signals] if self._signals >= 0 else [])]

    def _note_signals(self) -> None:
        """Go on to wait for the next one."""
        if self._signals >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self._signals, 4096)

    def fileno(self) -> int:
        """The descriptor that is readable once this is set; for pollers, who must not read it."""
        return self._bell.fileno()

    def close(self) -> None:
        """Give the descriptor back: the worker has ended. Who still waits is woken; callbacks are not called."""
        self._is_set = True
        self._wake()
        for _ in range(_LOOKS):
            if not self._polling:
                break
            select.select([], [], [], _LOOK)
        self._bell.close()


async def any_readable(fds: list[int], seconds: float | None) -> None:
    """Wait until one of these is readable, for at most so many seconds; under asyncio or trio."""
    from poolkit import waiting  # noqa: PLC0415 -- few workers need it, and it takes 10 ms

    if waiting.in_trio():
        import trio  # noqa: PLC0415 -- see above

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = math.inf if seconds is None else trio.current_time() + seconds

            async def wait(fd: int) -> None:
                await waiting.wait_ready(fd, writes=False)
                nursery.cancel_scope.cancel()

            for fd in fds:
                nursery.start_soon(wait, fd)
        return
    import asyncio  # noqa: PLC0415 -- see above

    waits = [asyncio.ensure_future(waiting.wait_ready(fd, writes=False)) for fd in fds]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
