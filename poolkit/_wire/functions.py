"""Functions: how one travels that other processes do not find by its name: lambdas, closures, those of the script.

It travels by its code object, which keeps its file name, and gets the globals of its own module there: of the script's
stand-in (see `_child/script.py`), or of the module that is imported. So its globals are not copied, and what it leaves
in them stays. Its defaults, attributes and closure cells are copied; cells are shared by functions that are globals.
"""

from __future__ import annotations

import importlib
import marshal
import sys
import types
from _weakref import ref  # the module weakref would be one more import in every worker

from poolkit._wire.modules import MAIN, home_of, is_package, named_at_top, scripts

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = [
    "Scan",
    "circle_member",
    "circle_of",
    "is_definition",
    "is_reusable",
    "named",
    "reduce_cell",
    "reduce_function",
    "scan_code",
    "shared",
    "submodules_of",
    "with_named_parts",
]

_EMPTY = "poolkit: an empty cell"  # stands for the contents of a cell that has none
_DYNAMIC = frozenset({"globals", "eval", "exec", "vars", "locals", "__import__"})


def reduce_function(function: types.FunctionType, *, has_cells: bool = False) -> tuple[Any, ...] | None:
    """Return what a pickler's `reducer_override` is to return; None for globals that belong to no module.

    With `has_cells` its cells are pickled as objects, which others may share.
    """
    home = home_of(function.__globals__)
    if home is None:
        return None
    contents: list[object] = []
    cells = function.__closure__ or ()
    if not has_cells:
        contents += map(_contents_of, cells)
    annotate = getattr(function, "__annotate__", None)  # from CPython 3.14 on, annotations are made when looked at
    state = (
        function.__qualname__,
        function.__module__,
        function.__doc__,
        function.__defaults__,
        function.__kwdefaults__,
        function.__dict__ or None,
        (annotate if type(annotate) is types.FunctionType else None)
        if sys.version_info >= (3, 14)
        else function.__annotations__ or None,
        contents,
        getattr(function, "__type_params__", ()),
    )
    args = home, function.__name__, marshal.dumps(function.__code__)
    return _make, ((*args, cells) if has_cells else args), state, None, None, _fill


def _make(home: str, name: str, code: bytes, cells: tuple[types.CellType, ...] | None = None) -> types.FunctionType:
    made: types.CodeType = marshal.loads(code)  # noqa: S302 -- from our own side
    if cells is None:
        cells = tuple(types.CellType() for _ in made.co_freevars)
    return types.FunctionType(made, namespace_of(home), name, None, cells)


def reduce_cell(cell: types.CellType) -> tuple[Any, ...]:
    """Return what a pickler's `reducer_override` is to return for a cell of a closure."""
    return _make_cell, (), [_contents_of(cell)], None, None, _fill_cell


def _make_cell() -> types.CellType:
    return types.CellType()


def _fill_cell(cell: types.CellType, contents: list[Any]) -> None:
    if not (type(contents[0]) is str and contents[0] == _EMPTY):
        cell.cell_contents = contents[0]


def _contents_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def namespace_of(module_name: str) -> dict[str, Any]:
    """The globals of a module, imported if need be."""
    module = sys.modules.get(module_name)
    if module is None and module_name in MAIN:
        module = sys.modules["__main__"]
    return vars(importlib.import_module(module_name) if module is None else module)


def named(module_name: str, qualname: str) -> Any:
    """What goes by this name."""
    found: Any = sys.modules[module_name]
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


find: Callable[[str, str], Any] = named
"""What pickles of globals mean by a name; in a worker, what was sent for it."""

circles: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
"""By the first name of each: by name, what came with it."""


def shared(reference: tuple[Any, ...]) -> Any:
    """What a pickle of globals refers to: module and name; of a cell, a function that has it, and where."""
    module_name, name, *index = reference
    found = find(module_name, name)
    return found.__closure__[index[0]] if index else found


def circle_of(names: tuple[tuple[str, str], ...], values: list[Any]) -> Any:
    """Keep the values of names that refer to each other in a circle; return the first."""
    circles[names[0]] = dict(zip(names, values))  # noqa: B905 -- as many
    return values[0]


def circle_member(_: object, first: tuple[str, str], name: tuple[str, str]) -> Any:
    """What came for a name with the first of its circle."""
    known = circles.get(first, {})
    return known[name] if name in known else named(*name)  # a copy of the owner has it


def _fill(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    (
        function.__qualname__,
        function.__module__,
        function.__doc__,
        function.__defaults__,
        function.__kwdefaults__,
        attributes,
        annotations,
        contents,
        parameters,
    ) = state
    if parameters:  # from CPython 3.12 on
        function.__type_params__ = parameters  # type: ignore[attr-defined]
    if attributes:
        function.__dict__.update(attributes)
    if annotations is not None:
        if sys.version_info >= (3, 14):
            function.__annotate__ = annotations
        else:
            function.__annotations__ = annotations
    for cell, content in zip(function.__closure__ or (), contents):  # noqa: B905 -- as many as there are
        if not (type(content) is str and content == _EMPTY):
            cell.cell_contents = content


def with_named_parts(function: types.FunctionType, home: str, reduced: tuple[Any, ...]) -> tuple[Any, set[str]]:
    """Have defaults and closure variables that the code also knows as globals go by their names, which are returned.

    It may compare them by identity, as with sentinels.
    """
    defaults, by_keyword, contents = function.__defaults__, function.__kwdefaults__, reduced[2][-2]
    kept = (*(defaults or ()), *(by_keyword or {}).values(), *contents)
    used: set[str] = set()
    if is_fixed(kept):
        return reduced, used
    namespace, scan = function.__globals__, scan_code(function.__code__)
    names = [*scan.now, *scan.later]
    if any(type(each) is object for each in kept):  # which can be nothing but compared, by whomever
        names += [name for name, value in list(namespace.items()) if type(value) is object]
    known = {id(namespace[name]): name for name in reversed(names) if name in namespace}

    def name(value: Any) -> Any:
        if id(value) not in known or is_fixed((value,)):
            return value
        used.add(known[id(value)])
        return _Named(home, known[id(value)])

    make, args, (*start, _, _, attributes, annotations, _, parameters), *rest = reduced
    defaults = None if defaults is None else tuple(map(name, defaults))
    by_keyword = by_keyword and {key: name(value) for key, value in by_keyword.items()}
    state = (*start, defaults, by_keyword, attributes, annotations, [*map(name, contents)], parameters)
    return (make, args, state, *rest), used


class _Named:
    """Stands for what goes by a name, in a pickle."""

    def __init__(self, *reference: str) -> None:
        self._reference = reference

    def __reduce__(self) -> Any:
        return named, self._reference


def is_reusable(function: types.FunctionType) -> bool:
    """Return True if a function by value may be called again without being loaded anew: it keeps nothing of a call."""
    if function.__closure__ is None and not function.__dict__ and not function.__kwdefaults__:
        return is_fixed(function.__defaults__ or ())
    try:
        contents = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        return False
    kept = (*contents, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return not function.__dict__ and is_fixed(kept) and not scan_code(function.__code__).keeps_state


_ATOMS = frozenset({int, str, bytes, float, complex, bool, type(None), type(...), type(NotImplemented)})


def is_fixed(values: Iterable[Any]) -> bool:
    """Return True if none of these can change."""
    for value in values:
        kind = type(value)
        if kind in _ATOMS or ((kind is tuple or kind is frozenset) and is_fixed(value)):
            continue
        if (kind is types.FunctionType or isinstance(value, type)) and named_at_top(
            value, value.__module__
        ) is not None:
            continue
        if not (kind is types.ModuleType and sys.modules.get(value.__name__) is value):
            return False
    return True


def is_definition(value: Any) -> bool:
    """Return True for functions, classes, modules, and what decorators made of functions: the newest version counts."""
    if issubclass(type(value), (types.FunctionType, type, types.ModuleType)):
        return True
    try:
        return callable(value) and "__wrapped__" in value.__dict__
    except Exception:  # noqa: BLE001 -- the user's own
        return False


class Scan:
    """What code, nested code included, does to global names. Frozen after __init__.

    Attributes:
        now: names that running the code itself needs; of a class statement, what its body needs.
        later: names that functions in it need when they are called.
        is_dynamic: it may look up names that do not stand in it.
        tables: the global names of which it looks at an attribute `modules`.
        keeps_state: it changes variables of the function around it.
        attributes: all names of attributes, by which submodules of packages are found.
    """

    __slots__ = ("attributes", "is_dynamic", "keeps_state", "later", "now", "tables")

    def __init__(self, code: types.CodeType) -> None:
        import dis  # noqa: PLC0415 -- only senders need it

        now: dict[str, None] = {}
        later: dict[str, None] = {}
        attributes: set[str] = set()
        tables = _Tables()
        self.is_dynamic = self.keeps_state = False
        pending: list[tuple[types.CodeType, bool]] = [(code, True)]
        for current, is_now in pending:  # grows while we go through it
            names = now if is_now else later
            for const in current.co_consts:
                if isinstance(const, types.CodeType):
                    # class bodies and comprehensions run where they stand
                    runs = not const.co_flags & 0x1 or (const.co_name.startswith("<") and const.co_name != "<lambda>")
                    pending.append((const, is_now and runs))
            for instruction in dis.get_instructions(current):
                operation, name = instruction.opname, instruction.argval
                if operation in _GLOBAL:
                    names[name] = None
                elif operation in _DEREF:
                    self.keeps_state |= name in current.co_freevars
                tables.look(operation, name)
            attributes.update(current.co_names)
        self.now = tuple(now)
        self.later = tuple(name for name in later if name not in now)
        self.attributes = frozenset(attributes)
        self.tables = frozenset(tables.roots)
        self.is_dynamic = tables.is_local or not _DYNAMIC.isdisjoint(now) or not _DYNAMIC.isdisjoint(later)

    def is_dynamic_in(self, namespace: dict[str, Any]) -> bool:
        """Return True if the code may look up names that do not stand in it: by `sys.modules` or unpickling, too."""
        if self.is_dynamic or any(namespace.get(name) is sys for name in self.tables):
            return True
        values = [namespace.get(name) for name in (*self.now, *self.later)]
        return any(value is sys.modules or _unpickles(value) for value in values)


_UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}


def _unpickles(value: object) -> bool:
    """Return True for a module that unpickles, and for what is imported from one."""
    kind = type(value)
    if kind is types.ModuleType:
        home = vars(value).get("__name__")
    else:
        home = value.__module__ if kind in (types.FunctionType, types.BuiltinFunctionType, type) else None
    return type(home) is str and home.partition(".")[0] in _UNPICKLERS


_GLOBAL = frozenset({
    "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL",
})  # fmt: skip
_DEREF = frozenset({"STORE_DEREF", "DELETE_DEREF"})


class _Tables:
    """Finds where code looks at `sys.modules`. Local to one scan."""

    def __init__(self) -> None:
        self.roots: set[str] = set()  # global names of which it takes an attribute `modules`
        self.is_local = False  # it does so with a `sys` that it imports itself
        self._imported: set[str] = set()  # local names of that
        self._module = ""  # that it imports from
        self._last = ("", "")

    def look(self, operation: str, name: Any) -> None:
        """Take in one instruction behind the other."""
        if operation == "EXTENDED_ARG":
            return
        first = name
        if type(name) is tuple and "_FAST" in operation:  # two instructions in one
            first, name = name
        last, last_name = self._last
        if operation in ("LOAD_ATTR", "LOAD_METHOD") and name == "modules":
            if last in _GLOBAL:
                self.roots.add(last_name)
            self.is_local |= last_name in self._imported
        elif operation == "IMPORT_NAME":
            self._module = name
        elif operation == "IMPORT_FROM":
            self.is_local |= self._module == "sys" and name == "modules"
        elif last == "IMPORT_NAME" and last_name == "sys" and operation.startswith("STORE_"):
            self._imported.add(first)
        self._last = operation, name


_scans: dict[ref[types.CodeType], Scan] = {}  # one atomic operation at a time, from any thread


def scan_code(code: types.CodeType) -> Scan:
    """Return what code does to names. Thread-safe."""
    scan = _scans.get(ref(code))
    if scan is None:
        scan = Scan(code)
        _scans[ref(code, _forget_scan)] = scan
    return scan


def _forget_scan(reference: ref[types.CodeType]) -> None:
    _scans.pop(reference, None)


def submodules_of(code: types.CodeType, namespace: dict[str, Any]) -> tuple[str, ...]:
    """The loaded submodules that code may reach through packages among the globals that it names."""
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
