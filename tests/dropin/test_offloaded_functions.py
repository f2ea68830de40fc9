"""Functions decorated with `@offload` can be handed to any pool like others: the value comes back."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

MODULE = """
    import asyncio, os
    import poolkit

    @poolkit.offload
    def double(x):
        return 2 * x, os.getpid()

    @poolkit.offload(timeout=60)
    async def double_later(x):
        await asyncio.sleep(0)
        return 2 * x, os.getpid()

    class Counter:
        def __init__(self, by):
            self.by = by

        @poolkit.offload
        def times(self, x):
            return self.by * x, os.getpid()

        @poolkit.offload
        async def times_later(self, x):
            return self.by * x, os.getpid()

        @poolkit.offload
        @classmethod
        def of_class(cls, x):
            return 2 * x, os.getpid()

        @poolkit.offload
        @staticmethod
        def of_none(x):
            return 2 * x, os.getpid()
"""

PROGRAM = """
import asyncio, functools, os, sys
import poolkit
from poolkit.testing import FakePool
NAMES

async def awaited(pool, fn):
    return await asyncio.get_running_loop().run_in_executor(pool, fn, 4)

counter = Counter(2)
functions = [double, double_later, double.options(timeout=9), counter.times, counter.times_later, Counter.of_class]
functions += [counter.of_none, functools.partial(double), poolkit.offload(lambda x: (2 * x, os.getpid()))]
later = [double_later, functions[4]]
make = FakePool if sys.argv[1] == "fake" else functools.partial(poolkit.Pool, 2, kind=sys.argv[1])
with make() as pool:
    for fn in functions:
        found = [pool.submit(fn, 4).result(), pool.options(priority=1).submit(fn, 4).result()]
        if fn not in later:
            found += [list(pool.map(fn, [4]))[0], list(pool.starmap(fn, [(4,)]))[0]]
        found += [asyncio.run(awaited(pool, fn))] if sys.argv[1] != "fake" else []
        assert {value for value, _ in found} == {8}, (fn, found)
        elsewhere = {pid != os.getpid() for _, pid in found}
        assert elsewhere == {sys.argv[1] == "process"}, (fn, found)
    print(len(functions))
"""


@pytest.mark.parametrize("kind", ["process", "thread", "fake"])
def test_those_of_a_module(kind: str, tmp_path: Path) -> None:
    (tmp_path / "offloaded_here.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    names = f"sys.path.insert(0, {str(tmp_path)!r})\nfrom offloaded_here import Counter, double, double_later"
    assert run(PROGRAM.replace("NAMES", names), kind) == ["9"]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_those_of_the_script(kind: str) -> None:
    assert run(PROGRAM.replace("NAMES", textwrap.dedent(MODULE)), kind) == ["9"]
