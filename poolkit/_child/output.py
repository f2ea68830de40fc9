"""Output: what a worker prints goes out a line at a time, and the last of it to where the owner can read it.

The standard streams stay the objects that they are, with all they are set to, since modules may have kept them; only
what they write to is replaced, by a file over the same descriptor. What goes to the descriptors directly (C code,
other programs, forked children) is not copied, nor what goes to a stream that a module made itself.
Both are flushed at the end of each line, as a killed worker flushes nothing; that costs 6 us a line.

Lines of two workers never mix: each is one write, and what has no end yet is held until it has one, or its task ends.
As a write to a pipe that is nearly full may be cut in two, that is done under a lock on the pipe, which the system
takes back from a process that dies.
"""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys
from _thread import RLock  # re-entrant: a signal handler that prints may interrupt a print
from collections.abc import Callable
from functools import partial

from poolkit._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit._wire.board import Board

MOST_HELD = 1 << 20  # bytes of a line without an end

_write = io.FileIO.write
_call: Any = partial.__call__
_nothing = partial(int)


class _Lines(io.FileIO):
    """Writes to the descriptor of another file, whole lines alone; and all that it is to write to the board."""

    def __init__(self, replaced: Any, board: Board, lock: RLock) -> None:
        super().__init__(replaced.fileno(), "wb", closefd=False)
        self.name = replaced.name
        self._replaced = replaced
        self._board = board
        self._lock = lock  # shared by both streams, with no other process
        self._pid = os.getpid()
        self.held = b""
        self._most_held = MOST_HELD
        self._alone: Callable[[], object] = _nothing
        self._no_more_alone: Callable[[], object] = _nothing
        mode = os.fstat(self.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # a write to any other file is never cut in two
            self._alone = partial(fcntl.lockf, self.fileno(), fcntl.LOCK_EX)
            self._no_more_alone = partial(fcntl.lockf, self.fileno(), fcntl.LOCK_UN)
            try:
                self._alone()
                self._no_more_alone()
            except OSError:  # this system locks nothing of the kind
                self._alone = self._no_more_alone = _nothing

    def write(self, data: Any, /) -> int:
        """Return how many bytes of `data` were written or are held; less than all if a part of a line follows lines.

        Called by one thread at a time, as the buffer above it has a lock. Where a signal handler raises behind a call,
        what was taken by then would be taken for not written, and come twice. So the calls that count are made by an
        iterator in C, and no call, nor a jump that is taken, stands between them and the end.
        """
        if os.getpid() != self._pid:
            return _write(self, data)
        new, held = bytes(data), self.held
        size = len(new)
        end = 1 + max(new.rfind(b"\n"), new.rfind(b"\r"))
        with self._lock:
            self._board.keep_output(memoryview(new)[: end or size])
        before = len(held)
        if not end and before + size < self._most_held:
            self.held = held + new
            return size
        line = held + new[: end or size]
        count: Any
        try:
            _, count, _ = map(_call, (self._alone, partial(_write, self, line), self._no_more_alone))
        except BaseException:
            self._no_more_alone()
            raise
        if count is not None:
            self.held = line[count:before]
            count = (count > before) * (count - before)
        return count  # type: ignore[no-any-return]  # None: the descriptor does not block, and has no room

    def let_out(self) -> None:
        """Write what is held, though its line has no end."""
        self._most_held = 0
        try:
            self.write(b"")
        finally:
            self._most_held = MOST_HELD

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
        _each(sys.stderr)
    for lines in _lines:
        if lines.held:
            _each(lines, "let_out")


def _each(stream: Any, method: str = "flush") -> None:
    try:  # noqa: SIM105 -- contextlib is not imported here
        getattr(stream, method)()
    except Exception:  # noqa: BLE001, S110 -- see above
        pass


def keep_output(board: Board) -> None:
    """Have what is printed from now on copied to the board, where the streams are the standard ones."""
    lock = RLock()
    _lines.clear()  # of a worker that this process was forked from
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            how: Any = stream
            how.flush()
            buffer: Any = how.buffer
            if type(buffer) is io.BufferedWriter:
                raw = _Lines(buffer.raw, board, lock)
                io.BufferedWriter.__init__(buffer, raw, raw._blksize)  # type: ignore[attr-defined]  # noqa: SLF001 -- as `open`
                how.reconfigure(line_buffering=True)
            elif isinstance(
                buffer, io.FileIO
            ):  # unbuffered, by `python -u`: each part of a line would be written alone
                raw = _Lines(buffer, board, lock)
                settings = how.encoding, how.errors, "\n", True, how.write_through
                io.TextIOWrapper.__init__(how, io.BufferedWriter(raw), *settings)
            else:
                continue
            _lines.append(raw)
        except Exception:  # noqa: BLE001, S112 -- None, closed, detached or somebody's own: it stays as it is
            continue
