"""A generator of random numbers gets a state of its own in each worker."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from typing import Any

import pytest

from poolkit._child.reseed import generators_in, reseeded


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
        numpy.random.RandomState(1),
        numpy.random.RandomState(numpy.random.PCG64(1)),
    ]


def test_it_follows_from_the_state_and_the_number() -> None:
    for generator in generators():
        generator.random()
        other, same, later, untouched = (copy.deepcopy(generator) for _ in range(4))
        later.random()
        for each, number in ((generator, 1), (other, 2), (same, 1), (later, 1)):
            assert reseeded(each, number) is True
        drawn = [[each.random() for _ in range(3)] for each in (generator, other, same, later, untouched)]
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
        "import sys\nfrom poolkit._child.reseed import generators_in, reseeded\n"
        "assert not reseeded(1, 1) and not generators_in(['sys'])\n"
        "assert not {'numpy', 'random'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
