"""Sharing: what several globals of scripts refer to is one object in a worker too.

While a global is pickled, what another global is bound to goes by that name, by the first that there is; so does a cell
that functions share. Globals that refer to each other in a circle go in one pickle, the one of the first of them.
Atoms, and what goes by a name of its own anyhow, need none of that.
Thread safety: the table is replaced as a whole, by one atomic operation; it is right for who has it made.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain, islice
from types import BuiltinFunctionType, FunctionType, GenericAlias, ModuleType
from typing import Any

from poolkit._wire import reseed
from poolkit._wire.buffers import is_view
from poolkit._wire.functions import circle_member, circle_of
from poolkit._wire.items import ATOMS, MISSING, RESERVED, Item, Ref, is_fixed
from poolkit._wire.modules import meaning, named_at_top, scripts
from poolkit._wire.pickles import PROTOCOL

__all__ = ["are_bound", "bound_objects", "circles_in", "forget_names", "in_circle", "is_alone", "names"]

_NAMELESS = ATOMS | {BuiltinFunctionType, GenericAlias}
_MOST_LOOKED_AT = 16  # elements of a tuple
_PLAIN = ATOMS | {list, tuple, set, frozenset, deque, dict, OrderedDict}
_DEEPEST, _LONGEST = 10, 10_000_000
_LENGTH = 2  # of a name, without the place of a cell
_numbers = itertools.count(1)
_wanted = 0
_Table = tuple[int, Any, dict[int, tuple[Any, ...]]]
_table: _Table = -1, [], {}  # what it was made for, what was bound then, and the names


def forget_names() -> None:
    """Have the table looked over when it is next needed: globals may be bound to other objects since."""
    global _wanted  # noqa: PLW0603 -- a number of its own for each call
    _wanted = next(_numbers)


def names() -> dict[int, tuple[Any, ...]]:
    """Return by what name an object goes, by its id: module and name; of a cell, a function that has it, and where.

    An object keeps its name for as long as that is bound to it.
    """
    global _table  # noqa: PLW0603 -- the table that there is
    made_for, before, table = _table
    wanted = _wanted
    if made_for == wanted:
        return table
    modules: dict[int, tuple[str, Any]] = {}
    for name in sorted(scripts):
        module = sys.modules.get(name)
        modules.setdefault(id(module), (name, module))
    found = [(name, vars(module).copy()) for name, module in modules.values() if isinstance(module, ModuleType)]
    bound = [(name, [*each], [*map(id, each.values())], [*map(type, each.values())]) for name, each in found]
    if bound != before:
        table = _still_bound(table, dict(found))
        for (name, namespace), new in zip(found, bound):  # noqa: B905 -- as many
            if new not in before:
                _add_names(table, name, namespace)
    _table = wanted, bound, table
    return table


def _still_bound(table: dict[int, tuple[Any, ...]], namespaces: dict[str, dict[str, Any]]) -> dict[int, Any]:
    """Return those of the table that are still right; of cells, all whose function is still there."""
    found: dict[int, Any] = {}
    for known, name in table.items():
        value = namespaces.get(name[0], {}).get(name[1])
        if id(value) == known or (len(name) > _LENGTH and any(id(cell) == known for cell in _cells_of(value))):
            found[known] = name
    return found


def _cells_of(value: Any) -> tuple[Any, ...]:
    return value.__closure__ or () if type(value) is FunctionType else ()


def _add_names(table: dict[int, tuple[Any, ...]], module_name: str, namespace: dict[str, Any]) -> None:
    for name, value in namespace.items():
        kind = type(value)
        if kind is FunctionType:
            for index, cell in enumerate(_cells_of(value) if value.__module__ == module_name else ()):
                table.setdefault(id(cell), (module_name, name, index))
            if value.__qualname__ == name and value.__module__ == module_name:
                continue
        if kind not in ATOMS and name not in RESERVED and _may_be_shared(value):
            table.setdefault(id(value), (module_name, name))


def _may_be_shared(value: Any) -> bool:
    kind = type(value)
    if kind is FunctionType:
        return named_at_top(value, value.__module__) is None
    if kind is tuple or kind is frozenset:
        return not all(map(is_fixed, value)) if len(value) <= _MOST_LOOKED_AT else True
    return not (kind in _NAMELESS or issubclass(kind, (type, ModuleType)) or kind.__module__ == "typing")


def bound_objects(refs: Iterable[Ref]) -> tuple[tuple[Ref, int], ...]:
    """Return what these names are bound to now, by their ids: whoever refers to them by name keeps them alive."""
    return tuple((ref, id(meaning(*ref, MISSING))) for ref in refs)


def are_bound(bound: Iterable[tuple[Ref, int]]) -> bool:
    """Return True if these names still mean the objects that they were taken for."""
    return all(id(meaning(*ref, MISSING)) == known for ref, known in bound)


# ===== what needs none of that =====


def is_alone(value: Any, own: Ref) -> bool:
    """Return True if a value refers to nothing that goes by a name of a script, and to no random generator."""
    kind = type(value)
    if kind in ATOMS or kind is FunctionType:  # functions take the long way in any case
        return True
    if names().get(id(value), own) != own:
        return False
    if kind is bytearray or _is_plain(value):
        return True
    try:
        _Scout(own).dump(value)
    except Exception:  # noqa: BLE001 -- it has met one, or the user's own hooks raise
        return False
    return True


def _is_plain(value: Any) -> bool:
    """Return True for containers in containers of nothing but atoms, none of which is a global. 20 ns an element."""
    level: list[Any] = [value]
    if type(value) in _PLAIN and set(map(type, value)) <= ATOMS and set(map(type, _values_of(value))) <= ATOMS:
        return True  # without a copy of it
    for depth in range(_DEEPEST):
        kinds = set(map(type, level))
        if kinds <= ATOMS:
            return True
        if not kinds <= _PLAIN or len(level) > _LONGEST or (depth and not names().keys().isdisjoint(map(id, level))):
            return False
        contents = (
            (*each, *each.values()) if type(each) in (dict, OrderedDict) else each
            for each in level
            if type(each) not in ATOMS
        )
        level = [*islice(chain.from_iterable(contents), _LONGEST + 1)]
    return False


def _values_of(value: Any) -> Any:
    return value.values() if type(value) in (dict, OrderedDict) else ()


class _Nowhere:
    """A file that keeps nothing."""

    write = staticmethod(len)


class _Scout(pickle.Pickler):
    """Raises when it meets what does not go as it stands."""

    def __init__(self, own: Ref) -> None:
        super().__init__(_Nowhere(), PROTOCOL, buffer_callback=lambda _: None)
        self._own, self._names, self._generators = own, names(), reseed.kinds()

    def persistent_id(self, obj: Any) -> None:
        """Look at each object."""
        if id(obj) in self._names and self._names[id(obj)] != self._own:
            raise LookupError

    def reducer_override(self, obj: Any) -> Any:
        """Look at each object that is no atom and no container."""
        is_of_global = is_view(obj) and id(obj.base) in self._names
        if is_of_global or issubclass(type(obj), self._generators) or type(obj).__module__ in scripts:
            raise LookupError
        return NotImplemented


# ===== circles =====


def circles_in(items: dict[Ref, Item]) -> list[tuple[Ref, ...]]:
    """Return the names that refer to each other in circles."""
    reached: dict[Ref, set[Ref]] = {}
    for key, item in items.items():
        if item.bound:
            found: set[Ref] = set()
            pending = [ref for ref, _ in item.bound]
            for each in pending:  # grows while we go through it
                if each not in found and each in items:
                    found.add(each)
                    pending += [ref for ref, _ in items[each].bound]
            reached[key] = found
    groups = {
        tuple(sorted(each for each in found if key in reached.get(each, ())))
        for key, found in reached.items()
        if key in found
    }
    return sorted(groups)


class Circle:
    """What the first name of a circle is sent as: all values of the circle."""

    def __init__(self, circle: tuple[Ref, ...]) -> None:
        self._circle = circle

    def __reduce__(self) -> Any:
        """Have the others kept there for those who ask."""
        return circle_of, (self._circle, [meaning(*each) for each in self._circle])


def in_circle(circle: tuple[Ref, ...], own: Ref) -> tuple[Any, tuple[Ref, ...]]:
    """Return what a name of a circle is sent as, and the names that are pickled with it."""
    return (Circle(circle), circle) if circle[0] == own else (Member(circle, own), (own,))


class Member:
    """What another name of a circle is sent as: it came with the first."""

    def __init__(self, circle: tuple[Ref, ...], ref: Ref) -> None:
        self._circle, self._ref = circle, ref

    def __reduce__(self) -> Any:
        """Look it up where the first has left it."""
        return circle_member, (meaning(*self._circle[0]), self._circle[0], self._ref)
