"""Reseed: gives a generator of random numbers a state of its own in each worker.

The new state follows from the old one and the worker's number: no two workers draw the same, and a fixed seed gives a
worker of the same number the same numbers in each run. No module is imported for that. Among globals of a script a
generator is reseeded where it is made, whatever refers to it; as an argument it is used as it is.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types
from collections.abc import Iterable

from poolkit._typing import Any

_WORDS = 4  # of 64 bits, drawn from the old state
_PROTOCOL = 5  # of pickles
_HIDDEN = (("random", "_inst"), ("numpy.random.mtrand", "_rand"))  # behind the functions of the libraries
MOST_LOOKED_AT = 50_000  # objects in which generators are looked for
_LEAVES = frozenset({
    int, str, bytes, float, complex, bool, type(None), types.ModuleType, types.CodeType, types.FrameType,
    types.GeneratorType, types.CoroutineType,
})  # fmt: skip

worker_number = 0
"""Of this process; 0 where it is no worker."""


def _class(module: str, name: str) -> Any:
    """Return a class of a library, as what `issubclass` takes; nothing where it is not loaded."""
    return getattr(sys.modules.get(module), name, ())


def kinds() -> tuple[type, ...]:
    """Return the classes of generators that this process may have, SystemRandom, which has no state, included."""
    found = [_class("numpy.random", name) for name in ("Generator", "RandomState", "BitGenerator")]
    return tuple(each for each in (_class("random", "Random"), *found) if each)


def _hidden() -> list[Any]:
    return [getattr(sys.modules.get(module), name, None) for module, name in _HIDDEN]


def reduce_generator(generator: Any) -> Any:
    """Return how to make a generator in a worker, for a pickler's `reducer_override`; NotImplemented for others."""
    kind = type(generator)
    if not issubclass(kind, kinds()):
        return NotImplemented
    for place, each in zip(_HIDDEN, _hidden()):  # noqa: B905 -- as many
        if generator is each:
            return _find_hidden, place
    if issubclass(kind, _class("random", "SystemRandom")):
        return kind, ()
    reduced = generator.__reduce_ex__(_PROTOCOL)
    if type(reduced) is str:
        return NotImplemented
    make, args, state, items, pairs = (*reduced, None, None, None)[:5]
    has_bits = any(issubclass(type(each), _class("numpy.random", "BitGenerator")) for each in args)
    if has_bits and issubclass(kind, _class("numpy.random", "Generator")):
        return NotImplemented  # those are reseeded
    return make, args, [state], items, pairs, _set_state


def _find_hidden(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _set_state(generator: Any, held: list[Any]) -> None:
    (state,) = held
    if state is not None and hasattr(generator, "__setstate__"):
        generator.__setstate__(state)
    elif state is not None:
        vars(generator).update(state)
    if worker_number:
        reseeded(generator, worker_number)


def reseeded(generator: Any, number: int) -> bool:
    """Reseed a generator in place, for the worker of this number; return whether it was one that has a state."""
    kind = type(generator)  # the class of an object that stands for another is its own
    try:
        if issubclass(kind, _class("random", "Random")) and not issubclass(kind, _class("random", "SystemRandom")):
            generator.seed(generator.getrandbits(64 * _WORDS) << 64 | number)
        elif issubclass(kind, (_class("numpy.random", "Generator"), _class("numpy.random", "BitGenerator"))):
            bits = getattr(generator, "bit_generator", generator)
            bits.__setstate__(_successor(bits, number).__getstate__())  # and with it, what it spawns
        elif issubclass(kind, _class("numpy.random", "RandomState")):
            new = _successor(generator._bit_generator, number)  # noqa: SLF001 -- there is no other way to it
            generator.set_state({**generator.get_state(legacy=False), **new.state, "has_gauss": 0, "gauss": 0.0})
        else:
            return False
    except Exception:  # noqa: BLE001 -- a class of the user's that is not seeded so
        return False
    return True


def _successor(bits: Any, number: int) -> Any:
    words = [int(word) for word in bits.random_raw(_WORDS)]
    return type(bits)(sys.modules["numpy.random"].SeedSequence([*words, number]))


def generators_in(names: Iterable[str]) -> list[Any]:
    """Return the generators that the globals of these modules refer to, each once, but for the libraries' hidden ones.

    Those are seeded anew in each worker, as after a fork.
    """
    names = list(names)
    namespaces = [getattr(sys.modules.get(name), "__dict__", {}).copy() for name in names]
    return generators_from([value for namespace in namespaces for value in namespace.values()], names)


def generators_from(values: list[Any], modules: Iterable[str]) -> list[Any]:
    """Return the generators among values and what they refer to, but for the attributes of classes of other modules."""
    wanted = kinds()
    if not wanted:
        return []
    own, pending = set(modules), list(values)
    found: dict[int, Any] = {}
    seen = {id(each) for each in _hidden()}
    seen.update(id(getattr(module, "__dict__", None)) for module in sys.modules.copy().values())
    most = len(pending) + MOST_LOOKED_AT
    for value in pending:  # grows while we go through it, the nearest first
        kind = type(value)
        if kind in _LEAVES or id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(kind, wanted):
            bits = getattr(value, "bit_generator", value)  # of several Generators it may be the same
            if not issubclass(kind, _class("random", "SystemRandom")):
                found.setdefault(id(bits), value)
            seen.add(id(bits))
        elif len(pending) < most and (not issubclass(kind, type) or value.__module__ in own):
            pending += gc.get_referents(value)
    return list(found.values())
