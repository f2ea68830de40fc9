"""What cannot be pickled is named by its place."""

from __future__ import annotations

import collections
import functools
import operator
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from unit.codec_objects import Box, in_main

from poolkit._wire import unpicklable
from poolkit._wire.codec import pack_call, pack_value
from poolkit.broadcast import broadcast
from poolkit.errors import SerializationError


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

    def method(self) -> None:
        """Nothing."""


class RaisesWhenPickled:
    def __reduce__(self) -> Any:
        msg = "not today"
        raise LookupError(msg)


class HasEveryAttribute(RaisesWhenPickled):
    def __getattr__(self, name: str) -> list[str]:
        return [name]

    def __call__(self) -> None:
        """Nothing."""


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


LOCK = threading.Lock()


CYCLE: list[Any] = [LOCK]


CYCLE.insert(0, CYCLE)


def closure_over(content: object) -> Any:
    def inner() -> object:
        return content

    return inner


def half_empty_closure() -> Any:
    content = LOCK

    def inner() -> object:
        return content, later

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
        (half_empty_closure(), ' closure "content": _thread.lock'),
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
def test_the_unpicklable_part_is_named_by_its_path(value: object, place: str) -> None:
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
    """The message names what is known so far."""
    monkeypatch.setattr(unpicklable, "_MAX_DEPTH", 2)
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


def test_a_callable_whose_every_attribute_is_a_list_is_reported_as_any_other() -> None:
    """Like some proxies and mocks: it is looked whether it is a function of poolkit, which attributes do not tell."""
    with pytest.raises(SerializationError, match=r"the call: fn: .*HasEveryAttribute \(LookupError: not today\)"):
        pack_call(HasEveryAttribute(), (), {})


def test_an_exit_in_a_pickling_hook_ends_neither_worker_nor_caller() -> None:
    with pytest.raises(SerializationError, match=r"result\[0\]: .*ExitsWhenPickled \(SystemExit: 3\)"):
        pack_value([ExitsWhenPickled()])
    for pack in (lambda value: pack_call(print, (1, value), {}), lambda value: pack_call(value.method, (), {})):
        with pytest.raises(SerializationError, match=r"ExitsWhenPickled.* \(SystemExit: 3\)"):
            pack(ExitsWhenPickled())
    with pytest.raises(SerializationError, match=r"obj\[0\]: .*ExitsWhenPickled \(SystemExit: 3\)"):
        broadcast([ExitsWhenPickled()])


@pytest.mark.parametrize("pack", [lambda value: pack_call(print, (value,), {}), broadcast])
def test_an_exit_in_a_signal_handler_is_no_error_of_the_call(pack: Callable[[object], object]) -> None:
    """A program that is told to end while it pickles a call ends."""

    class Slow:
        def __reduce__(self) -> tuple[type, tuple[int]]:
            signal.raise_signal(signal.SIGTERM)
            return int, (3,)

    def leave(_number: int, _frame: object) -> None:
        sys.exit(5)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit):
            pack(Slow())
    finally:
        signal.signal(signal.SIGTERM, before)


def test_results_name_their_unpicklable_part() -> None:
    """Paths of results begin with `result`."""
    with pytest.raises(SerializationError, match=r'result\["lock"\]: _thread\.lock'):
        pack_value({"lock": LOCK})
