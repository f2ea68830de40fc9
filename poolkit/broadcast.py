"""Broadcast: one object for many calls, packed once into memory of its own and loaded at most once by each worker.

The memory holds the pickle and, behind it, every buffer that the object has. A worker keeps what it loaded with the
memory, until the owner says that the memory is gone. Threads get the object itself.
Owner: whoever made the handle; what is packed is frozen.
"""

from __future__ import annotations

import mmap
import pickle

from poolkit._memory.memory import Memory, expected_memory, fill_memory, open_memory
from poolkit._wire import buffers
from poolkit._wire.buffers import Found
from poolkit._wire.modules import look
from poolkit._wire.pickles import Needs, dumps

TYPE_CHECKING = False  # importing typing would cost each worker 6 ms
if TYPE_CHECKING:
    from typing import Any, Generic, TypeVar

    from typing_extensions import Self

    T = TypeVar("T")

    class _Base(Generic[T]):
        """What `Shared[T]` is to a type checker."""
else:
    Any = Self = T = object  # for those who look at the annotations

    class _Base:
        """Stands for `Generic`, as to import typing would cost each worker 6 ms."""

        def __class_getitem__(cls, _item: object) -> type:
            """`Shared[T]` is for type checkers."""
            return cls


in_threads = False  # whether a handle on an object itself was ever made; else nobody looks for one


class Shared(_Base[T]):
    """A handle on an object that was broadcast: passed as an argument, it arrives as the object itself.

    Made by `Pool.broadcast`. The object is packed once and loaded at most once by each worker, when a call that has it
    as an argument arrives there first. Its arrays are read-only, as all calls share them. When the handle is dropped or
    closed, and no call that was submitted with it is left, the workers let go of it. Thread-safe.
    """

    def __init__(self, memory: Memory | None, value: Any, inner: tuple[Memory, ...] = (), names: Any = ()) -> None:
        global in_threads  # noqa: PLW0603 -- goes one way
        if memory is None:
            in_threads = True
        self._memory = memory
        self._inner = inner  # shared memory that the object refers to
        self._names = names  # of the script, that it refers to
        self._object = value  # in the thread kind: the object itself
        self.nbytes = 0 if memory is None else memory.nbytes
        self._closed = False

    def close(self) -> None:
        """Let go of it; calls that were submitted already are not affected. Idempotent; does not block."""
        self._memory = self._object = None
        self._inner = ()
        self._closed = True

    def __enter__(self) -> Self:
        """Use it as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _itself(self) -> Any:
        """The object itself, in the thread kind. Raises ValueError when it is closed."""
        if self._closed:
            msg = "this broadcast object is closed"
            raise ValueError(msg)
        return self._object

    def __reduce__(self) -> Any:
        """What is loaded in the worker."""
        self._itself()  # refuses, if it is closed
        memory = self._memory
        if memory is None or not buffers.attach(memory):
            msg = "a broadcast object can be passed only as an argument of a call to a pool of the kind that made it"
            raise pickle.PicklingError(msg)
        for inner in self._inner:
            buffers.attach(inner)
        buffers.need(self._names)
        return _load, (memory.id,)

    def __repr__(self) -> str:
        """Show the size."""
        return "<poolkit.Shared closed>" if self._closed else f"<poolkit.Shared of {self.nbytes} bytes>"


class _Frozen(Found):
    """All buffers of an object, each to be read-only: an array that is not contiguous would be pickled as a copy."""

    threshold = 0
    has_read_only = True  # ask `reduce`
    is_loaded_once = False

    def reduce(self, array: Any) -> Any:
        """How an array is pickled, if it has no buffer."""
        if type(array).__name__ != "ndarray" or type(array).__module__ != "numpy" or array.flags.forc:
            return NotImplemented
        return array.copy().__reduce_ex__(5)


def broadcast(value: T) -> Shared[T]:
    """Pack an object into memory of its own.

    Raises:
        SerializationError: it cannot be pickled; the message names the part.
        OSError: there is no memory for it.
    """
    found, needs = _Frozen(), Needs()
    look()
    try:
        with found:
            data = dumps(value, found, needs)
    except (Exception, GeneratorExit, SystemExit) as error:
        from poolkit._wire.unpicklable import HOOKS_RAISE, serialization_error  # noqa: PLC0415 -- only failures need it

        raise serialization_error("the broadcast object", [("obj", value)], error, HOOKS_RAISE) from error
    return Shared(fill_memory(data, [buffer.raw() for buffer in found]), None, found.memories, needs.now | needs.later)


def _load(number: int) -> Any:
    """The object of a broadcast, loaded unless that was done before."""
    memory = expected_memory(number)
    if type(memory.kept) is not tuple:
        data, buffers = open_memory(memory, mmap.ACCESS_READ)
        memory.kept = (pickle.loads(data, buffers=buffers),)
    return memory.kept[0]
