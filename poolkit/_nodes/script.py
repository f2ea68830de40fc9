"""Script: what a node has been sent of the owner's script, as if it were its own.

The node's pool brings it to its workers as the owner's would (`_wire/plans.py`): of each definition it keeps the bytes
that came, and loads none. Owner: the provider's thread.
"""

from __future__ import annotations

import marshal
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

from poolkit._memory.memory import Memory
from poolkit._wire.items import IMPORT
from poolkit._wire.plans import Manifest


class SentItem:
    """One version of one name, as it came; see `Item`, of which it has what senders look at."""

    refers = False
    bound = ()

    def __init__(self, record: tuple[Any, ...], region: Memory | None) -> None:
        self.serial, self.module, self.name, self.kind, self.payload = record[:5]
        self.region = region
        self._record = record

    def record(self, *, is_inherited: bool = False) -> tuple[Any, ...]:
        """What travels."""
        del is_inherited  # none is
        return self._record


class SentManifest(Manifest):
    """What one call needs, with what the owner says of its modules."""

    __slots__ = ("_descriptions",)

    def __init__(self, items: tuple[Any, ...], bundles: tuple[Any, ...], descriptions: dict[str, Any]) -> None:
        super().__init__(items, bundles, frozenset(descriptions))
        self._descriptions = descriptions

    def describe(self, names: Iterable[str]) -> dict[str, Any]:
        """As the owner did."""
        return {name: self._descriptions[name] for name in names if name in self._descriptions}


class NodeScript:
    """The owner's script, as far as it was sent."""

    def __init__(self) -> None:
        self.manifests: dict[int, SentManifest] = {}  # by the owner's numbers
        self._items: dict[int, SentItem] = {}  # by serial
        self._bundles: dict[str, tuple[SentItem, ...]] = {}  # by module, the last one
        self._descriptions: dict[str, Any] = {}

    def define(self, payload: bytes, memories: Mapping[int, Memory]) -> SentManifest:
        """Take in what comes ahead of a call that needs it."""
        gone, number, serials, bundle, records, descriptions = pickle.loads(payload)
        for each in gone:
            self.manifests.pop(each, None)
        for record in records:
            if record[0] not in self._items:
                self._items[record[0]] = SentItem(record, memories[record[5]] if record[5] else None)
        by_module: dict[str, list[SentItem]] = {}
        for record in bundle:
            by_module.setdefault(record[1], []).append(SentItem(record, None))
        self._bundles.update((module, tuple(items)) for module, items in by_module.items())
        self._descriptions.update((name, {**each, "is_here": False}) for name, each in descriptions.items())
        items = [self._items[serial] for serial in serials]
        names = {*descriptions, *(marshal.loads(item.payload)[0] for item in items if item.kind == IMPORT)}  # noqa: S302
        described = {name: self._descriptions[name] for name in names if name in self._descriptions}
        bundles = tuple(self._bundles[name] for name in sorted(described) if name in self._bundles)
        made = self.manifests[number] = SentManifest(tuple(items), bundles, described)
        kept = {item.serial for manifest in self.manifests.values() for item in manifest.items}
        for serial in [serial for serial in self._items if serial not in kept]:
            del self._items[serial]
        return made
