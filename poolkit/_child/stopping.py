"""Stopping: that a worker of a cluster is to stop, for whatever waits: threads, coroutines, callbacks, pollers.

Guarantees: set once and for ever; `set` takes no lock and may be called by any thread, and by a signal handler that has
interrupted any method here; each callback is called once, whether it was added before or after.
Owner: a counter in the kernel, which is written to and never read, so that whoever polls it is woken.
"""

from __future__ import annotations

import select
from collections import deque

from poolkit._clock import monotonic
from poolkit._os import Wakeup
from poolkit._select import poll

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
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
            poller.register(self._bell.fileno(), select.POLLIN)
            if fd >= 0:
                poller.register(fd, select.POLLIN)
            # At most a day: the number of milliseconds is an int of C.
            poller.poll(None if seconds is None else min(seconds, 86400.0) * 1000)
        finally:
            self._polling.pop()

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until it is set, under asyncio, trio or anyio; a wait that is cancelled changes nothing."""
        return self._wait_async().__await__()

    async def _wait_async(self) -> None:
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
