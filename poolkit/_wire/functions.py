"""Functions: how one travels that other processes do not find by its name: lambdas, closures, those of the script.

It travels by its code object, and gets the globals of its own module there: of the script's stand-in (see
`_child/script.py`), or of the module that is imported. So its globals are not copied, and what it leaves in them stays.
Its defaults, attributes and closure cells are copied.
"""

from __future__ import annotations

import importlib
import marshal
import sys
import types
from _weakref import ref  # the module weakref would be one more import in every worker
from collections.abc import Callable

from poolkit._typing import Any
from poolkit._wire.modules import MAIN, home_of, is_package, meaning, module_of, named_at_top, scripts

ATOMS = frozenset({int, str, bytes, float, complex, bool, type(None), type(...), type(NotImplemented)})

# ===== pickles of functions and cells =====


def reduce_function(function: types.FunctionType) -> tuple[Any, ...] | None:
    """Return what a pickler's `reducer_override` is to return; None for globals that belong to no module."""
    home = home_of(function.__globals__)
    if home is None:
        return None
    annotations: Any = function.__annotations__ or None if sys.version_info < (3, 14) else None
    if sys.version_info >= (3, 14) and type(function.__annotate__) is types.FunctionType:
        annotations = function.__annotate__  # which makes them when they are looked at
    own = [getattr(function, name, None) for name in _ATTRIBUTES]
    state = own, function.__dict__ or None, annotations, getattr(function, "__type_params__", ())
    args = home, function.__name__, marshal.dumps(function.__code__), function.__closure__
    return _make, args, state, None, None, _fill


_ATTRIBUTES = ("__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__")


def _make(home: str, name: str, code: bytes, cells: tuple[types.CellType, ...] | None) -> types.FunctionType:
    module = sys.modules.get("__main__" if home in MAIN and home not in sys.modules else home)
    namespace = vars(importlib.import_module(home) if module is None else module)
    return types.FunctionType(marshal.loads(code), namespace, name, None, cells)  # noqa: S302 -- our own


def _fill(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    own, attributes, annotations, parameters = state
    for name, value in zip(_ATTRIBUTES, own):  # noqa: B905 -- as many
        setattr(function, name, value)
    if parameters:  # from CPython 3.12 on
        function.__type_params__ = parameters  # type: ignore[attr-defined]
    if attributes:
        function.__dict__.update(attributes)
    if annotations is not None:
        setattr(function, "__annotate__" if sys.version_info >= (3, 14) else "__annotations__", annotations)


def reduce_cell(cell: types.CellType) -> tuple[Any, ...]:
    """Return what a pickler's `reducer_override` is to return for a cell of a closure."""
    contents = [cell.cell_contents] if cell != types.CellType() else []
    return _make_cell, (), contents, None, None, _fill_cell


def _make_cell() -> types.CellType:
    return types.CellType()  # which has no name for pickle


def _fill_cell(cell: types.CellType, contents: list[Any]) -> None:
    for each in contents:
        cell.cell_contents = each


# ===== references =====


def named(module_name: str, qualname: str) -> Any:
    """Return what goes by this name."""
    found: Any = sys.modules[module_name]
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


find: Callable[[str, str], Any] = named
"""What pickles of globals mean by a name; in a worker, what was sent for it."""

circles: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
"""By the first name of each circle: by name, the values that came with it."""


def shared(reference: tuple[Any, ...]) -> Any:
    """Return what a pickle of globals refers to: module and name; of a cell, a function that has it, and where."""
    module_name, name, *index = reference
    found = find(module_name, name)
    return found.__closure__[index[0]] if index else found


def meant_by(reference: tuple[Any, ...]) -> Any:
    """Return what a reference means in this process now; None if nothing."""
    module_name, name, *index = reference
    found = meaning(module_name, name)
    if not index:
        return found
    cells = found.__closure__ or () if type(found) is types.FunctionType else ()
    return cells[index[0]] if index[0] < len(cells) else None


def circle_of(names: tuple[tuple[str, str], ...], values: list[Any]) -> Any:
    """Keep the values of names that refer to each other in a circle; return the first."""
    circles[names[0]] = dict(zip(names, values))  # noqa: B905 -- as many
    return values[0]


def circle_member(_: object, first: tuple[str, str], name: tuple[str, str]) -> Any:
    """Return what came for a name with the first of its circle."""
    known = circles.get(first, {})
    return known[name] if name in known else named(*name)  # a copy of the owner has it


# ===== what functions are and name =====


def is_fixed(value: Any) -> bool:
    """Return True if a value cannot change: atoms, tuples of such, and what goes by its name."""
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(is_fixed, value))
    if kind is types.FunctionType or issubclass(kind, type):
        return named_at_top(value, module_of(value)) is not None
    return kind in ATOMS or (kind is types.ModuleType and sys.modules.get(value.__name__) is value)


def is_reusable(function: types.FunctionType) -> bool:
    """Return True if a function by value may be called again without being loaded anew: it keeps nothing of a call."""
    if function.__dict__ or not is_fixed((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())):
        return False
    try:
        contents = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # one is empty
        return False
    return not contents or (is_fixed(contents) and not scan_code(function.__code__).keeps_state)


def is_definition(value: Any) -> bool:
    """Return True for functions, classes, modules, and what decorators made of functions: the newest version counts."""
    if issubclass(type(value), (types.FunctionType, type, types.ModuleType)):
        return True
    try:
        return callable(value) and "__wrapped__" in value.__dict__
    except Exception:  # noqa: BLE001 -- the user's own
        return False


_GLOBAL = frozenset({
    "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL",
})  # fmt: skip
_DYNAMIC = frozenset({"globals", "eval", "exec", "vars", "locals", "__import__"})
_UNPICKLERS = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"})


class Scan:
    """What code, nested code included, does to global names. Frozen after __init__.

    Attributes:
        now: names that running the code itself needs; of a class statement, what its body needs.
        later: names that functions in it need when they are called.
        keeps_state: it changes variables of the function around it.
        attributes: all names of attributes, by which submodules of packages are found.
    """

    __slots__ = ("attributes", "keeps_state", "later", "now")

    def __init__(self, code: types.CodeType) -> None:
        import dis  # noqa: PLC0415 -- only senders need it

        now: dict[str, None] = {}
        later: dict[str, None] = {}
        attributes: set[str] = set()
        self.keeps_state = False
        pending: list[tuple[types.CodeType, bool]] = [(code, True)]
        for current, is_now in pending:  # grows while we go through it
            names = now if is_now else later
            for const in current.co_consts:
                if isinstance(const, types.CodeType):
                    # class bodies and comprehensions run where they stand
                    runs = not const.co_flags & 0x1 or (const.co_name.startswith("<") and const.co_name != "<lambda>")
                    pending.append((const, is_now and runs))
            for instruction in dis.get_instructions(current):
                if instruction.opname in _GLOBAL:
                    names[instruction.argval] = None
                elif instruction.opname in ("STORE_DEREF", "DELETE_DEREF"):
                    self.keeps_state |= instruction.argval in current.co_freevars
            attributes.update(current.co_names)
        self.now = tuple(now)
        self.later = tuple(name for name in later if name not in now)
        self.attributes = frozenset(attributes)

    def is_dynamic_in(self, namespace: dict[str, Any]) -> bool:
        """Return True if the code may look up names that do not stand in it: by `sys.modules` or unpickling, too."""
        names = (*self.now, *self.later)
        values = [namespace.get(name) for name in names]
        return (
            not _DYNAMIC.isdisjoint(names)
            or any(value is sys.modules or _unpickles(value) for value in values)
            or ("modules" in self.attributes and ("sys" in self.attributes or any(value is sys for value in values)))
        )


def _unpickles(value: Any) -> bool:
    """Return True for a module that unpickles, and for what is imported from one."""
    kind, home = type(value), None
    if kind in (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type):
        home = vars(value).get("__name__") if kind is types.ModuleType else value.__module__
    return type(home) is str and home.partition(".")[0] in _UNPICKLERS


_scans: dict[ref[types.CodeType], Scan] = {}  # one atomic operation at a time, from any thread


def scan_code(code: types.CodeType) -> Scan:
    """Return what code does to names. Thread-safe."""
    scan = _scans.get(ref(code))
    if scan is None:
        scan = _scans[ref(code, lambda reference: _scans.pop(reference, None))] = Scan(code)
    return scan


def submodules_of(code: types.CodeType, namespace: dict[str, Any]) -> tuple[str, ...]:
    """Return the loaded submodules that code may reach through packages among the globals that it names."""
    scan = scan_code(code)
    found: list[str] = []
    for name in (*scan.now, *scan.later):
        value: Any = namespace.get(name)
        if is_package(value) and value.__name__ not in scripts:
            prefix = value.__name__ + "."
            found += [
                each
                for each in sys.modules.copy()
                if each.startswith(prefix) and scan.attributes.issuperset(each[len(prefix) :].split("."))
            ]
    return tuple(found)
