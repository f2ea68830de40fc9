"""Lease page: a little shared memory that says until when the workers of a pool may live.

Whoever made the pool moves that on; the pool's template process reads it, and kills them when it is over. So no thread,
event loop or lock of the writer's interpreter has a part in it, but for writing the next time before then.
Owner: the process that made the page writes, the template process reads. Eight aligned bytes, stored in one go.
"""

from __future__ import annotations

import math
import mmap
import os

from poolkit import _os
from poolkit._clock import monotonic

_NBYTES = 8


def page() -> int:
    """Return a descriptor of a new page, without a limit, for `PoolSettings.lease_fd`. Raises OSError."""
    fd = _os.shared_page(_NBYTES)
    try:
        lease = LeasePage(fd, writes=True)
        lease.until = math.inf
        lease.close()
    except BaseException:
        os.close(fd)
        raise
    return fd


class LeasePage:
    """The page, mapped. The descriptor stays the caller's."""

    __slots__ = ("_map", "_times")

    def __init__(self, fd: int, *, writes: bool = False) -> None:
        self._map = mmap.mmap(fd, _NBYTES, access=mmap.ACCESS_WRITE if writes else mmap.ACCESS_READ, **_os.UNTRACKED)
        self._times = memoryview(self._map).cast("d")

    @property
    def until(self) -> float:
        """When the workers are killed, by the monotonic clock; infinity: never.

        To be moved on only: it may be noticed as late as the time that stood there before.
        """
        return self._times[0]

    @until.setter
    def until(self, value: float) -> None:
        self._times[0] = value

    def left(self) -> float:
        """Return how many seconds are left; none or less: it is over."""
        return self.until - monotonic()

    def close(self) -> None:
        """Unmap it. Idempotent."""
        self._times.release()
        self._map.close()
