"""References: a call as a thread gets it, with the objects of broadcasts in place of the handles that are arguments.

Owner: the thread that submits. Only the arguments themselves are looked at, and the items of `map`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any

from poolkit import broadcast
from poolkit._child.chunk import run_chunk

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
CallIn = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Context]  # and the variables of its submitter


def by_reference(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call of a thread. Raises ValueError when a broadcast object is closed."""
    if not broadcast.in_threads:
        return fn, args, kwargs
    if fn is run_chunk:
        each = _all_referred if kwargs["starred"] else _referred
        return fn, (args[0], list(map(each, args[1]))), kwargs
    return fn, _all_referred(args), {name: _referred(value) for name, value in kwargs.items()}


def _referred(value: Any) -> Any:
    return value._itself() if type(value) is broadcast.Shared else value  # noqa: SLF001 -- its other half


def _all_referred(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_referred, values))
