"""Handover: what multiprocessing knows how to hand to another process: connections, sockets, what users register.

multiprocessing pickles with reducers of its own, in the table of `multiprocessing.reduction.ForkingPickler`: torch and
others register theirs there. Without them a Connection would travel as the bare number of its descriptor. Reducers ask
`multiprocessing.reduction.DupFd` for what is to stand for a descriptor. While a thread packs for another process, that
is answered here: a copy of the descriptor goes along (`_memory/memory.py`), and is closed when the call or result was
loaded, or dropped before. A thread of multiprocessing's would hand each descriptor out once, so no task could be
retried, and keep for ever what nobody fetches.

Costs nothing before multiprocessing is loaded, and hardly more before its connections are or somebody registers.
Owner: what is here takes one atomic operation at a time, from any thread.
"""

from __future__ import annotations

import contextlib
import copyreg
import pickle
import sys
from collections.abc import Callable

from poolkit._typing import Any
from poolkit._wire import buffers
from poolkit._wire.buffers import Found

_registered: dict[type, Any] = {}  # multiprocessing's table, once it is there
_seen = 0  # how many of these were looked at
_left_out: frozenset[type] = frozenset()  # those that pickle and cloudpickle do as well or better
_bases: tuple[type, ...] = ()  # connections and sockets, whose reducers take subclasses, too
_plain_is_wrong = False  # whether there is more than sockets, which plain pickle refuses
_standard: Callable[[int], Any] | None = None  # multiprocessing's own DupFd, once ours is in its place


def is_loaded() -> bool:
    """Return True if there may be something to hand over, so that who packs has to say so (`Found.__enter__`)."""
    return "multiprocessing.reduction" in sys.modules


def is_plain_wrong() -> bool:
    """Return True if plain pickle may get wrong what only `reduce` gets right; mostly False."""
    if len(_registered) != _seen or _standard is None:
        _look()
    return _plain_is_wrong


def reduce(value: Any) -> Any:
    """Return what multiprocessing's reducer gives, for a pickler's `reducer_override`; NotImplemented without one.

    To be called in a thread that packs, or under a `guard`.
    """
    if len(_registered) != _seen or _standard is None:
        _look()
    kind: Any = type(value)
    if kind in _registered:
        return NotImplemented if kind in _left_out else _registered[kind](value)
    if not issubclass(kind, _bases) or kind in copyreg.dispatch_table:
        return NotImplemented
    base: Any = next(each for each in kind.__mro__ if each in _bases)
    if not all(getattr(kind, each, None) is getattr(base, each, None) for each in _HOOKS):
        return NotImplemented
    _, (descriptor, *arguments) = _registered[base](value)  # makes a `base`, of a duplicate and some arguments
    state = {name: held for name, held in vars(value).items() if name != "_handle"}
    return _made_of, (kind, base, descriptor, arguments, state)


def has_reducer(kind: type) -> bool:
    """Return True if somebody has registered how objects of this type are pickled."""
    if len(_registered) != _seen or _standard is None:
        _look()
    return (kind in _registered and kind not in _left_out) or kind in copyreg.dispatch_table


_HOOKS = ("__reduce_ex__", "__reduce__", "__getstate__")


def _look() -> None:
    """See what was registered since."""
    global _bases, _left_out, _plain_is_wrong, _registered, _seen, _standard  # noqa: PLW0603 -- they go one way
    reduction: Any = sys.modules.get("multiprocessing.reduction")
    forking, dup_fd = getattr(reduction, "ForkingPickler", None), getattr(reduction, "DupFd", None)
    if forking is None or dup_fd is None:  # not imported, or half
        return
    if _standard is None:
        _standard = dup_fd
        reduction.DupFd = _dup_fd
    _registered = forking._extra_reducers  # noqa: SLF001 -- its only door
    homes = {kind: getattr(reducer, "__module__", None) for kind, reducer in _registered.copy().items()}
    own = {kind for kind, home in homes.items() if home in {"multiprocessing.reduction", "multiprocessing.managers"}}
    _left_out = frozenset(kind for kind in own if kind.__name__ != "socket")
    _bases = tuple(kind for kind in homes if kind.__name__ == "socket" or homes[kind] == "multiprocessing.connection")
    _plain_is_wrong = len(own) < len(homes)
    _seen = len(homes)


def _made_of(kind: Any, base: Any, descriptor: Any, arguments: list[Any], state: dict[str, Any]) -> Any:
    """Return an object of a subclass of connections or sockets, without a call of its own `__init__`."""
    made = kind.__new__(kind)
    fd = descriptor.detach()
    if base.__name__ == "socket":
        base.__init__(made, *arguments, fd)
    else:
        base.__init__(made, fd, *arguments)
    vars(made).update(state)
    return made


# ===== descriptors =====


# Set by `_memory`, which is above this room: has a descriptor go along, and returns what stands for it in a pickle.
send_along: Callable[..., Any] | None = None


def _dup_fd(fd: int) -> Any:
    """Return what stands for a descriptor, in the place of `multiprocessing.reduction.DupFd`."""
    found = buffers.packing()
    assert _standard is not None  # noqa: S101 -- it was kept before this one took its place
    if found is None or sys.modules["multiprocessing.context"].get_spawning_popen() is not None:
        return _standard(fd)
    if not found.hands_over:
        raise pickle.PicklingError(
            "a file descriptor can be handed over only in the arguments or the result of a call, or in a broadcast"
        )
    assert send_along is not None  # noqa: S101 -- whoever packs for another process has imported it
    return send_along(fd, is_loaded_once=found.is_loaded_once)


class _Refusing(Found):
    """What is pickled goes where no descriptor can follow."""

    hands_over = False


def guard(found: Found | None = None) -> contextlib.AbstractContextManager[object]:
    """Return a context that leaves nothing to multiprocessing's thread: this thread packs for `found`, or refuses."""
    if found is None:
        return _Refusing()
    return contextlib.nullcontext() if found is buffers.packing() else found
