"""Script: what a test has decided about calls that a fake pool runs: what they return, raise, take, or die of.

A `When` is a list of steps for the calls of one function, told like a sentence:

    pool.when(fetch, "a.png").crashes().then.takes(2).returns(b"...")

Each run of a matching call, retries included, uses up one step's turn; a step before `then` has one turn, or as many as
`times` says, the last one any number. What no step is left for, or no `When` matches, really runs.
Owner: the thread that uses the pool.
"""

from __future__ import annotations

import inspect
import math
import signal as signals
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit._core import options as checks
from poolkit._wire import codec
from poolkit.decorator import plain_function
from poolkit.errors import SerializationError

if TYPE_CHECKING:
    from typing_extensions import Self

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

RUNS, RETURNS, RAISES, CRASHES, HANGS = "runs", "returns", "raises", "crashes", "hangs"


@dataclass
class Step:
    """What one run does, after `seconds` of virtual time: `what`, with its `payload`."""

    what: str = RUNS
    payload: Any = None  # a value, an exception or its type, or (signal, exit code)
    seconds: float = 0.0
    nbytes: int = 0  # of memory that the worker has meanwhile
    turns: float | None = None  # None: not said
    items: tuple[Any, ...] | None = None  # of a stream, before it ends so; None: those of what is called
    every: float = 0.0  # seconds of virtual time between two of them
    used: int = 0

    def perform(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what is done in a worker that lives: run it, return or raise."""
        if self.what == RETURNS:
            return self.payload
        if self.what == RAISES:
            raise self.payload if isinstance(self.payload, type) else self.payload.with_traceback(None)
        return fn(*args, **kwargs)


UNSCRIPTED = Step()


class Sentence:
    """What happens, step by step; each method returns the same object."""

    _make: type[Step] = Step

    def __init__(self) -> None:
        self._steps = [self._make()]

    def times(self, count: int) -> Self:
        """Do so for `count` runs."""
        self._steps[-1].turns = checks.whole("count", count)
        return self

    @property
    def then(self) -> Self:
        """What is said from here on is for the runs after those."""
        self._steps.append(self._make())
        return self

    def _do(self, what: str, payload: Any) -> Self:
        step = self._steps[-1]
        step.what, step.payload = what, payload
        return self

    def _turn(self) -> Any:
        """Use up a turn: what is done then, or None when none is left."""
        for step in self._steps:
            turns = step.turns or (math.inf if step is self._steps[-1] else 1)
            if step.used < turns:
                step.used += 1
                return step
        return None


class Timed(Sentence):
    """Of what takes time, and memory."""

    def takes(self, seconds: float) -> Self:
        """Take so many seconds of virtual time, 0 or more; what else happens, happens at their end."""
        time = checks.wait_seconds("seconds", seconds)
        if time is None:
            return self._do(HANGS, None)
        self._steps[-1].seconds = time
        return self

    def uses(self, nbytes: int) -> Self:
        """Have it use so many bytes of memory while it runs; for limits on that, with `takes`."""
        self._steps[-1].nbytes = checks.whole("nbytes", nbytes)
        return self


class When(Timed):
    """What happens to the calls of one function; made by `FakePool.when`. Each method returns the same object.

    Numbers that make no sense raise TypeError or ValueError.
    """

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self._fn = plain_function(fn)
        self._match = (args, kwargs) if args or kwargs else None

    def returns(self, value: object) -> Self:
        """Return `value` without running the function. Pickled like any result, if the pool checks that."""
        return self._do(RETURNS, value)

    def raises(self, error: BaseException | type[BaseException]) -> Self:
        """Raise `error` without running the function. TypeError when it is no exception."""
        if not issubclass(error if isinstance(error, type) else type(error), BaseException):
            raise TypeError(f"raises() takes an exception or a type of exceptions, was given {error!r}")
        return self._do(RAISES, error)

    def crashes(self, signal: str = "SIGKILL", *, exitcode: int | None = None) -> Self:
        """Have the worker die: by a signal, or with an exit code. ValueError when there is no such signal."""
        if exitcode is not None:
            return self._do(CRASHES, (None, checks.whole("exitcode", exitcode, least=0)))
        return self._do(CRASHES, (known_signal(signal), None))

    def hangs(self) -> Self:
        """Never end: a limit, a cancel or a shutdown has to stop it."""
        return self._do(HANGS, None)

    def runs(self) -> Self:
        """Really run the function; the default."""
        return self._do(RUNS, None)

    def yields(self, *items: object, every: float = 0.0) -> Self:
        """Yield these items, `every` so many seconds of virtual time, then do the rest; for calls by `stream`.

        `takes` is the time to the first of them.
        """
        step = self._steps[-1]
        step.items, step.every = items, checks.wait_seconds("every", every) or 0.0
        return self

    def next_step(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
        """Use up a turn for this call; None when this is about other calls, or no turn is left."""
        return self._turn() if is_call_of(self._fn, self._match, fn, args, kwargs) else None


def known_signal(name: str) -> str:
    """Check the name of a signal. ValueError when there is none."""
    if name not in signals.Signals.__members__:
        raise ValueError(f"signal must be the name of a signal such as 'SIGSEGV', was {name!r}")
    return name


def next_step(script: list[When], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    """What this run of a call does, by the first of the script that says something about it."""
    fn = plain_function(fn)
    steps = (when.next_step(fn, args, kwargs) for when in script)
    return next((step for step in steps if step is not None), UNSCRIPTED)


def is_call_of(
    wanted: Callable[..., Any],
    match: Arguments | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bool:
    """Whether this is a call of the function `wanted`, with the arguments of `match` if there is one.

    A function of a class is also called through an object, which is its first argument then.
    """
    if fn is not wanted and fn != wanted:
        if getattr(fn, "__func__", None) is not wanted:
            return False
        args = (getattr(fn, "__self__", None), *args)
    return match is None or is_same(_as_taken(wanted, *match), _as_taken(wanted, args, kwargs))


def _as_taken(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Arguments as the function takes them, whether by name or by position."""
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs)
    except (TypeError, ValueError):  # it cannot be called so, or does not say how
        return args, kwargs
    return bound.args, bound.kwargs


def is_same(expected: Any, given: Any) -> bool:
    """Whether two arguments are equal. Those that do not say so, such as arrays, when they are pickled alike."""
    if expected is given:
        return True
    if type(expected) is type(given):
        if isinstance(expected, tuple):
            return len(expected) == len(given) and all(map(is_same, expected, given))
        if isinstance(expected, dict):
            return expected.keys() == given.keys() and all(is_same(expected[key], given[key]) for key in expected)
    try:
        if expected == given:
            return True
    except Exception:  # noqa: BLE001, S110 -- it is the user's class
        pass
    try:
        return type(expected) is type(given) and bool(codec.pack_value(expected) == codec.pack_value(given))
    except SerializationError:
        return False
