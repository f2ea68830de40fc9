"""Output: what a worker prints goes out a line at a time, and the last of it to where the owner can read it.

The standard streams stay the objects that they are, since modules may have kept them; only what they write to is
replaced, by a file over the same descriptor. What goes to the descriptors directly (C code, other programs, forked
children) is not copied. Streams are flushed at the end of each line, as a killed worker flushes nothing.

Lines of two workers never mix: each is one write, and what has no end yet is held until it has one, or its task ends.
As a write to a pipe that is nearly full may be cut in two, that is done under a lock on the pipe, which the system
takes back from a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import stat
import sys
from _thread import RLock  # re-entrant: a signal handler that prints may interrupt a print

from poolkit._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit._wire.board import Board

MOST_HELD = 1 << 20  # bytes of a line without an end


class _Lines(io.FileIO):
    """Writes to the descriptor of another file, whole lines alone; and all that it is to write to the board."""

    def __init__(self, replaced: Any, board: Board, lock: RLock) -> None:
        super().__init__(replaced.fileno(), "wb", closefd=False)
        self.name = replaced.name
        self._replaced, self._board = replaced, board
        self._lock = lock  # shared by both streams, with no other process
        self._pid = os.getpid()
        self.held = b""
        mode = os.fstat(self.fileno()).st_mode
        self._may_be_cut = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)  # a write to any other file is not

    def write(self, data: Any, /) -> int:
        """Return how many bytes of `data` were written or are held; less than all if a part of a line follows lines.

        Called by one thread at a time, as the buffer above it has a lock.
        """
        if os.getpid() != self._pid:
            return super().write(data)
        new = bytes(data)
        size = len(new)
        end = 1 + max(new.rfind(b"\n"), new.rfind(b"\r"))
        with self._lock:
            self._board.keep_output(memoryview(new)[: end or size])
        if end or len(self.held) + size >= MOST_HELD:
            return self._write_held(new[: end or size])
        self.held += new
        return size

    def _write_held(self, new: bytes) -> int:
        """Write what is held and this; return how much of this was written."""
        line, before = self.held + new, len(self.held)
        self._lock_pipe(fcntl.LOCK_EX)
        try:
            count: Any = super().write(line)
        finally:
            self._lock_pipe(fcntl.LOCK_UN)
        if count is not None:
            self.held = line[count:before]
            count = max(0, count - before)
        return count  # type: ignore[no-any-return]  # None: the descriptor does not block, and has no room

    def _lock_pipe(self, how: int) -> None:
        if self._may_be_cut:
            with contextlib.suppress(OSError):  # this system locks nothing of the kind
                fcntl.lockf(self.fileno(), how)

    def let_out(self) -> None:
        """Write what is held, though its line has no end."""
        if os.getpid() == self._pid:
            self._write_held(b"")

    def close(self) -> None:
        try:
            if not self.closed:
                self.let_out()
        finally:
            super().close()
            self._replaced.close()  # the text layer asks it whether it is closed


_lines: list[_Lines] = []  # what the standard streams write to


def flush() -> None:
    """Write all that was printed: a worker may be killed at any moment after its task is done."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # noqa: BLE001 -- a closed or broken stream is not the task's failure
        with contextlib.suppress(Exception):
            sys.stderr.flush()
    for lines in _lines:
        if lines.held:
            with contextlib.suppress(Exception):
                lines.let_out()


def keep_output(board: Board) -> None:
    """Have what is printed from now on copied to the board, where the streams are the standard ones."""
    lock = RLock()
    _lines.clear()  # of a worker that this process was forked from
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # None, closed, detached or somebody's own: it stays as it is
            how: Any = stream
            how.flush()
            buffer: Any = how.buffer
            if type(buffer) is io.BufferedWriter:
                raw = _Lines(buffer.raw, board, lock)
                io.BufferedWriter.__init__(buffer, raw, raw._blksize)  # type: ignore[attr-defined]  # noqa: SLF001 -- as `open`
                how.reconfigure(line_buffering=True)
            elif isinstance(buffer, io.FileIO):  # by `python -u`: each part of a line would be written alone
                raw = _Lines(buffer, board, lock)
                settings = how.encoding, how.errors, "\n", True, how.write_through
                io.TextIOWrapper.__init__(how, io.BufferedWriter(raw), *settings)
            else:
                continue
            _lines.append(raw)
