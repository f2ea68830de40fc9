"""Regions: shared memory that belongs to nobody's arena: of a SharedBuffer, or of an object that was broadcast.

Other descriptors are handed over in the same way, without a mapping (`_wire/handover.py`).

Pickled, a region is a handle that the other process opens: it is sent along (in a call or a result), inherited (in
`initargs`) or, on Linux, taken from this process by its number. Where it was unlinked, that is refused.
Owner: whoever has a reference; the descriptor is closed with the last one, and not before, as another thread may be
sending it. `_regions` takes one atomic operation at a time, from any thread.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import sys
from _weakref import ref  # the module weakref would be one more import in every worker
from collections.abc import Callable
from functools import partial

from poolkit import _os
from poolkit._wire import buffers

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

REGION = 1 << 63  # bit of the number of a region, which is random; segments are counted from 1
ONCE = 1 << 62  # a second one: a descriptor of no memory, for one loading only


class _Closer:
    """Closes a region's descriptor. A finalizer of the region itself would run while others can still find it."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Close it, also when the interpreter has taken modules apart."""
        try:
            close(self._fd)
        except OSError:  # somebody has closed it
            return


class Region:
    """One piece of such memory.

    Known in a process by its random number as long as somebody there holds it; so it is mapped once, and never
    mistaken for another. `kept` is what was made of it here: its mapping, or in a worker the object of a broadcast.
    """

    __slots__ = ("__weakref__", "_closer", "fd", "is_unlinked", "kept", "name", "nbytes", "number")

    def __init__(self, fd: int, number: int, nbytes: int) -> None:
        self.fd = fd
        self._closer = _Closer(fd)
        self.number = number
        self.nbytes = nbytes
        self.is_unlinked = False  # no further handle is passed on
        self.name: str | None = None  # under which others may attach to it; see `named.py`
        self.kept: Any = None
        buffers.regions_in_use = True
        _regions[number] = ref(self, partial(_forget_region, number))

    @classmethod
    def create(cls, nbytes: int) -> Region:
        """A new one, of reserved memory, or a file where there is not enough. Raises OSError."""
        try:
            fd = _reserved(_os.shared_memory, nbytes)
        except OSError:
            fd = _reserved(_os.file_memory, nbytes)
        return cls(fd, new_number(), nbytes)

    def mapping(self) -> mmap.mmap:
        """All of it; mapped once. Raises OSError."""
        kept = self.kept
        if kept is None:
            kept = self.kept = mmap.mmap(self.fd, 0, **_os.UNTRACKED)
        return kept  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        """A handle."""
        if self.is_unlinked:
            msg = "this shared memory was unlinked: no other process can get it"
            raise pickle.PicklingError(msg)
        context = sys.modules.get("multiprocessing.context")
        if context is not None and context.get_spawning_popen() is not None:  # initargs, or a Process is being started
            from multiprocessing import reduction  # noqa: PLC0415 -- see above

            return _from_descriptor, (reduction.DupFd(self.fd), self.number, self.nbytes)
        if buffers.attach(self):
            return expected_region, (self.number,)
        if not os.path.exists("/proc/self/fd"):  # noqa: PTH110 -- pathlib costs a worker 6 ms
            msg = "on this system, shared memory can be pickled only as part of a call, a result or initargs of a pool"
            raise pickle.PicklingError(msg)
        status = os.fstat(self.fd)
        return _from_process, (self.number, self.nbytes, os.getpid(), self.fd, status.st_dev, status.st_ino)


def new_number(*, once: bool = False) -> int:
    """A number that no other region has."""
    number = int.from_bytes(os.urandom(8), "little") | REGION | ONCE
    return number if once else number ^ ONCE


def _reserved(make: Callable[[int], int], nbytes: int) -> int:
    fd = make(nbytes)
    try:
        _os.reserve(fd, 0, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _forget_region(number: int, known: ref[Region]) -> None:
    if _regions.get(number) is known:
        _regions.pop(number, None)


_regions: dict[int, ref[Region]] = {}  # one atomic operation at a time, from any thread


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


# ===== a pickle in a region of its own: how many parts, the size of each, the pickle, its buffers =====

_COUNT = struct.Struct("<Q")
_ALIGN = 64  # bytes; what NumPy's and Arrow's loops like best


def fill_region(data: Any, buffers: list[memoryview]) -> Region:
    """Write a pickle, which may be in pieces, and its buffers into a new region. Raises OSError."""
    pieces = [memoryview(piece) for piece in ([data] if isinstance(data, bytes) else data)]
    groups = [pieces, *([buffer] for buffer in buffers)]
    sizes = [sum(piece.nbytes for piece in group) for group in groups]
    head = memoryview(_COUNT.pack(len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes))
    region = Region.create(sum(map(_aligned, [head.nbytes, *sizes])))
    with mmap.mmap(region.fd, region.nbytes) as mapping:
        start = 0
        for group in [[head], *groups]:
            at = start
            for piece in group:
                mapping[at : at + piece.nbytes] = piece
                at += piece.nbytes
            start += _aligned(at - start)
    return region


def open_region(region: Region, access: int) -> tuple[memoryview, list[pickle.PickleBuffer]]:
    """Return the pickle in a region and its buffers, mapped with this access."""
    view = memoryview(mmap.mmap(region.fd, region.nbytes, access=access))
    (count,) = _COUNT.unpack_from(view)
    start = _aligned(_COUNT.size * (1 + count))
    parts = []
    for nbytes in struct.unpack_from(f"<{count}Q", view, _COUNT.size):
        parts.append(view[start : start + nbytes])
        start += _aligned(nbytes)
    return parts[0], [pickle.PickleBuffer(part) for part in parts[1:]]


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


# ===== handles that are opened without a pool =====


def _from_descriptor(descriptor: Any, number: int, nbytes: int) -> Region:
    fd = descriptor.detach()
    region = known_region(number)
    if region is None:
        return Region(fd, number, nbytes)
    os.close(fd)
    return region


def _from_process(number: int, nbytes: int, pid: int, fd: int, device: int, inode: int) -> Region:
    region = known_region(number)
    if region is not None:
        return region
    try:
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        msg = f"the process {pid} that made this handle on shared memory is gone, has closed it, or keeps it: {exc}"
        raise pickle.UnpicklingError(msg) from exc
    status = os.fstat(own)
    if (status.st_dev, status.st_ino) != (device, inode):
        os.close(own)
        msg = f"the process {pid} has closed the shared memory of this handle"
        raise pickle.UnpicklingError(msg)
    return Region(own, number, nbytes)
