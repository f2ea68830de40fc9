"""Manifests: what one worker has been sent of the script modules, and what it still lacks for a call.

    DEFINE frame    a pickle of (numbers of manifests that are gone, number, serials, bundle, items, modules)

It stands directly before the first call that needs it, on the same link. What is taken back needs nothing: the worker
keeps what came and makes it when a call is to run that needs it.
Guarded by: the pool's lock.
"""

from __future__ import annotations

import marshal
import pickle
import sys
from _weakref import ref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from poolkit._wire.items import ABSENT, IMPORT, Item, Looks, Ref, reference
from poolkit._wire.modules import module_of, scripts
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.plans import Manifest
from poolkit._wire.source import TYPED, typed_text


class Sent:
    """What one worker has. `inherited`: what it was forked with, by module and name."""

    def __init__(self, inherited: Inherited | None = None) -> None:
        self.manifests: dict[int, ref[Manifest]] = {}
        self._serials: set[int] = set()
        self._bundles: dict[str, tuple[Item, ...]] = {}  # by module, the last one
        self._inherited = inherited or {}
        self._next: tuple[Any, Any, Any] = (self.manifests, self._serials, self._bundles)

    def lacking(self, manifest: Manifest) -> tuple[bytes, list[Any]]:
        """Return the payload of the frame that has what the worker lacks for this manifest; `commit` once written."""
        manifests = {number: known for number, known in self.manifests.items() if known() is not None}
        gone = [number for number in self.manifests if number not in manifests]
        serials = self._serials
        if gone:
            alive = [known() for known in manifests.values()]
            serials = {item.serial for each in alive if each is not None for item in each.items}
        bundles = [each for each in manifest.bundles if each and self._bundles.get(each[0].module) is not each]
        names = set(manifest.modules)
        records, regions = [], []
        lacked: set[Ref] = set()
        for item in manifest.items:  # each behind what it refers to
            has = self._has(item) and not (item.refers and any(ref in lacked for ref, _ in item.bound))
            if not has:
                lacked.add((item.module, item.name))
            if item.serial not in serials:
                records.append(item.record(is_inherited=has))
                if item.kind == IMPORT:
                    names.add(marshal.loads(item.payload)[0])  # noqa: S302 -- our own
                if item.region is not None and not has:
                    regions.append(item.region)
        own = [item.serial for item in manifest.items]
        bundle = [item.record() for each in bundles for item in each if not self._has(item)]
        descriptions = {name: describe(name) for name in names if name in scripts}
        data = pickle.dumps((gone, manifest.number, own, bundle, records, descriptions), PROTOCOL)
        manifests[manifest.number] = ref(manifest)
        sent = {**self._bundles, **{each[0].module: each for each in bundles}}
        self._next = manifests, serials.union(own), sent
        return data, regions

    def commit(self) -> None:
        """Note that what was lacking has been written."""
        self.manifests, self._serials, self._bundles = self._next

    def _has(self, item: Item) -> bool:
        """Return True if the worker was forked with this version."""
        name, is_act, _ = item.name.partition("#")
        state = self._inherited.get((item.module, name))
        if state is None or is_act:
            return state is not None
        get, looks = state
        # what cannot be sent is there as it was
        return item.get() is get() and (item.kind in (ABSENT, IMPORT) or item.looks.agree(looks))


State = tuple[Callable[[], object], Looks]
Inherited = dict[tuple[str, str], State]


def inheritance() -> Inherited:
    """Return what a fork of this process has of the script modules. Runs pickling hooks of the user's objects."""
    found: Inherited = {}
    for module_name in sorted(scripts):
        module = sys.modules.get(module_name)
        for name, value in list(vars(module).items()) if isinstance(module, ModuleType) else ():
            found[module_name, name] = reference(value), Looks(value)
            if issubclass(type(value), type) and module_of(value) == module_name:
                for attribute, each in list(vars(value).items()):
                    found[module_name, f"{name}.{attribute}"] = reference(each), Looks(each)
    return found


def describe(name: str) -> dict[str, Any]:
    """Return what stands for a script module in a worker: the attributes that the import system gave it here."""
    own = getattr(sys.modules.get(name), "__dict__", {})  # not its `__getattr__`, which is the user's
    spec = own.get("__spec__")
    found = {each: own.get(each) for each in ("__file__", "__doc__", "__package__")}
    found.update(spec=getattr(spec, "name", None), origin=getattr(spec, "origin", None))
    files = [each for each in TYPED if name == "__main__" and own.get("__file__", each) == each]
    typed = [(each, text) for each in files if (text := typed_text(each))]  # the program itself, if it was in no file
    return {each: value if type(value) is str else None for each, value in found.items()} | {"typed": (*typed, None)[0]}
