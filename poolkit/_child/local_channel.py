"""Local channel: the channel of a worker that is a thread, two queues through which objects go by reference.

Owner: any thread; each step takes one atomic operation. Why nobody sleeps for ever: who waits enlists, then looks
again; who changes something looks afterwards who is enlisted.
"""

from __future__ import annotations

import contextlib
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import starmap

from poolkit import waiting
from poolkit._child.port import Channel, ChannelEnd
from poolkit._owner import Arrivals
from poolkit._typing import Any
from poolkit._waits import until

MOST = 1000  # messages one way; a few more where several threads send


class _Queue:
    """One way."""

    def __init__(self) -> None:
        self.messages: deque[Any] = deque()
        self.is_closed = False
        self.wakers: list[Callable[[], object]] = []  # of those who wait for messages, or for room

    def wake(self) -> None:
        for waker in [*self.wakers]:
            waker()

    def close(self) -> None:
        self.is_closed = True
        self.wake()


class _Failure:
    """The answer to a call that raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class LocalChannel(Channel):
    """One end of such a pair."""

    def __init__(self, incoming: _Queue, outgoing: _Queue) -> None:
        super().__init__()
        self._in, self._out = incoming, outgoing
        self._ready: list[Callable[[], object]] = []  # who is to be called, once

    def pack(self, message: object) -> Any:
        """A message goes as it is."""
        return message

    def pack_failure(self, error: BaseException) -> Any:
        """An exception goes as it is, too."""
        return _Failure(error)

    def has_failed(self, taken: list[Any]) -> bool:
        """Look what it is."""
        return type(taken[0]) is _Failure

    def try_send(self, packed: Any) -> bool:
        """Add it to the queue."""
        if self._out.is_closed:
            raise ChannelEnd
        if len(self._out.messages) >= MOST:
            return False
        try:
            self._out.messages.append(packed)
        finally:  # whatever a signal handler raises: who waits would not look again
            self._out.wake()
        return True

    def try_take(self, taken: list[Any]) -> bool:
        """Take it from the queue."""
        is_closed = self._in.is_closed
        try:
            taken += starmap(self._in.messages.popleft, ((),))
        except IndexError:
            if is_closed:
                raise ChannelEnd from None
            return False
        self._in.wake()
        return True

    def load(self, taken: list[Any]) -> Any:
        """It came as it was."""
        return taken[0].error if type(taken[0]) is _Failure else taken[0]

    def _may_go_on(self, *, writes: bool) -> bool:
        queue = self._out if writes else self._in
        return queue.is_closed or (len(queue.messages) < MOST if writes else bool(queue.messages))

    def call_when_ready(self, ready: Callable[[], object]) -> None:
        """Look now, and with each message. It takes the place of who was to be called before."""
        self._ready[:] = [ready]
        if self._tell not in self._in.wakers:
            self._in.wakers.append(self._tell)
        if self._may_go_on(writes=False):
            self._tell()

    def _tell(self) -> None:
        try:
            self._in.wakers.remove(self._tell)
            ready = self._ready.pop()
        except (ValueError, IndexError):  # another was faster
            return
        ready()

    def wait(self, seconds: float | None, *, writes: bool) -> None:
        """Sleep on a lock."""
        queue, lock = self._out if writes else self._in, allocate_lock()
        lock.acquire()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # another was faster
                lock.release()

        queue.wakers.append(wake)
        try:
            if not self._may_go_on(writes=writes):
                until(partial(lock.acquire, True), seconds)
        finally:
            queue.wakers.remove(wake)

    async def wait_async(self, *, writes: bool) -> None:
        """Sleep in the event loop."""
        queue, arrivals = self._out if writes else self._in, Arrivals()
        queue.wakers.append(arrivals.ring)
        try:
            if not self._may_go_on(writes=writes):
                await waiting.wait_for(arrivals)
        finally:
            queue.wakers.remove(arrivals.ring)

    def is_closed(self) -> bool:
        """Look at the queue."""
        return self._in.is_closed

    def close(self) -> None:
        """Close one way."""
        self._out.close()

    def shut(self) -> None:
        """Close both ways."""
        self._out.close()
        self._in.close()


def local_pair() -> tuple[LocalChannel, LocalChannel]:
    """Make a channel: the owner's end, and the worker's."""
    one, other = _Queue(), _Queue()
    return LocalChannel(one, other), LocalChannel(other, one)
