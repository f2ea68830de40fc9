"""What several globals of a script refer to is one object in a worker too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolkit._wire import modules, sharing
from poolkit._wire.plans import manifest_for
from support_scripts import WorkerHalf, pack, run_script

NewScript = Callable[..., Any]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def later_worker() -> Iterator[WorkerHalf]:
    """One that is sent only what there is in the end."""
    worker = WorkerHalf(2)
    yield worker
    worker.close()


@pytest.fixture
def load(new_script: NewScript) -> NewScript:
    def load(source: str) -> Any:
        return new_script(source, name=f"sharing_{next(_numbers)}")

    return load


SHARED = {
    "alias3": """
a = []
b = c = a
def f():
 c.append(1)
 return a, b, a is b is c
""",
    "alias_inst": """
class C: pass
a = C(); b = a
def f():
 b.x=1
 return a.x, a is b
""",
    "alias_fn_lambda": """
g = lambda: 1
h = g
T={'g':g}
def f(): return h is g, T['g'] is g
""",
    "sentinel_kw": """
_M = object()
def g(*, x=_M): return x is _M
def f(): return g(), g(x=1)
""",
    "sentinel_partial": """
import functools
_M = object()
def g(x): return x is _M
p = functools.partial(g, _M)
def f(): return p()
""",
    "sentinel_dc": """
import dataclasses
_M = object()
@dataclasses.dataclass
class D:
 x: object = _M
def f(): return D().x is _M
""",
    "sentinel_dc_global": """
import dataclasses
_M = object()
@dataclasses.dataclass
class D:
 x: object = _M
d = D()
def f(): return d.x is _M, D().x is d.x
""",
    "sentinel_cell": """
_M = object()
def make(m):
 def g(x=m): return x is _M and m is _M
 return g
h = make(_M)
def f(): return h()
""",
    "sentinel_cls": """
_M = object()
class C:
 d = _M
 def m(self, x=_M): return x is _M and self.d is _M
def f(): return C().m()
""",
    "sentinel_lambda": """
_M = object()
fs = [lambda x=_M: x is _M]
def f(): return fs[0]()
""",
    "sentinel_attr": """
_M = object()
def g(): return g.m is _M
g.m = _M
def f(): return g()
""",
    "circle": """
class N: pass
a=N(); b=N(); c=N()
a.n=b; b.n=c; c.n=a; a.all=[a,b,c]
def f(): return a.n is b, b.n is c, c.n is a, a.all[2] is c
""",
    "circle_lists": """
x=[]; y=[x]; x.append(y)
def f(): return x[0] is y, y[0] is x
""",
    "circle_half": """
x=[]; y=[x]; x.append(y)
def f(): return x[0][0] is x
def g(): return y[0] is x
""",
    "circle_holder": """
class N: pass
a=N(); b=N(); a.n=b; b.n=a
T={'a':a,'b':b}
def g(p=a, q=b): return p is a, q is b, T['a'] is p, T['b'] is q
def f(): return g()
""",
    "self": """
L=[]; L.append(L)
def f(): return L[0] is L
""",
    "self_inst": """
class N: pass
n=N(); n.me=n; n.l=[n]
def f(): return n.me is n, n.l[0] is n
""",
    "self_list_inst": """
class N: pass
L=[N()]; L.append(L)
def f(): return L[1] is L
""",
    "even_odd": """
def make():
 def even(n): return n==0 or odd(n-1)
 def odd(n): return n!=0 and even(n-1)
 return even, odd
even, odd = make()
def f(): return even(10), odd(10), even.__closure__[0].cell_contents is odd
""",
    "cells3": """
def make():
 n=0
 def inc():
  nonlocal n
  n+=1
 def dec():
  nonlocal n
  n-=1
 def get(): return n
 return inc,dec,get
inc,dec,get=make()
def f():
 inc(); inc(); dec()
 return get()
""",
    "cells_empty": """
def make():
 def g():
  return x
 def h(): return 1
 if 0: x=1
 return g
g=make()
def f():
 try: g()
 except NameError as e: return 1
""",
    "registry_closure": """
def registry():
 known={}
 def register(fn):
  known[fn.__name__]=fn
  return fn
 def get(n): return known[n]
 return register,get
register,get=registry()
@register
def g(): return 3
def f(): return get('g') is g, get('g')()
""",
    "method": """
class C:
 n=0
 def inc(self):
  self.n+=1
  return self.n
c=C(); inc=c.inc; T={'i':c.inc}
def f(): return inc(), inc(), c.n, T['i'](), c.n
""",
    "lock_shared": """
import threading
L=threading.Lock()
class C: pass
c=C(); c.l=L
def f(): return c.l is L
""",
    "weakkey": """
import weakref
class P: pass
p=P(); d=weakref.WeakKeyDictionary(); d[p]=1
def f(): return d.get(p)
""",
    "weakval": """
import weakref
class P: pass
p=P(); d=weakref.WeakValueDictionary(); d['a']=p
def f(): return d['a'] is p
""",
    "class_attr": """
A=[1]
class C: a=A
def f():
 C.a.append(2)
 return A, C.a is A
""",
    "class_attr_set": """
A={}
class C: pass
C.a=A
class O: pass
o=O(); C.o=o
def f(): return C.a is A, C.o is o
""",
    "namedtuple": """
from collections import namedtuple
P=namedtuple('P','a b')
A=[1]
p=P(A,2)
def f(): return p.a is A
""",
    "chain": """
A=[]
B={'a':A}
C={'b':B}
def f(): return C['b']['a'] is A, C['b'] is B
""",
    "sentinel_class": """
class Missing:
 def __repr__(self): return 'M'
MISSING=Missing()
def g(x=MISSING): return x is MISSING
def f(): return g()
""",
    "tup": """
A=[1]
P=(A, 2)
Q=P
def f(): return P[0] is A, Q is P
""",
    "ctx": """
from contextvars import ContextVar
v=ContextVar('v',default=1)
T=[v]
def f(): return T[0] is v
""",
    "logger": """
import logging
log=logging.getLogger('q')
class C: pass
c=C(); c.log=log
def f(): return c.log is log
""",
    "cached": """
import functools
@functools.lru_cache
def g(x): return object()
T={'g':g}
def f(): return T['g'] is g, T['g'](1) is g(1)
""",
    "cached_wr": """
import functools
def g0(x): return object()
g=functools.lru_cache(g0)
T={'g':g}
def f(): return T['g'] is g, T['g'](1) is g(1)
""",
    "slots": """
class S:
 __slots__=('a',)
s=S(); t=S(); s.a=t; t.a=s
def f(): return s.a is t, t.a is s
""",
    "frozen": """
import dataclasses
@dataclasses.dataclass(frozen=True)
class P:
 x: object
A=[1]
p=P(A)
def f(): return p.x is A
""",
    "observer": """
class S:
 def __init__(self): self.obs=[]
class O:
 def __init__(self,s): self.s=s; s.obs.append(self.cb)
 def cb(self): return 1
s=S(); o=O(s)
def f(): return o.s is s, s.obs[0].__self__ is o
""",
    "gen": """
import itertools
c=itertools.count(); nxt=c.__next__
def f(): return nxt(), next(c), nxt()
""",
    "chainmap": """
from collections import ChainMap
base={}; over={}
cm=ChainMap(over,base)
def f():
 base['a']=1
 return cm['a'], cm.maps[1] is base
""",
    "userlist": """
from collections import UserList
u=UserList([1]); T=[u]
def f(): return T[0] is u
""",
    "wraps": """
import functools
_M=object()
def deco(fn):
 @functools.wraps(fn)
 def w(x=_M): return fn(x)
 return w
@deco
def g(x): return x is _M
def f(): return g()
""",
    "sysrandom": """
import random
T={'r':random.SystemRandom()}
def f(): return 0<=T['r'].random()<1
""",
    "registry_list": """
REG=[]
class C: pass
c=C()
REG.append(c)
class D:
 reg=REG
def f(): return D.reg is REG, REG[0] is c, type(c) is C
""",
    "cyc_cls": """
REG=[]
class C:
 registry=REG
c=C()
REG.append(c)
def f(): return C.registry is REG, REG[0] is c, type(c) is C, len(REG)
""",
    "large": """
A=list(range(100000))
T={'a':A}
def f():
 A[0]=7
 return T['a'][0], T['a'] is A
""",
    "numpy": """
import numpy as np
a=np.zeros(3); v=a
T={'a':a}
def f():
 v[0]=5
 return float(a[0]), T['a'] is a
""",
    "large_array": """
import numpy as np
a=np.zeros(300000); v=a
T={'a':a}
def f():
 v[0]=5
 return float(a[0]), T['a'] is a
""",
    "two_circles": """
class N: pass
a=N();b=N();c=N();d=N()
a.x=b;b.x=a;c.x=d;d.x=c;a.y=c
def f(): return a.x is b,b.x is a,c.x is d,d.x is c,a.y is c
""",
    "bound": """
d={'a':1}
get=d.get
def f():
 d['b']=2
 return get('b')
""",
}


@pytest.mark.parametrize("name", SHARED)
def test_one_object_is_one_in_a_worker(worker: WorkerHalf, load: NewScript, name: str) -> None:
    """Whatever refers to it."""
    if "numpy" in SHARED[name]:
        pytest.importorskip("numpy")
    script = load(SHARED[name])
    found = worker.call(script.f)  # before the call here, which may change what would be sent
    assert found == script.f()


# ===== functions by value =====

BY_VALUE = """
MISSING = object()
def helper(v): return v is MISSING
def make(m=MISSING):
    def g(x=MISSING): return helper(m) and x is MISSING
    return g
def takes(fn): return fn()
class Job:
    def __init__(self, n): self.n = n
def run(job): return job.n
"""


@pytest.mark.parametrize(
    "expression",
    [
        "(lambda x=MISSING: x is MISSING,)",
        "(lambda *, x=MISSING: x is MISSING,)",
        "(lambda x=MISSING: helper(x),)",
        "(make(),)",
        "(takes, make())",
    ],
)
def test_a_function_by_value_knows_the_sentinels_that_it_has_as_defaults(
    worker: WorkerHalf, load: NewScript, expression: str
) -> None:
    assert worker.call(*eval(expression, vars(load(BY_VALUE)))) is True  # noqa: S307 -- our own source


def test_a_sentinel_that_a_result_has_is_the_owners_if_that_has_one(worker: WorkerHalf, load: NewScript) -> None:
    script = load("""
MISSING = object()
class C: pass
def f():
    global OWN
    OWN = object()
    return MISSING, OWN, C()
""")
    known, own, _ = worker.call(script.f)
    assert known is script.MISSING
    assert type(own) is object


def test_a_default_that_is_no_name_of_the_code_is_copied(worker: WorkerHalf, load: NewScript) -> None:
    """A global that is bound anew for each call."""
    script = load(BY_VALUE)
    calls = []
    for number in range(3):
        script.job = script.Job(number)
        calls.append(pack(eval("lambda job=job: run(job)", vars(script))))  # noqa: S307 -- our own source
    for number in (2, 0, 1):
        assert worker.run(calls[number]) == number


# ===== what a task has bound =====


def test_what_a_task_has_bound_is_not_what_other_globals_refer_to(worker: WorkerHalf, load: NewScript) -> None:
    """They refer to the owner's, which is sent for them."""
    script = load("""
A, B = [1], [2]
T = {'a': A, 'b': B}
class C: pass
c, d = C(), C()
c.d, d.c = d, c
def init():
    global A, c
    A = c = 'own'
def later():
    global B
    B = 'own'
def f(): return A, T['a'], c, d.c.d is d, T['b']
def g(): return B, T['b']
""")
    worker.call(script.init)
    assert worker.call(script.f) == ("own", [1], "own", True, [2])
    worker.call(script.later)
    assert worker.call(script.g) == ("own", [2])
    script.B.append(3)
    assert worker.call(script.g) == ("own", [2, 3])


# ===== changes =====


def same(script: Any, *workers: WorkerHalf) -> None:
    for worker in workers:
        assert worker.call(script.f) == script.f()


def test_who_refers_to_a_global_has_its_newest_version(
    worker: WorkerHalf, later_worker: WorkerHalf, load: NewScript
) -> None:
    """Changed in place, seen first by another function, bound to another object, and back."""
    script = load("""
A, cfg, big = [1], {'k': 1}, list(range(2000))
B, T, H = A, {'a': A}, {'b': big, 'a': A}
class O: pass
o = O()
o.l = A
def g(x=cfg): return x is cfg, dict(x)
def f(): return T['a'] is A, B is A, o.l is A, list(A), list(T['a']), g(), H['b'] is big, H['a'] is A
def alone(): return A, cfg
""")
    same(script, worker)
    script.A.append(2)
    same(script, worker)
    script.A.append(3)
    script.cfg["k"] = 2
    worker.call(script.alone)
    same(script, worker)
    script.big.append(1)
    same(script, worker)
    script.A = [9]
    same(script, worker, later_worker)
    script.T["a"] = script.A
    same(script, worker, later_worker)
    script.A = script.B
    same(script, worker, later_worker)


def test_a_circle_is_followed(worker: WorkerHalf, later_worker: WorkerHalf, load: NewScript) -> None:
    """Changed in place, opened, and closed by another object."""
    script = load("""
class N: v = 0
a, b = N(), N()
a.n, b.n = b, a
def f(): return a.n is b, b.n is a, a.v, b.v, a.n.v, b.n.v
def g(): return b.n.v
""")
    same(script, worker)
    script.a.v = 1
    same(script, worker)
    script.b.v = 2
    assert worker.call(script.g) == 1
    same(script, worker)
    script.b = script.N()
    script.b.n = script.a
    same(script, worker, later_worker)
    script.a.n = script.b
    same(script, worker, later_worker)
    script.a.v = 3
    same(script, worker, later_worker)


def test_what_was_defined_again_stays_the_old_one_for_who_has_it(
    worker: WorkerHalf, later_worker: WorkerHalf, load: NewScript
) -> None:
    """By another name, in a container, as a default."""
    script = load("""
def g(): return 1
class C: x = 1
old, T, c = g, {'g': g}, C()
def h(cls=C): return cls.x
def f(): return old(), g(), T['g'](), h(), c.x, C.x, type(c) is C
""")
    same(script, worker)
    exec("def g(): return 2\nclass C: x = 2", vars(script))  # noqa: S102 -- our own source
    same(script, worker, later_worker)


# ===== what it costs =====


def test_globals_of_atoms_and_what_is_alone_refer_to_nothing(load: NewScript) -> None:
    """Their names are rebound without a new version of the others."""
    script = load("""
import typing
RATE, NAME, SHAPE, Alias = 1000, 'train', (3, 4), typing.List[int]
T = {'rate': RATE, 'name': NAME, 'shape': SHAPE}
def g(rate=RATE, name=NAME, shape=SHAPE): pass
def h(x: Alias): return g
def f(): return T, g, h, RATE
""")
    modules.look()
    found = manifest_for(None, {(script.__name__, "f")})
    assert found is not None
    assert {item.name: item.bound for item in found.items if item.bound} == {}


def test_the_table_of_names_is_made_once_for_a_plan(load: NewScript, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many globals there are."""
    script = load("\n".join(f"K{n} = [[{n}]]" for n in range(50)) + "\ndef f(): globals()\ndef g(): pass\nL = [f]")
    made: list[object] = []
    may_be_shared = sharing._may_be_shared
    monkeypatch.setattr(sharing, "_may_be_shared", lambda value: made.append(value) or may_be_shared(value))
    modules.look()
    manifest_for(None, {(script.__name__, f"K{n}") for n in range(50)})
    assert sum(each is script.K7 for each in made) == 1


def test_an_object_keeps_the_name_that_it_has(load: NewScript) -> None:
    """Also when it gets one that stands before that."""
    script = load("A, B = [1], [2]\ndef f(): return A, B")
    modules.look()
    manifest_for(None, {(script.__name__, "f")})
    script.A = script.B
    sharing.look()
    assert sharing.names()[id(script.B)] == (script.__name__, "B")


REUSED = """
class C:
    def __getstate__(self):
        global last
        calls.append(0)
        if len(calls) == at: last = None  # as another thread may do meanwhile
        return {"text": "a" * 2000}  # it may lie where that was
calls, at = [], 0
last = {"other": "thing"}
x = C()
def f(): return x.text
"""


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_object_in_the_place_of_one_that_had_a_name_has_none(load: NewScript, at: int) -> None:
    script = load(REUSED)
    script.at = at
    modules.look()
    found = manifest_for(None, {(script.__name__, "x")})
    assert found is not None
    (item,) = (each for each in found.items if each.name == "x")
    assert item.now == ((script.__name__, "C"),)


def test_a_program_with_large_globals_ends_in_silence() -> None:
    """The interpreter takes modules apart before it lets go of what lies in shared memory."""
    script = """
import subprocess, sys
end = '''
from poolkit._wire import plans
import __main__
class P: pass
for X in (bytearray(300_000), [P() for _ in range(20_000)]):
    found = plans.manifest_for(None, {("__main__", "X")})
'''
print(repr(subprocess.run([sys.executable, "-c", end], capture_output=True, check=True).stderr))
"""
    assert run_script(script) == "b''"
