"""Shapes of scripts: what people define at their top, with a function `f` whose value tells whether it is right."""

from __future__ import annotations

SHAPES: dict[str, str] = {
    "abc": """
import abc
class A(abc.ABC):
    @abc.abstractmethod
    def m(self): ...
class B(A):
    def m(self): return 1
@A.register
class V: pass
def f(): return B().m(), isinstance(V(), A)
""",
    "alias": """
a = {}
b = a
def f():
    b['x'] = 1
    return a
""",
    "async_fn": """
import asyncio
async def g(): return 3
def f(): return asyncio.run(g())
""",
    "attr_on_fn": """
def g():
    g.n += 1
    return g.n
g.n = 0
def f(): return g(), g()
""",
    "aug": """
K = [1]
K += [2]
x = 1
x += 5
def f(): return K, x
""",
    "bound_alias": """
cache = {}
put = cache.setdefault
def f():
    put('x', 1)
    return cache
""",
    "bound_method": """
class C:
    def __init__(self): self.n = 0
    def inc(self):
        self.n += 1
        return self.n
c = C()
inc = c.inc
def f(): return inc(), inc(), c.n
""",
    "builtin_method": """
upper = 'abc'.upper
join = ','.join
def f(): return upper(), join('ab')
""",
    "callbacks": """
handlers = []
def on(fn): handlers.append(fn); return fn
@on
def a(): return 1
@on
def b(): return 2
def f(): return [h() for h in handlers]
""",
    "class_attr_class": """
class Model: pass
class App:
    model = None
App.model = Model
def f(): return App.model.__name__
""",
    "class_attr_instance": """
class Config: pass
class App:
    config = None
App.config = Config()
App.config.x = 3
def f(): return App.config.x
""",
    "class_attr_property": """
class App:
    pass
App.total = property(lambda self: 4)
def f(): return App().total
""",
    "class_deco_instance": """
class Deco:
    def __init__(self, fn): self.fn = fn; self.n = 0
    def __call__(self, x):
        self.n += 1
        return self.fn(x), self.n
@Deco
def g(x): return x
def f(): return g(1), g(2)
""",
    "classmethod_glob": """
class C:
    n = 0
    @classmethod
    def inc(cls):
        cls.n += 1
        return cls.n
inc = C.inc
def f(): return inc(), inc(), C.n
""",
    "closure_deco": """
import functools
def deco(fn):
    calls = []
    @functools.wraps(fn)
    def w(*a):
        calls.append(1)
        return fn(*a), len(calls)
    return w
@deco
def g(x): return x
def f(): return g(1), g(2)
""",
    "cls_in_own_method": """
class A:
    cache = {}
    @staticmethod
    def get(k): return A.cache.setdefault(k, A())
def f(): return A.get(1) is A.get(1)
""",
    "cls_super": """
class A:
    def m(self): return 1
class B(A):
    def m(self): return super().m() + 1
def f(): return B().m()
""",
    "cls_with_lock": """
import threading
class C:
    lock = threading.Lock()
    n = 0
    @classmethod
    def inc(cls):
        with cls.lock: cls.n += 1
        return cls.n
C.inc()
def f(): return C.inc()
""",
    "condition": """
import threading
c = threading.Condition()
def f():
    with c:
        c.notify_all(); return 1
""",
    "conditional_enum": """
import enum
if True:
    class C(enum.Enum):
        R = 1
else:
    class C(enum.Enum):
        R = 2
def f(): return C.R.value
""",
    "contextmanager": """
from contextlib import contextmanager
log = []
@contextmanager
def cm(x):
    log.append(x)
    yield x
    log.append(-x)
def f():
    with cm(3) as a: pass
    return a, log
""",
    "copyreg": """
import copyreg
class P:
    def __init__(self, x): self.x = x
copyreg.pickle(P, lambda p: (P, (p.x + 1,)))
import copy
def f(): return copy.copy(P(1)).x
""",
    "counter": """
from collections import Counter
c = Counter('aab')
def f():
    c.update('a'); return c['a']
""",
    "ctypes": """
import ctypes
class P(ctypes.Structure):
    _fields_ = [('x', ctypes.c_int)]
def f(): return P(3).x, ctypes.sizeof(P)
""",
    "ctypes_library": """
import ctypes, ctypes.util
libm = ctypes.CDLL(ctypes.util.find_library('m'), use_errno=True)
libm.cos.restype = ctypes.c_double
libm.cos.argtypes = [ctypes.c_double]
libm.abs.errcheck = lambda result, function, arguments: result + 1
libc = ctypes.cdll.LoadLibrary(None)
def f(): return libm.cos(0.0), libm.abs(-3), libc.abs(-3), ctypes.pythonapi.Py_IsInitialized(), len(libm.cos.argtypes)
""",
    "ctypes_types": """
import ctypes, ctypes.util
class P(ctypes.Structure): _fields_ = [('x', ctypes.c_int)]
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
Four = ctypes.c_int * 4
three = (ctypes.c_int * 3)(1, 2, 3)
points = (P * 2)(P(1), P(2))
Pointer = ctypes.POINTER(P)
@Callback
def twice(x): return x * 2
def f(): return twice(2), list(three), list(Four(1)), points[1].x, Pointer(P(5)).contents.x
""",
    "datetime": """
import datetime as dt
UTC = dt.timezone.utc
T0 = dt.datetime(2020, 1, 1, tzinfo=UTC)
def f(): return T0.tzinfo is UTC or T0.tzinfo == UTC
""",
    "dc_hints": """
from __future__ import annotations
from dataclasses import dataclass, fields
import typing
@dataclass
class A:
    x: B
@dataclass
class B:
    y: int
def f(): return typing.get_type_hints(A)['x'] is B
""",
    "decimal": """
from decimal import Decimal as D
TWO = D('2.5')
def f(): return TWO * 2
""",
    "deco_registers_data": """
names = []
def reg(fn):
    names.append(fn.__name__)
    return fn
@reg
def a(): pass
@reg
class B: pass
def f(): return names, B is not None
""",
    "default_obj": """
class Opt: pass
DEFAULT = Opt()
def g(x=DEFAULT): return x is DEFAULT
def f(): return g()
""",
    "defaultdict": """
from collections import defaultdict
def zero(): return 0
d = defaultdict(zero)
d['a'] = 1
def f():
    return d['a'], d['b']
""",
    "deque_maxlen": """
from collections import deque
class P: pass
d = deque([P(), P()], maxlen=2)
def f():
    d.append(1)
    return len(d), d.maxlen
""",
    "dict_cycle": """
class N:
    def __init__(self): self.kids = []; self.up = None
root = N()
k = N()
k.up = root
root.kids.append(k)
def f(): return root.kids[0].up is root, k.up is root
""",
    "ellipsis": """
E = ...
NI = NotImplemented
def f(): return E is ..., NI is NotImplemented
""",
    "enum_default": """
import enum
class M(enum.Enum):
    A = 1
def g(x=M.A): return x is M.A
def f(): return g()
""",
    "event": """
import threading
e = threading.Event()
def f():
    a = e.is_set(); e.set(); return a, e.is_set(), e.wait(1)
""",
    "exception_group": """
class E(Exception):
    def __init__(self, a, b): super().__init__(a); self.b = b
def f():
    try: raise E(1, 2)
    except E as e: return e.args, e.b
""",
    "filled_cached": """
import functools
class C:
    @functools.cached_property
    def p(self): return 3
c = C()
c.p
def f(): return c.p, vars(c)
""",
    "flag": """
import enum
class P(enum.IntFlag):
    R = enum.auto()
    W = enum.auto()
d = P.R | P.W
def f(): return d == P.R | P.W, P.R in d, int(d)
""",
    "fn_dict": """
def a(): return 1
a.helper = lambda: K
K = 4
def f(): return a.helper()
""",
    "frozen": """
from dataclasses import dataclass, replace
@dataclass(frozen=True, order=True)
class D:
    x: int
    y: int = 0
d = D(1)
def f(): return hash(d) == hash(D(1)), d < D(2), replace(d, y=4).y
""",
    "func_attr": """
def g(): return g.tag
g.tag = 1
def f(): return g()
""",
    "functional_enum": """
import enum
C = enum.Enum('C', 'A B')
def f(): return C.A.value, [c.name for c in C]
""",
    "generator_fn": """
def g():
    yield from range(3)
def f(): return list(g())
""",
    "generic_alias": """
from typing import Optional, Union
T = Optional[int]
class A: pass
U = Union[A, None]
def f(): return T == Optional[int], A in U.__args__
""",
    "getitem_acting": """
class R(dict): pass
r = R()
r['a'] = 1
def f(): return r
""",
    "glob_property_obj": """
class Lazy:
    def __init__(self, fn): self.fn = fn; self.v = None
    def get(self):
        if self.v is None: self.v = self.fn()
        return self.v
lazy = Lazy(lambda: [1])
def f():
    lazy.get().append(2)
    return lazy.get()
""",
    "globals_cls": """
for n in 'AB':
    globals()[n] = type(n, (), {'x': n})
def f(): return A.x + B.x
""",
    "host_plugins": """
class Plugin: pass
class Host:
    plugins = []
Host.plugins.append(Plugin())
def f(): return len(Host.plugins)
""",
    "init_subclass": """
class B:
    reg = {}
    def __init_subclass__(cls): B.reg[cls.__name__] = cls
class X(B): pass
class Y(B): pass
def f(): return sorted(B.reg), B.reg['X'] is X
""",
    "initsub_kw": """
class B:
    def __init_subclass__(cls, z=0): cls.z = z
class C(B, z=4): pass
def f(): return C.z
""",
    "instance_class_attr_same": """
class P:
    origin = None
    def __init__(self, x): self.x = x
P.origin = P(0)
def f(): return P.origin.x
""",
    "instance_dict_fn": """
class C: pass
c = C()
c.fn = lambda x: x + K
K = 2
def f(): return c.fn(1)
""",
    "instance_in_class_kw": """
class D:
    def __set_name__(self, o, n): self.n = n
    def __get__(self, i, o): return self.n
class C:
    x = D()
def f(): return C.x
""",
    "iter_global": """
it = iter([1, 2, 3])
def f(): return next(it), next(it)
""",
    "itertools": """
import itertools
c = itertools.count(5)
def f(): return next(c)
""",
    "lambda_list": """
fs = [lambda x, n=n: x + n for n in range(3)]
def f(): return [g(1) for g in fs]
""",
    "local_import_global": """
def g():
    global js
    import json as js
def f():
    g()
    return js.dumps(1)
""",
    "locals_cls": """
def make():
    class Q:
        x = 3
        def m(self): return self.x + K
    return Q
K = 1
Q = make()
def f(): return Q().m()
""",
    "logger": """
import logging
log = logging.getLogger('x')
def f(): return log.name
""",
    "loop_cls": """
for n in (1, 2):
    class C:
        x = n
        def m(self): return self.x
def f(): return C().m()
""",
    "loop_def": """
for n in (1, 2):
    def h(x, n=n): return x + n
def f(): return h(1), n
""",
    "make_dataclass": """
from dataclasses import make_dataclass
D = make_dataclass('D', ['x', ('y', int, 3)])
D.__module__ = __name__
def f(): return D(1).y
""",
    "mappingproxy": """
import types
M = types.MappingProxyType({'a': 1})
N = types.SimpleNamespace(a=1)
def f(): return M['a'], N.a
""",
    "meta_kw": """
class M(type):
    def __new__(m, n, b, d, **k):
        c = super().__new__(m, n, b, d); c.k = k; return c
    def __init__(c, n, b, d, **k): super().__init__(n, b, d)
class C(metaclass=M, z=3): pass
def f(): return C.k
""",
    "module_getattr": """
def __getattr__(name):
    if name == 'lazy': return 5
    raise AttributeError(name)
import sys
def f(): return sys.modules[__name__].lazy
""",
    "monkeypatch": """
class C:
    def m(self): return 1
def m2(self): return 2
C.m = m2
def f(): return C().m()
""",
    "mutual_cls": """
class A:
    def b(self): return B()
class B:
    def a(self): return A()
def f(): return type(A().b().a()).__name__
""",
    "name_main_guard": """
if __name__ != '__main__':
    def g(): return 1
else:
    def g(): return 2
def f(): return g()
""",
    "namedtuple_cls": """
from typing import NamedTuple
class P(NamedTuple):
    x: int
    y: int = 2
    def total(self): return self.x + self.y
def f(): return P(1).total(), P._fields
""",
    "getattr_raises": """
class C:
    def __getattr__(self, name):
        if name.startswith('__'): raise AttributeError(name)
        raise RuntimeError(name)
c = C()
c.x = 1
def f(): return c.x
""",
    "namedtuple_sub": """
from collections import namedtuple
class P(namedtuple('P', 'x y')):
    __slots__ = ()
    def total(self): return self.x + self.y
def f(): return P(1, 2).total(), P(1, 2)._replace(x=4).total()
""",
    "nested_cls": """
class A:
    class B:
        x = 3
def f(): return A.B().x
""",
    "nested_private": """
class A:
    __x = 3
    def m(self): return self.__x
def f(): return A().m()
""",
    "obj_with_lock": """
import threading
class C:
    def __init__(self): self.lock = threading.Lock(); self.n = 0
    def inc(self):
        with self.lock: self.n += 1
        return self.n
c = C()
c.inc()
def f(): return c.inc()
""",
    "operator_glob": """
import operator
get = operator.itemgetter(1)
add = operator.methodcaller('upper')
def f(): return get([1, 2]), add('a')
""",
    "os_env": """
from os import environ as env, getpid, path
def f(): return 'PATH' in env, path.join('a', 'b')
""",
    "partial_glob": """
import functools
def add(a, b): return a + b
add2 = functools.partial(add, 2)
def f(): return add2(3)
""",
    "partialmethod": """
import functools
class C:
    def m(self, x): return x
    m3 = functools.partialmethod(m, 3)
def f(): return C().m3()
""",
    "pickle_inside": """
import pickle
class P:
    def __init__(self): self.x = 1
def f(): return pickle.loads(pickle.dumps(P())).x
""",
    "plain_then_conditional": """
from collections import namedtuple
P = namedtuple('P', 'x')
if False:
    P = namedtuple('P', 'x y')
def f(): return P._fields
""",
    "property_cached": """
import functools
class C:
    n = 0
    @functools.cached_property
    def p(self):
        type(self).n += 1
        return type(self).n
c = C()
def f(): return c.p, c.p
""",
    "protocol": """
from typing import Protocol, runtime_checkable
@runtime_checkable
class H(Protocol):
    def m(self): ...
class C:
    def m(self): return 1
def f(): return isinstance(C(), H), isinstance(1, H)
""",
    "queue": """
import queue
q = queue.Queue()
def f():
    q.put(1); return q.get(timeout=5)
""",
    "queue_filled": """
import queue
q = queue.Queue()
q.put(5)
def f(): return q.get(timeout=5)
""",
    "re": """
import re
P = re.compile('a+')
def f(): return P.findall('baa')
""",
    "registry_class_deco": """
REG = {}
def register(cls):
    REG[cls.__name__] = cls
    return cls
@register
class G: pass
def f(): return REG['G'] is G, list(REG)
""",
    "registry_deco": """
REG = {}
def register(fn):
    REG[fn.__name__] = fn
    return fn
@register
def g(): return 7
def f(): return REG['g'](), REG['g'] is g
""",
    "sdmethod": """
import functools
class S:
    @functools.singledispatchmethod
    def m(self, x): return 'any'
    @m.register
    def _(self, x: int): return 'int'
def f(): return S().m(1), S().m('a')
""",
    "semaphore": """
import threading
c = threading.BoundedSemaphore(2)
def f():
    with c: return 1
""",
    "sentinel": """
_MISSING = object()
def f(x=_MISSING): return x is _MISSING
""",
    "sentinel_by_function": """
class Null:
    def __reduce__(self): return Null.instance, ()
    @staticmethod
    def instance(): return NULL
NULL = Null()
class Only:
    def __reduce__(self): return get_only, ()
only = Only()
def get_only(): return only
def f(x=NULL):
    import pickle
    return x is NULL, pickle.loads(pickle.dumps(NULL)) is NULL, pickle.loads(pickle.dumps(only)) is only
""",
    "shared_cells": """
def make():
    n = 0
    def inc():
        nonlocal n
        n += 1
    def get(): return n
    return inc, get
inc, get = make()
def f():
    inc()
    return get()
""",
    "slots": """
class S:
    __slots__ = ('a', '__weakref__')
    def __init__(self): self.a = 1
s = S()
def f(): return s.a
""",
    "star_import": """
from math import *
def f(): return sqrt(4)
""",
    "str_sub": """
class S(str): pass
s = S('a')
def f(): return s, type(s) is S
""",
    "strenum": """
import enum
class S(str, enum.Enum):
    A = 'a'
t = {S.A: 1}
def f(): return t[S.A], S.A == 'a'
""",
    "stringio": """
import io
b = io.StringIO('abc')
def f(): return b.read()
""",
    "struct": """
import struct
S = struct.Struct('<I')
def f(): return S.pack(1)
""",
    "subclasses": """
class A: pass
class B(A): pass
class C(B): pass
def f(): return [c.__name__ for c in A.__subclasses__()], [c.__name__ for c in B.__subclasses__()]
""",
    "time_alias": """
from time import perf_counter as clock
def f(): return clock() > 0
""",
    "total_ordering": """
import functools
@functools.total_ordering
class C:
    def __init__(self, x): self.x = x
    def __eq__(self, o): return self.x == o.x
    def __lt__(self, o): return self.x < o.x
def f(): return C(2) >= C(1)
""",
    "try_cls": """
try:
    from no_such import Err
except ImportError:
    class Err(Exception): pass
def f():
    try: raise Err(1)
    except Err as e: return e.args
""",
    "try_def": """
try:
    from no_such import helper
except ImportError:
    def helper(): return 'own'
def f(): return helper()
""",
    "try_import": """
try:
    import no_such as js
except ImportError:
    import json as js
def f(): return js.dumps(1)
""",
    "try_import_none": """
try:
    import no_such as js
except ImportError:
    js = None
def f(): return js
""",
    "two_dicts": """
users = {}
by_id = {}
class U: pass
u = U()
users['a'] = u
by_id[1] = u
def f(): return users['a'] is by_id[1]
""",
    "type3": """
C = type('C', (), {'x': 1, 'm': lambda self: self.x + K})
K = 5
def f(): return C().m()
""",
    "typeddict": """
from typing import TypedDict
class Movie(TypedDict, total=False):
    x: int
def f(): return Movie(x=1), sorted(Movie.__annotations__), Movie.__total__
""",
    "typing_hints": """
from __future__ import annotations
import typing
class A: pass
def g(x: A) -> int: ...
def f(): return typing.get_type_hints(g)['x'] is A
""",
    "unpack": """
a, (b, *c) = 1, (2, 3, 4)
def f(): return a, b, c
""",
    "userdict": """
from collections import UserDict
class D(UserDict):
    pass
d = D(a=1)
def f(): return d['a'], type(d) is D
""",
    "uuid": """
import uuid, pathlib
P = pathlib.Path('/tmp')
def f(): return P / 'x'
""",
    "views_of_arrays": """
import numpy as np
state = np.zeros(6)
pos, vel = state[:3], state[3:]
by_name = {'grid': state.reshape(2, 3), 'back': state[::-1]}
large = np.zeros(100_000)
half = large[50_000:]
def f():
    vel[:] += 1
    pos[:] += vel
    by_name['back'][0] = 7
    half[0] = 3
    return state.tolist(), by_name['grid'].tolist(), large[50_000]
""",
    "walrus": """
if (n := 10) > 5:
    K = n
def f(): return K, n
""",
    "weakkey": """
import weakref
class P: pass
p = P()
d = weakref.WeakKeyDictionary()
d[p] = 5
def f(): return d.get(p)
""",
    "weakset": """
import weakref
class P: pass
alive = weakref.WeakSet()
p = P()
alive.add(p)
def f(): return len(alive), p in alive
""",
    "weakvalue": """
import weakref
class P: pass
p = P()
r = weakref.ref(p)
def f(): return r() is p
""",
    "with_def": """
import contextlib
with contextlib.nullcontext():
    class C:
        def m(self): return 1
    K = 3
def f(): return C().m(), K
""",
    "wrapped_cls_deco": """
def deco(tag):
    def d(cls):
        class W(cls):
            t = tag
        W.__name__ = cls.__name__
        W.__qualname__ = cls.__qualname__
        return W
    return d
@deco('z')
class C:
    def m(self): return 1
def f(): return C.t, C().m()
""",
    "super_meta": """
class M(type):
    def __call__(cls, *a):
        if not hasattr(cls, '_i'): cls._i = super().__call__(*a)
        return cls._i
class S(metaclass=M): pass
s = S()
def f(): return S() is s
""",
}
