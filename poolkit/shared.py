"""Shared: memory that users hold and several processes see: SharedBuffer and SharedArray.

Each is a handle on `Memory` (`_memory/memory.py`), without a name unless one is asked for (`_memory/named.py`).
Pickled in a call, a result or `initargs`, a handle is a few dozen bytes, and the descriptor goes along;
pickled by itself it names the descriptor of its process, which another can open for as long as the handle is there
(Linux only).

Who frees the memory? Nobody has to: it is free when the last process has let go of it: closed its handles and dropped
its views, or ended, in whatever way. `close` ends one handle. Memory that views show stays mapped until the last one is
gone: an array keeps the mapping, whatever becomes of the handle; a SharedBuffer is the mapping, and refuses.
Thread-safe: it is memory, and whoever writes to it says who may.
"""

from __future__ import annotations

import mmap

from poolkit import _os
from poolkit._memory.memory import Memory, expected_memory
from poolkit._wire import buffers

TYPE_CHECKING = False  # importing typing would cost each worker 6 ms
if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from typing_extensions import Self

    Array = np.ndarray[Any, Any]
else:
    Any = Self = Array = object  # for those who look at the annotations

_PLAIN = "biufcSU"  # kinds of types that their string says all about


class SharedBuffer(mmap.mmap):
    """A block of memory that several processes see: `memoryview(buffer)`, `buffer[i]`, `numpy.frombuffer(buffer)`.

    Writable everywhere. A context manager that closes it. Pickles as a handle of a few dozen bytes. Threads may share
    one; it has no lock, so the program decides who writes when.
    With a name it is a block of `multiprocessing.shared_memory` that any process may attach to, for as long as the
    process that made it has a handle.
    """

    _memory: Memory | None

    def __new__(cls, nbytes: int, name: str | None = None) -> Self:
        """Make one of `nbytes` zeroed bytes.

        Raises:
            TypeError, ValueError: not a positive whole number, or no possible name.
            FileExistsError: there is a block of this name.
            OSError: there is no memory for it.
        """
        if isinstance(nbytes, bool) or not hasattr(nbytes, "__index__"):
            msg = f"nbytes must be a whole number, was {nbytes!r}"
            raise TypeError(msg)
        size = int(nbytes.__index__())
        if size < 1:
            msg = f"nbytes must be at least 1, was {nbytes}"
            raise ValueError(msg)
        return cls._of(_create(size, name), size)

    @classmethod
    def attach(cls, name: str) -> Self:
        """Open the block of this name, whoever made it. Raises FileNotFoundError, or another OSError."""
        memory = _attach(name)
        return cls._of(memory, memory.nbytes)

    @property
    def name(self) -> str | None:
        """The name under which others may attach to it; None if it has none, or is closed."""
        return None if self._memory is None else self._memory.name

    @classmethod
    def _of(cls, memory: Memory, nbytes: int) -> Self:
        self = super().__new__(cls, memory.fd, nbytes, **_os.UNTRACKED)
        self._memory = memory
        return self

    @property
    def nbytes(self) -> int:
        """Its size."""
        return len(self)

    def close(self) -> None:
        """Let go of it: from now on, to use this handle is a ValueError. Idempotent; other handles stay; not blocking.

        Raises:
            BufferError: there are views of it still, such as arrays; drop them first.
        """
        try:
            super().close()
        except BufferError:
            msg = "this shared memory is still seen by views of it, such as arrays: drop them before it is closed"
            raise BufferError(msg) from None
        self._memory = None

    def unlink(self) -> None:
        """Have no further handle be passed on, and the name removed; others stay. Idempotent; does not block."""
        _unlink(self._memory)

    def resize(self, _size: int) -> None:
        """Refuse: other processes would lose what they see."""
        msg = "shared memory cannot be resized"
        raise ValueError(msg)

    def __exit__(self, exc_type: object, *_: object) -> None:
        """Close it; while an exception passes, views that are left are no error: the memory goes with them."""
        try:
            self.close()
        except BufferError:
            if exc_type is None:
                raise

    def __reduce_ex__(self, _protocol: Any) -> Any:
        """A handle."""
        memory = self._memory
        if memory is None or self.closed:
            msg = "this SharedBuffer is closed"
            raise ValueError(msg)
        return _shared_buffer, (memory, len(self), memory.name)

    def __repr__(self) -> str:
        """Show the size."""
        return "<poolkit.SharedBuffer closed>" if self.closed else f"<poolkit.SharedBuffer of {len(self)} bytes>"


class SharedArray:
    """An n-dimensional array in memory that several processes see: `.array` is a NumPy view of it, writable everywhere.

    A context manager that closes it. Pickles as a handle. Threads may share one; it has no lock, so the program decides
    who writes when. Views stay valid after `close`: the memory goes with
    the last of them.
    """

    __slots__ = ("_dtype", "_mapping", "_memory", "shape")

    _memory: Memory | None
    _mapping: mmap.mmap | None

    def __init__(self, shape: int | tuple[int, ...], dtype: Any = "float64", name: str | None = None) -> None:
        """Make one of zeros, in C order; with a name, as a SharedBuffer with one.

        Raises:
            TypeError, ValueError: there is no such shape, type or name, or values of the type refer to Python objects.
            FileExistsError: there is a block of this name.
            OSError: there is no memory for it.
        """
        self._hold(_create(self._describe(shape, dtype), name))

    def _describe(self, shape: int | tuple[int, ...], dtype: Any) -> int:
        """Note shape and type; return how many bytes they need."""
        import numpy as np  # noqa: PLC0415 -- needed only here

        try:
            model = np.broadcast_to(np.empty((), dtype), shape)  # checks both, and takes no memory
        except (TypeError, ValueError) as exc:
            msg = f"there is no array of shape {shape!r} and dtype {dtype!r}: {exc}"
            raise type(exc)(msg) from exc
        if model.dtype.hasobject:
            msg = f"values of {model.dtype} refer to Python objects, which belong to one process"
            raise TypeError(msg)
        self.shape: tuple[int, ...] = model.shape
        self._dtype: Any = model.dtype
        return max(1, model.size * model.dtype.itemsize)

    @classmethod
    def attach(cls, name: str, shape: int | tuple[int, ...], dtype: Any = "float64") -> SharedArray:
        """Open the block of this name, whoever made it, as an array in C order.

        Raises:
            TypeError, ValueError: there is no such shape or type, or the block is too small for them.
            FileNotFoundError: there is no block of this name; or another OSError.
        """
        made = cls.__new__(cls)
        nbytes, memory = made._describe(shape, dtype), _attach(name)  # noqa: SLF001 -- its other half
        if memory.nbytes < nbytes:
            msg = f"the block {name!r} has {memory.nbytes} bytes, but this array needs {nbytes}"
            raise ValueError(msg)
        made._hold(memory)  # noqa: SLF001 -- see above
        return made

    @property
    def name(self) -> str | None:
        """The name under which others may attach to it; None if it has none, or is closed."""
        return None if self._memory is None else self._memory.name

    def _hold(self, memory: Memory) -> None:
        self._memory = memory
        self._mapping = memory.mapping()

    @classmethod
    def copy_of(cls, array: Any, name: str | None = None) -> SharedArray:
        """Make one with the shape, type and values of an array. Blocks as long as it copies; raises as the class."""
        import numpy as np  # noqa: PLC0415 -- needed only here

        source = np.asarray(array)
        made = cls(source.shape, source.dtype, name)
        made.array[...] = source
        return made

    @property
    def array(self) -> Array:
        """A view of it. Raises ValueError when it is closed."""
        import numpy as np  # noqa: PLC0415 -- needed only here

        if self._mapping is None:
            msg = "this SharedArray is closed"
            raise ValueError(msg)
        # Of a mapping, NumPy would note the address only; a memoryview of it, it keeps, and that keeps the mapping.
        return np.ndarray(self.shape, self.dtype, buffer=memoryview(self._mapping))  # type: ignore[no-any-return]

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
        return self._memory is None

    def close(self) -> None:
        """Let go of it: from now on, to use this handle is a ValueError. Idempotent; does not block.

        Views and other handles stay.
        """
        self._memory = self._mapping = None

    def unlink(self) -> None:
        """Have no further handle be passed on, and the name removed; others stay. Idempotent; does not block."""
        _unlink(self._memory)

    def __enter__(self) -> Self:
        """Use it as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> Any:
        """A handle."""
        if self._memory is None:
            msg = "this SharedArray is closed"
            raise ValueError(msg)
        dtype: Any = self.dtype
        if dtype.kind in _PLAIN:  # a string is pickled and read in a tenth of the time
            dtype = dtype.str
        memory = self._memory
        if (
            memory.name is None and not memory.is_unlinked and buffers.attach(memory)
        ):  # as the memory's own handle, in half the time
            return _arrived_array, (memory.id, self.shape, dtype)
        return _shared_array, (memory, self.shape, dtype, memory.name)

    def __repr__(self) -> str:
        """Show shape and type."""
        state = " closed" if self.closed else ""
        return f"<poolkit.SharedArray shape={self.shape} dtype={self.dtype}{state}>"


def _create(nbytes: int, name: str | None) -> Memory:
    if name is None:
        return Memory.create(nbytes)
    from poolkit._memory.named import create_memory  # noqa: PLC0415 -- for few programs

    return create_memory(nbytes, name)


def _attach(name: str) -> Memory:
    from poolkit._memory.named import attach_memory  # noqa: PLC0415 -- for few programs

    return attach_memory(name)


def _unlink(memory: Memory | None) -> None:
    if memory is None:
        return
    memory.is_unlinked = True
    if memory.name is not None:
        from poolkit._memory.named import remove_name  # noqa: PLC0415 -- for few programs

        remove_name(memory.name)


def _shared_array(memory: Memory, shape: tuple[int, ...], dtype: Any, name: str | None = None) -> SharedArray:
    memory.name = name
    made = SharedArray.__new__(SharedArray)
    made.shape, made._dtype = shape, dtype  # noqa: SLF001 -- its other half
    made._hold(memory)  # noqa: SLF001 -- see above
    return made


def _arrived_array(number: int, shape: tuple[int, ...], dtype: Any) -> SharedArray:
    return _shared_array(expected_memory(number), shape, dtype)


def _shared_buffer(memory: Memory, nbytes: int, name: str | None) -> SharedBuffer:
    memory.name = name
    return SharedBuffer._of(memory, nbytes)  # noqa: SLF001 -- its other half
