"""Reseed: gives a generator of random numbers a state of its own in each worker.

The new state follows from the old one and the worker's number: no two workers draw the same, and where the old one was
seeded with a fixed number, a worker of the same number draws the same in each run.
No module is imported for that: where it is not loaded, nobody has a generator of it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_WORDS = 4  # of 64 bits, drawn from the old state


def reseeded(generator: Any, number: int) -> bool:
    """Reseed a generator in place, for the worker of this number; return whether it was one.

    Those of `random` but SystemRandom, which has no state; numpy's Generator and RandomState.
    """
    kind = type(generator)  # the class of an object that stands for another is its own
    try:
        if _is_of_random(kind):
            generator.seed(generator.getrandbits(64 * _WORDS) << 64 | number)
        elif _is_of_numpy(kind, "Generator"):
            bits = generator.bit_generator
            bits.__setstate__(_successor(bits, number).__getstate__())  # and with it, what it spawns
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


def _is_of_random(kind: type) -> bool:
    found = getattr(sys.modules.get("random"), "Random", None)
    return found is not None and issubclass(kind, found) and not issubclass(kind, sys.modules["random"].SystemRandom)


def _is_of_numpy(kind: type, name: str) -> bool:
    found = getattr(sys.modules.get("numpy.random"), name, None)
    return found is not None and issubclass(kind, found)


def generators_in(names: Iterable[str]) -> list[Any]:
    """Return the generators among the globals of these modules, each once, but for the hidden ones of the libraries.

    Those are seeded anew in each worker, as after a fork.
    """
    random, mtrand = sys.modules.get("random"), sys.modules.get("numpy.random.mtrand")
    if random is None and mtrand is None:
        return []
    hidden = {id(getattr(random, "_inst", None)), id(getattr(mtrand, "_rand", None))}
    found: dict[int, Any] = {}
    for name in names:
        for value in list(getattr(sys.modules.get(name), "__dict__", {}).values()):
            kind = type(value)
            is_one = _is_of_random(kind) or _is_of_numpy(kind, "Generator") or _is_of_numpy(kind, "RandomState")
            if is_one and id(value) not in hidden:
                found[id(value)] = value
    return list(found.values())
