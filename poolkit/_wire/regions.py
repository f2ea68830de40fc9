"""Regions: shared memory that belongs to nobody's arena: of a SharedBuffer, or of an object that was broadcast.

Owner: whoever has a reference; the descriptor is closed with the last one. `_regions` takes one atomic operation at a
time, from any thread.
"""

from __future__ import annotations

import os
import pickle
from _weakref import ref  # the module weakref would be one more import in every worker
from collections.abc import Callable

from poolkit import _os

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

REGION = 1 << 63  # bit of the number of a region, which is random; segments are counted from 1


class Region:
    """One piece of such memory.

    Known in a process by its random number as long as somebody there holds it; so it is mapped once, and never
    mistaken for another. `kept` is what was made of it here, where that `is_kept`: in a worker, while the owner has it.
    """

    __slots__ = ("__weakref__", "fd", "is_kept", "kept", "nbytes", "number")

    def __init__(self, fd: int, number: int, nbytes: int) -> None:
        self.fd = fd
        self.number = number
        self.nbytes = nbytes
        self.is_kept = False
        self.kept: Any = None
        known = _regions[number] = _Known(self, _forget_region)
        known.number = number

    @classmethod
    def create(cls, nbytes: int) -> Region:
        """A new one, of reserved memory, or a file where there is not enough. Raises OSError."""
        try:
            fd = _reserved(_os.shared_memory, nbytes)
        except OSError:
            fd = _reserved(_os.file_memory, nbytes)
        return cls(fd, int.from_bytes(os.urandom(8), "little") | REGION, nbytes)

    def close(self) -> None:
        """Close the descriptor: it cannot be passed on any more. Idempotent."""
        fd, self.fd = self.fd, -1
        _os.close_fd(fd)

    def __del__(self) -> None:
        """Close the descriptor."""
        self.close()


def _reserved(make: Callable[[int], int], nbytes: int) -> int:
    fd = make(nbytes)
    try:
        _os.reserve(fd, 0, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Known(ref):  # type: ignore[type-arg]
    """A reference to a region that knows its number."""

    __slots__ = ("number",)
    number: int


def _forget_region(known: _Known) -> None:
    if _regions.get(known.number) is known:
        _regions.pop(known.number, None)


_regions: dict[int, _Known] = {}  # one atomic operation at a time, from any thread


def known_region(number: int) -> Region | None:
    """The region of this number, if this process has it."""
    known = _regions.get(number)
    return None if known is None else known()


def expected_region(number: int) -> Region:
    """The region of this number, which came with what is being unpickled. Raises UnpicklingError when it did not."""
    region = known_region(number)
    if region is None:
        msg = "this handle on shared memory has come too late, or not from a pool"
        raise pickle.UnpicklingError(msg)
    return region
