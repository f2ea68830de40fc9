"""Reseed: gives a generator of random numbers a state of its own in each worker.

The new state follows from the old one and the worker's number: no two workers draw the same, and where the old one was
seeded with a fixed number, a worker of the same number draws the same in each run.
No module is imported for that: where it is not loaded, nobody has a generator of it.
Among globals of a script a generator travels so that it is reseeded where it is made, whatever refers to it; as an
argument it is used as it is.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_WORDS = 4  # of 64 bits, drawn from the old state
_PROTOCOL = 5  # of pickles
MOST_LOOKED_AT = 50_000  # objects in which generators are looked for

worker_number = 0
"""Of this process; 0 where it is no worker."""


def kinds() -> tuple[type, ...]:
    """Return the classes of generators that this process may have, SystemRandom, which has no state, included."""
    numpy = sys.modules.get("numpy.random")
    found = [getattr(numpy, name, None) for name in ("Generator", "RandomState", "BitGenerator")]
    return tuple(each for each in (getattr(sys.modules.get("random"), "Random", None), *found) if each is not None)


def hidden() -> list[tuple[str, str, Any]]:
    """Return the generators behind the functions of the libraries, by module and name."""
    places = (("random", "_inst"), ("numpy.random.mtrand", "_rand"))
    found = [(module, name, getattr(sys.modules.get(module), name, None)) for module, name in places]
    return [each for each in found if each[2] is not None]


def reduce_generator(generator: Any) -> Any:
    """Return how to make a generator in a worker, for a pickler's `reducer_override`; NotImplemented for others."""
    if not issubclass(type(generator), kinds()):
        return NotImplemented
    for module, name, each in hidden():
        if generator is each:
            return _hidden, (module, name)
    if not _is_of_random(type(generator)) and _is_of_random(type(generator), "SystemRandom"):
        return type(generator), ()
    reduced = generator.__reduce_ex__(_PROTOCOL)
    if type(reduced) is str:
        return NotImplemented
    make, args, state, *items = (*reduced, None)[: max(len(reduced), 3)]
    if _is_of_numpy(type(generator), "Generator") and args and _is_of_numpy(type(args[0]), "BitGenerator"):
        return NotImplemented  # that one is reseeded
    return make, args, [state], *(*items, None, None)[:2], _set_state


def _hidden(module: str, name: str) -> Any:
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
    """Reseed a generator in place, for the worker of this number; return whether it was one.

    Those of `random` but SystemRandom, which has no state; numpy's Generator, RandomState and BitGenerator.
    """
    kind = type(generator)  # the class of an object that stands for another is its own
    try:
        if _is_of_random(kind):
            generator.seed(generator.getrandbits(64 * _WORDS) << 64 | number)
        elif _is_of_numpy(kind, "Generator"):
            bits = generator.bit_generator
            bits.__setstate__(_successor(bits, number).__getstate__())  # and with it, what it spawns
        elif _is_of_numpy(kind, "BitGenerator"):
            generator.__setstate__(_successor(generator, number).__getstate__())
        elif _is_of_numpy(kind, "RandomState"):
            old = generator.get_state(legacy=False)
            new = _successor(generator._bit_generator, number)  # noqa: SLF001 -- there is no other way to it
            generator.set_state({**old, **new.state, "has_gauss": 0, "gauss": 0.0})
        else:
            return False
    except Exception:  # noqa: BLE001 -- a class of the user's that is not seeded so
        return False
    return True


def _successor(bits: Any, number: int) -> Any:
    words = [int(word) for word in bits.random_raw(_WORDS)]
    return type(bits)(sys.modules["numpy.random"].SeedSequence([*words, number]))


def _is_of_random(kind: type, name: str = "Random") -> bool:
    """Return True for a class of generators with a state; or of those without one."""
    found = getattr(sys.modules.get("random"), name, None)
    if found is None or not issubclass(kind, found):
        return False
    return name != "Random" or not issubclass(kind, sys.modules["random"].SystemRandom)


def _is_of_numpy(kind: type, name: str) -> bool:
    found = getattr(sys.modules.get("numpy.random"), name, None)
    return found is not None and issubclass(kind, found)


def generators_in(names: Iterable[str]) -> list[Any]:
    """Return the generators that the globals of these modules refer to, each once, but for the libraries' hidden ones.

    Those are seeded anew in each worker, as after a fork.
    """
    names = list(names)
    namespaces = [getattr(sys.modules.get(name), "__dict__", {}) for name in names]
    return generators_from([value for namespace in namespaces for value in list(namespace.values())], names)


def generators_from(values: list[Any], modules: Iterable[str]) -> list[Any]:
    """Return the generators among values and what they refer to, but for the attributes of classes of other modules.

    Objects within objects are looked at as far as `MOST_LOOKED_AT` goes, the nearest first.
    """
    wanted = kinds()
    if not wanted:
        return []
    own, pending = set(modules), list(values)
    found: dict[int, Any] = {}
    seen = {id(each) for _, _, each in hidden()}
    seen.update(id(getattr(module, "__dict__", None)) for module in sys.modules.copy().values())
    most = len(pending) + MOST_LOOKED_AT
    for value in pending:  # grows while we go through it
        kind = type(value)
        if kind in _LEAVES or id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(kind, wanted):
            bits = getattr(value, "bit_generator", None)  # of several Generators it may be the same
            found.setdefault(id(value if bits is None else bits), value)
            seen.add(id(bits))
        elif len(pending) < most and (not issubclass(kind, type) or value.__module__ in own):
            pending += gc.get_referents(value)
    return [each for each in found.values() if not _is_of_random(type(each), "SystemRandom")]


_LEAVES = frozenset({
    int, str, bytes, float, complex, bool, type(None), types.ModuleType, types.CodeType, types.FrameType,
    types.GeneratorType, types.CoroutineType,
})  # fmt: skip
