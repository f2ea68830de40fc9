"""Calls and results as bytes."""

from __future__ import annotations

import collections
import functools
import gc
import operator
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import pytest

import poolkit._wire.codec as codec_module
from poolkit._wire import culprit, pickles
from poolkit._wire.codec import load_call, load_value, pack_call, pack_value
from poolkit.errors import SerializationError

ROOT = str(Path(codec_module.__file__).parents[2])


def in_new_process(source: str, stdin: str = "") -> str:
    """Run `source` as `__main__` of a new interpreter and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def in_main(source: str, name: str) -> Any:
    """Define `source` as if in `__main__`, and return one name of it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)  # noqa: S102 -- our own source
    return namespace[name]


def call(packed: tuple[bytes, bytes]) -> Any:
    fn, args, kwargs = load_call(*packed)
    return fn(*args, **kwargs)


@dataclass
class Box:
    content: object


class Pair(NamedTuple):
    first: object
    second: object


class Slotted:
    __slots__ = ("inside",)

    def __init__(self, inside: object) -> None:
        self.inside = inside


class ExitsWhenPickled:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class RaisesWhenPickled:
    def __reduce__(self) -> Any:
        msg = "not today"
        raise LookupError(msg)


class NamedByReduce:
    def __reduce__(self) -> str:
        return "no_such_name"


class Rebuilt:
    def __init__(self, inside: object) -> None:
        self.inside = inside

    def __reduce__(self) -> Any:
        return Rebuilt, (self.inside,)


class StatefulLock:
    def __getstate__(self) -> object:
        return threading.Lock()


class UnshowableError(Exception):
    def __str__(self) -> str:
        raise ValueError


class RaisesUnshowable:
    def __reduce__(self) -> Any:
        raise UnshowableError


class CountingList(list[Any]):
    pass


def test_an_importable_call_is_one_plain_pickle() -> None:
    """Nothing by value means no function bytes."""
    fn_bytes, body = pack_call(operator.add, (1, 2), {})
    assert fn_bytes == b""
    assert load_call(fn_bytes, memoryview(body)) == (operator.add, (1, 2), {})


def test_objects_shared_by_callable_and_arguments_stay_shared() -> None:
    """A bound method's instance and the same instance as an argument arrive as one object."""
    box = Box([])
    fn, args, _ = load_call(*pack_call(functools.partial(operator.is_, box), (box,), {}))
    assert fn(*args)


@pytest.mark.parametrize(
    ("source", "expression", "expected"),
    [
        ("def f(x): return x + 1", "f, (1,)", 2),
        ("f = lambda x: x * 2", "f, (4,)", 8),
        ("def outer(n):\n def inner(x): return x + n\n return inner", "outer(5), (1,)", 6),
        ("class C:\n def m(self, x): return x + 1", "C().m, (1,)", 2),
        ("class C:\n def __call__(self, x): return x - 1", "C(), (1,)", 0),
        ("class C:\n @classmethod\n def m(cls, x): return x", "C.m, (7,)", 7),
        ("class C:\n @staticmethod\n def m(x): return x", "C.m, (9,)", 9),
        ("class C:\n def __init__(self, x): self.x = x\n def __eq__(self, o): return self.x == o", "C, (3,)", 3),
        ("from functools import partial\ndef f(a, b): return a - b", "partial(f, 5), (2,)", 3),
        ("class C:\n x = 11\nfrom operator import attrgetter", "attrgetter('x'), (C(),)", 11),
        ("class C:\n x = 12\ndef f(c): return c.x", "f, (C(),)", 12),
    ],
)
def test_every_kind_of_callable_of_main_works(source: str, expression: str, expected: object) -> None:
    """Functions, lambdas, closures, methods, instances, classes and partials of `__main__` can be called."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)  # noqa: S102 -- our own source
    fn, args = eval(expression, namespace)  # noqa: S307 -- our own source
    assert call(pack_call(fn, args, {})) == expected


def test_a_real_main_reaches_a_process_that_never_saw_it() -> None:
    """A script's function, with its helper and class, runs in another interpreter."""
    packed = in_new_process("""
from poolkit._wire.codec import pack_call
import operator
class Point:
    def __init__(self, x): self.x = x
def helper(p): return p.x * FACTOR
FACTOR = 3
def f(p): return helper(p) + 1
fn, body = pack_call(f, (Point(2),), {})
print(fn.hex(), body.hex())
fn, body = pack_call(operator.attrgetter("x"), (Point(5),), {})
print(repr(fn.hex()), body.hex())
""")
    answers = in_new_process(
        """
import sys
from poolkit._wire.codec import load_call
for line in sys.stdin:
    fn, args, kwargs = load_call(*map(bytes.fromhex, line.replace("'", "").split(" ")))
    print(fn(*args, **kwargs))
""",
        packed,
    )
    assert answers.split() == ["7", "5"]


def test_an_instance_of_main_comes_home_as_its_own_class() -> None:
    """What a worker returns is an instance of the caller's class, which is not overwritten by the worker's copy."""
    script = """
import subprocess, sys
from poolkit._wire.codec import load_value, pack_call
import enum
class Colour(enum.Enum):
    RED = 1
class Point:
    made = []
    def __init__(self, x): self.x = x
    def double(self): return self.x * FACTOR
FACTOR = 2
method, made = Point.double, Point.made
def f(p): p.x += 1; return p, Colour.RED
pieces = pack_call(f, (Point(2),), {})
FACTOR = 10
worker = '''
import sys
from poolkit._wire.codec import load_call, pack_value
fn, args, kwargs = load_call(*map(bytes.fromhex, sys.argv[1:]))
print(pack_value(fn(*args, **kwargs)).hex())
'''
done = subprocess.run([sys.executable, "-c", worker, *[p.hex() for p in pieces]], capture_output=True, check=True)
point, colour = load_value(bytes.fromhex(done.stdout.decode()))
assert type(point) is Point and colour is Colour.RED
assert Point.double is method and Point.made is made
print(point.double())
"""
    assert in_new_process(script) == "30"


def test_a_class_that_only_the_worker_knows_is_made_once() -> None:
    """Two results of such a class have the same class here."""
    instance = in_main("class C:\n x = 1\n def m(self): return self.x", "C")()
    packed = pack_value(instance)
    del instance
    gc.collect()  # classes are cycles; cloudpickle holds them weakly
    one, other = load_value(packed), load_value(packed)
    assert one.m() == 1
    assert type(one) is type(other)


def test_the_worker_half_imports_nothing_heavy() -> None:
    """Loading and answering a plain call needs neither cloudpickle nor tblib, nor anything else of size."""
    script = """
import sys
from poolkit._wire.codec import load_call, pack_value
import pickle
load_call(b"", pickle.dumps((len, ((),), {}), 5)); pack_value(3)
print(sorted({"asyncio", "cloudpickle", "multiprocessing", "tblib"} & set(sys.modules)))
"""
    assert in_new_process(script) == "[]"


def test_a_reusable_function_is_loaded_once() -> None:
    """The same bytes give the same function again."""
    packed = pack_call(in_main("def f(): return 1", "f"), (), {})
    assert load_call(*packed)[0] is load_call(*packed)[0]


def test_a_function_that_rebinds_globals_starts_afresh_each_time() -> None:
    """Two calls of a counter both count from the caller's value."""
    packed = pack_call(in_main("n = 0\ndef f():\n global n\n n += 1\n return n", "f"), (), {})
    assert [call(packed), call(packed)] == [1, 1]


def test_a_function_with_mutable_globals_starts_afresh_each_time() -> None:
    """What one call appends, the next does not see."""
    packed = pack_call(in_main("seen = []\ndef f():\n seen.append(1)\n return len(seen)", "f"), (), {})
    assert [call(packed), call(packed)] == [1, 1]


def test_the_worker_keeps_a_bounded_number_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is let go first."""
    kept: dict[bytes, Any] = {}
    monkeypatch.setattr(codec_module, "_functions", kept)
    monkeypatch.setattr(codec_module, "_KEPT_FUNCTIONS", 2)
    packed = [pack_call(in_main(f"def f(): return {n}", "f"), (), {}) for n in range(3)]
    assert [call(each) for each in packed] == [0, 1, 2]
    assert list(kept) == [packed[1][0], packed[2][0]]


def test_text_that_looks_like_main_is_harmless() -> None:
    """A false alarm changes nothing but the way."""
    fn, args, kwargs = load_call(*pack_call(operator.eq, ("__main__",), {"k": b"__main__"}))
    assert (fn, args, kwargs) == (operator.eq, ("__main__",), {"k": b"__main__"})


def test_modules_registered_by_value_are_not_pickled_by_name() -> None:
    """After cloudpickle.register_pickle_by_value, functions and results of the module travel whole."""
    module = sys.modules[__name__]
    by_name = pack_call(in_new_process, (), {})
    cloudpickle.register_pickle_by_value(module)
    try:
        fn_bytes, _ = pack_call(in_new_process, (), {})
        assert by_name[0] == b""
        assert fn_bytes[-1:] == pickles.BY_VALUE
        assert pack_value(in_new_process)[-1:] == pickles.BY_VALUE
    finally:
        cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_results_load_from_any_buffer(convert: Any) -> None:
    """Plain and by-value results load from bytes, bytearray and memoryview."""
    assert load_value(convert(pack_value({"a": 1}))) == {"a": 1}
    assert load_value(convert(pack_value(lambda: 3)))() == 3


def test_large_payloads_are_not_copied_more_than_needed() -> None:
    """Packing 32 MiB needs little more than the packed bytes themselves."""
    import tracemalloc

    big = bytes(32 << 20)
    tracemalloc.start()
    try:
        body = pack_call(len, (big,), {})[1]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.2 * len(body)  # the pickler's buffer may grow by half before it is cut to size
    assert load_call(b"", body)[1][0] == big


LOCK = threading.Lock()
CYCLE: list[Any] = [LOCK]
CYCLE.insert(0, CYCLE)


def closure_over(content: object) -> Any:
    def inner() -> object:
        return content

    return inner


def half_empty_closure() -> Any:
    def inner() -> object:
        return LOCK, later

    if not LOCK:
        later = 1  # never runs: the cell stays empty
    return inner


def with_keyword_default() -> Any:
    def inner(*, lock: object = LOCK) -> object:
        return lock

    return inner


def with_attribute() -> Any:
    def inner() -> None:
        pass

    inner.lock = LOCK  # type: ignore[attr-defined]
    return inner


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (LOCK, ": _thread.lock"),
        ({"lock": LOCK}, '["lock"]: _thread.lock'),
        ({3: LOCK}, "[3]: _thread.lock"),
        ({Pair(1, 2): LOCK}, f"[{__name__}.Pair]: _thread.lock"),
        ({LOCK: 1}, " key: _thread.lock"),
        ([1, (2, [LOCK])], "[1][1][0]: _thread.lock"),
        ([0] * 1000 + [LOCK] + [[]] * 500, "[1000]: _thread.lock"),
        ({1, LOCK}, " item: _thread.lock"),
        (frozenset({LOCK}), " item: _thread.lock"),
        (collections.deque([LOCK]), "[0]: _thread.lock"),
        (CountingList([1, LOCK]), "[1]: _thread.lock"),
        (collections.OrderedDict(a=LOCK), '["a"]: _thread.lock'),
        (Box([LOCK]), ".content[0]: _thread.lock"),
        (Slotted(LOCK), ".inside: _thread.lock"),
        (Pair(1, LOCK), "[1]: _thread.lock"),
        (StatefulLock(), " state: _thread.lock"),
        (Rebuilt([LOCK]), ".inside[0]: _thread.lock"),
        (closure_over(LOCK), ' closure "content": _thread.lock'),
        (half_empty_closure(), ' global "LOCK": _thread.lock'),
        (with_keyword_default(), ' default "lock": _thread.lock'),
        (with_attribute(), ".lock: _thread.lock"),
        (in_main("lock = __import__('threading').Lock()\ndef f(a=1): return lambda: lock", "f"), ' global "lock"'),
        (in_main("class C:\n lock = __import__('threading').Lock()", "C"), ".lock: _thread.lock"),
        (functools.partial(print, LOCK), ".args[0]: _thread.lock"),
        (Box(LOCK).__eq__, ".__self__.content: _thread.lock"),
        (KeyError(1, LOCK), ".args[1]: _thread.lock"),
        (RaisesWhenPickled(), f": {__name__}.RaisesWhenPickled (LookupError: not today)"),
        (NamedByReduce(), f": {__name__}.NamedByReduce"),
        (CYCLE, "[1]: _thread.lock"),
    ],
)
def test_the_culprit_is_named_by_its_path(value: object, place: str) -> None:
    """The message says where the offending part stands and what it is."""
    with pytest.raises(SerializationError) as caught:
        pack_call(operator.is_, (1, value), {})
    assert f"args[1]{place}" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_function_and_keyword_arguments_are_named() -> None:
    """Paths begin with `fn` or with the keyword."""
    with pytest.raises(SerializationError, match=r'kwargs\["k"\]\[0\]: _thread\.lock'):
        pack_call(print, (), {"k": [LOCK]})
    with pytest.raises(SerializationError, match=r'fn closure "content": _thread\.lock'):
        pack_call(closure_over(LOCK), (), {})


def test_too_deep_nesting_is_said_and_not_searched() -> None:
    """A structure beyond the recursion limit gives an error that says so."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        with pytest.raises(SerializationError, match="recursion"):
            pack_call(print, (deep,), {})
    finally:
        while deep:  # taken apart by hand: freeing it would recurse too
            deep = deep.pop()


def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without probes left the message names what is known so far."""
    monkeypatch.setattr(culprit, "_MAX_PROBES", 2)
    with pytest.raises(SerializationError, match=r"args\[0\]: list"):
        pack_call(print, ([[[LOCK]]],), {})
    monkeypatch.setattr(culprit, "_MAX_PROBES", 0)
    with pytest.raises(SerializationError, match=r"the call: \(TypeError"):
        pack_call(print, (LOCK,), {})
    monkeypatch.setattr(culprit, "_MAX_PROBES", 100)
    monkeypatch.setattr(culprit, "_MAX_DEPTH", 2)
    with pytest.raises(SerializationError, match=r"args\[0\]\[0\]: list"):
        pack_call(print, ([[[LOCK]]],), {})


def test_an_error_that_cannot_be_shown_is_still_reported() -> None:
    """A reason whose str() raises does not hide the place."""
    with pytest.raises(SerializationError, match="its message cannot be shown"):
        pack_value([RaisesUnshowable()])


class HidesItsDict:
    """Raises from its metaclass-visible places once it is taken apart."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise RuntimeError
        if name == "__reduce_ex__":
            return lambda _protocol: (HidesItsDict, (LOCK,))
        return super().__getattribute__(name)


def test_an_object_that_resists_inspection_is_still_reported() -> None:
    """A search that itself fails leaves the plain reason."""
    with pytest.raises(SerializationError, match=r"the result: \(TypeError"):
        pack_value([HidesItsDict()])


def test_only_a_result_turns_system_exit_into_an_error() -> None:
    """A worker survives what the caller's thread must see."""
    with pytest.raises(SerializationError, match=r"result\[0\]: .*ExitsWhenPickled \(SystemExit: 3\)"):
        pack_value([ExitsWhenPickled()])
    with pytest.raises(SystemExit):
        pack_call(print, (ExitsWhenPickled(),), {})


def test_results_name_their_culprit() -> None:
    """Paths of results begin with `result`."""
    with pytest.raises(SerializationError, match=r'result\["lock"\]: _thread\.lock'):
        pack_value({"lock": LOCK})
