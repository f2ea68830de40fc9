"""Shared: memory that users hold and several processes see: SharedBuffer and SharedArray.

Each is a handle on a region (`_wire/regions.py`), memory without a name. Pickled in a call, a result or `initargs`, a
handle is a few dozen bytes, and the region's descriptor goes along; pickled by itself it names the descriptor of its
process, which another can open for as long as the handle is there (Linux only).

Who frees the memory? Nobody has to: it is free when the last process has let go of it: closed its handles and dropped
its views, or ended, in whatever way. `close` lets go of one handle, and refuses while views of it are left, because to
use them would crash. A worker keeps its handle for the next call, until the owner has none any more.
Thread-safe: what is in a SharedBuffer is memory, and whoever writes to it says who may.
"""

from __future__ import annotations

import mmap
import os
import pickle
import sys

from poolkit._wire import buffers
from poolkit._wire.regions import Region, expected_region, known_region

TYPE_CHECKING = False  # importing typing would cost each worker 6 ms
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    import numpy as np
    from typing_extensions import Self


_PLAIN = "biufcSU"  # kinds of types that their string says all about


class SharedBuffer(mmap.mmap):
    """A block of memory that several processes see: `memoryview(buffer)`, `buffer[i]`, `numpy.frombuffer(buffer)`.

    Writable everywhere. A context manager that closes it. Pickles as a handle of a few dozen bytes.
    """

    _region: Region | None

    def __new__(cls, nbytes: int) -> Self:
        """Make one of `nbytes` zeroed bytes.

        Raises:
            TypeError, ValueError: not a positive whole number.
            OSError: there is no memory for it.
        """
        if isinstance(nbytes, bool) or not hasattr(nbytes, "__index__"):
            msg = f"nbytes must be a whole number, was {nbytes!r}"
            raise TypeError(msg)
        size = int(nbytes.__index__())
        if size < 1:
            msg = f"nbytes must be at least 1, was {nbytes}"
            raise ValueError(msg)
        return cls._of(Region.create(size))

    @classmethod
    def _of(cls, region: Region) -> Self:
        if region.fd < 0:
            msg = "the shared memory was unlinked: no new handle on it can be made"
            raise ValueError(msg)
        buffers.use_regions()
        self = super().__new__(cls, region.fd, region.nbytes)
        self._region = region
        return self

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self)

    def close(self) -> None:
        """Let go of it: from now on, to use this handle is a ValueError. Idempotent; other handles stay.

        Raises:
            BufferError: there are views of it still, such as arrays; drop them first.
        """
        try:
            super().close()
        except BufferError:
            msg = "this shared memory is still seen by views of it, such as arrays: drop them before it is closed"
            raise BufferError(msg) from None
        self._region = None

    def unlink(self) -> None:
        """Have no further process get it; those that have it keep it. Idempotent."""
        if self._region is not None:
            self._region.close()

    def resize(self, _size: int) -> None:
        """Refuse: other processes would lose what they see."""
        msg = "shared memory cannot be resized"
        raise ValueError(msg)

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __reduce_ex__(self, _protocol: Any) -> Any:
        """A handle."""
        region = self._region
        if region is None or self.closed:
            msg = "this SharedBuffer is closed"
            raise ValueError(msg)
        return _handle(region)

    def __repr__(self) -> str:
        """Show the size."""
        return "<poolkit.SharedBuffer closed>" if self.closed else f"<poolkit.SharedBuffer of {len(self)} bytes>"


class SharedArray:
    """An n-dimensional array in memory that several processes see: `.array` is a NumPy view of it, writable everywhere.

    A context manager that closes it. Pickles as a handle.
    """

    __slots__ = ("_dtype", "buffer", "shape")

    def __init__(self, shape: int | tuple[int, ...], dtype: Any = "float64") -> None:
        """Make one of zeros, in C order.

        Raises:
            TypeError, ValueError: there is no such shape or type, or values of the type refer to Python objects.
            OSError: there is no memory for it.
        """
        import numpy as np  # noqa: PLC0415 -- needed only here

        model = np.broadcast_to(np.empty((), dtype), shape)  # checks both, and takes no memory
        if model.dtype.hasobject:
            msg = f"values of {model.dtype} refer to Python objects, which belong to one process"
            raise TypeError(msg)
        self.shape: tuple[int, ...] = model.shape
        self._dtype: Any = model.dtype
        self.buffer = SharedBuffer(max(1, model.size * model.dtype.itemsize))

    @classmethod
    def copy_of(cls, array: Any) -> SharedArray:
        """Make one with the shape, type and values of an array. Raises as the class itself."""
        import numpy as np  # noqa: PLC0415 -- needed only here

        source = np.asarray(array)
        made = cls(source.shape, source.dtype)
        made.array[...] = source
        return made

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """A view of it. Raises ValueError when it is closed."""
        import numpy as np  # noqa: PLC0415 -- needed only here

        return np.ndarray(self.shape, self.dtype, buffer=self.buffer)  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        """The type of its values."""
        if type(self._dtype) is str:
            import numpy as np  # noqa: PLC0415 -- needed only here

            self._dtype = np.dtype(self._dtype)
        return self._dtype

    @property
    def nbytes(self) -> int:
        """The size of the array in bytes."""
        size = int(self.dtype.itemsize)
        for length in self.shape:
            size *= length
        return size

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self.buffer.closed

    def close(self) -> None:
        """Let go of it; see `SharedBuffer.close`."""
        self.buffer.close()

    def unlink(self) -> None:
        """Have no further process get it; see `SharedBuffer.unlink`."""
        self.buffer.unlink()

    def __enter__(self) -> Self:
        """Use it as a context manager."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> Any:
        """A handle."""
        dtype: Any = self.dtype
        if dtype.kind in _PLAIN:  # a string is pickled and read in a tenth of the time
            dtype = dtype.str
        return _shared_array, (self.buffer, self.shape, dtype)

    def __repr__(self) -> str:
        """Show shape and type."""
        state = " closed" if self.closed else ""
        return f"<poolkit.SharedArray shape={self.shape} dtype={self.dtype}{state}>"


def _shared_array(buffer: SharedBuffer, shape: tuple[int, ...], dtype: Any) -> SharedArray:
    made = SharedArray.__new__(SharedArray)
    made.buffer, made.shape, made._dtype = buffer, shape, dtype  # noqa: SLF001 -- its other half
    return made


# ===== handles =====


def _handle(region: Region) -> Any:
    """What a handle pickles as: how it is made, and from what."""
    context = sys.modules.get("multiprocessing.context")
    if context is not None and context.get_spawning_popen() is not None:  # initargs, or a Process is being started
        from multiprocessing import reduction  # noqa: PLC0415 -- see above

        return _from_descriptor, (reduction.DupFd(region.fd), region.number, region.nbytes)
    if buffers.attach(region):
        return _from_passage, (region.number, region.nbytes)
    if region.fd < 0:
        msg = "this shared memory was unlinked: no other process can get it"
        raise pickle.PicklingError(msg)
    if not os.path.exists("/proc/self/fd"):  # noqa: PTH110 -- pathlib costs a worker 6 ms
        msg = "on this system, shared memory can be pickled only as part of a call, a result or initargs of a pool"
        raise pickle.PicklingError(msg)
    status = os.fstat(region.fd)
    place = (os.getpid(), region.fd, status.st_dev, status.st_ino)
    return _from_process, (region.number, region.nbytes, *place)


def _buffer_of(region: Region, nbytes: int) -> SharedBuffer:
    region.nbytes = nbytes  # what a descriptor says of itself may be rounded up
    if not region.is_kept:
        return SharedBuffer._of(region)  # noqa: SLF001 -- its other half
    kept = region.kept
    if type(kept) is not SharedBuffer or kept.closed:
        kept = region.kept = SharedBuffer._of(region)  # noqa: SLF001 -- see above
    return kept


def _from_passage(number: int, nbytes: int) -> SharedBuffer:
    return _buffer_of(expected_region(number), nbytes)


def _from_descriptor(descriptor: Any, number: int, nbytes: int) -> SharedBuffer:
    fd = descriptor.detach()
    region = known_region(number)
    if region is None:
        region = Region(fd, number, nbytes)
    else:
        os.close(fd)
    return _buffer_of(region, nbytes)


def _from_process(number: int, nbytes: int, pid: int, fd: int, device: int, inode: int) -> SharedBuffer:
    region = known_region(number)
    if region is None:
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
        region = Region(own, number, nbytes)
    return _buffer_of(region, nbytes)
