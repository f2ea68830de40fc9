"""Buffers: what is large in one value, found while it is pickled.

`Found` is asked about each buffer that the value's parts offer (pickle protocol 5): small ones stay in the pickle,
those that reach the threshold are collected. Where `bytes` are known to be large beforehand, the pickle is collected in
pieces (`Parts`): the pickler hands large bytes through as they are, and they are copied once, to where they shall be.
What arrives is writable, as it belongs to its reader alone; a read-only array would arrive read-only, so a value with
such arrays is pickled again, with writable stand-ins for their buffers.
Owner: the thread that pickles.
"""

from __future__ import annotations

import math
import pickle
from _thread import get_ident
from _weakref import ref
from collections.abc import Callable, Iterable

from poolkit._typing import Any, Self

_GLANCE = 3  # items of a list or tuple that are looked at for large bytes
_LARGE = (bytes, bytearray)
# What has no buffers; a call of such is not looked at, but for its size.
PLAIN = frozenset({int, float, bool, type(None), str, complex})

_packing: dict[int, ref[Found]] = {}  # by thread, what is being packed for another process; dead if that was torn
memory_in_use = False  # set by the first handle on shared memory here; until then, nobody need enter `_packing`
# Set by `_memory`, which is above this room: writes a pickle and its buffers into shared memory. Raises OSError.
store: Callable[[Any, list[memoryview]], Any]


class Parts(list):  # type: ignore[type-arg]
    """A pickle in pieces: the file that a pickler writes to."""

    __slots__ = ()
    write = list.append


class Found(list):  # type: ignore[type-arg]
    """The large buffers of one value, in order.

    Its attributes are the class's own until there is something: one of these is made for each small call, too.
    """

    threshold: float = math.inf  # bytes; see `found_from`
    large: tuple[Any, ...] = ()  # bytes that were known to be large beforehand
    memories: tuple[Any, ...] = ()  # shared memory and descriptors that the value refers to
    names: tuple[Any, ...] = ()  # of script modules that it refers to, beside those that the pickler notes
    has_read_only = False  # an array that has to become writable
    hands_over = True  # whether shared memory and descriptors can go along
    is_loaded_once = True  # else by each worker, or whenever it is wanted
    is_known = are_large = False  # whether all buffers of the value are known to be large, or small
    key: tuple[Any, ...] | None = None  # what is known beforehand of its pickle
    alone: Any = None  # the array that is all of it
    _stand_ins: dict[int, tuple[pickle.PickleBuffer, pickle.PickleBuffer]] | None = None
    _before: ref[Found] | None = None

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Return True if a buffer stays in the pickle."""
        if self._stand_ins is not None and (pair := self._stand_ins.get(id(buffer))) is not None:
            buffer = pair[1]
        with buffer.raw() as view:
            if view.readonly and type(view.obj).__name__ == "ndarray":
                self.has_read_only = True
            if view.nbytes < self.threshold:
                return True
        self.append(buffer)
        return False

    def look(self, values: Iterable[object]) -> None:
        """Look for large bytes among the values, and just below them."""
        for value in values:
            kind = type(value)
            if kind in _LARGE:
                if len(value) >= self.threshold:  # type: ignore[arg-type]
                    self.large += (value,)
            elif kind is list or kind is tuple:
                for item in value[:_GLANCE]:  # type: ignore[index]
                    if type(item) in _LARGE and len(item) >= self.threshold:
                        self.large += (item,)

    def again(self) -> None:
        """Forget what was found, as the value is pickled once more."""
        self.clear()
        self.memories = self.names = ()
        self._stand_ins = None

    def may_name(self, name: bytes, parts: Iterable[Any]) -> bool:
        """Return True if a name stands in a pickle; not looked for in large bytes, which are nobody's name."""
        return any(name in part for part in parts if not any(part is large for large in self.large))

    # ===== arrays that are to become writable =====

    def reduce(self, array: Any) -> Any:
        """Return how an array is pickled, if it is read-only; for a pickler's `reducer_override`."""
        if type(array).__name__ != "ndarray" or type(array).__module__ != "numpy" or array.flags.writeable:
            return NotImplemented
        made, args, *rest = array.__reduce_ex__(5)
        return (made, tuple(self._stand_in(arg) if type(arg) is pickle.PickleBuffer else arg for arg in args), *rest)

    def _stand_in(self, buffer: pickle.PickleBuffer) -> pickle.PickleBuffer:
        with buffer.raw() as view:
            if not view.readonly:
                return buffer
            if view.nbytes < self.threshold:
                return pickle.PickleBuffer(bytearray(view))
        stand_in = pickle.PickleBuffer(bytearray())
        if self._stand_ins is None:
            self._stand_ins = {}
        self._stand_ins[id(stand_in)] = (stand_in, buffer)
        return stand_in

    # ===== what goes along =====

    def __enter__(self) -> Self:
        """Have what this thread pickles from now on be for another process, which is handed the memory in it."""
        thread = get_ident()
        self._before = _packing.get(thread)
        _packing[thread] = ref(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            _packing.pop(get_ident(), None)
        else:
            _packing[get_ident()] = self._before
        self._before = None


def found_from(threshold: float) -> type[Found]:
    """Return the class for values whose buffers are large from this threshold on."""
    return type("Found", (Found,), {"threshold": threshold})


def packing() -> Found | None:
    """Return what this thread is packing for another process."""
    found = _packing.get(get_ident())
    return None if found is None else found()


def attach(memory: Any) -> bool:
    """Send memory along with what this thread is packing; return False if it packs nothing for another process."""
    found = packing()
    if found is None or not found.hands_over:
        return False
    if not any(memory is known for known in found.memories):
        found.memories += (memory,)
    return True


def need(names: Iterable[Any]) -> None:
    """Note names of script modules that what this thread is packing refers to."""
    found = packing()
    if found is not None:
        found.names += tuple(names)


def is_view(value: Any) -> bool:
    """Return True for an array that is a part of another one, as a whole or not, which has its items in C order."""
    kind = type(value)
    if kind.__name__ != "ndarray" or kind.__module__ != "numpy" or type(value.base) is not kind:
        return False
    return bool(value.base.flags.c_contiguous and value.flags.writeable and not value.dtype.hasobject)


def reduce_view(array: Any) -> Any:
    """Return how to make a view of the array that an array is a view of, which another name means."""
    offset = array.__array_interface__["data"][0] - array.base.__array_interface__["data"][0]
    return type(array), (array.shape, array.dtype, array.base, offset, array.strides)
