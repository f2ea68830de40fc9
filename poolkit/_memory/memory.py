"""Memory: one piece of shared memory, or another descriptor, as a process has it.

It is a segment of an arena (`arena.py`), what a SharedBuffer or SharedArray shows, an object that was broadcast, or a
connection on its way (`Descriptor`). A process knows it by its random id, as long as somebody there holds it; so it is
mapped once, and never mistaken for another. When it is gone here, each worker that was told of it is told of that, too
(`channel.py`).

Pickled, it is a handle that the other process opens: it is sent along (in a call or a result), inherited (in
`initargs`) or, on Linux, taken from this process by its number. Where it was unlinked, that is refused.
Owner: whoever has a reference; the descriptor is closed with the last one, and not before, as another thread may be
sending it. `_known` takes one atomic operation at a time, from any thread.
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
from poolkit._wire import buffers, handover

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

_LARGE = 64 << 20  # bytes that are asked for only where there is as much; to reserve less takes less than to look
ONCE = 1 << 63  # bit of the id of a descriptor that is for one loading only


class _Closer:
    """Closes a descriptor. A finalizer of Memory itself would run while others can still find it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Close it, also when the interpreter has taken modules apart."""
        try:
            close(self.fd)
        except OSError:  # somebody has closed it
            return


class Memory:
    """One piece of shared memory: its id, descriptor and mapping."""

    __slots__ = ("__weakref__", "_closer", "_mapping", "fd", "id", "is_unlinked", "kept", "name", "nbytes")

    is_segment = False  # of an arena of this process

    def __init__(self, fd: int, number: int, nbytes: int) -> None:
        self._closer: _Closer | None = _Closer(fd)
        self.fd = fd
        self.id = number
        self.nbytes = nbytes
        self.is_unlinked = False  # no further handle is passed on
        self.name: str | None = None  # under which others may attach to it; see `named.py`
        self.kept: Any = None  # in a worker: the object of a broadcast, or its own view of a segment
        self._mapping: mmap.mmap | None = None
        _known[number] = ref(self, partial(_gone, number))

    @classmethod
    def create(cls, nbytes: int) -> Memory:
        """A new one, of reserved memory, or a file where there is not enough. Raises OSError."""
        try:
            if nbytes >= _LARGE:
                from poolkit import _os_memory  # noqa: PLC0415 -- few have so much

                _os_memory.check_room(nbytes)
            fd = _reserved(_os.shared_memory, nbytes)
        except OSError as memory:
            try:
                fd = _reserved(_os.file_memory, nbytes)
            except OSError as file:
                why = f"no room for {nbytes} bytes of shared memory: {memory.strerror}; in a file: {file.strerror}"
                raise OSError(file.errno, why) from memory
        buffers.memory_in_use = True
        return cls(fd, new_id(), nbytes)

    def mapping(self) -> mmap.mmap:
        """All of it; mapped once. Raises OSError."""
        if self._mapping is None:
            self._mapping = mmap.mmap(self.fd, 0, **_os.UNTRACKED)
        return self._mapping

    def view(self) -> memoryview:
        """A view of all of it, made once, after which this process needs no descriptor of it. Raises OSError."""
        if self.kept is None:
            self.kept = memoryview(self.mapping())
            if not self.is_segment:
                self.fd, self._closer = -1, None
        return self.kept  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        """A handle."""
        if self.is_unlinked:
            msg = "this shared memory was unlinked: no other process can get it"
            raise pickle.PicklingError(msg)
        # In initargs, or while a Process is being started. Another thread may be importing it just now.
        spawning = getattr(sys.modules.get("multiprocessing.context"), "get_spawning_popen", None)
        if spawning is not None and spawning() is not None:
            from multiprocessing import reduction  # noqa: PLC0415 -- see above

            return _from_descriptor, (reduction.DupFd(self.fd), self.id, self.nbytes)
        if buffers.attach(self):
            return expected_memory, (self.id,)
        if not os.path.exists("/proc/self/fd"):  # noqa: PTH110 -- pathlib costs a worker 6 ms
            msg = "on this system, shared memory can be pickled only as part of a call, a result or initargs of a pool"
            raise pickle.PicklingError(msg)
        status = os.fstat(self.fd)
        return _from_process, (self.id, self.nbytes, os.getpid(), self.fd, status.st_dev, status.st_ino)


def new_id(*, once: bool = False) -> int:
    """An id that nothing else has."""
    number = int.from_bytes(os.urandom(8), "little") | ONCE
    return number if once else number ^ ONCE


def _reserved(make: Callable[[int], int], nbytes: int) -> int:
    fd = make(nbytes)
    try:
        _os.reserve(fd, 0, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


_known: dict[int, ref[Memory]] = {}  # one atomic operation at a time, from any thread
channels: set[Any] = set()  # the open ones of this process; see `DescriptorChannel`


def _gone(number: int, known: ref[Memory]) -> None:
    """Have those who were told of it know. From a finalizer, in any thread."""
    if _known.get(number) is known:
        _known.pop(number, None)
        for channel in list(channels):
            if number in channel.told:
                channel.gone.append(number)
                channel.wake()


def known_memory(number: int) -> Memory | None:
    """The memory of this id, if this process has it."""
    known = _known.get(number)
    return None if known is None else known()


def expected_memory(number: int) -> Memory:
    """The memory of this id, which came with what is being unpickled. Raises UnpicklingError when it did not."""
    memory = known_memory(number)
    if memory is None:
        msg = "this handle on shared memory has come too late, or not from a pool"
        raise pickle.UnpicklingError(msg)
    buffers.memory_in_use = True
    return memory


# ===== a pickle in memory of its own: how many parts, the size of each, the pickle, its buffers =====

_COUNT = struct.Struct("<Q")
_ALIGN = 64  # bytes; what NumPy's and Arrow's loops like best


def fill_memory(data: Any, parts: list[memoryview]) -> Memory:
    """Write a pickle, which may be in pieces, and its buffers into new memory. Raises OSError."""
    pieces = [memoryview(piece) for piece in ([data] if isinstance(data, bytes) else data)]
    groups = [pieces, *([part] for part in parts)]
    sizes = [sum(piece.nbytes for piece in group) for group in groups]
    head = memoryview(_COUNT.pack(len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes))
    memory = Memory.create(sum(map(_aligned, [head.nbytes, *sizes])))
    with mmap.mmap(memory.fd, memory.nbytes) as mapping:
        start = 0
        for group in [[head], *groups]:
            at = start
            for piece in group:
                mapping[at : at + piece.nbytes] = piece
                at += piece.nbytes
            start += _aligned(at - start)
    return memory


def open_memory(memory: Memory, access: int) -> tuple[memoryview, list[pickle.PickleBuffer]]:
    """Return the pickle that memory was filled with and its buffers, mapped with this access."""
    return split_memory(memoryview(mmap.mmap(memory.fd, memory.nbytes, access=access)))


def split_memory(view: memoryview) -> tuple[memoryview, list[pickle.PickleBuffer]]:
    """Return the pickle and its buffers in what memory was filled with."""
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


def _from_descriptor(descriptor: Any, number: int, nbytes: int) -> Memory:
    fd = descriptor.detach()
    buffers.memory_in_use = True
    memory = known_memory(number)
    if memory is None:
        return Memory(fd, number, nbytes)
    os.close(fd)
    return memory


def _from_process(number: int, nbytes: int, pid: int, fd: int, device: int, inode: int) -> Memory:
    buffers.memory_in_use = True
    memory = known_memory(number)
    if memory is not None:
        return memory
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
    return Memory(own, number, nbytes)


# ===== other descriptors =====


class Descriptor:
    """Stands in a pickle for a descriptor that goes along."""

    __slots__ = ("_memory",)

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __reduce__(self) -> Any:
        """What is found on the other side, as long as that is being loaded."""
        return _descriptor, (self._memory.id,)

    def detach(self) -> int:
        """A copy of it, which belongs to the caller."""
        return os.dup(self._memory.fd)


def _descriptor(number: int) -> Descriptor:
    return Descriptor(expected_memory(number))


def _send_along(fd: int, *, is_loaded_once: bool) -> Descriptor:
    """Have a copy of a descriptor go along with what this thread is packing."""
    memory = Memory(os.dup(fd), new_id(once=is_loaded_once), 0)
    buffers.attach(memory)
    return Descriptor(memory)


buffers.store, handover.send_along = fill_memory, _send_along
