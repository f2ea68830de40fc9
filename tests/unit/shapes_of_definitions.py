"""Shapes of definitions: in branches, with type variables, set from elsewhere; see `shapes_of_scripts.py`."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "acting_not_taken": """
import json
if False:
    json.dumps = None
def f(): return json.dumps(1)
""",
    "acting_one_line": """
import json
json.aa = 1; json.bb = 2
def f(): return json.aa, json.bb
""",
    "annotations_that_are_text": """
from __future__ import annotations
import typing as t
from dataclasses import InitVar, dataclass, fields
from typing import ClassVar
@dataclass
class D:
    a: ClassVar[int] = 3
    b: int = 1
    c: InitVar[int] = 5
    d: t.ClassVar[int] = 7
    def __post_init__(self, c): self.b += c
def f(): return [field.name for field in fields(D)], D(2).b
""",
    "class_in_branches_by_base": """
class E(Exception): pass
Old = E
class E(ValueError): pass
def f(): return E.__mro__[1], Old.__mro__[1]
""",
    "class_in_branches_by_constant": """
from dataclasses import dataclass, fields
import enum
if enum:
    class C:
        x = 1
    class E(enum.Enum):
        A = enum.auto()
        B = (1, 2)
    @dataclass
    class D:
        x: int
        y: int = 1
else:
    class C:
        x = 2
    class E(enum.Enum):
        A = enum.auto()
        B = (3, 4)
    @dataclass
    class D:
        x: int
        y: int = 2
def f(): return C.x, [e.value for e in E], [field.name for field in fields(D)], D(0)
""",
    "class_in_branches_by_expression": """
import ctypes
import sys
if sys.maxsize > 2**32:
    class S(ctypes.Structure):
        _fields_ = [('x', ctypes.c_int64)]
    class C:
        seen = []
        sizes = {int: 8}
else:
    class S(ctypes.Structure):
        _fields_ = [('x', ctypes.c_int32)]
    class C:
        seen = []
        sizes = {int: 4}
C.seen.append(1)
def f(): return ctypes.sizeof(S), S(2**40).x, C.sizes, C.seen
""",
    "class_in_branches_by_name": """
from typing import TypedDict
if True:
    class T(TypedDict):
        x: int
    class C:
        a = b = None
else:
    class T(TypedDict):
        y: int
    class C:
        a = b = c = None
def f(): return T.__required_keys__, vars(C).keys() & set('abc')
""",
    "class_in_branches_undecided": """
from dataclasses import dataclass, field, fields
if True:
    @dataclass(frozen=True)
    class D:
        x: int
        y: list = field(default_factory=list)
else:
    @dataclass
    class D:
        x: int
        y: list = field(default_factory=list)
def f():
    try: D()
    except TypeError as error: missing = error.args
    return missing, D(1).y, [each.name for each in fields(D)], D.__dataclass_params__.frozen
""",
    "class_in_branches_without_methods": """
if True:
    class C:
        x = 1
else:
    class C:
        x = 1
        def m(self): return 1
def f(): return C.x, hasattr(C, 'm')
""",
    "class_wrapped_later": """
from dataclasses import dataclass
class D:
    x: int = 1
    def m(self): return self.x
D = dataclass(D)
def f(): return D(3).m(), repr(D(3)), D(3) == D(3)
""",
    "conditional_decorated": """
class Once:
    def __init__(self, function):
        self.function, self.values = function, (value for value in [function()])
    def __call__(self): return self.function()
if True:
    @Once
    def g(): return 'fast'
else:
    @Once
    def g(): return 'slow'
def f(): return g()
""",
    "decorated_and_redefined": """
class Once:
    def __init__(self, function): self.call = [function], (value for value in [1]); self.function = function
    def __call__(self): return self.function()
def check(condition):
    if condition:
        @Once
        def g(): return 'fast'
if True:
    @Once
    def g(): return 'fast'
if not g:
    @Once
    def g(): return 'slow'
def f(): return g()
""",
    "decorated_into_slots": """
class Task:
    __slots__ = ('function', 'options', 'values')
    def __init__(self, function, options):
        self.function, self.options, self.values = function, options, (value for value in [1])
    def __call__(self): return self.function(), self.options
def task(**options): return lambda function: Task(function, options)
if True:
    @task(retries=1)
    def g(): return 1
else:
    @task(retries=2)
    def g(): return 1
def f(): return g()
""",
    "decorated_twice": """
import functools
class Once:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.values = (value for value in [1])
    def __call__(self): return self.__wrapped__()
@Once
def g(): return 'first'
first = g
@Once
def g(): return 'second'
g = first
@Once
def h(): return 'h'
def f(): return h()
""",
    "dyn_module": """
import types
m = types.ModuleType('dyn')
m.x = 1
def f(): return m.x
""",
    "function_of_another_module": """
import typing
class T:
    x = 3
    hints = staticmethod(typing.get_type_hints)
def f(): return T.x, T.hints(T)
""",
    "generic": """
from typing import Generic, TypeVar
T = TypeVar('T')
class B(Generic[T]):
    pass
class C(B[int]): pass
def f(): return C.__orig_bases__[0] == B[int]
""",
    "method_under_another_name": """
class C:
    def m(self): return 1
    n = m
C.k = C.m
def f(): return C().m(), C().n(), C().k()
""",
    "module_made_by_hand": """
import types
m = types.ModuleType('json', 'Doc.')
exec('K = 3\\ndef g(x): return x + K\\nclass C:\\n def m(self): return K', vars(m))
class Holder: pass
holder = Holder()
holder.m = types.ModuleType('settings')
holder.m.debug = lambda: holder.m.level
holder.m.level = 4
def f(): return m.g(1), m.C().m(), m.__doc__, holder.m.debug()
""",
    "module_of_a_class_of_the_script": """
import types
class Upper(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith('__'): raise AttributeError(name)
        return name.upper()
upper = Upper('upper', 'Doc.')
upper.x = 1
def f(): return upper.abc, upper.x, upper.__name__, upper.__doc__
""",
    "module_under_another_name": """
import sys
import types
m = types.ModuleType('inner_name')
m.x = 2
sys.modules['shape_outer_name'] = m
def f(): return m.x
""",
    "new_type_in_branches": """
from typing import NewType
if True:
    U = NewType('U', int)
else:
    U = NewType('U', str)
table = {U: 1}
def f(): return U.__supertype__, table[U]
""",
    "property_of_metaclass": """
class M(type):
    @property
    def v(cls): return cls._v
    @v.setter
    def v(cls, value): cls._v = value
class C(metaclass=M):
    _v = 1
C.v = 5
def f(): return C.v
""",
    "set_by_methods": """
import collections
import datetime
import threading
class Own:
    def __init__(self, v): self.v = v
class Base:
    own = None
    @classmethod
    def set(cls, v): cls.own = Own(v)
class C(Base):
    start = ordered = lock = count = None
    @classmethod
    def set(cls, v):
        super().set(v)
        cls.start = datetime.date(2020, 1, v)
        cls.ordered = collections.OrderedDict(a=v)
        cls.lock = threading.Lock()
        cls.count = 4.5
C.set(3)
def f():
    with C.lock: return C.own.v, Base.own, C.start, C.ordered, C.count
""",
    "singleton": """
class S:
    _i = None
    @classmethod
    def get(cls):
        if cls._i is None: cls._i = cls()
        return cls._i
S.get().v = 4
def f(): return S.get().v
""",
    "singleton_of_data_class": """
from dataclasses import dataclass
@dataclass(slots=True)
class D:
    x: int = 1
    y: str = None
@dataclass
class S:
    x: int = 1
    @classmethod
    def get(cls):
        if not hasattr(cls, '_own'): cls._own = cls(5)
        return cls._own
S.get()
def f(): return D(), D(y=2), S.get(), S()
""",
    "special_methods_set_later": """
def later(self): return 'later'
class C: pass
C.__repr__ = later
C.__len__ = lambda self: 3
def f(): return repr(C()), len(C())
""",
    "type_variables": """
from typing import Generic, ParamSpec, TypeVar
P, Q = ParamSpec('P'), ParamSpec('Q')
if True:
    T = TypeVar('T', bound=int)
else:
    T = TypeVar('T', str, bytes)
exec("V = TypeVar('V', covariant=True)\\nclass B(Generic[T, V]): pass", globals())
class C(B[T, V]):
    def m(self): return 1
def f():
    parts = P.__name__, Q.__name__, T.__bound__, V.__covariant__, C().m()
    return parts, B.__parameters__ == (T, V), C.__orig_bases__ == (B[T, V],), T.__module__ == __name__
""",
    "typevar_tuple": """
from typing import TypeVar
T, U = TypeVar('T'), TypeVar('U')
def f(): return T.__name__, U.__name__
""",
}
