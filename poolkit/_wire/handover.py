"""Handover: what multiprocessing knows how to hand to another process: connections, sockets, what users register.

multiprocessing pickles with reducers of its own, in the table of `multiprocessing.reduction.ForkingPickler`: torch and
others register theirs there. Without them a Connection would travel as the bare number of its descriptor. Reducers ask
`multiprocessing.reduction.DupFd` for what is to stand for a descriptor. While a thread packs for another process, that
is answered here: a copy of the descriptor goes along (`_memory/memory.py`), and is closed when the call or result was
loaded, or dropped before. It would be answered by a thread of multiprocessing's otherwise, which hands
each descriptor out once, so that no task could be retried, and keeps for ever what nobody fetches.

Costs nothing before multiprocessing is loaded, and hardly more before its connections are or somebody registers: until
then plain pickle gets right, or refuses, whatever the reducers are for.
Owner: what is here takes one atomic operation at a time, from any thread.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections import ChainMap
from functools import partial

from poolkit._wire import buffers
from poolkit._wire.buffers import Found

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

REDUCERS: dict[type, Callable[[Any], Any]] = {}
"""What plain pickle gets wrong or refuses. Grows only, so a table that refers to it stays right."""

_OWN = ("multiprocessing.reduction", "multiprocessing.managers")
"""Whose reducers, but for that of sockets, are of types that pickle and cloudpickle do as well or better."""

_registered: dict[type, Any] = {}  # multiprocessing's table, once it is there
_seen = 0  # how many of these were sorted into `REDUCERS`, or left out
_plain_is_wrong = False  # whether there is more than sockets, which it refuses: what it refuses goes by value
_standard: Callable[[int], Any] | None = None  # multiprocessing's own DupFd, once ours is in its place
_bases: dict[
    type, list[type]
] = {}  # connections and sockets: kinds, and the subclasses seen of each; replaced as a whole
_picklers: dict[type, Any] = {}  # by the class of cloudpickle's that they are made from


def is_loaded() -> bool:
    """Whether there may be something to hand over, so that whoever packs has to say so (`Found.__enter__`)."""
    return "multiprocessing.reduction" in sys.modules


def plain_table() -> dict[type, Any] | None:
    """The `dispatch_table` for a plain pickler now; mostly None: it needs none.

    To be used, as what the next one gives, in a thread that packs, or under a `Guard`.
    """
    if len(_registered) != _seen or _standard is None or _has_more():
        _look()
    return {**copyreg.dispatch_table, **REDUCERS} if _plain_is_wrong else None


def has_reducer(kind: type) -> bool:
    """Return True if somebody has registered how objects of this type are pickled."""
    if len(_registered) != _seen or _standard is None:
        _look()
    return kind in REDUCERS or kind in copyreg.dispatch_table


def by_value_pickler(base: Any) -> Any:
    """The class of picklers to use now in place of `base`, which is cloudpickle's, or made from it."""
    if len(_registered) != _seen or _standard is None or _has_more():
        _look()
    if not REDUCERS:
        return base
    made = _picklers.get(base)
    if made is None:
        table = ChainMap(REDUCERS, base.dispatch_table)
        made = _picklers[base] = type("Pickler", (base,), {"dispatch_table": table})
    return made


def _look() -> None:
    """See what was registered since."""
    global _bases, _registered, _plain_is_wrong, _seen, _standard  # noqa: PLW0603 -- they go one way
    reduction: Any = sys.modules.get("multiprocessing.reduction")
    forking, dup_fd = getattr(reduction, "ForkingPickler", None), getattr(reduction, "DupFd", None)
    if forking is None or dup_fd is None:  # not imported, or half
        return
    if _standard is None:
        _standard = dup_fd
        reduction.DupFd = _dup_fd
    known = dict(forking._extra_reducers)  # noqa: SLF001 -- its only door
    bases = list(_bases)
    for kind, reducer in known.items():
        is_own = getattr(reducer, "__module__", None) in _OWN
        if kind not in REDUCERS and (not is_own or kind.__name__ == "socket"):
            REDUCERS[kind] = partial(_reduce, kind)
            _plain_is_wrong |= not is_own
        if kind.__name__ == "socket" or getattr(reducer, "__module__", None) == "multiprocessing.connection":
            bases.append(kind)
    seen: dict[type, list[type]] = {}
    for kind in bases:  # grows while we go through it
        if kind not in seen:
            seen[kind] = type.__subclasses__(kind)
            for each in seen[kind]:
                bases.append(each)
                if each not in REDUCERS and each not in copyreg.dispatch_table and _is_reduced_like(each, kind):
                    REDUCERS[each] = partial(_reduce, each)
    _bases = seen
    _registered, _seen = forking._extra_reducers, len(known)  # noqa: SLF001 -- see above


def _has_more() -> bool:
    for kind, seen in _bases.items():  # noqa: SIM110 -- all() with a generator takes twice as long
        if type.__subclasses__(kind) != seen:
            return True
    return False


def _is_reduced_like(cls: Any, base: Any) -> bool:
    """Return True if a class leaves it to another how it is pickled."""
    hooks = ("__reduce_ex__", "__reduce__", "__getstate__")
    return all(getattr(cls, hook, None) is getattr(base, hook, None) for hook in hooks)


def _reduce(kind: type, value: Any) -> Any:
    reducer = _registered.get(kind)
    if reducer is not None:
        return reducer(value)
    state = {name: held for name, held in vars(value).items() if name != "_handle"}
    for base in kind.__mro__:
        if base in _registered:  # its reducer makes one of that class, of a duplicate and some arguments
            _, (descriptor, *arguments) = _registered[base](value)
            return _made_of, (kind, base, descriptor, arguments, state)
    return NotImplemented


def _made_of(kind: Any, base: Any, descriptor: Any, arguments: list[Any], state: dict[str, Any]) -> Any:
    """An object of a subclass of connections or sockets, without a call of its own `__init__`."""
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
    """What stands for a descriptor: in the place of `multiprocessing.reduction.DupFd`."""
    found = buffers.packing()
    assert _standard is not None  # noqa: S101 -- it was kept before this one took its place
    if found is None or sys.modules["multiprocessing.context"].get_spawning_popen() is not None:
        return _standard(fd)
    if not found.hands_over:
        msg = "a file descriptor can be handed over only in the arguments or the result of a call, or in a broadcast"
        raise pickle.PicklingError(msg)
    assert send_along is not None  # noqa: S101 -- whoever packs for another process has imported it
    return send_along(fd, is_loaded_once=found.is_loaded_once)


class _Refusing(Found):
    """What is pickled goes where no descriptor can follow."""

    hands_over = False


class Guard:
    """A context in which nothing is left to multiprocessing's thread: this thread packs for `found`, or refuses."""

    __slots__ = ("_entered", "_found")

    def __init__(self, found: Found | None = None) -> None:
        self._found = found
        self._entered: Found | None = None

    def __enter__(self) -> None:
        """Begin, unless this thread does that already."""
        if self._found is None or self._found is not buffers.packing():
            self._entered = _Refusing() if self._found is None else self._found
            self._entered.enter(sys._getframe(1))  # noqa: SLF001 -- the one way to it

    def __exit__(self, *_: object) -> None:
        """Go on as before."""
        if self._entered is not None:
            self._entered.__exit__()
