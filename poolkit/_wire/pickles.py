"""Pickles: one value to bytes and back, by reference where that is enough and by value where it is not.

Plain pickle writes a function or a class as "module, name". That is fast, and right for whatever the other process
can import. It is wrong for things of the script, which workers never import, and for modules that the user registered
with `cloudpickle.register_pickle_by_value`; those go through cloudpickle, which writes them out in full.

A plain pickle ends with the STOP opcode, a full stop. What goes by value carries one more byte, a mark, behind it:
the loader tells the two apart without a header, and no large payload is copied to make room for one
(unpickling stops at STOP, so the mark never disturbs it).
"""

from __future__ import annotations

import io
import pickle
import sys
from functools import partial

from poolkit._wire.buffers import Found, Parts
from poolkit._wire.cloud import cloudpickle_module

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


__all__ = [
    "BY_VALUE",
    "PROTOCOL",
    "REUSABLE",
    "SCRIPTS",
    "SCRIPT_MARK",
    "ClassKeepingUnpickler",
    "dumps",
    "dumps_by_value",
    "dumps_plainly",
    "is_by_value_requested",
    "loads",
]

PROTOCOL = 5
BY_VALUE = b"v"
REUSABLE = b"r"
"""Mark behind the bytes of a function that a worker may load once and call many times."""

SCRIPTS = ("__main__", "__mp_main__")
"""What the script is called: itself, and in children of multiprocessing. Workers import it under neither name."""
SCRIPT_MARK = b"_main__"
"""Stands in every plain pickle that names something of the script."""

_STOP = pickle.STOP[0]


def is_by_value_requested() -> bool:
    """Whether the user registered modules to go by value, so that plain pickle cannot be trusted: not the script."""
    # Only a cloudpickle that somebody imported can have modules registered; the attribute is missing while
    # another thread is half way through that import.
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False
    list_registered = getattr(cloudpickle, "list_registry_pickle_by_value", None)
    return list_registered is not None and not list_registered().issubset(SCRIPTS)


def dumps_plainly(value: object, found: Found | None = None) -> Any:
    """Return the plain pickle of `value` as bytes, or None when it has to go by value.

    Large buffers are left to `found`; a pickle with large bytes comes in parts.
    """
    if is_by_value_requested():
        return None
    # By reference, the name of the module stands in the stream. Text that happens to contain it costs a needless
    # second try, never a wrong result. The scan costs about half as much as copying the bytes once.
    try:
        if found is None or not found.large:
            data = pickle.dumps(value, PROTOCOL, buffer_callback=found)
            if found is None or not found.has_read_only:
                return None if SCRIPT_MARK in data else data
        data = _dump(pickle.Pickler, value, found)
        return None if found.may_name(SCRIPT_MARK, data if type(data) is Parts else [data]) else data
    except Exception:  # noqa: BLE001 -- a user's __reduce__ may raise anything; cloudpickle has the last word
        return None


def dumps_by_value(value: object, mark: bytes = BY_VALUE, found: Found | None = None) -> Any:
    """Return the cloudpickle of `value` with `mark` behind it; whatever cloudpickle raises propagates."""
    return _dump(cloudpickle_module().Pickler, value, found, mark)


def _dump(base: Any, value: object, found: Found | None, mark: bytes = b"") -> Any:
    """Pickle with a class of picklers; once more, with read-only arrays as writable ones, where there are any.

    In parts only where large contents are known: they are kept as they are, all others are copied at once, as what is
    pickled later may change them.
    """
    file: Any = Parts() if found is not None and found.large else io.BytesIO()
    if found is None or not found.has_read_only:
        base(file, protocol=PROTOCOL, buffer_callback=found).dump(value)
    if found is not None and found.has_read_only:
        found.again()
        file = Parts() if found.large else io.BytesIO()
        (_WritablePickler if base is pickle.Pickler else _writable(base))(file, found).dump(value)
    file.write(mark)
    return file if type(file) is Parts else file.getvalue()


def _writable(base: Any) -> Any:
    """A class of picklers to which read-only arrays are writable ones."""
    inherited = getattr(base, "reducer_override", lambda _self, _obj: NotImplemented)

    class Pickler(base):  # type: ignore[misc]
        def __init__(self, file: Any, found: Found) -> None:
            super().__init__(file, protocol=PROTOCOL, buffer_callback=found)
            self._found = found

        def reducer_override(self, obj: Any) -> Any:
            reduced = self._found.reduce(obj)
            return inherited(self, obj) if reduced is NotImplemented else reduced

    return Pickler


_WritablePickler = _writable(pickle.Pickler)


def dumps(value: object, found: Found | None = None) -> Any:
    """Return `value` pickled plainly if possible, else by value; what the latter raises propagates."""
    data = dumps_plainly(value, found)
    if data is None:
        if found is not None:
            found.again()
        data = dumps_by_value(value, BY_VALUE, found)
    return data


def loads(data: bytes | bytearray | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Return the value that `dumps` packed, leaving the classes of this process as they are."""
    if data[-1] == _STOP:
        return pickle.loads(data, buffers=buffers)
    return ClassKeepingUnpickler(io.BytesIO(data), buffers).load()


class ClassKeepingUnpickler(pickle.Unpickler):
    """Unpickler for what comes back: a class that this process knows already is not overwritten by its own copy.

    cloudpickle recognises a class that it sent out when it comes back by value, but then it sets every attribute again
    from the copy: methods would from now on see the copied globals of the worker, and class attributes its values.
    """

    def __init__(self, file: io.BytesIO, buffers: Iterable[Any] = ()) -> None:
        super().__init__(file, buffers=buffers)
        self._kept_classes: set[type] = set()  # owner: the thread that calls load()

    def find_class(self, module_name: str, name: str) -> Any:
        """Return the global, with the makers of by-value classes guarded."""
        found = super().find_class(module_name, name)
        if module_name == "cloudpickle.cloudpickle":
            # The guards stand in the unpickler's memo: they must not hold it, or a result would live in that cycle.
            if name in ("_make_skeleton_class", "_make_skeleton_enum"):
                return partial(_make_or_keep, found, self._kept_classes)
            if name == "_class_setstate":
                return partial(_set_or_keep, found, self._kept_classes)
        return found


def _make_or_keep(make: Callable[..., type], kept: set[type], *args: Any) -> type:
    # cloudpickle's table of the classes that it has met, in either direction. Should a later version rename it,
    # nothing is known, and classes are overwritten again: its own behaviour.
    known = getattr(sys.modules["cloudpickle.cloudpickle"], "_DYNAMIC_CLASS_TRACKER_BY_ID", {})
    tracker_id = args[-2]
    mine: type | None = known.get(tracker_id)
    if mine is None:
        return make(*args)
    kept.add(mine)
    return mine


def _set_or_keep(set_state: Callable[[type, object], type], kept: set[type], made: type, state: object) -> type:
    return made if made in kept else set_state(made, state)
