"""Holds: a reader's right to see blocks of another process's segments, and how it ends.

Each view of a block that is handed out is watched: whoever takes it (NumPy, Arrow, a memoryview of it) keeps the very
memoryview alive, as it is wrapped in a PickleBuffer, which passes the request for a buffer on to it. A bare memoryview
would not do: a view of a view refers to the memory, not to the view. When the last one is gone, so is the Hold, and
stores 0 into the block's state byte: no lock, no message, from a finalizer in any thread.

A forked child has copies of the views, and nobody hears of their end. So a fork pins every block that is seen at that
moment until the child has ended or become another program, which closes its end of a pipe. The child itself frees
nothing.
Owner of a Hold: whoever has a reference. `_watches` and `_pins` take one atomic operation at a time, from any thread.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from _thread import allocate_lock, get_ident
from _weakref import ref  # the module weakref would be one more import in every worker
from collections.abc import Callable

from poolkit import _os
from poolkit._wire.arena import HEADER

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any


# What a forked child may see, and the end of a pipe that it has the other end of; a pin stays here until it is gone.
_pins: list[tuple[int, list[Any]]] = []
_looking = allocate_lock()  # held by who reads and closes these: a number that another thread closed may be anybody's
_pipes: dict[int, tuple[int, int]] = {}  # during a fork, by thread; two may fork at once
_pipe_wanted: list[bool] = []  # not empty once anything was ever seen here


class _Watch(ref):  # type: ignore[type-arg]
    """A reference to what sees a hold, and keeps it until that is gone. Told apart by identity: views have no hash."""

    __slots__ = ("hold",)
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    hold: Any


_watches: set[_Watch] = set()  # one atomic operation at a time, from any thread
_forget_watch = _watches.discard


class Unmapped:
    """A segment that this process has no address space for: its blocks are read and written through its descriptor."""

    __slots__ = ("_fd", "_nbytes")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._nbytes = os.fstat(fd).st_size

    def __len__(self) -> int:
        return self._nbytes

    def __setitem__(self, index: int, state: int) -> None:
        """Store a state byte."""
        os.pwrite(self._fd, bytes([state]), index)

    def read(self, offset: int, nbytes: int) -> bytearray:
        """A copy of a part."""
        data = bytearray(nbytes)
        with memoryview(data) as view:
            done = 0
            while done < nbytes:
                done += os.preadv(self._fd, [view[done:]], offset + done)
        return data

    def __del__(self) -> None:
        """Close the descriptor."""
        _os.close_fd(self._fd)


class Hold:
    """A reader's right to see one block."""

    __slots__ = ("_frees", "_index", "_mapping", "_nbytes", "_offset", "_pid")

    def __init__(
        self, mapping: mmap.mmap | Unmapped, index: int, offset: int, nbytes: int, *, frees: bool = True
    ) -> None:
        self._frees = False
        if not (index < HEADER <= offset and offset + nbytes <= len(mapping)):
            msg = f"there is no block {index} of {nbytes} bytes at {offset}"
            raise ValueError(msg)
        self._mapping = mapping
        self._index = index
        self._offset = offset
        self._nbytes = nbytes
        self._pid = os.getpid()
        self._frees = frees  # False: the block stays the writer's

    def view(self) -> memoryview:
        """A view of the block; the block is not free before every such view is gone, and the hold itself."""
        if isinstance(self._mapping, Unmapped):
            return memoryview(self.copy())
        view = memoryview(self._mapping)[self._offset : self._offset + self._nbytes]
        watch(view, self)
        return view

    def copy(self) -> bytearray:
        """The content, in memory of its own."""
        if isinstance(self._mapping, Unmapped):
            return self._mapping.read(self._offset, self._nbytes)
        with memoryview(self._mapping) as whole, whole[self._offset : self._offset + self._nbytes] as part:
            return bytearray(part)

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:
        """Free the block."""
        if self._frees and getpid() == self._pid:
            self._mapping[self._index] = 0


def watch(seer: object, hold: Hold | list[Hold]) -> None:
    """Keep a hold, or several, while `seer` lives, and have a fork pin them."""
    watched = _Watch(seer, _forget_watch)
    watched.hold = hold
    _watches.add(watched)
    if not _pipe_wanted:
        _pipe_wanted.append(True)


# ===== forks =====


def _before_fork() -> None:
    release_pins()
    if _pipe_wanted:
        with contextlib.suppress(OSError):
            _pipes[get_ident()] = os.pipe()


def _after_fork_in_parent() -> None:
    ends = _pipes.pop(get_ident(), ())
    seen = [watched.hold for watched in list(_watches)]
    for fd in ends[1:] if seen else ends:
        os.close(fd)
    if seen and ends:
        os.set_blocking(ends[0], False)
    if seen:
        _pins.append((ends[0] if ends else -1, seen))  # without a pipe, for ever


def _after_fork_in_child() -> None:
    global _looking  # noqa: PLW0603 -- another thread may have held it when the process forked
    _looking = allocate_lock()
    own = _pipes.pop(get_ident(), (-1, -1))  # its other end tells the parent when this process is gone
    for fd in [own[0], *itertools.chain(*_pipes.values()), *(fd for fd, _ in _pins)]:
        _os.close_fd(fd)
    _pipes.clear()
    _pins.clear()


def release_pins() -> bool:
    """Let go of what children saw that are gone; whether any is left."""
    if not _looking.locked():  # else somebody looks: maybe this thread, below a signal handler or a finalizer
        with _looking:
            for pin in list(_pins):
                try:
                    gone = pin[0] >= 0 and not os.read(pin[0], 1)
                except OSError:  # nothing to read: the child is there
                    gone = False
                if gone:
                    _pins.remove(pin)
                    os.close(pin[0])
    return bool(_pins)


if hasattr(os, "register_at_fork"):  # not on Windows, where importing must work
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
