"""Holds: a reader's right to see blocks of another process's segments, and how it ends.

Each view of a block is watched: whoever takes it (NumPy, Arrow, a memoryview of it) keeps the very memoryview alive,
as it is wrapped in a PickleBuffer, which passes the request for a buffer on to it. A bare memoryview would not do: a
view of a view refers to the memory, not to the view. When the view is gone, 0 is stored into the block's state byte: no
lock, no message, from a finalizer in any thread.

A forked child has copies of the views, and nobody hears of their end. So a fork pins what is seen at that moment until
the child has ended or become another program, which closes its end of a pipe. The child itself frees nothing.
Owner: whoever has a view. `_holds` and `pins` take one atomic operation at a time, from any thread.
"""

from __future__ import annotations

import contextlib
import os
from _thread import get_ident
from _weakref import ref  # the module weakref would be one more import in every worker

from poolkit import _os
from poolkit._memory.arena import HEADER
from poolkit._select import poll

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any


class _Hold(ref):  # type: ignore[type-arg]
    """What frees a block when its view is gone. Told apart by identity: views have no hash."""

    __slots__ = ("gate", "index", "states")
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    gate: list[bool]
    index: int
    states: memoryview


_holds: set[_Hold] = set()
pins: list[tuple[int, list[Any]]] = []  # what forked children may see, and an end of a pipe that they have the other of
_pipes: dict[int, tuple[int, int]] = {}  # during a fork, by thread; two may fork at once


TAKEN = [True]


def see(whole: memoryview, index: int, offset: int, nbytes: int, gate: list[bool] = TAKEN) -> memoryview:
    """Return a view of a block, which nobody else is given before it is gone. Raises ValueError: there is none.

    While what is in `gate` is false, the end of the view does not free the block: it may have to be seen again, as
    reading the message may be interrupted, and begin anew.
    """
    if not (index < HEADER <= offset and offset + nbytes <= len(whole)):
        msg = f"there is no block {index} of {nbytes} bytes at {offset}"
        raise ValueError(msg)
    view = whole[offset : offset + nbytes]
    hold = _Hold(view, _free)
    hold.states, hold.index, hold.gate = whole, index, gate
    _holds.add(hold)
    whole[index] = 1
    return view


def _free(hold: _Hold) -> None:
    if hold.gate[0]:
        hold.states[hold.index] = 0
    _holds.discard(hold)


# ===== forks =====


def _before_fork() -> None:
    unpin()
    if _holds:
        with contextlib.suppress(OSError):
            _pipes[get_ident()] = os.pipe()


def _after_fork_in_parent() -> None:
    ours, theirs = _pipes.pop(get_ident(), (-1, -1))
    seen = [hold() for hold in list(_holds)]
    if seen:
        pins.append((ours, seen))  # without a pipe, for ever
    _os.close_fd(theirs)


def _after_fork_in_child() -> None:
    own = _pipes.pop(get_ident(), (-1, -1))  # its other end tells the parent when this process is gone
    for fd in [own[0], *(fd for ends in _pipes.values() for fd in ends), *(fd for fd, _ in pins)]:
        _os.close_fd(fd)
    for left in (_pipes, pins, _holds):
        left.clear()


def unpin() -> bool:
    """Let go of what children saw that are gone; return True if any is left."""
    for pin in list(pins):
        if pin[0] >= 0:
            poller = poll()
            poller.register(pin[0], 0)  # nothing is read, as the number may be another's by now
            with contextlib.suppress(ValueError):  # another thread has looked, too
                if poller.poll(0):
                    pins.remove(pin)
                    os.close(pin[0])
    return bool(pins)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
