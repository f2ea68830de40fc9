"""Calls and results as bytes."""

from __future__ import annotations

import functools
import gc
import operator
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from unit.codec_objects import Box, in_main

import poolkit._wire.codec as codec_module
from poolkit._wire import pickles
from poolkit._wire.codec import load_call, load_value, pack_call, pack_value

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


def call(packed: tuple[bytes, bytes]) -> Any:
    fn, args, kwargs = load_call(*packed)
    return fn(*args, **kwargs)


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


def test_what_is_pickled_later_does_not_tear_what_was_pickled_before() -> None:
    """A pickler hands out large contents as they are, not a copy."""
    content = bytearray(200_000)
    tries: list[int] = []  # the lambda makes two of it

    class Shrinks:
        def __reduce__(self) -> Any:
            if tries:
                del content[100:]
            tries.append(len(content))
            return int, ()

    found, zero, one = load_value(pack_value([content, Shrinks(), lambda: 1]))
    assert (len(found), zero, one()) == (200_000, 0, 1)
    assert tries == [200_000, 100]


def test_modules_registered_by_value_are_not_pickled_by_name() -> None:
    """After cloudpickle.register_pickle_by_value, functions and results of the module travel whole."""
    module = sys.modules[__name__]
    by_name = pack_call(in_new_process, (), {})
    cloudpickle.register_pickle_by_value(module)
    try:
        fn_bytes, _ = pack_call(in_new_process, (), {})
        assert by_name[0].endswith(b"in_new_process\x94\x93\x94.")
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
