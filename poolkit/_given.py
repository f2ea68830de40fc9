"""What `submit` and `map` make of the functions and iterables that they are given."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable
from types import CodeType, ModuleType
from typing import Any

from poolkit.errors import SerializationError

LARGE = 1 << 20  # bytes; to copy as much takes less than half a millisecond
MOST_LOOKED_AT = 32  # arguments, and what is in them

_TEXT = frozenset({bytes, bytearray, str})


def arguments(item: Iterable[Any]) -> tuple[Any, ...]:
    check_iterable(
        item, "starmap() needs an iterable of tuples of arguments (map() is for functions of one), which had"
    )
    return tuple(item)


def check_iterable(value: object, complaint: str) -> None:
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        msg = f"{complaint} {value!r}"
        raise TypeError(msg)


def has_large(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the arguments, or what lists, tuples and dicts among them begin with, take a while to be copied."""
    values = [*args, *kwargs.values()]
    for value in values:  # which gets longer meanwhile
        kind, room = type(value), max(0, MOST_LOOKED_AT - len(values))
        if kind is list or kind is tuple:
            values += value[:room]
        elif kind is dict:
            values += itertools.islice(value.values(), room)
        elif kind in _TEXT:
            if len(value) > LARGE:
                return True
        elif hasattr(kind, "nbytes"):  # of its class, as some objects have an attribute of any name
            try:
                if value.nbytes > LARGE:
                    return True
            except Exception:  # noqa: BLE001, S112 -- what it is, pickling will tell
                continue
    return False


def check_callable(fn: object) -> None:
    """Raise TypeError if it cannot be called."""
    if not callable(fn):
        msg = (
            f"the first argument must be something to call, was {fn!r:.200}; pass the function and its arguments, as "
            "in submit(fn, x), and not what fn(x) has returned"
        )
        raise TypeError(msg)


def to_be_sent(fn: Any) -> Any:
    """What is to run in a worker for `fn`: of one that is offloaded, also within a partial object, the function itself.

    Raises:
        TypeError: it cannot be called.
    """
    check_callable(fn)
    send = getattr(type(fn), "_poolkit_sent", None)  # of its class, as some objects have an attribute of any name
    if send is not None:
        return send(fn)
    if type(fn) is functools.partial and hasattr(type(fn.func), "_poolkit_sent"):
        return functools.partial(to_be_sent(fn.func), *fn.args, **fn.keywords)
    return fn


def name_of(fn: Callable[..., Any]) -> str:
    """What a function is called."""
    return str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)


def code_of(fn: Any) -> object:
    """Return what is the same for all calls that take as long as this one: the code, or the class."""
    while type(fn) is functools.partial:
        fn = fn.func
    if isinstance(fn, type) or isinstance(getattr(fn, "__self__", None), ModuleType):  # the latter: in C
        return fn
    code = getattr(fn, "__code__", None)
    return code if type(code) is CodeType else type(fn)


def note_the_place(error: SerializationError, name: str) -> None:
    """Add where the call was submitted to an error that will be raised elsewhere."""
    import traceback  # noqa: PLC0415 -- only when something is wrong

    here = os.path.dirname(__file__)  # noqa: PTH120 -- compared with frame file names as they are
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(here):
            note = f"{name} was submitted at {frame.filename}:{frame.lineno}, in {frame.name}"
            if hasattr(error, "add_note"):
                error.add_note(note)
            else:  # CPython 3.10
                vars(error)["__notes__"] = [note]
            return
