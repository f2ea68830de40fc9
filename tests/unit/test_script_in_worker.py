"""What a script's functions find in a worker: halves of two processes, without a pool."""

from __future__ import annotations

import gc
import itertools
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from poolkit._wire import plans
from support_scripts import ScriptModules, WorkerHalf, pack, run_script

NewScript = Callable[..., Any]
NewWorker = Callable[..., WorkerHalf]
_numbers = itertools.count()


def test_tasks_share_the_globals_of_the_script(new_script: NewScript, new_worker: NewWorker) -> None:
    """Counters, caches, and what `global` binds, as long as the worker lives; the owner's stay as they are."""
    module = new_script("""
count, cache, first = 0, {}, None
def bump(key):
    global count, first
    count += 1
    cache[key] = count
    if first is None: first = key
    return count, dict(cache), first
""")
    worker, other = new_worker(), new_worker(2)
    assert worker.call(module.bump, "a") == (1, {"a": 1}, "a")
    assert worker.call(module.bump, "b") == (2, {"a": 1, "b": 2}, "a")
    assert other.call(module.bump, "c") == (1, {"c": 1}, "c")
    assert (module.count, module.cache, module.first) == (0, {}, None)


def test_a_global_may_hide_a_builtin_after_the_first_call(new_script: NewScript, new_worker: NewWorker) -> None:
    """As `from numpy import sum` does in a later input of a notebook; deleted, it hides it no more."""
    module = new_script("""
class C:
    def m(self): return len([1])
def f(): return len([1]), C().m(), (lambda: len([1]))()
by_value = (lambda: lambda: len([1]))()
""")
    worker = new_worker()
    for change in ("", "len = lambda x: 'hidden'", "del len", "len = lambda x: 'again'"):
        exec(change, vars(module))  # noqa: S102 -- our own source
        assert worker.call(module.f) == module.f()
        assert worker.call(module.by_value) == module.by_value()


def test_a_task_sees_the_globals_of_its_submit(new_script: NewScript, new_worker: NewWorker) -> None:
    """Rebound or changed in place, whichever call comes first; another worker has sent some of them back."""
    module = new_script("""
class C: n = 0
K, L, S, big = [0], [0], 0, bytearray(100_000)
c = C()
c.n = 0
def f(): return K[0], L[0], S, big[0], c.n, C.n
""")
    packed = []
    for number in range(3):
        module.K, module.S, module.C.n = [number], number, number
        module.big = bytearray([number]) * 100_000
        module.L[0] = module.c.n = number
        packed.append(pack(module.f))
    worker = new_worker()
    for number in (0, 1, 2, 0, 2, 1, 1, 0):
        assert worker.run(packed[number]) == (number,) * 6
    assert new_worker(2).run(packed[1]) == (1,) * 6


def test_what_a_task_has_bound_stays_whatever_the_order(new_script: NewScript, new_worker: NewWorker) -> None:
    """It is told by identity from what was sent."""
    module = new_script("K = 1000\ndef f(): return K\ndef bind(x):\n global K\n K = x")
    older = pack(module.f)
    module.K = 2000
    newer = pack(module.f)
    worker = new_worker()
    assert [worker.run(each) for each in (newer, older)] == [2000, 1000]
    worker.call(module.bind, "own")
    assert [worker.run(each) for each in (newer, older, pack(module.f))] == ["own"] * 3


def test_of_a_function_the_newest_counts_whatever_the_order(new_script: NewScript, new_worker: NewWorker) -> None:
    """Plain, decorated, or a class: also for a call that was submitted before."""
    define = "import functools\ndef g(): return {0}\n@functools.lru_cache\ndef h(): return {0}\nclass C: n = {0}"
    module = new_script(define.format(1) + "\ndef f(): return g(), h(), C.n")
    older = pack(module.f)
    exec(compile(define.format(2), module.__file__, "exec"), vars(module))  # noqa: S102 -- our own source
    worker = new_worker()
    assert worker.run(pack(module.f)) == (2, 2, 2)
    assert worker.run(older) == (2, 2, 2)


def test_attributes_that_a_class_has_lost_are_not_in_a_worker(new_script: NewScript, new_worker: NewWorker) -> None:
    """Of its statement, or set on it before or after the first call; but for what a task has set there."""
    module = new_script("""
class B: x = "B"
class C(B):
    x, y = "C", [1]
    def m(self): return 1
C.z, C.own = [1], 5
def f(): return C.x, [name for name in ("y", "z", "m", "later", "own") if hasattr(C, name)]
def g(): C.own = "the task's"
""")
    worker = new_worker()
    older = pack(module.f)
    assert worker.run(older) == module.f() == ("C", ["y", "z", "m", "own"])
    worker.call(module.g)
    module.C.later = 5
    assert worker.call(module.f) == module.f() == ("C", ["y", "z", "m", "later", "own"])
    del module.C.x, module.C.y, module.C.z, module.C.m, module.C.later, module.C.own
    for _ in range(2):
        assert module.f() == ("B", [])
        assert worker.call(module.f) == ("B", ["own"])
        assert worker.run(older)[0] == "C"
    module.C.x = "again"
    assert worker.call(module.f) == ("again", ["own"])


def test_what_a_function_is_given_after_its_first_call_is_followed(
    new_script: NewScript, new_worker: NewWorker
) -> None:
    """Attributes, defaults, code; called by its name and by another; and what is taken away again."""
    module = new_script("""
def f(x=0, *, y=0): return x, y, vars(f)
def g(): return h(), vars(h)
def h(*x): return x
""")
    worker = new_worker()
    expected = []
    for change in (
        "",
        "f.a = h.a = 1",
        "h.__code__ = (lambda *x: 5).__code__",
        "f.__kwdefaults__['y'] = 3",
        "del f.a, h.a",
    ):
        exec(change, vars(module))  # noqa: S102 -- our own source
        expected.append((module.f(), module.g()))
        assert (worker.call(module.f), worker.call(module.g)) == expected[-1]
    exec("h.__defaults__ = f.__defaults__ = (7,)\nf.__kwdefaults__ = {'y': []}", vars(module))  # noqa: S102 -- as above
    assert (worker.call(module.f), worker.call(module.g)) == (module.f(), module.g()) == ((7, [], {}), (5, {}))


@pytest.mark.parametrize("first", ["None", "[1]", "1", "print", "__import__('random').Random(3)"])
def test_a_name_that_is_not_bound_any_more_is_not_in_a_worker(
    new_script: NewScript, new_worker: NewWorker, first: str
) -> None:
    """But for what a task has bound there; and it may be bound again."""
    module = new_script(f"K = {first}\nL = 1\ndef f(): return K\ndef g():\n global L\n L = 2\ndef h(): return L")
    worker = new_worker()
    bound = pack(module.f)
    worker.run(bound)
    worker.call(module.g)
    del module.K, module.L
    assert worker.call(module.h) == 2
    for _ in range(2):
        with pytest.raises(NameError, match="'K'"):
            worker.call(module.f)
        worker.run(bound)
    module.K = 5
    assert worker.call(module.f) == 5


def test_a_function_that_was_defined_again_is_the_new_one(new_script: NewScript, new_worker: NewWorker) -> None:
    """Wherever it is called from; a class likewise, and its instances are of it."""
    module = new_script("def g(): return 1\ndef f(): return g(), C.n\nclass C: n = 1")
    worker = new_worker()
    assert worker.call(module.f) == (1, 1)
    exec("def g(): return 2\nclass C: n = 2", vars(module))  # noqa: S102 -- our own source
    assert worker.call(module.f) == (2, 2)
    assert type(worker.call(module.C)) is module.C


def test_classes_are_the_same_on_both_sides(new_script: NewScript, new_worker: NewWorker) -> None:
    """Arguments, results, exceptions."""
    module = new_script("""
import enum
class Colour(enum.Enum):
    RED = 1
class Point:
    class Part: pass
    def __init__(self, x): self.x = x
class OwnError(Exception): pass
def f(point, colour): return type(point) is Point, colour is Colour.RED, point, colour, Point.Part()
def g(): raise OwnError(Point(1))
""")
    worker = new_worker()
    same, is_red, point, colour, part = worker.call(module.f, module.Point(3), module.Colour.RED)
    assert (same, is_red, type(point), point.x) == (True, True, module.Point, 3)
    assert (colour, type(part)) == (module.Colour.RED, module.Point.Part)
    with pytest.raises(module.OwnError) as caught:
        worker.call(module.g)
    assert type(caught.value.args[0]) is module.Point


def test_a_class_that_only_the_worker_has_comes_home_by_value(new_script: NewScript, new_worker: NewWorker) -> None:
    module = new_script("def f():\n global C\n class C: x = 5\n C.__qualname__ = 'C'\n return C()")
    assert new_worker().call(module.f).x == 5
    assert not hasattr(module, "C")


def test_each_worker_is_sent_only_what_it_lacks(new_script: NewScript, new_worker: NewWorker) -> None:
    module = new_script("K = [1]\nL = [2]\ndef f(): return K\ndef g(): return L")
    worker = new_worker()
    worker.call(module.f)
    assert set(worker.has(module, "K", "L")) == {"K"}
    worker.call(module.g)
    assert worker.has(module, "K", "L") == {"K": [1], "L": [2]}


def test_large_data_is_private_to_a_worker(new_script: NewScript, new_worker: NewWorker) -> None:
    """It is read from memory that all share, and changed in the worker's own."""
    module = new_script("big = bytearray(200_000)\ndef f():\n big[0] += 1\n return big[0], len(big)")
    one, other = new_worker(1), new_worker(2)
    assert [one.call(module.f), one.call(module.f), other.call(module.f)] == [(1, 200_000), (2, 200_000), (1, 200_000)]
    assert module.big[0] == 0


def test_a_worker_has_locks_and_context_variables_of_its_own(new_script: NewScript, new_worker: NewWorker) -> None:
    """In each process one, held by nobody, whatever refers to it."""
    module = new_script("""
import threading
from contextvars import ContextVar
lock = threading.Lock()
own = threading.local()
variable = ContextVar("variable", default=3)
class Guarded:
    def __init__(self): self.lock = threading.RLock()
guarded = Guarded()
def f():
    with lock, guarded.lock:
        own.x = getattr(own, "x", 0) + 1
        variable.set(variable.get() + 1)
        return own.x
""")
    worker = new_worker()
    with module.lock:
        assert worker.call(module.f) == 1
    assert worker.call(module.f) == 2


def test_functions_that_need_no_name_have_their_module(new_script: NewScript, new_worker: NewWorker) -> None:
    """Its name is one that each module has."""
    module = new_script("def f(): return __name__")
    assert new_worker().call(module.f) == module.__name__


@pytest.mark.parametrize("expression", ["(make(), ())", "(list, ([make()],))"])
def test_lambdas_that_need_no_name_have_their_module(
    new_script: NewScript, new_worker: NewWorker, expression: str
) -> None:
    module = new_script("def make():\n return lambda: __name__")
    fn, args = eval(expression, vars(module))  # noqa: S307 -- our own source
    found = new_worker().call(fn, *args)
    assert found == module.__name__ or found[0]() == module.__name__


def test_main_is_the_scripts(tmp_path: Path) -> None:
    """Its file, its name under which multiprocessing knows it, and what tasks look up by name."""
    path = tmp_path / "program.py"
    path.write_text(
        """
import sys
from support_scripts import WorkerHalf
def g(): return 5
class C: pass
def f():
    main = sys.modules["__main__"]
    return main.__file__, main is sys.modules["__mp_main__"], main.g(), globals()["g"](), vars(main) is globals()
if __name__ == "__main__":
    worker = WorkerHalf()
    print(worker.call(f) == (__file__, True, 5, 5, True), worker.call(getattr, sys, "argv") is not None)
    print(type(worker.call(C)) is C, worker.has("__main__", "WorkerHalf"))
    worker.close()
""",
        encoding="utf-8",
    )
    assert run_script(path).splitlines() == ["True True", "True {}"]


@pytest.mark.parametrize("how", ["-c", "file"])
def test_a_program_by_option_has_its_source_too(tmp_path: Path, how: str) -> None:
    """Enums, data classes with slots, and registries are what they are."""
    program = """
import dataclasses, enum
from support_scripts import WorkerHalf
class Planet(enum.Enum):
    EARTH = (1, 2)
    def __init__(self, a, b): self.total = a + b
@dataclasses.dataclass(slots=True)
class Item:
    x: int
    y: list = dataclasses.field(default_factory=list)
class Base:
    known = {}
    def __init_subclass__(cls): Base.known[cls.__name__] = cls
class Sub(Base): pass
def f(item):
    return Planet.EARTH.total, item, [field.name for field in dataclasses.fields(Item)], Base.known["Sub"] is Sub
worker = WorkerHalf()
assert worker.call(f, Item(3)) == (3, Item(3), ["x", "y"], True), worker.call(f, Item(3))
worker.close()
print("right")
"""
    path = tmp_path / "program.py"
    path.write_text(program, encoding="utf-8")
    assert run_script(program if how == "-c" else path) == "right"


@pytest.fixture(scope="module")
def workers() -> Iterator[list[WorkerHalf]]:
    """Two of one number, one of another: each script is a module of its own name."""
    workers = [WorkerHalf(1), WorkerHalf(1), WorkerHalf(2)]
    yield workers
    for worker in workers:
        worker.close()


def draw_twice(new_script: NewScript, workers: list[WorkerHalf], source: str) -> list[list[Any]]:
    if "np." in source:
        pytest.importorskip("numpy")
    script = new_script(f"import random, functools, dataclasses\n{source}", name=f"random_{next(_numbers)}")
    return [[worker.call(script.f) for _ in range(2)] for worker in workers]


@pytest.mark.parametrize(
    "source",
    [
        "rng = random.Random(5)\ndef f(): return rng.random()",
        "draw = random.Random(5).random\ndef f(): return draw()",
        "draw = random.Random(5).gauss\ndef f(): return draw(0,1)",
        "rngs = {'a': random.Random(5)}\ndef f(): return rngs['a'].random()",
        "rngs = [[random.Random(5)]]\ndef f(): return rngs[0][0].random()",
        "class C: rng = random.Random(5)\ndef f(): return C.rng.random()",
        "class C: pass\nC.rng = random.Random(5)\ndef f(): return C.rng.random()",
        "class C: pass\nc=C()\nc.rng = random.Random(5)\ndef f(): return c.rng.random()",
        """
class C:
 def __init__(self): self.rng=random.Random(5)
 def draw(self): return self.rng.random()
draw=C().draw
def f(): return draw()
""",
        "def f(rng=random.Random(5)): return rng.random()",
        "def f(*,rng=random.Random(5)): return rng.random()",
        """
@dataclasses.dataclass
class D:
 rng: object = dataclasses.field(default_factory=lambda: random.Random(5))
d=D()
def f(): return d.rng.random()
""",
        """
rng=random.Random(5)
@dataclasses.dataclass
class D:
 rng: object = rng
d=D()
def f(): return d.rng.random()
""",
        "def make():\n rng=random.Random(5)\n def g(): return rng.random()\n return g\ng=make()\ndef f(): return g()",
        "def g(r): return r.random()\np=functools.partial(g, random.Random(5))\ndef f(): return p()",
        "class Own(random.Random): pass\nrng=Own(5)\nT=[Own(6)]\ndef f(): return rng.random()",
        "class Own(random.Random): pass\nT=[Own(6)]\ndef f(): return T[0].random()",
        """
class Own(random.Random):
 def __init__(self, a):
  super().__init__(a)
  self.a=a
 def __reduce__(self): return Own, (self.a,), self.getstate()
T=[Own(6)]
def f(): return T[0].random()
""",
        "def g(): return g.rng.random()\ng.rng=random.Random(5)\ndef f(): return g()",
        "fs=[lambda r=random.Random(5): r.random()]\ndef f(): return fs[0]()",
        "import numpy as np\nrng=np.random.default_rng(5)\ndef f(): return float(rng.random())",
        "import numpy as np\nT=[np.random.default_rng(5)]\ndef f(): return float(T[0].random())",
        "import numpy as np\ndraw=np.random.default_rng(5).random\ndef f(): return float(draw())",
        "import numpy as np\nT=[np.random.RandomState(5)]\ndef f(): return float(T[0].rand())",
        "import numpy as np\ndraw=np.random.RandomState(5).rand\ndef f(): return float(draw())",
        "import numpy as np\nT=[np.random.PCG64(5)]\ndef f(): return int(T[0].random_raw())",
        "import numpy as np\nb=np.random.PCG64(5)\ng=np.random.Generator(b)\ndef f(): return float(g.random())",
        """
import numpy as np
class Sim:
 def __init__(self): self.rng=np.random.default_rng(1); self.a=np.zeros(100000)
s=Sim()
def f(): return float(s.rng.random())
""",
        """
import numpy as np
rng=np.random.default_rng(5)
class S: pass
s=S(); s.rng=rng
def f(): return float(s.rng.random())
""",
        "def f(): return g()\ndef g(): return rng.random()\nrng = random.Random(5)",
    ],
)
def test_no_two_workers_draw_the_same(new_script: NewScript, workers: list[WorkerHalf], source: str) -> None:
    """Wherever a generator is among the globals; those of one number draw the same in each run."""
    one, again, other = draw_twice(new_script, workers, source)
    assert one == again
    assert len({*one, *other}) == 4


@pytest.mark.parametrize(
    "source",
    [
        "from random import random as draw\ndef f(): return draw()",
        "draw=random.random\ndef f(): return draw()",
        "T={'d': random.randint}\ndef f(): return T['d'](0,10**15)",
        "class C:\n draw=staticmethod(random.random)\ndef f(): return C.draw()",
        "rng=random\ndef f(): return rng.random()",
        "import numpy as np\ndraw=np.random.rand\ndef f(): return float(draw())",
        "import numpy as np\nfrom numpy.random import rand as r\ndef f(): return float(r())",
        "def f(): return random.random()",
        "from random import random\ndef f(): return random()",
    ],
)
def test_the_hidden_generators_are_the_workers_own(
    new_script: NewScript, workers: list[WorkerHalf], source: str
) -> None:
    """By whatever name a script knows their methods."""
    drawn = [number for each in draw_twice(new_script, workers, source) for number in each]
    assert len(set(drawn)) == 6


def test_a_generator_as_an_argument_is_used_as_it_is(new_script: NewScript, workers: list[WorkerHalf]) -> None:
    script = new_script("def f(r): return r.random()", name=f"random_{next(_numbers)}")
    drawn = random.Random(7).random()
    assert [worker.call(script.f, random.Random(7)) for worker in workers] == [drawn] * 3


def test_generators_that_share_their_bits_share_them_in_a_worker(
    new_script: NewScript, workers: list[WorkerHalf]
) -> None:
    """They draw from one sequence."""
    source = "import numpy as np\nbits = np.random.PCG64(5)\none, other = map(np.random.Generator, [bits, bits])"
    drawn = draw_twice(new_script, workers, source + "\ndef f(): return float(one.random()), float(other.random())")
    assert drawn[0] == drawn[1]
    assert len({number for worker in (drawn[0], drawn[2]) for pair in worker for number in pair}) == 8


def test_a_class_is_what_the_method_of_an_object_has_made_of_it(new_script: NewScript, new_worker: NewWorker) -> None:
    """As with the registries of object-relational mappers."""
    module = new_script("""
from support_objects import Mapper
mapper = Mapper()
@mapper.mapped
class User: pass
def f(): return User().columns
""")
    assert new_worker().call(module.f) == ["id"]


def test_a_method_that_was_set_in_a_session_travels() -> None:
    """Of a program given by `-c`, a REPL, a notebook: none of their inputs has a file."""
    answer = run_script("""
from support_scripts import WorkerHalf
class C:
    def m(self): return 1
def f(): return C().m()
worker = WorkerHalf()
first = worker.call(f)
def later(self): return 2
C.m = later
print(first, worker.call(f))
worker.close()
""")
    assert answer == "1 2"


def test_what_another_input_of_a_session_does_to_a_definition_is_done_in_order() -> None:
    """Each input of a notebook is a source of its own; its lines are counted from one."""
    answer = run_script("""
import linecache
from support_scripts import WorkerHalf
INPUTS = [
    "import abc, functools, json",
    "\\n\\nclass Shape(abc.ABC): pass\\nmade = []\\nclass M(type):\\n def __init__(cls, *a): made.append(cls.__name__)",
    "class Late: pass\\n\\n\\n\\nclass B(metaclass=M): pass",
    "class A(metaclass=M): pass",
    "@functools.singledispatch\\ndef kind(x): return 'any'",
    "Shape.register(Late)\\njson.own = 5",
    "@kind.register\\ndef _(x: int): return 'number'",
    "def f(): return issubclass(Late, Shape), [A, B] and made, kind(1), json.own",
]
for number, text in enumerate(INPUTS):
    name = f"<ipython-input-{number}-0>"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    exec(compile(text, name, "exec"), globals())
worker = WorkerHalf()
print(worker.call(f) == f() == (True, ["B", "A"], "number", 5))
worker.close()
""")
    assert answer == "True"


def test_what_acts_on_an_import_is_run_for_a_program_by_option_too() -> None:
    answer = run_script("""
import json
from support_scripts import WorkerHalf
json.own = 5
def f(): return json.own
worker = WorkerHalf()
print(worker.call(f))
worker.close()
""")
    assert answer == "5"


def test_old_functions_are_freed_although_a_worker_has_them(new_script: NewScript, new_worker: NewWorker) -> None:
    """They are defined again with each run of a notebook's cell."""
    module = new_script("def f(): return 1")
    worker = new_worker()
    assert worker.call(module.f) == 1
    old = weakref.ref(module.f)
    exec("def f(): return 2", vars(module))  # noqa: S102 -- our own source
    assert worker.call(module.f) == 2
    gc.collect()
    assert old() is None


@pytest.mark.long
def test_what_a_session_defines_again_and_again_is_not_kept(new_worker: NewWorker, tmp_path: Path) -> None:
    """Neither here nor in a worker, whatever called it: functions, classes, what decorators made of them, data."""
    modules, worker = ScriptModules(tmp_path), new_worker()
    module: Any = ModuleType("long_session")
    modules.add(module)
    exec(COUNTING, vars(module))  # noqa: S102 -- our own source
    old: list[weakref.ref[Any]] = []
    counts = []
    for number in range(150):
        exec(DEFINED_AGAIN.format(number), vars(module))  # noqa: S102 -- our own source
        old += map(weakref.ref, (module.f, module.C, module.cached, module.data))
        for call in (module.f, getattr(module, f"call_{number}"), lambda: module.f()):
            assert worker.call(call)[0] == number
        if number % 50 == 49:
            counts.append(worker.call(module.count))
    gc.collect()
    assert sum(each() is not None for each in old) <= 4 * (plans.FEWEST_PLANS + 5)
    assert max(counts) < 4 * (plans.FEWEST_PLANS + 5)
    modules.close()


COUNTING = """
import functools, gc
def count():
    gc.collect()
    kinds = type(f), type, type(cached), Data
    found = [each for each in gc.get_objects() if type(each) in kinds and each.__module__ == __name__]
    return sum(getattr(each, "__name__", "f") in ("f", "C", "cached") for each in found)
class Data:
    def __init__(self, n): self.n = n
"""
DEFINED_AGAIN = """
class C:
    def m(self): return {0}
@functools.lru_cache
def cached(): return {0}
data = Data({0})
def f(x=[0]): return C().m(), cached(), data.n
def call_{0}(): return f()
"""
