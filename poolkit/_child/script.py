"""Script: the modules in a worker that stand for those which it cannot import; above all, its `__main__`.

Each has the globals of all functions of that module here, and is filled by what calls need (`_wire/namespace.py`), when
a call that needs it is about to run. What the initializer or a task has bound there stays: neither the first sending of
a name nor a later version replaces a value that is not the very object which was put there for the owner.
A name that nothing has needed here is made from the source when somebody looks it up on the module, as pickle does.
Owner: the worker's main thread.
"""

from __future__ import annotations

import importlib
import marshal
import mmap
import pickle
import sys
from collections import OrderedDict, deque
from types import ModuleType

from poolkit._child.imported import when_imported
from poolkit._wire import functions, modules, reseed
from poolkit._wire.hooks import raise_interrupt
from poolkit._wire.modules import MAIN, Script, add_script
from poolkit._wire.pickles import loads
from poolkit._wire.regions import open_region
from poolkit._wire.remote import describe_error

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

    from poolkit._wire.passage import Passage
    from poolkit._wire.regions import Region

    Record = tuple[int, str, str, int, bytes, "Region | None", "bytes | None", tuple[str, ...]]

_VALUE, _STATEMENT, _IMPORT, _ABSENT = 1, 2, 3, 4  # as `_wire/items.py`, which is the owner's, has them

_MISSING = object()

ready: set[int] = set()
"""Numbers of the manifests of which all is made that can be."""

_manifests: dict[int, list[int]] = {}  # number -> serials, in order
_records: dict[int, Record] = {}  # by serial: what came and is not made yet
_bundles: list[Record] = []  # plain functions, for who looks them up by name
_bound: dict[tuple[str, str], tuple[int, object]] = {}  # by module and name: the version that was put there, and what
_reasons: dict[str, BaseException | str] = {}  # by name: why it could not be made
_typed: dict[str, tuple[str, str] | None] = {}  # by module: a program that is in no file
_containers: dict[tuple[str, str], Any] = {}  # those among `_bound` that have their contents
_CONTAINERS = (dict, list, set, OrderedDict, deque)
MOST_COMPARED = 10_000  # items


# ===== modules =====


def begin(number: int, main: dict[str, Any], *, is_copy: bool) -> None:
    """Have a module for the script; a worker that is a copy of the owner has it already."""
    reseed.worker_number = number
    functions.find = _sent
    modules.are_others_known = _is_owners
    if is_copy:
        for name in modules.scripts:
            for key, value in list(vars(sys.modules[name]).items()) if name in sys.modules else ():
                _bound[name, key] = 0, value
        for generator in reseed.generators_in(modules.scripts):
            reseed.reseeded(generator, number)
    else:
        sys.modules["__main__"] = sys.modules["__mp_main__"] = _make_module("__main__", main)
        when_imported("multiprocessing.spawn", _keep_from_running)


def _keep_from_running(spawn: Any) -> None:
    """Have the script run in children that a task spawns only where it has a main guard, which it needs for that."""
    prepare_data = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare_data(name)
        if not _has_guard() and (data.pop("init_main_from_path", None) or data.pop("init_main_from_name", None)):
            import warnings  # noqa: PLC0415 -- there only

            warnings.warn(
                "a process that a task spawns does not have what the script defines, as the script has no "
                "`if __name__ == '__main__':` guard: put one around its main part, or use the context 'fork'",
                RuntimeWarning,
                stacklevel=2,
            )
        return data

    spawn.get_preparation_data = get_preparation_data


def _has_guard() -> bool:
    import re  # noqa: PLC0415 -- there only

    try:
        with open(sys.modules["__main__"].__file__ or "", encoding="utf-8") as file:  # noqa: PTH123 -- pathlib takes 6 ms
            text = file.read()
    except (OSError, AttributeError, ValueError):
        return False
    return re.search(r"""^if\s+__name__\s*==\s*['"]__main__['"]""", text, re.MULTILINE) is not None


def _make_module(name: str, description: dict[str, Any]) -> ModuleType:
    made = Script(name, description["__doc__"])
    for attribute in ("__file__", "__package__"):
        if description[attribute] is not None:
            setattr(made, attribute, description[attribute])
    if description["spec"] is not None:
        from importlib.machinery import ModuleSpec  # noqa: PLC0415 -- for `python -m` and modules from paths

        made.__spec__ = ModuleSpec(description["spec"], None, origin=description["origin"])
    made.__dict__["__builtins__"] = __builtins__
    _typed[name] = description["typed"]
    return made


def _have_module(name: str, description: dict[str, Any]) -> None:
    if name in MAIN:
        return
    add_script(name)
    if name not in sys.modules:
        sys.modules[name] = _make_module(name, description)
        parent, _, last = name.rpartition(".")
        if parent:
            try:
                importlib.import_module(parent)
            except ImportError:
                _have_module(parent, dict.fromkeys(description))
                sys.modules[parent].__path__ = []
            setattr(sys.modules[parent], last, sys.modules[name])


def _is_owners(module_name: str, name: str) -> bool:
    """Return True if the owner has what a name of a script module means here."""
    if module_name not in modules.scripts:
        return True
    known = _bound.get((module_name, name))
    if known is None and module_name in MAIN:
        known = _bound.get((MAIN[1 - MAIN.index(module_name)], name))
    return known is not None and vars(sys.modules[module_name]).get(name, _MISSING) is known[1]


# ===== what comes =====


def define(payload: Any, passage: Passage) -> None:
    """Take in what a call that follows will need."""
    gone, number, serials, bundle, records, descriptions = pickle.loads(payload)
    for each in gone:
        _manifests.pop(each, None)
        ready.discard(each)
    if gone and _records:
        kept = {serial for each in _manifests.values() for serial in each}
        for serial in [serial for serial in _records if serial not in kept]:
            del _records[serial]
    _manifests[number] = serials
    for name, description in descriptions.items():
        _have_module(name, description)
    for record in records:
        region = passage.region(record[5]) if record[5] else None
        _records[record[0]] = (*record[:5], region, *record[6:])
    _bundles.extend(bundle)


def prepare(number: int) -> None:
    """Make all that a manifest has and that is not made yet. Raises only interrupts."""
    while _bundles:
        _make(_bundles.pop(0), is_wanted=False)
    serials = [serial for serial in _manifests.get(number, ()) if serial in _records]
    for serial in serials:
        record = _records[serial]
        if record[6] is not None and "." not in record[2]:
            namespace = vars(sys.modules[record[1]])
            if (record[1], record[2]) not in _bound and record[2] not in namespace:
                namespace[record[2]] = shell = pickle.loads(record[6])
                _bound[record[1], record[2]] = 0, shell
    is_complete = True
    for serial in serials:
        if _make(_records[serial], is_wanted=True):
            del _records[serial]
        else:
            is_complete = False
    if is_complete:
        ready.add(number)


def _make(record: Record, *, is_wanted: bool) -> bool:  # noqa: C901, PLR0912 -- one kind of item after another
    """Make one version of one name, unless a newer one or one of this worker's own is there; False if that failed."""
    serial, module_name, name, kind, payload, region, _, submodules = record
    try:
        namespace = vars(sys.modules[module_name])
        holder, attribute = (namespace, name)
        if "." in name:
            top, _, attribute = name.partition(".")
            holder = namespace[top]
        if not _may_bind(holder, (module_name, name), attribute, serial):
            held = _bound[module_name, name]
            if kind == _VALUE and (held[0] < serial or held[1] is _MISSING):
                _bound[module_name, name] = serial, _Unmade(payload, region)
            return True
        for each in submodules:
            _import(each)
        if kind == _STATEMENT:
            before = _contents()
            exec(marshal.loads(payload), namespace)  # noqa: S102, S302 -- the script's own statement
            _restore(before)
            value = namespace[name] if "#" not in name else None
            for generator in reseed.generators_from([value], (module_name,)):
                reseed.reseeded(generator, reseed.worker_number)
        elif kind == _VALUE:
            before = _contents()
            value = _load(payload, region)
            if issubclass(type(value), type):
                _restore(before)
            shell = _bound.get((module_name, name))
            if shell is not None and shell[0] == 0 and type(shell[1]) is type(value) and record[6] is not None:
                value = _fill(shell[1], value)
            _bind(holder, attribute, value)
            if type(value) in _CONTAINERS:
                _containers[module_name, name] = value
        elif kind == _IMPORT:
            path, inner = marshal.loads(payload)  # noqa: S302 -- from our own owner
            value = importlib.import_module(path)
            value = value if inner is None else getattr(value, inner)
            _bind(holder, attribute, value)
        else:
            _reasons[name] = payload.decode()
            return True
    except BaseException as exc:  # noqa: BLE001 -- whatever the script's code raises
        raise_interrupt(exc)
        if is_wanted:
            _reasons[name] = exc
        return False
    if issubclass(type(value), type) and "." not in name:  # what this one has for attributes, no task has bound
        for key in [key for key in _bound if key[0] == module_name and key[1].startswith(f"{name}.")]:
            del _bound[key]
    _bound[module_name, name] = serial, value
    _reasons.pop(name, None)
    return True


def _contents() -> list[tuple[Any, Any]]:
    """The contents of what the owner has filled, which is not to be filled again by the statements that filled it."""
    return [(value, value.copy()) for value in _containers.values() if len(value) <= MOST_COMPARED]


def _restore(before: list[tuple[Any, Any]]) -> None:
    for container, contents in before:
        if len(container) != len(contents):
            _fill(container, contents)


class _Unmade:
    """Stands for what was sent for a name that this worker has bound by itself: other values may refer to it."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def _sent(module_name: str, name: str) -> Any:
    """What was sent for a name, whatever this worker has bound it to since."""
    held = _bound.get((module_name, name))
    if held is not None and type(held[1]) is _Unmade:
        held = _bound[module_name, name] = held[0], _load(*held[1].args)
    return functions.named(module_name, name) if held is None or held[1] is _MISSING else held[1]


def _may_bind(holder: Any, key: tuple[str, str], attribute: str, serial: int) -> bool:
    held = _bound.get(key)
    if held is not None and held[0] >= serial:
        return False
    if "#" in attribute:
        return True
    if type(holder) is not dict:
        present = vars(holder).get(attribute, _MISSING)
        return held is None or present is held[1]
    present = holder.get(attribute, _MISSING)
    if held is None and present is not _MISSING:  # somebody here was first
        _bound[key] = serial, _MISSING
        return False
    return held is None or present is held[1]


def _bind(holder: Any, attribute: str, value: object) -> None:
    if type(holder) is dict:
        holder[attribute] = value
    else:
        type.__setattr__(holder, attribute, value)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001 -- if it is really needed, the task will tell
        return


def _load(payload: bytes, region: Region | None) -> Any:
    if region is None:
        return loads(payload)
    data, buffers = open_region(region, mmap.ACCESS_COPY)  # private to this worker
    return loads(data, buffers)


def _fill(shell: Any, value: Any) -> Any:
    """Give a container that is there already what it should have."""
    shell.clear()
    if hasattr(shell, "extend"):
        shell.extend(value)
    else:
        shell.update(value)
    return shell


def explain(error: BaseException) -> None:
    """Add to an exception about a name why that could not be had in this worker."""
    name = getattr(error, "name", None)
    if name is None and type(error) is AttributeError and str(error).startswith("Can't get attribute '"):
        name = str(error).split("'")[2].partition(".")[0]  # unpickled by name
    reason = _reasons.get(name) if isinstance(name, str) else None
    if reason is None or not isinstance(error, (NameError, AttributeError, ImportError)):
        return
    how = reason if isinstance(reason, str) else describe_error(reason)
    text = f"{name!r} of the script could not be made in this worker ({how}); an initializer can set it"
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:  # CPython 3.10
        vars(error).setdefault("__notes__", []).append(text)


# ===== names that nothing has needed so far =====


def _make_from_source(module: ModuleType, name: str) -> None:
    """Make a definition of the script from its source, with what it needs: imports, definitions, constants."""
    filename = getattr(module, "__file__", None)
    from poolkit._wire.functions import scan_code  # noqa: PLC0415 -- few tasks need it
    from poolkit._wire.source import is_constant, is_definition, remember_text, source_for  # noqa: PLC0415

    typed = _typed.get(module.__name__)
    if typed is not None:
        filename = typed[0]
        remember_text(*typed)
    if not isinstance(filename, str):
        return
    source = source_for(filename)
    namespace = vars(module)
    pending, making = [name], {name}
    order: list[tuple[str, Any]] = []
    for each in pending:  # grows while we go through it
        nodes = source.definitions.get(each) if source is not None else None
        node = nodes[-1] if nodes else None
        if node is None or not (is_definition(node) or (each != name and is_constant(node))):
            continue
        assert source is not None  # noqa: S101 -- as there is a statement
        code = source.code_of(node)
        order.append((each, (node.lineno, code)))
        scan = scan_code(code)
        for needed in (*scan.now, *scan.later):
            if needed not in making and needed not in namespace:
                making.add(needed)
                pending.append(needed)
    for each, (_, code) in sorted(order, key=lambda entry: entry[1][0]):
        if each not in namespace:
            exec(code, namespace)  # noqa: S102 -- the script's own statement
            _bound[module.__name__, each] = 0, namespace.get(each)


Script.make = _make_from_source
