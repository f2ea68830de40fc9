"""Namespace: one script module as its process has it, and how each of its names becomes an item that travels.

What goes how, and why: `docs/decisions/0020`, `docs/guide/script-and-workers.md`.
Thread safety: items are published under `_lock`, within which no user code runs.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import itertools
import marshal
import os
import pickle
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import Any

from poolkit._locks import RLock
from poolkit._wire import buffers, sharing
from poolkit._wire import source as sources
from poolkit._wire.buffers import Found
from poolkit._wire.functions import ATOMS, is_definition, scan_code, submodules_of
from poolkit._wire.items import ABSENT, FOLLOWED, IMPORT, MISSING, RESERVED, STATEMENT, VALUE, Item, Looks, Ref
from poolkit._wire.modules import home_of, meaning, module_of, scripts
from poolkit._wire.origins import functions_behind, functions_of, is_special, makers_of, may_run, set_later
from poolkit._wire.pickles import PROTOCOL, Needs, dumps
from poolkit._wire.process_wide import imported_from, reduce_global
from poolkit._wire.remote import describe_error, raise_interrupt
from poolkit._wire.source import Source, source_for

LARGE = 64 * 1024  # bytes of a value that travels in shared memory, once for all workers

_CONTAINERS = (dict, list, set, OrderedDict, deque)
_lock = RLock()
_serials = itertools.count(1)


if hasattr(os, "register_at_fork"):  # another thread may have had it
    os.register_at_fork(after_in_child=lambda: globals().update(_lock=RLock()))


class Namespace:
    """One script module, as this process has it."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self.name = name
        self.module = module
        self.dict = vars(module)
        self._items: dict[str, Item] = {}
        self._acts: dict[str, Item] = {}
        self._attributes: dict[str, set[str]] = {}  # of classes: those that travelled beside their statements
        self._bundle: tuple[Item, ...] = ()

    # ===== items =====

    def item(self, name: str, circle: tuple[Ref, ...] = (), *, again: bool = False) -> Item | None:
        """Return the version of a name that is current; None if it is never sent. Runs pickling hooks of the user's.

        A new one `again` though it is the same as before, or as one of a `circle` of names that go together.
        """
        if "#" in name:
            return self._acts.get(name)
        if name in RESERVED:
            return None
        serial = next(_serials)  # of two versions, that which was looked up later has the larger one
        value = self._value(name)
        known = self._items.get(name)
        if known is not None and not (again or circle) and known.is_current(value) and sharing.are_bound(known.bound):
            return known
        looks = Looks(value)  # what travels is no older than that
        made = Item(self.name, name, ABSENT, b"", value)
        try:
            if value is not MISSING:
                made = self._make(name, value, circle, is_new=known is None)
        except BaseException as error:  # noqa: BLE001 -- the user's own hooks
            raise_interrupt(error)
            made.payload = describe_error(error).encode(errors="replace")
        if made.kind != IMPORT or looks.parts:
            made.looks = looks
        if "." in name:
            made.now = ((self.name, name.partition(".")[0]), *made.now)
        made.serial = serial
        return self._publish(made, value, known, is_alone=not circle)

    def _publish(self, made: Item, value: object, known: Item | None, *, is_alone: bool) -> Item:
        """Have a version be the newest of its name; return what another thread has made meanwhile, if that will do."""
        while True:
            newest = self._items.get(made.name)
            if is_alone and newest is not None and newest is not known and newest.is_current(value):
                return newest
            with _lock:
                if self._items.get(made.name) is newest:
                    if newest is None or newest.serial < made.serial:
                        self._items[made.name] = made
                    return made

    def forget(self, modules: Iterable[str]) -> None:
        """Have versions be made anew that may refer to one of these modules by its name."""
        texts = [each.encode("utf-8", "surrogatepass") for each in modules]
        with _lock:
            for name, item in list(self._items.items()):
                if item.region is not None or item.submodules or any(text in item.payload for text in texts):
                    del self._items[name]

    def is_builtin(self, name: str) -> bool:
        """Return True for the name of a builtin that has never meant anything else here."""
        return name not in self.dict and hasattr(builtins, name) and name not in self._items

    def circle_of(self, name: str) -> tuple[Ref, ...]:
        """Return the names that go together with this one in the newest version."""
        known = self._items.get(name)
        return () if known is None else known.circle

    def _value(self, name: str) -> object:
        if "." not in name:
            return self.dict.get(name, MISSING)
        top, _, attribute = name.partition(".")
        cls = self.dict.get(top)
        return vars(cls).get(attribute, MISSING) if issubclass(type(cls), type) else MISSING

    def own_names(self, *kinds: type) -> list[str]:
        """Return the names of functions and classes (or of one of these kinds) that this module has defined.

        They are what code that looks names up by text may mean; data may change from call to call.
        """
        return [
            name
            for name, value in list(self.dict.items())
            if issubclass(type(value), kinds or (FunctionType, type))
            and (value.__globals__ is self.dict if type(value) is FunctionType else module_of(value) == self.name)
        ]

    def bundle(self) -> tuple[Item, ...]:
        """Return all plain functions that need nothing to be made."""
        functions = [self.item(name) for name in self.own_names(FunctionType)]
        found = tuple(each for each in functions if each and each.kind == VALUE and not each.region and not each.now)
        if found != self._bundle:
            self._bundle = found
        return self._bundle

    def _make(self, name: str, value: Any, circle: tuple[Ref, ...], *, is_new: bool) -> Item:
        """A class by its own statement if possible, all else as a pickle; what has none, by its statement."""
        if issubclass(type(value), ModuleType) and (home := _name_of(value)) is not None:
            item = Item(self.name, name, IMPORT, marshal.dumps((home, None)), value)
            if home in scripts and sys.modules.get(home) is value and value is not self.module:
                item.later = tuple((home, each) for each in list(vars(value)) if each not in RESERVED)
            files = [each for each in self._own_files()[::-1] if sources.may_act_on(each, self.dict, name)]
            self._act_on(item, [source_for(each, self.dict) for each in files])
            return item
        is_class = issubclass(type(value), type) and value.__module__ == self.name and value.__qualname__ == name
        if not is_class and is_new and "." not in name and (place := imported_from(name, value)) is not None:
            return Item(self.name, name, IMPORT, marshal.dumps(place), value)
        found = self._find(name, value, is_named=True) if is_class else []
        made = self._make_statement(name, value, found)
        if made is None:
            try:
                made = self._make_value(name, value, circle)
            except BaseException as error:  # noqa: BLE001 -- the user's own hooks
                raise_interrupt(error)
                with contextlib.suppress(Exception):  # the first reason counts
                    found = found or self._find(name, value, is_named=isinstance(error, _CircularError))
                    made = self._make_statement(name, value, found)
                    if made is None and "." not in name and (place := imported_from("", value)) is not None:
                        made = Item(self.name, name, IMPORT, marshal.dumps(place), value)
                if made is None:
                    text = f"; {len(found)} statements define it, and it cannot be told which of them made it"
                    reason = (describe_error(error) + text * bool(found)).encode(errors="replace")
                    made = Item(self.name, name, ABSENT, reason, value)
        if is_class:
            made.snapshot = dict(vars(value))
        return made

    def _make_value(self, name: str, value: Any, circle: tuple[Ref, ...]) -> Item:
        """As a pickle. Raises whatever pickling raises, and if it could only refer to itself."""
        own = (self.name, name)
        content, inline = sharing.in_circle(circle, own) if circle else (value, (own,))
        item = Item(self.name, name, VALUE, b"", value)
        item.is_definition = is_definition(value)
        data, found, needs = self._dump(own, value, content, inline)
        size = len(data) if isinstance(data, bytes) else sum(map(len, data))
        if found or size >= LARGE:
            try:
                item.region = buffers.store(data, [buffer.raw() for buffer in found])
            except OSError:  # no shared memory: through the link
                data = dumps(content, None, needs, plainly=not needs.is_shared)
        if item.region is None:
            item.payload = data if isinstance(data, bytes) else b"".join(data)
        item.now = tuple(each for each in needs.now if each not in needs.inline)
        item.bound, item.circle = tuple((each, id(meaning(*each, MISSING))) for each in item.now), circle
        item.refers = bool(item.bound) and (size <= FOLLOWED or type(value) is FunctionType)
        item.later = tuple(each for each in needs.later if each != own)
        if type(value) is FunctionType and home_of(value.__globals__) == self.name:
            item.submodules = submodules_of(value.__code__, self.dict)
        if item.now and type(value) in _CONTAINERS and "." not in name and needs.met == 1 and not circle:
            empty = deque(maxlen=value.maxlen) if isinstance(value, deque) else type(value)()
            item.shell = pickle.dumps(empty, PROTOCOL)
        return item

    def _dump(self, own: Ref, value: Any, content: Any, inline: tuple[Ref, ...]) -> tuple[Any, _Found, Needs]:
        needs, found = Needs(value, own, reduce_global, sharing.names(), inline), _Found()
        if type(value) in (bytes, bytearray):
            found.look((value,))
        is_plain = content is value and (type(value) is FunctionType or sharing.is_alone(value, own))
        try:
            with found:
                return dumps(content, found, needs, plainly=is_plain), found, needs
        except Exception as error:
            if needs.is_circular:
                raise _CircularError(str(error)) from error
            raise

    # ===== statements =====

    def _make_statement(self, name: str, value: Any, found: list[tuple[Source, Any]]) -> Item | None:
        if len(found) != 1:
            return None
        ((source, node),) = found
        is_class = issubclass(type(value), type)
        decorators = getattr(node, "decorator_list", ()) if is_class else ()
        without = [each for each in decorators if self._is_data(sources.root_of(each) or "")]
        item = self._statement(name, source, node, value, without)
        if is_class:
            item.assigned = set_later(value, node, is_bare=bool(without))
        is_file = isinstance(self.dict.get("__file__"), str)
        self._act_on(item, [source] if is_file else [source_for(each, self.dict) for each in self._own_files()[::-1]])
        return item

    def _is_data(self, name: str) -> bool:
        """Return True for what arrives with what decorators did to it, as it is not made by its own statement."""
        value = self.dict.get(name, type)
        if issubclass(type(value), (ModuleType, type, FunctionType)):
            return False
        with contextlib.suppress(Exception):  # a metaclass may do anything
            if callable(value) and type(value).__module__ not in scripts:
                return False
        item = self.item(name)
        return item is None or item.kind != STATEMENT

    def _statement(self, name: str, source: Source, node: Any, value: Any, without: list[Any]) -> Item:
        code = source.code_of(node, without)
        item = Item(self.name, name, STATEMENT, marshal.dumps(code), value)
        scan = scan_code(code)
        own = name.partition("#")[0]
        item.now = tuple((self.name, each) for each in scan.now if each in self.dict and each != own)
        names = dict.fromkeys((*scan.later, *sources.names_in_annotations(node)))
        later = tuple((self.name, each) for each in names if each != own)
        item.later = (*later, (self.name, "*")) if scan.is_dynamic_in(self.dict) else later
        item.line = self._position(source), node.lineno
        item.codes = sources.codes_in(code)
        item.submodules = submodules_of(code, self.dict)
        return item

    def _find(self, name: str, value: Any, *, is_named: bool) -> list[tuple[Source, Any]]:
        """The statement that made what a name means, where the source is to be had and agrees; several, if in doubt.

        What goes by its name (`is_named`), such as a sentinel, may be made by any assignment.
        """
        for filename in self._files_of(value):
            source = source_for(filename, self.dict)
            nodes = makers_of(source, name, value, self.dict) if source is not None else []
            if source is not None and (
                len(nodes) > 1 or (nodes and may_run(source, nodes[0], value, self.dict, is_named=is_named))
            ):
                return [(source, node) for node in nodes]
        return []

    def _files_of(self, value: Any) -> list[str]:
        functions = functions_of(value) if issubclass(type(value), type) else functions_behind(value)
        files = [each.__code__.co_filename for each in functions if each.__globals__ is self.dict]
        return list(dict.fromkeys((*files, *self._own_files())))

    def _own_files(self) -> list[str]:
        own = self.dict.get("__file__")
        files = [own] if isinstance(own, str) else sources.interactive_files()
        return [*dict.fromkeys((*files, *sources.TYPED))] if self.name == "__main__" else files

    def _position(self, source: Source) -> int:
        """Which input of a session a source is: a later one has a larger number."""
        files = self._own_files()
        return len(files) - files.index(source.filename) if source.filename in files else 0

    def _act_on(self, item: Item, acting: list[Source | None]) -> None:
        """Have the statements that act on a definition run behind it, in the script's order."""
        name = item.name
        for source, node in [(each, node) for each in acting if each for node in each.acting.get(name, ())]:
            targets = sources.targets_of(node)
            is_of_class = issubclass(type(item.strong), type) and targets
            if isinstance(node, ast.ClassDef):
                item.later = (*item.later, (self.name, node.name))
            elif item.kind == IMPORT and not (targets and sources.makes_no_call(node)):
                continue
            elif is_of_class and not any(isinstance(each, ast.Subscript) for each in targets):
                own = [each for each in targets if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name)]
                item.assigned |= {each.attr for each in own}  # which travel with their values
            elif node not in source.inner or any(  # of those in a block, decorators whose function is there were run
                each.__code__ in sources.codes_in(source.code_of(node))
                for each in functions_behind(self.dict.get(getattr(node, "name", "")))
            ):
                place = f"{name}#{self._position(source)}:{node.lineno}:{node.col_offset}"
                act = self._acts[place] = self._statement(place, source, node, item.get(), [])
                act.now, act.serial = ((self.name, name), *act.now), next(_serials)
                item.later = (*item.later, (self.name, place))

    # ===== classes =====

    def class_names(self, item: Item, cls: type) -> list[Ref]:
        """Return what a class has beside its statement: data, functions set on it, its subclasses."""
        is_usual = type(cls) is type or type(cls).__name__ == "ABCMeta"
        snapshot = item.snapshot or {}
        prefix = f"{cls.__qualname__}."
        found: list[Ref] = []
        for name, value in list(vars(cls).items()):
            kind = type(value)
            is_new = name in item.assigned or snapshot.get(name, MISSING) is not value
            if name == "_abc_impl" or (is_special(name) and not (is_new and kind is FunctionType)):
                continue
            function = value.__func__ if kind is classmethod or kind is staticmethod else value
            if type(function) is FunctionType:
                code = function.__code__
                is_generated = code.co_filename.startswith("<") and function.__globals__ is not self.dict
                is_own = function.__qualname__.startswith(prefix) or code in item.codes
                if is_generated or (is_own and not (is_new and function.__name__ != name)):
                    continue
            elif not is_new and not (is_usual and any(kind is each for each in _PLAIN_ATTRIBUTES)):
                continue
            found.append((self.name, prefix + name))
        sent = self._attributes.setdefault(cls.__qualname__, set())
        sent.update(name for _, name in found)
        before = sent.union(prefix + each for each in snapshot if not each.startswith("_"))
        found += [(self.name, each) for each in before if each[len(prefix) :] not in vars(cls)]  # which were deleted
        subclasses: list[type] = type.__subclasses__(cls)
        for each in subclasses:
            with contextlib.suppress(Exception):  # a metaclass may do anything
                if each.__module__ == self.name and self.dict.get(each.__qualname__) is each:
                    found.append((self.name, each.__qualname__))
        return found


_PLAIN_ATTRIBUTES = (*ATOMS, list, dict, set, tuple, frozenset, bytearray)


def _name_of(module: ModuleType) -> str | None:
    """Return the name under which a module is to be had; None for one that was made by hand and is nowhere."""
    if sys.modules.get(module.__name__) is module:
        return module.__name__
    return next((each for each, known in sys.modules.copy().items() if known is module), None)


class _CircularError(pickle.PicklingError):
    """The pickle of a value would only name it."""


class _Found(Found):
    """Buffers of a value among the globals; descriptors stay here."""

    threshold = LARGE
    hands_over = False
