"""A generator of random numbers gets a state of its own in each worker."""

from __future__ import annotations

import copy
import io
import pickle
import random
import subprocess
import sys
from typing import Any

import pytest

from poolkit._wire import reseed
from poolkit._wire.reseed import generators_in, reduce_generator, reseeded


class Own(random.Random):
    pass


class Odd(random.Random):
    def seed(self, *args: Any) -> None:
        if getattr(self, "made", False):
            raise TypeError
        self.made = True


def generators() -> list[Any]:
    numpy = pytest.importorskip("numpy")
    kinds = [numpy.random.PCG64, numpy.random.MT19937, numpy.random.Philox, numpy.random.SFC64]
    return [
        random.Random(1),
        Own(1),
        *[numpy.random.Generator(kind(1)) for kind in kinds],
        numpy.random.PCG64(1),
        numpy.random.RandomState(1),
        numpy.random.RandomState(numpy.random.PCG64(1)),
    ]


def draw(generator: Any) -> float:
    return generator.random() if hasattr(generator, "random") else generator.random_raw()


class GlobalsPickler(pickle.Pickler):
    """As globals are pickled."""

    def reducer_override(self, obj: Any) -> Any:
        return reduce_generator(obj)


def sent(value: Any, number: int) -> Any:
    """What a worker of this number makes of a global."""
    file = io.BytesIO()
    GlobalsPickler(file).dump(value)
    before, reseed.worker_number = reseed.worker_number, number
    try:
        return pickle.loads(file.getvalue())
    finally:
        reseed.worker_number = before


def test_it_follows_from_the_state_and_the_number() -> None:
    for generator in generators():
        draw(generator)
        other, same, later, untouched = (copy.deepcopy(generator) for _ in range(4))
        draw(later)
        for each, number in ((generator, 1), (other, 2), (same, 1), (later, 1)):
            assert reseeded(each, number) is True
        drawn = [[draw(each) for _ in range(3)] for each in (generator, other, same, later, untouched)]
        assert drawn[0] == drawn[2]
        assert len(set(map(tuple, drawn))) == 4, generator


def test_what_was_kept_of_the_last_draw_is_gone() -> None:
    """Normal numbers are drawn in pairs."""
    numpy = pytest.importorskip("numpy")
    for one, draw in ((random.Random(1), "gauss"), (numpy.random.RandomState(1), "normal")):
        getattr(one, draw)(0, 1)
        other = copy.deepcopy(one)
        reseeded(one, 1)
        reseeded(other, 2)
        assert getattr(one, draw)(0, 1) != getattr(other, draw)(0, 1)


def test_what_a_generator_spawns_differs_too() -> None:
    numpy = pytest.importorskip("numpy", "2.0")
    one, other = numpy.random.default_rng(1), numpy.random.default_rng(1)
    reseeded(one, 1)
    reseeded(other, 2)
    assert one.spawn(1)[0].random() != other.spawn(1)[0].random()


@pytest.mark.parametrize("other", [random.SystemRandom(), 1, None, random.random, random, Odd()])
def test_everything_else_is_left_alone(other: Any) -> None:
    assert reseeded(other, 1) is False


def test_those_of_a_module_are_found_once_and_hidden_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    module: Any = type(sys)("own")
    monkeypatch.setitem(sys.modules, "own", module)
    module.one = module.again = random.Random(1)
    module.two = numpy.random.default_rng(1)
    module.system, module.hidden = random.SystemRandom(), random._inst  # type: ignore[attr-defined]
    module.numpys, module.number = numpy.random.mtrand._rand, 1
    assert generators_in(["own", "absent"]) == [module.one, module.two]


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys\nfrom poolkit._wire.reseed import generators_in, reseeded\n"
        "assert not reseeded(1, 1) and not generators_in(['sys'])\n"
        "assert not {'numpy', 'random'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_generator_that_is_sent_follows_from_its_state_and_the_number() -> None:
    for generator in generators():
        one, again, other, owners = (sent([generator], number)[0] for number in (1, 1, 2, 0))
        drawn = [[draw(each) for _ in range(3)] for each in (one, again, other, owners, generator)]
        assert drawn[0] == drawn[1]
        assert drawn[3] == drawn[4]  # a process that is no worker has it as it was
        assert len({*drawn[0], *drawn[2], *drawn[3]}) == 9, generator


def test_what_is_no_copy_of_a_state_is_sent_as_what_it_is() -> None:
    assert type(sent(Own(1), 1)) is Own
    assert 0 <= sent({"a": random.SystemRandom()}, 1)["a"].random() < 1
    assert sent([random.random, random.Random], 1) == [random.random, random.Random]


def test_what_has_a_name_as_its_pickle_goes_by_that() -> None:
    class Named(random.Random):
        def __reduce__(self) -> str:
            return "named"

    assert reduce_generator(Named()) is NotImplemented


HOLDERS = """
import functools
def keep(kept):
    return lambda: kept
class Holder: pass
def hold(held):
    holder = Holder()
    holder.held = held
    return holder
"""


@pytest.mark.parametrize(
    "expression",
    [
        "{'a': [rng]}",
        "rng.random",
        "functools.partial(print, rng)",
        "lambda r=rng: 1",
        "lambda *, r=rng: 1",
        "keep(rng)",
        "hold(rng)",
        "type('C', (), {'x': rng, '__module__': 'own'})",
    ],
)
def test_generators_within_the_globals_of_a_module_are_found(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    module: Any = type(sys)("own")
    monkeypatch.setitem(sys.modules, "own", module)
    exec(HOLDERS, vars(module))  # noqa: S102 -- our own source
    rng = random.Random(1)
    module.x = eval(expression, {**vars(module), "rng": rng})  # noqa: S307 -- one of the above
    assert generators_in(["own"]) == [rng]
    monkeypatch.setattr(reseed, "MOST_LOOKED_AT", 0)
    assert generators_in(["own"]) == []


def test_two_generators_that_share_their_bits_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    module: Any = type(sys)("own")
    monkeypatch.setitem(sys.modules, "own", module)
    module.bits = numpy.random.PCG64(1)
    module.one, module.other = numpy.random.Generator(module.bits), numpy.random.Generator(module.bits)
    assert generators_in(["own"]) == [module.bits]


def test_classes_of_other_modules_are_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of whoever imports them."""
    module: Any = type(sys)("own")
    monkeypatch.setitem(sys.modules, "own", module)
    module.C = type("C", (), {"x": random.Random(1), "__module__": "other"})
    assert generators_in(["own"]) == []
