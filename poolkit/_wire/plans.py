"""Plans: what a call needs of the script modules of this process, each name in the version of this moment.

    Plan        the items that some names need, directly and through others, and what must not have changed since
    Manifest    the items of a plan as one call carries them
    Sent        what one worker has been sent, and what it still lacks for a call

A call of an unchanged function costs one look at its plan: all names are bound to the same objects, small values that
can change in place give the same pickle. Otherwise the plan is made again, of the items that are still current.
Thread safety: two threads that make the same plan at once both do it, of the same items. `Sent` is guarded by the
pool's lock.

    DEFINE frame    a pickle of (numbers of manifests that are gone, number, serials, bundle, items, modules)

It stands directly before the first call that needs it, on the same link. What is taken back needs nothing: the worker
keeps what came and makes it when a call is to run that needs it.
"""

from __future__ import annotations

import itertools
import marshal
import pickle
import sys
from _weakref import ref
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from operator import is_, itemgetter
from types import FunctionType, ModuleType
from typing import Any

from poolkit._wire import sharing
from poolkit._wire.finding import is_importable
from poolkit._wire.items import ABSENT, IMPORT, MISSING, STATEMENT, Item, Looks, Ref, reference
from poolkit._wire.modules import goes_by_value, module_of, scripts, when_more
from poolkit._wire.namespace import Namespace
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.source import TYPED, typed_text

MOST_PLANS = 1024
FEWEST_PLANS = 16  # that are made before one looks which are still of use
MOST_ROUNDS = 10

_numbers = itertools.count(1)  # of manifests


class Manifest:
    """What one call needs, as it was when the call was submitted. Frozen after __init__."""

    __slots__ = ("__weakref__", "bundles", "items", "modules", "number")

    def __init__(self, items: tuple[Item, ...], bundles: tuple[tuple[Item, ...], ...], modules: frozenset[str]) -> None:
        self.modules = modules  # the script modules that are to be there
        self.number = next(_numbers)
        self.items = items
        self.bundles = bundles  # every plain function of the modules concerned, for code that looks them up by name

    def describe(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what stands for those of these modules that a worker cannot import."""
        return {name: describe(name) for name in names if name in scripts}


class Plan:
    """The items that some names need, and what must not have changed since. Frozen after __init__."""

    def __init__(self, items: dict[Ref, Item], unbound: list[Ref], manifest: Manifest) -> None:
        self.manifest = manifest
        bound: dict[str, dict[str, object]] = {}
        self._looked_at: list[tuple[Any, str, Item]] = []  # what may change in place, or is kept by a weak reference
        self._functions: list[tuple[FunctionType, object]] = []  # those that have neither defaults nor attributes
        self._classes: list[tuple[Any, int, Any, int, Any, tuple[object, ...]]] = []
        for (module_name, name), item in items.items():
            namespace, own = _namespaces[module_name].dict, item.strong
            if item.looks.is_followed or item.weak is not None:
                top, _, attribute = name.rpartition(".")
                holder = vars(items[module_name, top].strong) if top else namespace
                self._looked_at.append((holder.get, attribute, item))
            if "." in name or "#" in name or own is MISSING or item.weak is not None:
                continue
            bound.setdefault(module_name, {})[name] = own
            if type(own) is FunctionType and not item.looks.is_followed:
                self._functions.append((own, item.looks.parts[0]))
            elif item.snapshot is not None and isinstance(own, type):
                attributes, subclasses = vars(own), type.__subclasses__.__get__(own)
                look_up, values = _looked_up({each: has for each, has in attributes.copy().items() if each[:2] != "__"})
                self._classes.append((attributes, len(attributes), subclasses, len(subclasses()), look_up, values))
        self._attributes = [each.__dict__ for each, _ in self._functions]
        self._unbound = [
            (_namespaces[home].dict.keys(), frozenset(name for module_name, name in unbound if module_name == home))
            for home in {module_name for module_name, _ in unbound}
        ]
        self._modules = [(name, _namespaces[name].module) for name in manifest.modules]
        self._bindings = [(_namespaces[module].dict, *_looked_up(values)) for module, values in bound.items()]
        self._is_simple = not (self._classes or self._looked_at)

    def is_current(self) -> bool:  # noqa: C901, PLR0911 -- one kind of change after another
        """Return True if nothing has changed. Costs some 50 ns a name."""
        for name, module in self._modules:
            if sys.modules.get(name) is not module:
                return False
        try:
            for namespace, look_up, values in self._bindings:
                if not all(map(is_, look_up(namespace), values)):
                    return False
            for function, code in self._functions:
                if function.__code__ is not code or function.__defaults__ or function.__kwdefaults__:
                    return False
            for names, others in self._unbound:
                if not names.isdisjoint(others):
                    return False
            if any(self._attributes):
                return False
            return self._is_simple or self._is_rest_current()
        except KeyError:  # a name that is bound no more
            return False

    def _is_rest_current(self) -> bool:
        for attributes, count, subclasses, known, look_up, values in self._classes:
            if len(attributes) != count or len(subclasses()) != known:
                return False
            if values and not all(map(is_, look_up(attributes), values)):
                return False
        for get, name, item in self._looked_at:
            value = get(name)
            if item.get() is not value or not item.looks.are_those_of(value):
                return False
        return True


def _looked_up(values: dict[str, object]) -> tuple[Any, tuple[object, ...]]:
    """Return what looks up all names of some dict at once, and what is to be found."""
    if len(values) > 1:
        return itemgetter(*values), tuple(values.values())
    return (lambda found: [found[each] for each in values]), tuple(values.values())  # an itemgetter gives no tuple


_namespaces: dict[str, Namespace] = {}  # one atomic operation at a time, from any thread
_plans: dict[Any, Plan] = {}  # the same
_room = FEWEST_PLANS


def _forget(new: tuple[str, ...]) -> None:
    """What was planned may refer to these modules by their names."""
    _plans.clear()
    for namespace in list(_namespaces.values()):
        namespace.forget(new)


when_more.append(_forget)


def manifest_for(root: Ref | None, names: AbstractSet[Ref]) -> Manifest | None:
    """Return what a call needs that refers to these names of script modules. Thread-safe.

    Runs the pickling hooks of the user's objects; what cannot be pickled is for the worker to miss.
    """
    key: Any = root if not names else frozenset(names) if root is None else frozenset((root, *names))
    plan = _plans.get(key)
    if plan is None or not plan.is_current():
        plan = _make_plan(key if type(key) is frozenset else (root,), plan)
        if plan is None:
            return None
        if len(_plans) >= min(_room, MOST_PLANS):
            _make_room()
        _plans[key] = plan
    return plan.manifest


def _make_room() -> None:
    """Let go of plans that are not current: they keep alive what was defined before."""
    global _room  # noqa: PLW0603 -- which any thread may set
    for key in [key for key, plan in list(_plans.items()) if not plan.is_current()]:
        _plans.pop(key, None)
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    _room = 2 * len(_plans) + FEWEST_PLANS


def _namespace_for(module_name: str) -> Namespace | None:
    """Return what is known of a script module; None if it is not there any more."""
    module, known = sys.modules.get(module_name), _namespaces.get(module_name)
    if (known is None or known.module is not module) and isinstance(module, ModuleType):
        known = _namespaces[module_name] = Namespace(module_name, module)
    return known if known is not None and known.module is module else None


def _make_plan(roots: Any, before: Plan | None) -> Plan | None:
    sharing.look()
    for _ in range(MOST_ROUNDS):  # several only where names refer to each other, through others or in circles
        items, unbound, pending = _collect(roots)
        if not _remake(items):
            break
    modules = frozenset(name for name in {module for module, _ in pending} if name in _namespaces)
    if not modules:
        return None
    ordered = tuple(_ordered(items))
    bundles = tuple(_namespaces[name].bundle() for name in sorted(modules))
    if before is not None and before.manifest.items == ordered and before.manifest.bundles == bundles:
        return Plan(items, unbound, before.manifest)
    return Plan(items, unbound, Manifest(ordered, bundles, modules))


def _collect(roots: Any) -> tuple[dict[Ref, Item], list[Ref], list[Ref]]:
    """Return the items that names need, directly and through others, the names that are not bound, and all names."""
    items: dict[Ref, Item] = {}
    unbound: list[Ref] = []
    pending: list[Ref] = list(roots)
    for each in pending:  # grows while we go through it
        module_name, name = each
        namespace = None if each in items else _namespace_for(module_name)
        if namespace is None:
            continue
        if name == "*":
            pending += [(module_name, bound) for bound in namespace.own_names()]
        elif namespace.is_builtin(name):
            unbound.append(each)
        elif (item := namespace.item(name)) is not None:
            items[each] = item
            if item.strong is MISSING and "." not in name:
                unbound.append(each)
            pending += (*item.now, *item.later)
            if item.snapshot is not None and isinstance(item.strong, type):
                pending += namespace.class_names(item, item.strong)
    return items, unbound, pending


def _remake(items: dict[Ref, Item]) -> bool:
    """Make anew what refers to older versions of others, and what is in a circle; return whether there was any."""
    found = False
    for (module_name, name), item in items.items():
        is_stale = not all(_namespaces[module].circle_of(each) == item.circle for module, each in item.circle)
        if item.refers:
            basis = tuple(items[ref].serial for ref, _ in item.bound if ref in items)
            is_stale |= item.basis not in (None, basis)
            item.basis = basis if item.basis is None else item.basis
        if is_stale:
            _namespaces[module_name].item(name, again=True)
            found = True
    for circle in sharing.circles_in(items):
        for module_name, name in circle:
            _namespaces[module_name].item(name, circle)
        found = True
    return found


def _ordered(items: dict[Ref, Item]) -> list[Item]:
    """Return the items, each behind what it needs at once; else imports, functions, data, statements by their lines."""
    needs = {key: {each for each in item.now if each != key} for key, item in items.items()}
    waiting = dict.fromkeys(sorted(items, key=lambda key: (_rank(items[key]), key)))
    ordered: list[Item] = []
    while waiting:
        key = next((each for each in waiting if needs[each].isdisjoint(waiting)), None)
        if key is None:  # a circle: it is begun somewhere, best where empty containers stand for what is missing
            rest = [each for each in waiting if "." not in each[1]]  # attributes are in none, as nothing needs them
            shells = {each for each in waiting if items[each].shell is not None}
            key = next((each for each in rest if needs[each] & waiting.keys() <= shells), rest[0])
        del waiting[key]
        ordered.append(items[key])
    return ordered


def _rank(item: Item) -> tuple[int, tuple[int, int], int]:
    if item.kind == STATEMENT:
        return 3, item.line, item.serial
    return (0 if item.kind == IMPORT else 1 if type(item.strong) is FunctionType else 2), (0, 0), item.serial


# ===== what a worker has =====


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
        descriptions = manifest.describe(names)
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


Inherited = dict[Ref, tuple[Callable[[], object], Looks]]  # by module and name


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
    # The program itself, if it was in no file. What is on standard input is data, unless it is that.
    typed = next(((each, text) for each in files if (text := typed_text(each))), None)
    is_here = goes_by_value(name) and is_importable(name)  # where workers of this machine have it from
    return {each: value if type(value) is str else None for each, value in found.items()} | {
        "typed": typed,
        "is_here": is_here,
    }
