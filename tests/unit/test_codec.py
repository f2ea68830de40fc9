"""Calls and results as bytes."""

from __future__ import annotations

import functools
import gc
import operator
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from unit.codec_objects import Box, in_main

import poolkit._wire.codec as codec_module
from poolkit._wire import pickles
from poolkit._wire.codec import load_call, load_value, pack_call, pack_value
from support_scripts import WorkerHalf, run_script

NewScript = Callable[[str], Any]
NewWorker = Callable[[], WorkerHalf]


def loaded(fn: Any, *args: Any, **kwargs: Any) -> Any:
    """A call as it arrives in this very process."""
    fn_bytes, body, _ = pack_call(fn, args, kwargs)
    return load_call(fn_bytes, body)


def test_an_importable_call_is_one_plain_pickle() -> None:
    """Nothing by value means no function bytes."""
    fn_bytes, body, manifest = pack_call(operator.add, (1, 2), {})
    assert (fn_bytes, manifest) == (b"", None)
    assert load_call(fn_bytes, memoryview(body)) == (operator.add, (1, 2), {})


def test_objects_shared_by_callable_and_arguments_stay_shared() -> None:
    """A bound method's instance and the same instance as an argument arrive as one object."""
    box = Box([])
    fn, args, _ = loaded(functools.partial(operator.is_, box), box)
    assert fn(*args)


@pytest.mark.parametrize(
    ("source", "expression", "expected"),
    [
        ("def f(x): return x + 1", "f, (1,)", 2),
        pytest.param("f = lambda x: x * 2", "f, (4,)", 8),
        pytest.param("def outer(n):\n def inner(x): return x + n\n return inner", "outer(5), (1,)", 6),
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
def test_every_kind_of_callable_of_a_script_works(
    new_script: NewScript, new_worker: NewWorker, source: str, expression: str, expected: object
) -> None:
    """Functions, lambdas, closures, methods, instances, classes and partials of a script can be called."""
    fn, args = eval(expression, vars(new_script(source)))  # noqa: S307 -- our own source
    assert new_worker().call(fn, *args) == expected


def test_a_real_main_reaches_a_process_that_never_saw_it() -> None:
    """A script's function, with its helper and class, runs in another interpreter."""
    answers = run_script("""
import operator
from support_scripts import WorkerHalf
class Point:
    def __init__(self, x): self.x = x
def helper(p): return p.x * FACTOR
FACTOR = 3
def f(p): return helper(p) + 1
worker = WorkerHalf()
print(worker.call(f, Point(2)), worker.call(operator.attrgetter("x"), Point(5)))
worker.close()
""")
    assert answers.split() == ["7", "5"]


def test_an_instance_of_main_comes_home_as_its_own_class() -> None:
    """What a worker returns is an instance of the caller's class, which is not overwritten by the worker's copy."""
    script = """
import enum
from support_scripts import WorkerHalf, pack
class Colour(enum.Enum):
    RED = 1
class Point:
    made = []
    def __init__(self, x): self.x = x
    def double(self): return self.x * FACTOR
FACTOR = 2
method, made = Point.double, Point.made
def f(p): p.x += 1; return p, Colour.RED
packed = pack(f, Point(2))
FACTOR = 10
worker = WorkerHalf()
point, colour = worker.run(packed)
worker.close()
assert type(point) is Point and colour is Colour.RED
assert Point.double is method and Point.made is made
print(point.double())
"""
    assert run_script(script) == "30"


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
    assert run_script(script) == "[]"


def closure_over(content: object) -> Any:
    return lambda: content


def counter() -> Any:
    count = 0

    def count_on() -> int:
        nonlocal count
        count += 1
        return count

    return count_on


def appender(seen: list[int] = []) -> list[int]:  # noqa: B006 -- the point
    seen.append(1)
    return seen


@pytest.mark.parametrize("fn", [lambda: 1, lambda x=(1, "a"): x, closure_over((3, int))])
def test_a_reusable_function_is_loaded_once(fn: Any) -> None:
    """The same bytes give the same function again."""
    assert loaded(fn)[0] is loaded(fn)[0]


@pytest.mark.parametrize(
    "fn",
    [counter(), closure_over([]), lambda x=[]: x, lambda *, x={}: x],
    ids=["counter", "cell", "default", "kwdefault"],
)
def test_a_function_that_keeps_something_of_a_call_is_loaded_each_time(fn: Any) -> None:
    """Two calls of a counter that travels by value both count from the caller's value, as arguments do."""
    assert loaded(fn)[0] is not loaded(fn)[0]


def test_a_lambda_with_an_attribute_is_loaded_each_time() -> None:
    """It may be changed by a call."""
    fn: Any = lambda: 1  # noqa: E731 -- the point
    fn.tag = 1
    assert loaded(fn)[0] is not loaded(fn)[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [("fn.__code__ = other.__code__", 2), ("fn.__defaults__ = (3,)", 3)],
)
def test_a_function_by_value_goes_as_it_is_now(change: str, expected: int) -> None:
    """Its bytes are kept, and made anew when it was changed."""
    fn: Any = lambda x=1: x  # noqa: E731 -- as above
    assert loaded(fn)[0]() == 1
    exec(change, {"fn": fn, "other": lambda x: 2})  # noqa: S102 -- our own source
    assert loaded(fn)[0]() == expected


@pytest.mark.parametrize(
    "change",
    [
        "fn.tag = 3",
        "fn.__kwdefaults__ = {'k': 3}",
        "fn.__defaults__ = ([],)",
    ],
)
def test_a_function_by_value_has_all_that_it_has_now(change: str) -> None:
    """What was set on it since the first call, too; and what was taken away again."""
    fn: Any = lambda x=0, *, k=None: (x, k)  # noqa: E731 -- as above
    fn.__kwdefaults__ = None
    before = _state_of(fn)
    assert _state_of(loaded(fn)[0]) == before
    exec(change, {"fn": fn})  # noqa: S102 -- our own source
    assert _state_of(loaded(fn)[0]) == _state_of(fn) != before
    fn.__dict__, fn.__kwdefaults__, fn.__name__, fn.__qualname__, fn.__defaults__ = before
    assert _state_of(loaded(fn)[0]) == before


def _state_of(fn: Any) -> tuple[object, ...]:
    return vars(fn).copy(), fn.__kwdefaults__, fn.__name__, fn.__qualname__, fn.__defaults__


def test_a_function_by_name_is_the_one_that_the_name_means_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept under its bytes is not called in its place."""
    before = closure_over
    assert loaded(before)[0] is before
    new = in_main(f"def closure_over(): pass\nclosure_over.__module__ = {__name__!r}", "closure_over")
    monkeypatch.setattr(sys.modules[__name__], "closure_over", new)
    assert loaded(new)[0] is new


def test_the_worker_keeps_a_bounded_number_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is let go first."""
    kept: dict[bytes, Any] = {}
    monkeypatch.setattr(codec_module, "_functions", kept)
    monkeypatch.setattr(codec_module, "_KEPT_FUNCTIONS", 2)
    functions = [lambda n=n: n for n in range(3)]
    assert [loaded(each)[0]() for each in functions] == [0, 1, 2]
    assert list(kept) == [pack_call(each, (), {})[0] for each in functions[1:]]


def test_text_that_looks_like_main_is_harmless() -> None:
    """A false alarm changes nothing but the way."""
    assert loaded(operator.eq, "__main__", k=b"__main__") == (operator.eq, ("__main__",), {"k": b"__main__"})


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
    by_name = pack_call(closure_over, (), {})
    cloudpickle.register_pickle_by_value(module)
    try:
        fn_bytes, body, _ = pack_call(closure_over, (), {})
        assert by_name[0].endswith(b"closure_over\x94\x93\x94.")
        assert (fn_bytes, body[-1:]) == (b"", pickles.BY_VALUE)
        assert pack_value(closure_over)[-1:] == pickles.BY_VALUE
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


def test_a_call_is_packed_while_another_thread_imports() -> None:
    """`sys.modules` grows and shrinks at any moment then."""
    over = threading.Event()

    def load_and_forget() -> None:
        while not over.is_set():
            for number in range(20):
                sys.modules[f"made_up_{number}"] = types.ModuleType(f"made_up_{number}")
            for number in range(20):
                del sys.modules[f"made_up_{number}"]

    before = sys.getswitchinterval()
    thread = threading.Thread(target=load_and_forget)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        assert {pack_call(operator.neg, (number % 2,), {})[0] for number in range(20_000)} == {b""}
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
