"""Small programs as people write them for `ProcessPoolExecutor`: what they define, and what their main part prints.

Each must print the same whatever pool runs it. `make(n, **options)` gives the pool under test.
"""

from __future__ import annotations

PROGRAMS: dict[str, tuple[str, str]] = {}


def program(name: str, definitions: str, main: str) -> None:
    PROGRAMS[name] = definitions, main


program(
    "initializer_sets_global",
    """
model = None
settings = {}

def load(value):
    global model, fresh
    model = value
    fresh = value * 2
    settings["x"] = value

def predict(x):
    return model, fresh, settings, x
""",
    """
with make(1, initializer=load, initargs=(42,)) as pool:
    print(pool.submit(predict, 1).result())
""",
)
program(
    "initializer_by_keyword_and_globals_function",
    """
def load(**names):
    globals().update(names)

def use():
    return connection + 1  # noqa: F821

import functools
""",
    """
with make(1, initializer=functools.partial(load, connection=41)) as pool:
    print(pool.submit(use).result())
""",
)
program(
    "state_between_tasks",
    """
count = 0
cache = {}
seen = []

def bump():
    global count
    count += 1
    return count

def remember(key):
    cache[key] = cache.get(key, 0) + 1
    seen.append(key)
    return dict(cache), list(seen)
""",
    """
with make(1) as pool:
    print([pool.submit(bump).result() for _ in range(4)])
    print([pool.submit(remember, key).result() for key in "aba"])
print(count, cache, seen)
""",
)
program(
    "function_attributes_keep_state",
    """
def call():
    call.count += 1
    return call.count

call.count = 10
""",
    """
with make(1) as pool:
    print([pool.submit(call).result() for _ in range(3)])
""",
)
program(
    "caches",
    """
import functools

calls = []

@functools.lru_cache(maxsize=None)
def square(x):
    calls.append(x)
    return x * x

@functools.cache
def cube(x):
    return x ** 3

def run(x):
    return square(x), cube(x), list(calls), square.cache_info().hits

class Report:
    def __init__(self, n):
        self.n = n

    @functools.cached_property
    def total(self):
        calls.append("total")
        return sum(range(self.n))

def twice(report):
    return report.total + report.total, calls.count("total")
""",
    """
with make(1) as pool:
    print([pool.submit(run, x).result() for x in (2, 2, 3)])
    print(pool.submit(square, 9).result(), pool.submit(cube, 2).result())
    print(pool.submit(twice, Report(5)).result())
""",
)
program(
    "singledispatch",
    """
import functools

@functools.singledispatch
def show(x):
    return "object"

@show.register
def _(x: int):
    return "int"

@show.register(str)
def show_text(x):
    return "text " + x

class Odd:
    pass

@show.register
def _(x: Odd):
    return "odd"

def work(x):
    return show(x)
""",
    """
with make(1) as pool:
    print([pool.submit(work, x).result() for x in (1, "a", 1.5, Odd())])
    print([pool.submit(show, x).result() for x in (1, "a", Odd())])
""",
)
program(
    "enums",
    """
import enum

class Planet(enum.Enum):
    EARTH = (5.976e24, 6.37814e6)
    MARS = (6.421e23, 3.3972e6)

    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius

    @property
    def gravity(self):
        return round(6.67300e-11 * self.mass / self.radius ** 2, 2)

class Flags(enum.IntFlag):
    A = enum.auto()
    B = enum.auto()

Color = enum.Enum("Color", "RED GREEN")

def look(planet):
    return planet.gravity, planet is Planet.MARS, Flags.A | Flags.B, Color.GREEN
""",
    """
with make(1) as pool:
    gravity, same, flags, color = pool.submit(look, Planet.MARS).result()
    print(gravity, same, flags is Flags.A | Flags.B, color is Color.GREEN)
    print(pool.submit(Planet, (5.976e24, 6.37814e6)).result() is Planet.EARTH)
""",
)
program(
    "dataclasses_and_slots",
    """
import dataclasses
from typing import NamedTuple
import collections

@dataclasses.dataclass(slots=True)
class Point:
    x: int
    y: list = dataclasses.field(default_factory=list)

@dataclasses.dataclass(frozen=True, order=True)
class Key:
    name: str
    kind: "str" = "plain"
    hidden: int = dataclasses.field(default=3, compare=False)

class Plain:
    __slots__ = ("a",)
    def __init__(self, a):
        self.a = a

class Row(NamedTuple):
    a: int
    b: str = "b"

Pair = collections.namedtuple("Pair", "left right")

def moved(p):
    return dataclasses.replace(p, x=p.x + 1)

def describe(key):
    return [f.name for f in dataclasses.fields(key)], dataclasses.asdict(key), key < Key("z")

def required():
    try:
        Point()
    except TypeError as error:
        return "required" in str(error) or "missing" in str(error)

def same(*args):
    return args
""",
    """
with make(1) as pool:
    print(pool.submit(moved, Point(1, [2])).result(), pool.submit(describe, Key("a")).result())
    print(pool.submit(required).result())
    plain, row, pair = pool.submit(same, Plain(3), Row(1), Pair(1, 2)).result()
    print(type(plain) is Plain, plain.a, type(row) is Row, row, type(pair) is Pair, pair)
""",
)
program(
    "metaclasses_and_registries",
    """
registry = {}
plugins = []

class Meta(type):
    def __new__(mcs, name, bases, namespace):
        cls = super().__new__(mcs, name, bases, namespace)
        registry[name] = cls
        return cls

class Base(metaclass=Meta):
    kinds = []
    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Base.kinds.append(cls.__name__)

class First(Base):
    pass

class Second(Base):
    def hello(self):
        return "second"

def plugin(cls):
    plugins.append(cls)
    return cls

@plugin
class Extra:
    def hello(self):
        return "extra"

def look(name):
    return sorted(registry), registry[name]().hello(), list(Base.kinds), [each.__name__ for each in plugins]

def subclasses():
    return sorted(cls.__name__ for cls in Base.__subclasses__())
""",
    """
with make(1) as pool:
    print(pool.submit(look, "Second").result())
    print(pool.submit(subclasses).result())
    print(type(pool.submit(Second).result()) is Second)
print(sorted(registry), Base.kinds)
""",
)
program(
    "abstract_classes_and_generics",
    """
import abc
from typing import Generic, TypeVar, NewType, Protocol

T = TypeVar("T")
UserId = NewType("UserId", int)

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...

    @classmethod
    def __subclasshook__(cls, other):
        return NotImplemented

class Square(Shape):
    def __init__(self, side):
        self.side = side
    def area(self):
        return self.side ** 2

class Foreign:
    pass

Shape.register(Foreign)

class Box(Generic[T]):
    def __init__(self, item: T):
        self.item = item
    def get(self) -> T:
        return self.item

class HasArea(Protocol):
    def area(self): ...

def work(shape):
    try:
        Shape()
    except TypeError:
        abstract = True
    return shape.area(), abstract, isinstance(Foreign(), Shape), Box[int](3).get(), UserId(7)
""",
    """
with make(1) as pool:
    print(pool.submit(work, Square(3)).result())
    box = pool.submit(Box, 5).result()
    print(type(box) is Box, box.get(), pool.submit(UserId, 3).result())
""",
)
program(
    "own_of_each_process",
    """
import contextvars
import threading

LOCK = threading.Lock()
RLOCK = threading.RLock()
LOCAL = threading.local()
EVENT = threading.Event()
REQUEST = contextvars.ContextVar("REQUEST", default="none")

class Counter:
    def __init__(self):
        self.lock = threading.Lock()
        self.count = 0
    def bump(self):
        with self.lock:
            self.count += 1
            return self.count

counter = Counter()

def work():
    with LOCK, RLOCK:
        LOCAL.x = 2
        return LOCAL.x, REQUEST.get(), EVENT.is_set(), counter.bump()
""",
    """
with make(1) as pool:
    print([pool.submit(work).result() for _ in range(3)])
""",
)
program(
    "names_from_modules",
    """
from os import environ
from sys import version_info, maxsize as most
import os.path
import collections.abc as shapes
import xml.etree.ElementTree
import json as j
from math import *

def look():
    environ["POOL_TEST"] = "there"
    tree = xml.etree.ElementTree.fromstring("<a><b/></a>")
    return os.environ["POOL_TEST"], version_info >= (3, 10), most > 0, os.path.join("a", "b"), \
        issubclass(list, shapes.Sequence), tree[0].tag, j.dumps([1]), floor(pi)
""",
    """
with make(1) as pool:
    print(pool.submit(look).result())
print("POOL_TEST" in os.environ)
""",
)
program(
    "names_looked_up",
    """
import sys
import pickle

def handle_a():
    return "a" + helper()

def helper():
    return SUFFIX

SUFFIX = "!"

class Thing:
    value = 3

def by_globals(kind):
    return globals()[f"handle_{kind}"]()

def by_eval():
    return eval("handle_a()")

def by_module():
    return getattr(sys.modules[__name__], "handle_a")()

def by_exec():
    space = {}
    exec("def inner(x): return x + 1", space)
    return space["inner"](1)

def by_pickle(data):
    return pickle.loads(data).value

def main_file():
    import __main__
    return __main__.__file__ == __file__, __name__
""",
    """
with make(1) as pool:
    print(pool.submit(by_globals, "a").result(), pool.submit(by_eval).result(), pool.submit(by_module).result())
    print(pool.submit(by_exec).result(), pool.submit(by_pickle, pickle.dumps(Thing())).result())
    print(pool.submit(main_file).result()[0])
""",
)
program(
    "recursion_and_mutual_recursion",
    """
def even(n):
    return True if n == 0 else odd(n - 1)

def odd(n):
    return False if n == 0 else even(n - 1)

def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

class Node:
    def __init__(self, depth):
        self.child = Node(depth - 1) if depth else None
    def depth(self):
        return 1 + self.child.depth() if self.child else 0
""",
    """
with make(2) as pool:
    print(list(pool.map(even, range(4))), list(pool.map(fib, range(8))))
    print(pool.submit(Node, 3).result().depth(), pool.submit(Node.depth, Node(4)).result())
""",
)
program(
    "decorators_with_state",
    """
import functools

def counted(fn):
    calls = 0
    @functools.wraps(fn)
    def wrapper(*args):
        nonlocal calls
        calls += 1
        return calls, fn(*args)
    return wrapper

class Traced:
    def __init__(self, fn):
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.seen = []
    def __call__(self, x):
        self.seen.append(x)
        return list(self.seen), self.fn(x)

def with_limit(limit):
    def decorate(fn):
        @functools.wraps(fn)
        def wrapper(x):
            return fn(min(x, limit))
        return wrapper
    return decorate

@counted
def double(x):
    return 2 * x

@Traced
def triple(x):
    return 3 * x

@with_limit(5)
def plain(x):
    return x

def run(x):
    return double(x), triple(x), plain(x)
""",
    """
with make(1) as pool:
    print([pool.submit(run, x).result() for x in (3, 9)])
    print([pool.submit(double, x).result() for x in (3, 9)])
    print(pool.submit(plain, 7).result())
""",
)
program(
    "closures_over_globals",
    """
import functools
import operator

BASE = 100

def make_adder(n):
    def add(x):
        return BASE + n + x
    return add

add5 = make_adder(5)

def apply(x):
    return add5(x)

def method_caller(name):
    return operator.methodcaller(name)

upper = method_caller("upper")
power = functools.partial(pow, 2)

def both(x):
    return upper(x), power(5)
""",
    """
with make(1) as pool:
    print(pool.submit(apply, 1).result(), pool.submit(both, "a").result())
    print(pool.submit(power, 3).result())
""",
)
program(
    "generators_and_comprehensions",
    """
FACTOR = 3
rows = [(1, "a"), (2, "b")]

def produce(n):
    yield from (FACTOR * i for i in range(n))

def work(n):
    table = {key: [value * FACTOR for value in produce(n)] for key, _ in rows}
    return table, [(lambda y: y + FACTOR)(x) for x in range(2)], sorted(rows, key=lambda row: -row[0])
""",
    """
with make(1) as pool:
    print(pool.submit(work, 2).result())
""",
)
program(
    "conditional_definitions",
    """
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nowhere import Nothing

try:
    import not_there_at_all
except ImportError:
    not_there_at_all = None

if sys.version_info >= (3, 0):
    class Reader:
        kind = "new"
        def read(self):
            return "new", not_there_at_all
else:
    class Reader:
        kind = "old"
        def read(self):
            return "old", not_there_at_all

for name in ("one", "two"):
    exec(f"def {name}(): return {name!r}")

def work(reader: "Nothing"):
    return reader.read(), one(), two()
""",
    """
with make(1) as pool:
    print(pool.submit(work, Reader()).result())
""",
)
program(
    "redefinition_follows",
    """
RATE = 1

def rate():
    return RATE

class Tool:
    def run(self):
        return "first"

def use():
    return Tool().run(), rate()
""",
    """
with make(1) as pool:
    first = pool.submit(use).result()
print(first)
""",
)
program(
    "nested_and_local_classes",
    """
class Outer:
    class Inner:
        def __init__(self, x):
            self.x = x
        class Deep:
            y = 4
    LIMIT = 3
    @staticmethod
    def build(x):
        return Outer.Inner(min(x, Outer.LIMIT))
    @classmethod
    def other(cls):
        return cls.Inner.Deep()

def work(x):
    return Outer.build(x)
""",
    """
with make(1) as pool:
    inner = pool.submit(work, 9).result()
    print(type(inner) is Outer.Inner, inner.x)
    print(type(pool.submit(Outer.build, 1).result()) is Outer.Inner, pool.submit(Outer.other).result().y)
""",
)
program(
    "class_attributes_changed_by_the_script",
    """
class Config:
    debug = False
    names = []
    table = {}

    @classmethod
    def look(cls):
        return cls.debug, cls.names, cls.table, getattr(cls, "extra", None)

Config.debug = True
Config.names.append("a")
Config.table["k"] = Config.names
Config.extra = (1, 2)

def report():
    return "patched " + str(Config.debug)

Config.report = staticmethod(report)
""",
    """
with make(1) as pool:
    print(pool.submit(Config.look).result(), pool.submit(Config.report).result())
""",
)
program(
    "exceptions_of_the_script",
    """
class Refused(Exception):
    def __init__(self, code, *, why):
        super().__init__(f"{code}: {why}")
        self.code = code
        self.why = why
    def __reduce__(self):
        return _refused, (self.code, self.why)

def _refused(code, why):
    return Refused(code, why=why)

class Plain(ValueError):
    pass

def fail(kind):
    if kind == "plain":
        raise Plain("a", 1)
    raise Refused(3, why="no") from Plain("cause")
""",
    """
with make(1) as pool:
    for kind in ("plain", "refused"):
        error = pool.submit(fail, kind).exception()
        print(type(error) in (Plain, Refused), str(error), getattr(error, "code", None))
""",
)
program(
    "pickle_files",
    """
import dataclasses
import os
import pickle
import shelve
import tempfile

@dataclasses.dataclass
class Record:
    a: int

def load(path):
    with open(path, "rb") as file:
        return pickle.load(file).a

def save(path):
    with open(path, "wb") as file:
        pickle.dump(Record(2), file)
    return True

def load_shelf(path):
    with shelve.open(path) as shelf:
        return shelf["r"].a
""",
    """
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "r.pickle")
    with open(path, "wb") as file:
        pickle.dump(Record(1), file)
    with shelve.open(os.path.join(folder, "shelf")) as shelf:
        shelf["r"] = Record(5)
    with make(1) as pool:
        print(pool.submit(load, path).result(), pool.submit(load_shelf, os.path.join(folder, "shelf")).result())
        print(pool.submit(save, path).result())
    with open(path, "rb") as file:
        print(pickle.load(file))
""",
)
program(
    "settings_of_the_process",
    """
import decimal
import socket
import sys
import warnings

sys.setrecursionlimit(20_000)
warnings.simplefilter("error", UserWarning)
socket.setdefaulttimeout(3)
decimal.getcontext().prec = 5

def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)

def look():
    try:
        warnings.warn("careful")
    except UserWarning:
        warned = "raised"
    return warned, socket.getdefaulttimeout(), str(decimal.Decimal(1) / 3)
""",
    """
with make(1) as pool:
    print(pool.submit(depth, 3000).result(), pool.submit(look).result())
""",
)
program(
    "random_generators_of_the_script",
    """
import random

rng = random.Random()
seeded = random.Random(5)

class Dice:
    def __init__(self):
        self.rng = random.Random(7)
    def roll(self):
        return self.rng.random()

dice = Dice()

def draw(_):
    return rng.random()

def draw_seeded(_):
    return seeded.random()

def roll(_):
    return dice.roll()

def hidden(_):
    return random.random()
""",
    """
with make(1) as pool:
    for fn in (draw, draw_seeded, roll, hidden):
        print(fn.__name__, len({pool.submit(fn, i).result() for i in range(20)}), len(set(pool.map(fn, range(50)))))
""",
)
program(
    "open_files",
    """
import os
import tempfile

path = os.environ.setdefault("LOG_OF_TEST", tempfile.mkstemp()[1])
log = open(path, "a")
table = open(__file__)

def work(i):
    log.write(f"line {i}\\n")
    log.flush()
    table.seek(0)
    return "make" in table.read()
""",
    """
with make(1) as pool:
    print([pool.submit(work, i).result() for i in range(2)])
with open(path) as file:
    print(file.read().split())
os.unlink(path)
""",
)
program(
    "submodule_and_lazy_imports",
    """
import importlib
import email.mime.text
import concurrent.futures

def work():
    from email.utils import parseaddr
    part = email.mime.text.MIMEText("x")
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        inner = threads.submit(abs, -1).result()
    return part.get_content_type(), parseaddr("a@b")[1], inner, importlib.import_module("string").digits
""",
    """
with make(1) as pool:
    print(pool.submit(work).result())
""",
)
program(
    "threads_in_a_task",
    """
import threading

total = 0
lock = threading.Lock()

def add():
    global total
    with lock:
        total += 1

def work():
    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return total
""",
    """
with make(1) as pool:
    print([pool.submit(work).result() for _ in range(2)])
""",
)
program(
    "a_pool_in_a_task",
    """
import concurrent.futures
import multiprocessing

OFFSET = 5

class Item:
    def __init__(self, x):
        self.x = x

def leaf(item):
    return Item(item.x + OFFSET)

def inner(n):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return [each.x for each in pool.map(leaf, [Item(i) for i in range(n)])]
""",
    """
import warnings
warnings.simplefilter("ignore")
with make(1) as pool:
    print(pool.submit(inner, 3).result())
""",
)
program(
    "two_pools",
    """
count = 0

class Thing:
    pass

def bump(thing):
    global count
    count += 1
    return type(thing) is Thing, count
""",
    """
with make(1) as one, make(1) as other:
    print([one.submit(bump, Thing()).result() for _ in range(2)], other.submit(bump, Thing()).result())
    print(one.submit(bump, Thing()).result())
""",
)
program(
    "async_functions_of_the_script",
    """
import asyncio

state = []

async def step(x):
    await asyncio.sleep(0)
    state.append(x)
    return x + 1

def run(x):
    return asyncio.run(step(x)), list(state)
""",
    """
with make(1) as pool:
    print([pool.submit(run, x).result() for x in (1, 2)])
""",
)
program(
    "sentinels_and_module_getattr",
    """
class Sentinel:
    def __init__(self, name):
        self.name = name
    def __reduce__(self):
        return self.name
    def __bool__(self):
        return False

MISSING = Sentinel("MISSING")

def __getattr__(name):
    if name == "LAZY":
        return 12
    raise AttributeError(name)

def work(value=MISSING):
    import __main__
    return value is MISSING, getattr(__main__, "LAZY", None) in (12, None), value
""",
    """
with make(1) as pool:
    print(pool.submit(work).result()[:2], pool.submit(work, MISSING).result()[0])
    print(pool.submit(work).result()[2] is MISSING)
""",
)
program(
    "copyreg_reducers",
    """
import copyreg

class Handle:
    def __init__(self, path):
        self.path = path
        self.opened = lambda: path

def reduce_handle(handle):
    return Handle, (handle.path,)

copyreg.pickle(Handle, reduce_handle)

def work(handle):
    return Handle(handle.opened() + "!")
""",
    """
with make(1) as pool:
    print(pool.submit(work, Handle("p")).result().path)
""",
)
program(
    "ctypes_and_properties",
    """
import ctypes

class Pair(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]

class Celsius:
    def __init__(self, t=0.0):
        self._t = t
    @property
    def t(self):
        return self._t
    @t.setter
    def t(self, value):
        self._t = value
    def __eq__(self, other):
        return self._t == other._t
    def __hash__(self):
        return hash(self._t)

def total(pair, c):
    c.t += 1
    return pair.x + pair.y, c, {c: 1}
""",
    """
with make(1) as pool:
    value, c, table = pool.submit(total, Pair(1, 2.0), Celsius(3.0)).result()
    print(value, c == Celsius(4.0), table[Celsius(4.0)])
""",
)
program(
    "typing_in_functions",
    """
import typing
from typing import Optional

class User:
    name: str = "u"

def greet(user: "User", times: Optional[int] = None, *, sep: str = " ") -> "typing.List[str]":
    hints = typing.get_type_hints(greet)
    return [user.name] * (times or 1), hints["user"] is User, sep
""",
    """
with make(1) as pool:
    print(pool.submit(greet, User(), 2, sep="-").result())
""",
)
program(
    "inheritance_of_arguments",
    """
class Base:
    registry = {}
    def __init__(self):
        self.tag = type(self).__name__
    def run(self):
        return self.tag, self.step()
    def step(self):
        raise NotImplementedError

class Left(Base):
    def step(self):
        return "left"

class Right(Left):
    def step(self):
        return "right " + super().step()

def run_all(items):
    return [item.run() for item in items]
""",
    """
with make(1) as pool:
    print(pool.submit(run_all, [Left(), Right()]).result())
    print(pool.submit(Right().run).result(), list(pool.map(Base.run, [Left(), Right()])))
""",
)
program(
    "instances_in_globals",
    """
class Service:
    def __init__(self, url):
        self.url = url
        self.calls = 0
        self.parts = [Part(self)]
    def call(self):
        self.calls += 1
        return self.url, self.calls, self.parts[0].owner is self

class Part:
    def __init__(self, owner):
        self.owner = owner

service = Service("here")

def work():
    return service.call()
""",
    """
with make(1) as pool:
    print([pool.submit(work).result() for _ in range(3)])
print(service.calls)
""",
)
program(
    "weak_dictionaries_and_iterators",
    """
import itertools
import weakref

class Key:
    pass

alive = weakref.WeakValueDictionary()
numbers = itertools.count(10)

def work():
    key = Key()
    alive["k"] = key
    return len(alive), next(numbers)
""",
    """
with make(1) as pool:
    print([pool.submit(work).result() for _ in range(3)])
""",
)
program(
    "logging_in_tasks",
    """
import logging

logger = logging.getLogger("app")

def work():
    logger.debug("not shown")
    return logger.name, logger is logging.getLogger("app")
""",
    """
with make(1) as pool:
    print(pool.submit(work).result())
""",
)
program(
    "regular_expressions_and_templates",
    """
import re
import string

WORD = re.compile(r"\\w+")
TEMPLATE = string.Template("$a-$b")

def work(text):
    return WORD.findall(text), TEMPLATE.substitute(a=1, b=2)
""",
    """
with make(1) as pool:
    print(pool.submit(work, "a bc").result())
""",
)
program(
    "all_sorts_of_globals",
    """
import sys, asyncio, contextlib, enum, operator, itertools, collections, dataclasses, abc, threading, weakref, types
import os.path as osp
from collections import defaultdict, Counter, ChainMap, deque
from dataclasses import dataclass, field

counts = Counter()
groups = defaultdict(list)
history = deque(maxlen=3)
chain = ChainMap({"a": 1}, {"b": 2})
namespace = types.SimpleNamespace(x=1)
matrix = [[0] * 3 for _ in range(2)]
frozen = frozenset({1, 2})
mapping = types.MappingProxyType({"k": 1})
lam = lambda x, *, y=2: x * y
nested = {"f": lam, "g": [lambda: counts["a"]]}
bound = "abc".upper
oper = operator.itemgetter(1)
big = list(range(10000))

@contextlib.contextmanager
def managed(x):
    yield x + 1

class Meta(abc.ABCMeta):
    def __call__(cls, *a, **k):
        inst = super().__call__(*a, **k)
        inst.tag = "meta"
        return inst

class Single(metaclass=Meta):
    _instance = None
    def __new__(cls):
        if cls._instance is None: cls._instance = super().__new__(cls)
        return cls._instance

class Desc:
    def __set_name__(self, owner, name): self.name = name
    def __get__(self, obj, kind): return (self.name, kind.__name__)

class WithDesc:
    d = Desc()
    def __class_getitem__(cls, item): return (cls.__name__, item)
    def __init_subclass__(cls, /, tag=None, **kw): cls.tagged = tag
class Child(WithDesc, tag="t"): pass

class Lazy:
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return "lazy " + name

@dataclass
class Tree:
    value: int
    kids: list = field(default_factory=list)
    def total(self): return self.value + sum(k.total() for k in self.kids)

lazy = Lazy()
tree = Tree(1, [Tree(2), Tree(3)])
tree.kids.append(tree.kids[0])
shared = [1]
pair = (shared, shared)

def match(x):
    match x:
        case Tree(value=v, kids=[]): return ("leaf", v)
        case Tree(value=v): return ("node", v)
        case {"a": a}: return a
    return None

def everything():
    counts["a"] += 1; groups["g"].append(1); history.append(len(history)); namespace.x += 1
    with managed(1) as m: pass
    pair[0].append(2)
    return (counts["a"], dict(groups), list(history), chain["b"], namespace.x, matrix[1][2],
        sorted(frozen), mapping["k"], lam(2), nested["f"](1), nested["g"][0](), bound(), oper([1, 2]),
        len(big), m,
        Single() is Single(), Single().tag, WithDesc.d, Child[int], Child.tagged, lazy.abc,
        tree.total(), tree.kids[0] is tree.kids[2], pair[0] is pair[1], match(tree), match(Tree(1)),
        osp.join("a","b"))
""",
    """
with make(1) as pool:
    print(pool.submit(everything).result())
    print(pool.submit(everything).result())
""",
)
