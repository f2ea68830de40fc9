"""Calls: what a fake pool was asked to do and how it ended, and the timeline of what it did.

A record keeps neither the task nor what it returned alive: code that is tested may watch over that. With
`check_pickle=False` it keeps the arguments.
Owner: the thread that uses the pool.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit._child.chunk import run_chunk
from poolkit._child.stream import run_stream
from poolkit._given import name_of
from poolkit.decorator import plain_function
from poolkit.testing.script import Arguments, is_call_of

if TYPE_CHECKING:
    from poolkit._core.options import CallOptions
    from poolkit.outcome import Outcome
    from poolkit.task import Task

Function = Callable[..., Any]
Whole = tuple[Function, tuple[Any, ...], dict[str, Any]]


class FakeCall(NamedTuple):
    """A call as a fake worker gets it: packed by the real codec, or the caller's own objects."""

    fn: Function  # what a test knows it by: the caller's own function, of which pickling may make a copy
    size: int  # how many calls it is: several for a chunk of `map`
    load: Callable[[], Whole]  # gives what is called, anew each time if it was packed; raises as unpickling does
    memories: Any = ()  # shared memory that the arguments refer to
    variables: contextvars.Context | None = None  # the submitter's, where it is not packed
    actor: Any = None  # of a dedicated worker: see `workers.py`

    def arguments(self) -> list[Arguments]:
        """The arguments of each of its calls. Raises as `load`."""
        return each_call(*self.load())


def each_call(fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Arguments]:
    """The arguments of each call that a task makes: several for a chunk of `map`."""
    if fn is run_stream:
        return [args[1:3]]
    if fn is not run_chunk:
        return [(args, kwargs)]
    return [((tuple(item) if kwargs["starred"] else (item,)), {}) for item in args[1]]


class Ending:
    """How a task ended, without its value."""

    def __init__(self, outcome: Outcome) -> None:
        self.state = "cancelled" if outcome.cancelled else "succeeded" if outcome.ok else "failed"
        self._load = outcome.load or (lambda error: error)
        self._error = outcome.payload if self.state == "failed" else None  # or what `load` makes one of
        if outcome.load is None:  # a copy, as whoever raises it ties it to his frames
            with contextlib.suppress(Exception):  # it is the user's class
                self._error = copy.copy(self._error)

    def error(self) -> BaseException | None:
        """The exception, or None."""
        return None if self._error is None else self._load(self._error)

    def __str__(self) -> str:
        """It in words."""
        if self.state != "failed":
            return {"cancelled": "was cancelled"}.get(self.state, self.state)
        error = self.error()
        return f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


class Noted:
    """What a fake pool accepted."""

    def __init__(self, task: Task[Any]) -> None:
        self.name = task.name
        self.options: CallOptions = task.options
        self.submitted_at = task.submitted_at
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.attempts = 0
        self._task = weakref.ref(task)
        self._ending: Ending | None = None

    def end(self, task: Task[Any], ending: Ending) -> None:
        """Its task is done."""
        self.started_at, self.ended_at, self.attempts = task.started_at, task.ended_at, task.attempts
        self._ending = ending

    @property
    def outcome(self) -> str:
        """The state of its task: "queued", "running", "succeeded", "failed" or "cancelled"."""
        if self._ending is not None:
            return self._ending.state
        task = self._task()
        return "queued" if task is None else task.state

    @property
    def error(self) -> BaseException | None:
        """The exception that its task ended in, or None."""
        return None if self._ending is None else self._ending.error()


class Call(Noted):
    """One call that a fake pool accepted. Several may be one task: the items of a chunk of `map`.

    Attributes:
        fn: the function; of an offloaded one, the plain function.
        name: the name of its task.
        options: the options of its task: `timeout`, `priority`, and so on.
        submitted_at: when it was submitted, in virtual seconds.
        started_at: when its last run began, once the task is done; None when it never ran.
        ended_at: when its last run ended, once the task is done; None when it never ran.
        attempts: how many runs began, once the task is done.
    """

    def __init__(self, task: Task[Any], call: FakeCall, place: int) -> None:
        super().__init__(task)
        self.fn: Callable[..., Any] = plain_function(call.fn)
        self._call = call
        self._place = place  # which of the calls of the task

    @classmethod
    def of(cls, task: Task[Any], call: FakeCall | None) -> list[Call]:
        """The calls of a task; none of one that could not be pickled."""
        return (
            []
            if call is None
            else [cls(task, call._replace(memories=(), variables=None), place) for place in range(call.size)]
        )

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments as they were at the submission: a new copy each time, if the pool checks pickling."""
        return self._arguments()[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The same of those that were given by name."""
        return self._arguments()[1]

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._call.arguments()[self._place]

    def matches(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this is a call of `fn`, with exactly these arguments if there are any."""
        match = (args, kwargs) if args or kwargs else None
        given = self._arguments() if match else ((), {})
        return is_call_of(plain_function(fn), match, self.fn, *given)

    def __str__(self) -> str:
        """It as it is written in a program."""
        try:
            return written(self.fn, *self._arguments())
        except Exception:  # noqa: BLE001 -- its arguments cannot be unpickled, or refer to memory that is gone
            return f"{self.name}(...)"

    def __repr__(self) -> str:
        """Show it, and how it ended."""
        return f"<Call {self} {self.outcome}>"


def written(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A call as it is written in a program."""
    given = [short(value) for value in args] + [f"{name}={short(value)}" for name, value in kwargs.items()]
    return f"{name_of(fn)}({', '.join(given)})"


def short(value: object) -> str:
    """A value in a line of text."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 -- it is the user's class
        return f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004


class Timeline:
    """The virtual clock of a fake pool, and what happened by it. Put into words only when it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds since the pool was made; whoever drives it moves it
        self._lines: list[tuple[float, Sequence[object]]] = []

    def __call__(self) -> float:
        """Tell the time."""
        return self.now

    def note(self, *words: object) -> None:
        """Something happens."""
        self._lines.append((self.now, words))

    def __str__(self) -> str:
        """All of it, line by line."""
        lines = (f"{when:10.3f}  {' '.join(map(str, words))}" for when, words in self._lines)
        return "\n".join(lines) or "nothing has happened"
