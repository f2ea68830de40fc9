"""Globals that refer to each other, and generators in them: through a pool, with each start method."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

METHODS = ["forkserver", "spawn", "fork"]

DRAWS = """
    import functools, random
    from random import random as hidden
    import poolkit

    class Simulation:
        own = random.Random(6)
        def __init__(self): self.rng = random.Random(3)
        def draw(self, default=random.Random(7)):
            return self.rng.random(), self.own.random(), default.random()

    def make():
        rng = random.Random(4)
        return lambda: rng.random()

    rngs = {{"a": [random.Random(5)]}}
    draw, bound, closed = Simulation().draw, random.Random(9).random, make()
    part = functools.partial(random.Random.random, random.Random(8))

    def go():
        return *draw(), bound(), closed(), part(), rngs["a"][0].random(), hidden()

    found = []
    with poolkit.Pool(1, start_method={method!r}) as pool:
        for _ in range(3):
            found.append(pool.submit(go).result())
            pool.submit(eval, "__import__('os')._exit(1)").exception()  # the next one is another worker's
    print([len(set(column)) for column in zip(*found)])
    print([numbers[:-1] for numbers in found])
    """


@pytest.mark.long
def test_no_two_workers_draw_the_same_from_what_globals_refer_to() -> None:
    """And a fixed seed gives a worker of one number the same, however it is started."""
    found = [run(DRAWS.format(method=method)) for method in METHODS]
    assert [lines[0] for lines in found] == [f"[{', '.join('3' * 8)}]"] * 3
    assert found[0][1] == found[1][1] == found[2][1]


CHANGES = """
    import poolkit

    class Node:
        value = 0

    settings, numbers = {{"depth": 1}}, [1]
    table, again = {{"numbers": numbers}}, numbers
    a, b = Node(), Node()
    a.other, b.other = b, a

    def by_default(x=settings): return x is settings, dict(x)

    def look():
        return (
            by_default(), table["numbers"] is numbers, again is numbers, list(again), a.other is b, b.other is a,
            b.other.value, a.other.value, b.value,
        )

    with poolkit.Pool(1, start_method={method!r}) as pool:
        pool.warm_up()
        def agrees(): return pool.submit(look).result() == look()
        print(agrees())
        settings["depth"] = 2
        print(agrees())
        numbers.append(2)
        a.value = 5
        print(agrees())
        numbers = [7]
        print(agrees())
        table["numbers"] = again = numbers
        print(agrees())
        b = Node()
        b.other, b.value = a, 1
        print(agrees())
        a.other = b
        print(agrees())
        a.value = 8
        print(agrees())
    """


@pytest.mark.parametrize("method", METHODS)
def test_changes_of_globals_that_others_refer_to_are_followed(method: str) -> None:
    """By workers that are copies of the owner, too."""
    assert run(CHANGES.format(method=method)) == ["True"] * 8
