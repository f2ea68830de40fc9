"""Pickles: one value to bytes and back, by name where the other process has the name, and by value where it has not.

Three picklers are tried, each slower and able to do more:

1. pickle's own. What its bytes name must be importable there: none of the marks of script modules stands in them.
2. pickle's with reducers of ours: definitions of script modules go by name, and are noted as needed, so that the worker
   is given them first; functions without a name go by their code objects.
3. cloudpickle's with the same reducers, for whatever else only that can do. What comes from modules that the user
   registered with `cloudpickle.register_pickle_by_value` goes here at once.

The third's bytes carry a mark behind the STOP opcode, where unpickling stops: the loader then keeps its own classes.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import CellType, FunctionType, ModuleType

from poolkit._typing import Any
from poolkit._wire import handover, modules
from poolkit._wire.arrays import keep_pickle, known_pickle
from poolkit._wire.buffers import Found, Parts, is_view, reduce_view
from poolkit._wire.functions import meant_by, named, reduce_cell, reduce_function, scan_code, shared
from poolkit._wire.modules import cloudpickle_module, is_registered, marks, named_at_top, scripts
from poolkit._wire.reseed import reduce_generator

PROTOCOL = 5
BY_VALUE = b"v"
REUSABLE = b"r"
"""Mark behind the bytes of a function that a worker may load once and call many times."""

STOP = pickle.STOP[0]
_MISSING = object()


class Needs:
    """The names of script modules that a pickle needs, as (module, name); and how globals of such are pickled."""

    __slots__ = ("inline", "is_circular", "is_shared", "itself", "later", "met", "name", "names", "now", "reduce")

    def __init__(
        self,
        itself: object = _MISSING,  # what is to be pickled by value though it has a name
        name: tuple[str, str] | None = None,  # that name
        reduce: Callable[[Any], Any] | None = None,  # how else to reduce an object
        names: dict[int, tuple[Any, ...]] | None = None,  # by id, the global that an object goes by; see `sharing.py`
        inline: tuple[tuple[str, str], ...] = (),  # the names that are pickled here, which refer to nothing
    ) -> None:
        self.itself, self.name, self.reduce, self.names, self.inline = itself, name, reduce, names, inline
        self.now: set[tuple[str, str]] = set()  # what unpickling it looks up
        self.later: set[tuple[str, str]] = set()  # what functions in it look up when they are called
        self.is_circular = False  # the value could be pickled only as a reference to itself
        self.is_shared = False  # something goes by the name of a global
        self.met = 0  # how often the value itself was met


def dumps(value: object, found: Found | None = None, needs: Needs | None = None, *, plainly: bool = True) -> Any:
    """Return the pickle of a value, in parts where `found` knows of large bytes; what cloudpickle raises propagates.

    `found` takes the large buffers, `needs` what the other side has to have; `plainly`: pickle's own is worth trying.
    """
    if plainly and (data := dumps_plainly(value, found)) is not None:
        return data
    needs = Needs() if needs is None else needs
    if not is_registered():
        try:
            return _dump(pickle.Pickler, value, found, needs)
        except Exception:  # noqa: BLE001, S110 -- a user's __reduce__ may raise anything; cloudpickle has the last word
            pass
    base = cloudpickle_module().Pickler
    try:
        return _dump(base, value, found, needs)
    except Exception:
        if handover.is_loaded():
            raise
    import multiprocessing.reduction  # noqa: F401, PLC0415 -- with this, it may be a socket that was refused

    return _dump(base, value, found, needs)


def dumps_plainly(value: object, found: Found | None) -> Any:  # noqa: C901, PLR0911 -- one case after another
    """Return the plain pickle of a value, or None when it cannot be that.

    Without `found`, the value is made of atoms, or is a function that goes by name.
    """
    if is_registered():
        return None
    # By name, the name of the module stands in the bytes. Text that happens to contain it costs a needless second try,
    # never a wrong result. The search costs about half as much as copying the bytes once.
    try:
        data: Any
        if found is not None and found.is_known:  # atoms and arrays of numbers
            if found.key is not None and (data := known_pickle(found)) is not None:
                return data
            data = pickle.dumps(value, PROTOCOL, buffer_callback=found.append if found.are_large else None)
        elif found is not None and handover.is_plain_wrong():
            return None
        elif found is not None and found.large:
            data = Parts()
            pickle.Pickler(data, protocol=PROTOCOL, buffer_callback=found).dump(value)
            return None if found.has_read_only or any(found.may_name(mark, data) for mark in marks) else data
        else:
            data = pickle.dumps(value, PROTOCOL, buffer_callback=found)
        for mark in marks:
            if mark in data:
                return None
    except Exception:  # noqa: BLE001 -- a user's __reduce__ may raise anything
        return None
    if found is not None:
        if found.has_read_only:
            return None
        if found.key is not None:
            keep_pickle(found, data)
    return data


def _dump(base: Any, value: object, found: Found | None, needs: Needs) -> Any:
    """Pickle with our reducers over a class of picklers; once more if read-only arrays are found, as writable ones.

    In parts only where large contents are known: others are copied at once, as what is pickled later may change them.
    """
    with handover.guard(found):
        while True:
            file: Any = Parts() if found is not None and found.large else io.BytesIO()
            knew = found is not None and found.has_read_only
            if found is not None:
                found.again()
            needs.is_circular, needs.met = False, 0
            pickler_of(base, is_naming=needs.names is not None)(file, found, needs).dump(value)
            if found is None or found.has_read_only == knew:
                break
    if needs.is_shared or base is not pickle.Pickler:  # plain `pickle.loads` knows no names
        file.write(BY_VALUE)
    return file if type(file) is Parts else file.getvalue()


def _name_of(pickler: Any, obj: Any) -> Any:
    """Return the name of the global that an object goes by. Asked for each object that is pickled."""
    needs = pickler._needs  # noqa: SLF001 -- as its method
    reference = needs.names.get(id(obj))
    if reference is None or reference[:2] in needs.inline or meant_by(reference) is not obj:
        needs.met += reference == needs.name
        return None
    needs.now.add(reference[:2])
    needs.is_shared = True
    return reference


@cache
def pickler_of(base: Any, *, is_naming: bool = False) -> Any:  # noqa: C901 -- one class, whose base is given
    """Return the class of picklers with our reducers over this one; one that names globals if asked to."""
    if is_naming:
        return type("Pickler", (pickler_of(base),), {"persistent_id": _name_of})
    inherited = getattr(base, "reducer_override", None)

    class Pickler(base):  # type: ignore[misc]
        def __init__(self, file: Any, found: Found | None, needs: Needs) -> None:
            super().__init__(file, protocol=PROTOCOL, buffer_callback=found)
            self._found = found
            self._needs = needs

        def reducer_override(self, obj: Any) -> Any:  # noqa: C901 -- one kind after another
            kind, needs = type(obj), self._needs
            reduced: Any = NotImplemented
            if kind is FunctionType or issubclass(kind, type):
                if self._is_by_name(obj):
                    if "." in obj.__module__ and obj.__module__ in scripts:  # pickle would import packages around it
                        return named, (obj.__module__, obj.__qualname__)
                    return NotImplemented
                reduced = self._reduce_function(obj) if kind is FunctionType else self._reduce_class(obj)
            elif issubclass(kind, ModuleType) or kind.__module__ == "typing":
                from poolkit._wire.process_wide import reduce_named  # noqa: PLC0415 -- few values have one of these

                reduced = reduce_named(obj, is_itself=obj is needs.itself)
            elif kind is CellType:
                return reduce_cell(obj)
            elif kind is object and needs.names is None and (name := _name_of_sentinel(obj)) is not None:
                needs.now.add(name)
                return named, name
            elif needs.names is not None and is_view(obj) and id(obj.base) in needs.names:
                return reduce_view(obj)
            elif needs.reduce is not None:
                is_of_script = obj is not needs.itself and kind.__module__ in scripts
                reduced = reduce_generator(obj) if is_of_script else needs.reduce(obj)
            if reduced is NotImplemented:
                reduced = handover.reduce(obj)
            if reduced is NotImplemented and type(home := getattr(obj, "__module__", None)) is str and home in scripts:
                reduced = self._reduce_instance(obj)
            if reduced is NotImplemented and self._found is not None and self._found.has_read_only:
                reduced = self._found.reduce(obj)
            return reduced if reduced is not NotImplemented or inherited is None else inherited(self, obj)

        def _is_by_name(self, obj: Any) -> bool:
            """Return True if the other process finds it by its name, which is noted if that is a script module's."""
            module_name = obj.__module__
            if module_name not in scripts:
                return inherited is None and named_at_top(obj, module_name) is not None  # else cloudpickle decides
            top = named_at_top(obj, module_name)
            if top is None or not _is_known(module_name, top):
                return False
            needs = self._needs
            if (module_name, top) in needs.inline:  # that, or a part of it
                return False
            needs.now.add((module_name, top))
            return True

        def _reduce_class(self, cls: type) -> Any:
            if type(cls).__module__ == "_ctypes" and named_at_top(cls, cls.__module__) is None:
                from poolkit._wire.process_wide import reduce_c_type  # noqa: PLC0415 -- few values have one of these

                if (reduced := reduce_c_type(cls)) is not NotImplemented:
                    return reduced
            if inherited is not None:
                return _reduce_class(cls) if cls.__module__ in scripts else NotImplemented
            if cls.__module__ in scripts or cls.__module__ not in sys.modules:
                raise pickle.PicklingError(f"{cls!r} has to go by value")  # pickle would import its module to find it
            return NotImplemented

        def _reduce_function(self, function: FunctionType) -> Any:
            needs, module_name = self._needs, function.__module__
            if module_name not in scripts and (is_registered() or named_at_top(function, module_name) is not None):
                return NotImplemented
            if needs.reduce is not None and (reduced := needs.reduce(function)) is not NotImplemented:
                return reduced
            reduced = reduce_function(function)
            if reduced is None:
                if inherited is None:
                    raise pickle.PicklingError(f"{function!r} has to go by value")  # see above
                return NotImplemented
            if (home := reduced[1][0]) in scripts:
                self._note_names(function, home)
            return reduced

        def _note_names(self, function: FunctionType, home: str) -> None:
            later, namespace = self._needs.later, function.__globals__
            later.add((home, "__name__"))  # that there is such a module
            for code in (function.__code__, getattr(getattr(function, "__annotate__", None), "__code__", None)):
                if code is not None:
                    scan = scan_code(code)
                    later.update((home, name) for name in (*scan.now, *scan.later))
                    if scan.is_dynamic_in(namespace):
                        later.add((home, "*"))

        def _reduce_instance(self, obj: Any) -> Any:
            """Note the name that an object goes by, where its own `__reduce__` says that it goes by one."""
            kind: Any = type(obj)
            if kind.__module__ != "typing" and (
                kind in getattr(self, "dispatch_table", copyreg.dispatch_table)
                or (kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__)
            ):
                return NotImplemented
            needs, name = self._needs, self._needs.name
            reduced = obj.__reduce_ex__(PROTOCOL)
            is_circular = obj is needs.itself and name is not None and _looks_up(reduced, name)
            if type(reduced) is str and not is_circular:
                name = obj.__module__, reduced.partition(".")[0]
                if not _is_known(*name):
                    return NotImplemented
                if name == needs.name:
                    reduced = NotImplemented if inherited is None else inherited(self, obj)
                    is_circular = type(reduced) is not tuple
                needs.now.add(name)
            if is_circular:
                needs.is_circular = True
                raise pickle.PicklingError(f"{name} refers to itself by its name")
            return reduced

    return Pickler


def _name_of_sentinel(obj: object) -> tuple[str, str] | None:
    """Return what global of a script an `object()` is, which can be nothing but compared with that."""
    for module_name in scripts:
        for name, value in getattr(sys.modules.get(module_name), "__dict__", {}).copy().items():
            if value is obj and _is_known(module_name, name):
                return module_name, name
    return None


def _looks_up(reduced: Any, name: tuple[str, str]) -> bool:
    """Return True if what would make an object anew, a function of the script, finds it under its name."""
    function = getattr(reduced[0], "__func__", reduced[0]) if type(reduced) is tuple else None
    if type(function) is not FunctionType or function.__module__ != name[0]:
        return False
    scan = scan_code(function.__code__)
    return name[1] in scan.now or name[1] in scan.later


def _is_known(module_name: str, name: str) -> bool:
    return modules.are_others_known is None or modules.are_others_known(module_name, name)


def _reduce_class(cls: type) -> Any:
    """By value, as cloudpickle does it, with what it leaves out: slots, and the attributes of an Enum's members."""
    reduce = getattr(sys.modules["cloudpickle.cloudpickle"], "_dynamic_class_reduce", None)
    if reduce is None:  # a later version; its own way then
        return NotImplemented
    make, args, state, *_, set_state = reduce(cls)
    slots = vars(cls).get("__slots__")
    if slots and len(args) > _TYPE_KWARGS and isinstance(args[_TYPE_KWARGS], dict):
        args[_TYPE_KWARGS]["__slots__"] = slots
    members = {
        name: {key: value for key, value in vars(member).items() if not key.startswith("_") and key != "name"}
        for name, member in getattr(cls, "__members__", {}).items()
    }
    return make, args, (set_state, state, members), None, None, _set_class_state


_TYPE_KWARGS = 3  # the place of what goes into the class's namespace at once, among cloudpickle's arguments


def _set_class_state(cls: type, state: tuple[Any, ...]) -> None:
    set_state, of_cloudpickle, members = state
    set_state(cls, of_cloudpickle)
    for name, own in members.items():
        vars(getattr(cls, name)).update(own)


def loads(data: bytes | bytearray | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Return the value that `dumps` packed, leaving the classes of this process as they are."""
    if data[-1] == STOP:
        return pickle.loads(data, buffers=buffers)
    unpickler: Any = ClassKeepingUnpickler(io.BytesIO(data), buffers=buffers)
    unpickler.persistent_load = shared
    return unpickler.load()


class ClassKeepingUnpickler(pickle.Unpickler):
    """Unpickler that does not overwrite a class by a copy of it, as cloudpickle does with one that it has sent out."""

    def find_class(self, module_name: str, name: str) -> Any:
        """Return the global; of cloudpickle's, what sets the attributes of a class does so once."""
        found = super().find_class(module_name, name)
        return partial(_set_once, found) if name == "_class_setstate" else found


def _set_once(set_state: Callable[[type, Any], type], made: type, state: Any) -> type:
    public = [name for name in state[0] if name[0] != "_"]  # a class that was just made has none of these
    is_complete = any(name in vars(made) for name in public) if public else vars(made).keys() >= state[0].keys()
    return made if is_complete else set_state(made, state)
