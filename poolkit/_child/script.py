"""Script: the modules in a worker that stand for those which it cannot import; above all, its `__main__`.

Each has the globals of all functions of that module here, and is filled by what calls need (`_wire/namespace.py`), when
a call that needs it is about to run. What the initializer or a task has bound there stays: neither the first sending of
a name nor a later version replaces a value that is not the very object which was put there for the owner.
A name that nothing has needed here is made when somebody looks it up on the module (`missing.py`).
Modules that only other machines do not have are imported here, and nothing that was sent for them is used.
Owner: the worker's main thread.
"""

from __future__ import annotations

import contextlib
import importlib
import marshal
import mmap
import pickle
import sys
from collections import OrderedDict, deque
from collections.abc import Container, Iterable
from types import ModuleType

from poolkit._child.imported import when_imported
from poolkit._child.standard import keep_from_running
from poolkit._memory.memory import open_memory
from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire import functions, modules, reseed
from poolkit._wire.functions import is_definition
from poolkit._wire.modules import MAIN, Script, add_script
from poolkit._wire.pickles import loads
from poolkit._wire.remote import raise_interrupt

if TYPE_CHECKING:
    from poolkit._memory.channel import DescriptorChannel
    from poolkit._memory.memory import Memory

    Record = tuple[int, str, str, int, bytes, "Memory | None", "bytes | None", tuple[str, ...]]

# As `_wire/items.py` has them, which is the owner's.
_VALUE, _STATEMENT, _IMPORT, _ABSENT, _DEFINITION, _INHERITED = range(1, 7)

_MISSING = object()
_NOTHING_KEPT = object()  # stands for a definition that was made: of those the newest counts, and old ones are let go
_SHELL = -1

ready: set[int] = set()
"""Numbers of the manifests of which all is bound that can be."""

_manifests: dict[int, list[int]] = {}  # number -> serials, in order
_versions: dict[int, Version] = {}  # by serial: those that manifests have
_bundles: deque[Record] = deque()  # plain functions, for who looks them up by name
bound: dict[tuple[str, str], tuple[int, object]] = {}  # by module and name: the version that is there, and its object
_inherited: dict[tuple[str, str], object] = {}  # what a copy of the owner began with
reasons: dict[str, BaseException | str] = {}  # by name: why it could not be made
typed: dict[str, tuple[str, str] | None] = {}  # by module: a program that is in no file
_containers: dict[tuple[str, str], Any] = {}  # those among `bound` that have their contents
_CONTAINERS = (dict, list, set, OrderedDict, deque)
MOST_COMPARED = 10_000  # items
_own: set[str] = set()  # modules that are imported here, though they are sent to others
_expected: deque[tuple[str, dict[str, Any]]] = deque()  # modules to be imported, when what needs them is about to run
_wanted: dict[tuple[str, str], Version] = {}  # by module and name: what the manifest has that is being prepared


class Version:
    """One version of one name: as it came, until it is made; then its object, for who goes back to it."""

    __slots__ = ("is_data", "key", "record", "serial", "uses", "value")

    def __init__(self, record: Record) -> None:
        self.serial, module_name, name, kind = record[:4]
        self.key = module_name, name
        self.record: Record | None = record
        self.value: object = _MISSING
        self.uses = 0  # manifests that have it
        self.is_data = kind in (_VALUE, _ABSENT) or (kind == _INHERITED and not is_definition(_inherited.get(self.key)))

    def keep(self, value: object) -> None:
        """Keep what was made in place of how to make it."""
        self.value, self.record = value, None
        if is_definition(value) and "." not in self.key[1]:
            self.value = _NOTHING_KEPT


# ===== modules =====


def begin(number: int, main: dict[str, Any], *, is_copy: bool) -> None:
    """Have a module for the script; a worker that is a copy of the owner has it already."""
    reseed.worker_number = number
    functions.find = _sent
    modules.are_others_known = _is_owners
    tables = (ready, _manifests, _versions, _bundles, bound, _inherited, reasons, _containers, functions.circles)
    for table in (*tables, _own, _expected):
        table.clear()  # in a fork of a worker, they are of that worker's owner
    if not is_copy:
        sys.modules["__main__"] = sys.modules["__mp_main__"] = _make_module("__main__", main)
        when_imported("multiprocessing.spawn", keep_from_running)
        return
    for name in modules.scripts:
        for key, value in list(vars(sys.modules[name]).items()) if name in sys.modules else ():
            _inherited[name, key] = value
            if issubclass(type(value), type) and modules.module_of(value) == name:
                own = [(each, held) for each, held in vars(value).items() if not each.startswith("__")]
                _inherited.update(((name, f"{key}.{each}"), held) for each, held in own)
    bound.update((key, (0, value)) for key, value in _inherited.items())
    for generator in reseed.generators_in(modules.scripts):
        reseed.reseeded(generator, number)


def _make_module(name: str, description: dict[str, Any]) -> ModuleType:
    made = Script(name, description["__doc__"])
    names = ("__file__", "__package__")
    vars(made).update((each, description[each]) for each in names if description[each] is not None)
    if description["spec"] is not None:
        from importlib.machinery import ModuleSpec  # noqa: PLC0415 -- for `python -m` and modules from paths

        made.__spec__ = ModuleSpec(description["spec"], None, origin=description["origin"])
    made.__dict__["__builtins__"] = __builtins__
    typed[name] = description["typed"]
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


def _import_expected() -> None:
    """Import modules that are here; where that fails, have one that stands for it. Raises only interrupts."""
    while _expected:
        name, description = _expected[0]
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except BaseException as exc:  # noqa: BLE001 -- whatever the user's code raises
                raise_interrupt(exc)
        if type(sys.modules.get(name)) not in (Script, type(None)):
            _own.add(name)
        else:
            _have_module(name, description)
        _expected.popleft()


def _is_owners(module_name: str, name: str) -> bool:
    """Return True if the owner has what a name of a script module means here."""
    if module_name not in modules.scripts:
        return True
    names = [(each, name) for each in (MAIN if module_name in MAIN else (module_name,))]
    present = vars(sys.modules[module_name]).get(name, _MISSING)
    return present is not _MISSING and any(bound.get(each, (0, _MISSING))[1] is present for each in names)


# ===== what comes =====


def define(payload: Any, channel: DescriptorChannel) -> None:
    """Take in what a call that follows will need."""
    gone, number, serials, bundle, records, descriptions = pickle.loads(payload)
    for name, description in descriptions.items():
        if description.get("is_here") and name not in modules.scripts:
            _expected.append((name, description))
        else:
            _have_module(name, description)
    for record in records:
        memory = channel.take(record[5]) if record[5] else None
        if record[0] not in _versions:
            _versions[record[0]] = Version((*record[:5], memory, *record[6:]))
    for serial in serials:
        _versions[serial].uses += 1
    _manifests[number] = serials
    _bundles.extend(bundle)
    for each in gone:
        ready.discard(each)
        for serial in _manifests.pop(each, ()):
            _versions[serial].uses -= 1
            if not _versions[serial].uses:
                del _versions[serial]


def prepare(number: int) -> None:
    """Bind the names of a manifest to the versions that it has, made if need be. Raises only interrupts."""
    _import_expected()
    serials = dict.fromkeys(each for each in _manifests.get(number, ()) if _versions[each].key[0] not in _own)
    _wanted.update((_versions[serial].key, _versions[serial]) for serial in serials)
    before: list[tuple[Any, Any]] = []
    shells: list[tuple[str, str]] = []
    try:
        while _bundles:
            _put(_versions.get(_bundles[0][0]) or Version(_bundles[0]), serials, before, is_wanted=False)
            _bundles.popleft()
        for serial in serials:
            key, record = _versions[serial].key, _versions[serial].record
            namespace = vars(sys.modules[key[0]])
            if record and record[6] and "." not in key[1] and key not in bound and key[1] not in namespace:
                shells.append(key)
                namespace[key[1]] = shell = pickle.loads(record[6])
                bound[key] = _SHELL, shell
        done = [_put(_versions[serial], serials, before, is_wanted=True) for serial in serials]
        if all(done):
            ready.add(number)
    finally:
        _wanted.clear()
        for container, contents in before:  # what statements have added, the owner's had already
            if len(container) != len(contents):
                _fill(container, contents)
        for key in shells:
            if bound.get(key, (0,))[0] == _SHELL:  # what belongs in it could not be made
                del bound[key]
                vars(sys.modules[key[0]]).pop(key[1], None)


def _put(version: Version, serials: Container[int], before: list[tuple[Any, Any]], *, is_wanted: bool) -> bool:
    """Bind a name to a version, made if need be, where that may be; return False if it cannot be made."""
    module_name, name = version.key
    if module_name in _own:
        return True
    try:
        holder: Any = vars(sys.modules[module_name])
        top, _, attribute = name.rpartition(".")
        if top:
            holder = holder[top]
        if not _may_bind(version, holder, attribute, serials):
            return True
        if version.value is _MISSING and version.record is not None:
            version.value = _make(version.record, before)
        value = version.value
        if "#" not in name:
            _bind(holder, attribute, value)
    except BaseException as exc:  # noqa: BLE001 -- whatever the script's code raises
        raise_interrupt(exc)
        if is_wanted:
            reasons[name] = exc
        return False
    _note(version, value, before)
    return True


def _bind(holder: Any, attribute: str, value: object) -> None:
    is_global = type(holder) is dict
    if value is not _MISSING:
        (dict.__setitem__ if is_global else type.__setattr__)(holder, attribute, value)
    elif attribute in (holder if is_global else vars(holder)):
        (dict.__delitem__ if is_global else type.__delattr__)(holder, attribute)


def _note(version: Version, value: object, before: list[tuple[Any, Any]]) -> None:
    module_name, name = version.key
    held = bound.get(version.key)
    bound[version.key] = version.serial, value
    if held is not None and held[0] != _SHELL and held[1] is not value:
        ready.clear()  # some may need the one that was there
        if issubclass(type(value), type):  # what this one has for attributes, no task has bound
            for key in [key for key in bound if key[0] == module_name and key[1].startswith(f"{name}.")]:
                del bound[key]
    reasons.pop(name, None)
    _containers.pop(version.key, None)
    if value is _MISSING:
        if version.record is not None and version.record[4]:
            reasons[name] = version.record[4].decode()
        return
    version.keep(value)
    if version.is_data and type(value) in _CONTAINERS:
        _containers[version.key] = value
        if before:
            before += _contents([value])


def _may_bind(version: Version, holder: Any, attribute: str, serials: Container[int]) -> bool:
    """Return True if a version is to be bound: in place of nothing, or of the very object of another version.

    Data goes back to what it was when the call was submitted; of functions and classes, the newest counts.
    """
    key, serial = version.key, version.serial
    held = bound.get(key)
    is_global = type(holder) is dict
    present = (holder if is_global else vars(holder)).get(attribute, _MISSING)
    if not is_global and bound.get((key[0], holder.__qualname__), (0,))[0] not in serials:
        return False  # attributes belong to one version of their class
    if held is None:
        if is_global and present is not _MISSING:
            bound[key] = serial, _MISSING  # somebody here was first
            return False
    elif held[0] == serial:
        if version.value is _MISSING and held[1] is not _MISSING:  # it came again
            version.keep(held[1])
        return False
    else:
        is_next = held[0] < serial or (version.is_data and not is_definition(held[1]))
        if not is_next or ("#" not in attribute and present is not held[1]):
            return False
    return version.value is not _NOTHING_KEPT


def _make(record: Record, before: list[tuple[Any, Any]]) -> Any:
    """Make a version; `before` gets the contents of what its own code might fill."""
    _, module_name, name, kind, payload, memory, _, submodules = record
    for each in submodules:
        with contextlib.suppress(Exception):  # if it is really needed, the task will tell
            importlib.import_module(each)
    if kind == _ABSENT:
        return _MISSING
    if kind == _INHERITED:
        return None if "#" in name else _inherited[module_name, name]
    if kind == _IMPORT:
        path, inner = marshal.loads(payload)  # noqa: S302 -- from our own owner
        module = importlib.import_module(path)
        return module if inner is None else getattr(module, inner)
    if not before and (kind == _STATEMENT or (kind == _DEFINITION and payload[-1:] != pickle.STOP)):
        before += _contents(_containers.values())  # once for all: there may be as many containers as statements
    if kind == _STATEMENT:
        namespace = vars(sys.modules[module_name])
        exec(marshal.loads(payload), namespace)  # noqa: S102, S302 -- the script's own statement
        made = None if "#" in name else namespace[name]
        for generator in reseed.generators_from([made], (module_name,)):
            reseed.reseeded(generator, reseed.worker_number)
        return made
    # what lies in shared memory is private to this worker
    value = loads(payload) if memory is None else loads(*open_memory(memory, mmap.ACCESS_COPY))
    held = bound.get((module_name, name))
    if held is not None and held[0] == _SHELL and type(held[1]) is type(value):
        _fill(held[1], value)
        return held[1]
    return value


def _sent(module_name: str, name: str) -> Any:
    """Return what the owner means by a name, in the version of the manifest, whatever this worker has bound it to."""
    version, held = _wanted.get((module_name, name)), bound.get((module_name, name))
    if held is not None and held[0] == _SHELL:
        return held[1]
    if version is not None and version.is_data:
        if version.value is _MISSING and version.record is not None:
            version.value = _make(version.record, [])
        if version.value is not _MISSING:
            return version.value
    return functions.named(module_name, name) if held is None or held[1] is _MISSING else held[1]


def _contents(containers: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Return the contents of what the owner has filled, which statements that did so are not to fill again."""
    return [(value, value.copy()) for value in containers if len(value) <= MOST_COMPARED]


def _fill(container: Any, contents: Any) -> None:
    container.clear()
    (container.extend if hasattr(container, "extend") else container.update)(contents)
