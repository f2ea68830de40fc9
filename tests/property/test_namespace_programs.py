"""Random scripts, worked on as in a session: a worker gives what the functions give here.

Functions call each other, and look at data of many kinds and at classes; between calls, names are bound again, data is
changed in place, functions and classes are defined again. Calls are run in the order in which they were packed, some of
them after all of that was changed.
"""

from __future__ import annotations

import functools
import itertools
import linecache
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support_scripts import Packed, ScriptModules, WorkerHalf, pack

DATA, FUNCTIONS = 3, 4
BASE = """
import functools, threading
lock = threading.Lock()
def show(value):
    with lock:
        pass
    if isinstance(value, A):
        return type(value).__name__, value.x, value.own()
    if isinstance(value, (list, tuple)):
        return [show(each) for each in value]
    if isinstance(value, dict):
        return [(key, show(each)) for key, each in value.items()]
    name = getattr(value, "__name__", "")
    if name.startswith("f"):
        return name, type(value).__name__
    return value(2) if callable(value) else repr(value)
class A:
    limit = 0
    def __init__(self, x): self.x = x
    def own(self): return self.limit
"""

VALUES = [
    "{n}",
    "None",
    "'text {n}'",
    "[{n}]",
    "{{'a': {n}}}",
    "{{{n}, 1}}",
    "(1, [{n}])",
    "A({n})",
    "B({n})",
    "[A({n}), B(1)]",
    "{{'b': B({n})}}",
    "lambda x: x + {n}",
    "functools.partial(max, {n})",
    "bytes({n} * 20_000)",
    "list(range({n} * 500))",
    "f{m}",
    "{{'f': A}}.get",
]
IN_PLACE = """
if type(K{i}) is list: K{i}.append({n})
elif type(K{i}) is dict: K{i}['new'] = {n}
elif type(K{i}) is set: K{i}.add({n})
elif type(K{i}) in (A, B): K{i}.x = {n}
"""


class Author:
    """Writes inputs, as a session has them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = functools.partial(self._random.randrange, 10)

    def some(self, choices: Any, most: int) -> list[Any]:
        return self._random.choices(choices, k=self._random.randint(0, most))

    def binding(self, name: int) -> str:
        return f"K{name} = " + self._random.choice(VALUES).format(n=self._number(), m=FUNCTIONS - 1)

    def function(self, name: int) -> str:
        parts = [f"show(K{i})" for i in self.some(range(DATA), 2)]
        if name < FUNCTIONS - 1:
            parts += [f"f{i}()" for i in self.some(range(name + 1, FUNCTIONS), 2)]
        parts += self.some(["show(A(1))", "show(B(2))", "A.limit", "B.__mro__[1].__name__"], 2)
        decorator = self._random.choice(["", "", "@functools.lru_cache(maxsize=0)\n"])
        return f"{decorator}def f{name}(x=0): return [x, {self._number()}, {', '.join(parts)}]"

    def class_(self) -> str:
        decorator, order = self._random.choice(
            [("", ""), ("@functools.total_ordering\n", " def __lt__(self, other): return self.x < other.x\n")]
        )
        own = f" def own(self): return {self._number()}, super().own(), type(K0).__name__, K1 is None"
        return f"{decorator}class B(A):\n{order}{own}"

    def first(self) -> list[str]:
        """What there is before the first call."""
        parts = [*map(self.function, range(FUNCTIONS)), *map(self.binding, range(DATA))]
        return [BASE, self.class_(), *parts]

    def steps(self) -> list[str | int | None]:
        """Inputs, numbers of functions to call, and None: what waits is run."""
        return [self._step() for _ in range(self._random.randrange(15))]

    def _step(self) -> str | int | None:
        kind = self._random.randrange(10)
        if kind < 2:
            return self.binding(self._random.randrange(DATA))
        if kind < 4:
            return IN_PLACE.format(i=self._random.randrange(DATA), n=self._number())
        if kind == 4:
            return self.function(self._random.randrange(FUNCTIONS))
        if kind == 5:
            return self.class_()
        if kind == 6:
            return f"A.limit = {self._random.choice([self._number(), [self._number()]])}"
        return self._random.randrange(FUNCTIONS) if kind < 9 else None


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHalf]:
    """One for all scripts, as each is a module of its own name."""
    worker = WorkerHalf()
    yield worker
    worker.close()


_numbers = itertools.count()


class Session:
    """A module that grows input by input, and the calls that wait."""

    def __init__(self, worker: WorkerHalf, modules: ScriptModules) -> None:
        self._worker = worker
        self._waiting: list[tuple[Packed, Any, str]] = []
        self._inputs: list[str] = []
        self.module: Any = ModuleType(f"session_{next(_numbers)}")
        modules.add(self.module)

    def enter(self, text: str) -> None:
        name = f"<input {len(self._inputs)} of {self.module.__name__}>"
        self._inputs.append(text)
        linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
        exec(compile(text, name, "exec", dont_inherit=True), vars(self.module))  # noqa: S102 -- our own source

    def call(self, number: int) -> None:
        function = getattr(self.module, f"f{number}")
        packed = pack(function)
        self._waiting.append((packed, function(), "\n".join(self._inputs)))

    def run(self) -> None:
        """Run all that waits, in order."""
        while self._waiting:
            packed, expected, program = self._waiting.pop(0)
            assert self._worker.run(packed) == expected, program

    def close(self) -> None:
        for number in range(len(self._inputs)):
            linecache.cache.pop(f"<input {number} of {self.module.__name__}>", None)


@pytest.mark.every_nth(4)
@pytest.mark.parametrize("seed", range(200))
def test_a_worker_gives_what_the_functions_give_here(worker: WorkerHalf, tmp_path: Path, seed: int) -> None:
    author, modules = Author(seed), ScriptModules(tmp_path)
    session = Session(worker, modules)
    try:
        for text in author.first():
            session.enter(text)
        for step in [0, *author.steps(), 0, None]:
            if step is None:
                session.run()
            elif isinstance(step, int):
                session.call(step)
            else:
                session.enter(step)
    finally:
        session.close()
        modules.close()
