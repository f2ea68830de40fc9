"""Sharing: what several globals of scripts refer to is one object in a worker too.

While a global is pickled, what another global is bound to goes by that name, by the first that there is; so does a cell
that functions share. Globals that refer to each other in a circle go in one pickle, the one of the first of them.
Atoms, and what goes by a name of its own anyhow, need none of that.
Thread safety: the table is replaced as a whole, by one atomic operation.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, GenericAlias, ModuleType
from typing import Any

from poolkit._wire.functions import ATOMS, circle_member, circle_of, is_fixed, meant_by
from poolkit._wire.items import MISSING, RESERVED, Item, Ref
from poolkit._wire.modules import meaning, named_at_top, scripts

_NAMELESS = ATOMS | {BuiltinFunctionType, GenericAlias}
_MOST_LOOKED_AT = 16  # elements of a tuple
_FLAT = frozenset({list, tuple, set, frozenset, deque, dict, OrderedDict, bytearray})
_Names = dict[int, tuple[Any, ...]]
_table: tuple[Any, _Names] = [], {}  # what was bound when it was made, and the names


def look() -> None:
    """Look over the names, as globals may be bound to other objects since."""
    global _table  # noqa: PLW0603 -- the table that there is
    before, table = _table
    modules = {id(sys.modules.get(name)): (name, sys.modules.get(name)) for name in sorted(scripts, reverse=True)}
    found = {name: vars(module).copy() for name, module in modules.values() if isinstance(module, ModuleType)}
    bound = [(name, [*each], [*map(id, each.values())]) for name, each in found.items()]
    if bound != before:
        table = {known: name for known, name in table.items() if id(meant_by(name)) == known}
        for module_name, namespace in found.items():
            for name, value in namespace.items():
                with contextlib.suppress(Exception):  # a metaclass may do anything
                    _add_names(table, module_name, name, value)
        _table = bound, table


def names() -> _Names:
    """Return by what name an object goes, by its id: module and name; of a cell, a function that has it, and where.

    An object keeps its name for as long as that is bound to it.
    """
    return _table[1]


def _add_names(table: _Names, module_name: str, name: str, value: Any) -> None:
    if type(value) is FunctionType and value.__module__ == module_name:
        for index, cell in enumerate(value.__closure__ or ()):
            table.setdefault(id(cell), (module_name, name, index))
        if value.__qualname__ == name:
            return
    if type(value) not in ATOMS and name not in RESERVED and _may_be_shared(value):
        table.setdefault(id(value), (module_name, name))


def _may_be_shared(value: Any) -> bool:
    kind = type(value)
    if kind is FunctionType:
        return named_at_top(value, value.__module__) is None
    if kind is tuple or kind is frozenset:
        return len(value) > _MOST_LOOKED_AT or not is_fixed(value)
    return not (kind in _NAMELESS or issubclass(kind, (type, ModuleType)) or kind.__module__ == "typing")


def are_bound(bound: Iterable[tuple[Ref, int]]) -> bool:
    """Return True if these names still mean the objects that they were taken for."""
    return all(id(meaning(*ref, MISSING)) == known for ref, known in bound)


def is_alone(value: Any, own: Ref) -> bool:
    """Return True for atoms and a container of such, which refers to no other global. 20 ns an element."""
    parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
    is_flat = type(value) in ATOMS or (type(value) in _FLAT and ATOMS.issuperset(map(type, parts)))
    return is_flat and names().get(id(value), own) == own


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


class _Made:
    """Stands in a pickle for what a call makes."""

    def __init__(self, *reduced: Any) -> None:
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced


def in_circle(circle: tuple[Ref, ...], own: Ref) -> tuple[Any, tuple[Ref, ...]]:
    """Return what a name of a circle is sent as, and the names that are pickled with it: the first brings all."""
    if circle[0] == own:
        return _Made(circle_of, (circle, [meaning(*each) for each in circle])), circle
    return _Made(circle_member, (meaning(*circle[0]), circle[0], own)), (own,)
