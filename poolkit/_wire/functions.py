"""Functions by value: what plain pickle cannot send by name, with its bytes reused while nothing has changed.

cloudpickle needs 20 us to write the simplest function of `__main__` out, and more for each thing that it refers to.
So the bytes are kept, beside a snapshot of everything that went into them: the code, defaults, attributes, closure
cells and referenced globals of the function and of every by-value function that it reaches. They are reused only while
each of these is *the same immutable object*. Whatever can change without being rebound (a list, an instance, a class
of `__main__`) makes the function *loose*: it is written anew on each call.

    fixed    int, str, bytes, float, complex, bool, None, ...; tuples and frozensets of such; type hints of fixed parts
    named    modules, and functions and classes that the other process imports by name
    followed other functions that go by value: they have snapshots of their own
    loose    everything else

No id is ever compared after its object may have gone: fixed objects are held strongly (they refer to nothing but each
other, so they keep nothing alive), functions, classes and modules weakly, and a dead reference equals nothing. The
table is keyed by weak reference, so it never keeps a function alive.

Thread safety: no lock. Each step on the two tables is one atomic dict operation on keys whose hash and equality run
no user code; an entry is complete before it is published and frozen after. Two threads that miss at once both write
the function, and the later entry wins; either is right. A global rebound while the function is being written is
noticed, because the snapshot is taken before and compared again after.

The worker may keep a *reusable* function and call it again. It must not when a call could leave something behind in
the function itself that the next call would see: code that rebinds a global or a closure variable, or that sets
attributes while it can see a by-value function. Such functions go out as not reusable and start afresh each time.
"""

from __future__ import annotations

import sys
import types
from _weakref import ref  # the module weakref would be one more import in every worker
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from poolkit._wire.pickles import BY_VALUE, REUSABLE, SCRIPTS, dumps_by_value, dumps_plainly, is_by_value_requested

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["pack_function", "scan_code"]

_KEPT_NBYTES = 1 << 20
"""Longer bytes are not kept: the sender's memory matters more than the time to write them again."""

_ATOMS = frozenset({int, str, bytes, float, complex, bool, type(None), type(...), type(NotImplemented)})
_MISSING = object()
_HINT_MODULES = ("types", "typing")
_READS_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_REBINDERS = frozenset({"globals", "exec", "eval"})
_ATTRIBUTE_SETTERS = frozenset({"setattr", "delattr", "vars"})

_Value = tuple[Any, Any]
_Reference = tuple[Any, "ref[Any]"]


class _Bindings(NamedTuple):
    """Names (or positions) and what they must still be bound to."""

    size: int
    values: tuple[_Value, ...]
    references: tuple[_Reference, ...]

    def hold_in(self, mapping: Mapping[Any, Any]) -> bool:
        for name, value in self.values:
            if mapping.get(name, _MISSING) is not value:
                return False
        for name, reference in self.references:
            found = mapping.get(name)
            # a dead reference gives None, which must not equal a name that is now bound to None
            if found is None or reference() is not found:
                return False
        return True


_NOTHING = _Bindings(0, (), ())


class _Snapshot:
    """What one function was made of. Frozen after __init__."""

    __slots__ = (
        "annotations", "attributes", "cells", "code", "defaults", "doc", "function", "global_names", "keyword_defaults",
        "module", "name", "qualname",
    )  # fmt: skip

    def __init__(self, function: types.FunctionType, scan: _Scan, walk: _Walk) -> None:
        self.function = ref(function)
        self.code = function.__code__
        self.defaults = walk.fixed(function.__defaults__)
        self.doc = walk.fixed(function.__doc__)
        self.name, self.qualname, self.module = function.__name__, function.__qualname__, function.__module__
        self.keyword_defaults = walk.bind((function.__kwdefaults__ or {}).items())
        self.attributes = walk.bind(function.__dict__.items())
        self.annotations = walk.bind(function.__annotations__.items())
        self.cells = walk.bind(_contents_of_cells(function).items())
        namespace = function.__globals__
        self.global_names = walk.bind((name, namespace.get(name, _MISSING)) for name in scan.global_names)

    def is_current(self) -> bool:
        """Whether the function is still made of the same immutable objects."""
        function = self.function()
        return (
            function is not None
            and function.__code__ is self.code
            and function.__defaults__ is self.defaults
            and function.__name__ is self.name
            and function.__qualname__ is self.qualname
            and function.__module__ is self.module
            and function.__doc__ is self.doc
            and self.global_names.hold_in(function.__globals__)
            and (self.cells is _NOTHING or self.cells.hold_in(_contents_of_cells(function)))
            and _is_same(self.attributes, function.__dict__)
            and _is_same(self.annotations, function.__annotations__)
            and _is_same(self.keyword_defaults, function.__kwdefaults__)
        )


def _is_same(bindings: _Bindings, mapping: Mapping[Any, Any] | None) -> bool:
    return bindings.size == len(mapping) and bindings.hold_in(mapping) if mapping else bindings.size == 0


class _Entry(NamedTuple):
    """The bytes of a function, and what must not have changed since."""

    snapshots: tuple[_Snapshot, ...]
    modules_loaded: int
    packed: bytes

    def is_current(self) -> bool:
        # cloudpickle also notes which submodules of a referenced package are loaded, to load them in the worker.
        # The number of loaded modules is a cheap stand-in for that list; -1 when no package is referenced.
        if self.modules_loaded not in (-1, len(sys.modules)):
            return False
        for snapshot in self.snapshots:  # noqa: SIM110 -- all() with a generator costs 0.3 us more
            if not snapshot.is_current():
                return False
        return True


_entries: dict[ref[types.FunctionType], _Entry] = {}
_scans: dict[ref[types.CodeType], _Scan] = {}


def pack_function(function: types.FunctionType) -> Any:
    """Return `function` as bytes, by name when plain pickle can, else by value.

    Thread-safe. An unchanged function costs about 2 us (CPython 3.11; writing it out takes 20 and more).
    Whatever cloudpickle raises propagates.
    """
    if is_by_value_requested():
        return dumps_by_value(function)
    entry = _entries.get(ref(function))
    if entry is not None and entry.is_current():
        return entry.packed
    return dumps_plainly(function) or _pack_anew(function)


def _pack_anew(function: types.FunctionType) -> Any:
    walk = _Walk(function)
    if walk.is_loose:
        _entries.pop(ref(function), None)
        return dumps_by_value(function)
    modules_loaded = len(sys.modules) if walk.meets_package else -1
    packed = dumps_by_value(function, BY_VALUE if walk.leaves_traces else REUSABLE)
    entry = _Entry(tuple(walk.snapshots), modules_loaded, packed)
    if not entry.is_current():
        # Something was rebound meanwhile, or writing imported modules. The bytes are a right answer for now,
        # but nobody knows for which snapshot.
        return packed[:-1] + BY_VALUE
    if len(packed) <= _KEPT_NBYTES:
        _entries[ref(function, _forget_entry)] = entry
    return packed


def _forget_entry(reference: ref[types.FunctionType]) -> None:
    _entries.pop(reference, None)


def _forget_scan(reference: ref[types.CodeType]) -> None:
    _scans.pop(reference, None)


class _Walk:
    """Take snapshots of a function and of every by-value function that it reaches. Local to one call."""

    __slots__ = (
        "_reaches_function",
        "_seen",
        "_sets_attributes",
        "is_loose",
        "leaves_traces",
        "meets_package",
        "snapshots",
    )

    def __init__(self, function: types.FunctionType) -> None:
        self.is_loose = self.leaves_traces = self.meets_package = False
        self._reaches_function = self._sets_attributes = False
        self.snapshots: list[_Snapshot] = []
        self._seen: list[types.FunctionType] = [function]
        for found in self._seen:  # grows while we go through it
            self._visit(found)
            if self.is_loose:
                return

    def _visit(self, function: types.FunctionType) -> None:
        scan = scan_code(function.__code__)
        self.leaves_traces |= scan.rebinds
        self._sets_attributes |= scan.sets_attributes
        self.snapshots.append(_Snapshot(function, scan, self))
        self.leaves_traces |= self._sets_attributes and self._reaches_function

    def fixed(self, value: object) -> Any:
        """Return `value`, noting whether it can change without being rebound."""
        if not _is_fixed(value):
            self.is_loose = True
        return value

    def bind(self, items: Iterable[tuple[Any, object]]) -> _Bindings:
        """Return what the names are bound to now, noting whether any of it can change without being rebound."""
        values: list[_Value] = []
        references: list[_Reference] = []
        for name, value in items:
            if value is _MISSING or _is_fixed(value):
                values.append((name, value))
            elif self._is_named(value) or self._is_followed(value):
                references.append((name, ref(value)))
            else:
                self.is_loose = True
        if not values and not references:
            return _NOTHING
        return _Bindings(len(values) + len(references), tuple(values), tuple(references))

    def _is_named(self, value: object) -> bool:
        if isinstance(value, types.ModuleType):
            self.meets_package |= hasattr(value, "__path__")
        return _is_named(value)

    def _is_followed(self, value: object) -> bool:
        if type(value) is not types.FunctionType:
            return False
        self._reaches_function = True
        if not any(value is seen for seen in self._seen):
            self._seen.append(value)
        return True


def _is_fixed(value: object) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(_is_fixed, cast("Iterable[object]", value)))
    if kind.__module__ in _HINT_MODULES and hasattr(value, "__args__"):
        # list[int], int | None, Optional[int]: compared by identity, and made of parts that do not change
        return all(_is_fixed(part) or _is_named(part) for part in value.__args__)
    return False


def _is_named(value: object) -> bool:
    """Whether the other process finds the very same thing by its name, as pickle would write it."""
    if isinstance(value, types.ModuleType):
        return value.__name__ not in SCRIPTS and sys.modules.get(value.__name__) is value
    if not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return False
    if value is type(None):  # in hints; cloudpickle knows it, though no module has it under its name
        return True
    module_name = value.__module__
    if type(module_name) is not str or module_name in SCRIPTS:
        return False
    found: object = sys.modules.get(module_name, _MISSING)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, _MISSING)
    return found is value


class _Scan(NamedTuple):
    """What the code of a function, nested code included, does to names."""

    global_names: tuple[str, ...]
    rebinds: bool
    sets_attributes: bool


def scan_code(code: types.CodeType) -> _Scan:
    """Return what a function's code does to names. Thread-safe."""
    scan = _scans.get(ref(code))
    if scan is None:
        scan = _scans[ref(code, _forget_scan)] = _scan_code_anew(code)
    return scan


def _scan_code_anew(code: types.CodeType) -> _Scan:
    import dis  # noqa: PLC0415 -- only senders of by-value functions need it

    names: dict[str, None] = {}
    rebinds = sets_attributes = False
    pending = [code]
    for current in pending:  # grows while we go through it
        pending.extend(const for const in current.co_consts if isinstance(const, types.CodeType))
        for instruction in dis.get_instructions(current):
            operation, name = instruction.opname, instruction.argval
            if operation in _READS_GLOBAL:
                names[name] = None
            elif operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                names[name] = None
                rebinds = True
            elif operation in ("STORE_DEREF", "DELETE_DEREF"):
                rebinds = rebinds or name in code.co_freevars
            elif operation in ("STORE_ATTR", "DELETE_ATTR"):
                sets_attributes = True
    # the indirect ways to do the same; a false alarm costs the worker some 30 us a call
    rebinds = rebinds or not _REBINDERS.isdisjoint(names)
    sets_attributes = sets_attributes or not _ATTRIBUTE_SETTERS.isdisjoint(names)
    return _Scan(tuple(names), rebinds, sets_attributes)


def _contents_of_cells(function: types.FunctionType) -> dict[int, Any]:
    contents: dict[int, Any] = {}
    for index, cell in enumerate(function.__closure__ or ()):
        try:
            contents[index] = cell.cell_contents
        except ValueError:  # not filled yet, or emptied by `del`; what it will hold is unknown, so it counts as loose
            contents[index] = cell
    return contents
