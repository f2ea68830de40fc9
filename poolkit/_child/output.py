"""Output: keeps a copy of the last that a worker prints where the owner can read it when the worker was killed.

The standard streams stay the objects that they are, with all they are set to, since modules may have kept them; only
what they write to is replaced, by a file over the same descriptor. What goes to the descriptors directly (C code,
other programs, forked children) is not copied, nor what goes to a stream that a module made itself.
Both are flushed at the end of each line, as a killed worker flushes nothing; that costs 3 us a line.
"""

from __future__ import annotations

import io
import os
import sys
from _thread import RLock  # re-entrant: a signal handler that prints may interrupt a print

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

    from poolkit._wire.board import Board

_write = io.FileIO.write


class _Copying(io.FileIO):
    """Writes to the descriptor of another file, and what it is to write to the board."""

    def __init__(self, replaced: Any, board: Board, lock: RLock) -> None:
        super().__init__(replaced.fileno(), "wb", closefd=False)
        self.name = replaced.name
        self._replaced = replaced
        self._board = board
        self._lock = lock  # shared by both streams, with no other process
        self._pid = os.getpid()

    def write(self, data: Any, /) -> int:
        if os.getpid() == self._pid:
            with self._lock:
                self._board.keep_output(memoryview(data).cast("B"))
        # By an iterator in C: behind a call, a signal handler of the task could raise, and what was written by then
        # would be taken for not written, and come twice. What is cut short is copied again with its rest.
        for count in map(_write, (self,), (data,)):  # noqa: B007
            break
        return count

    def close(self) -> None:
        super().close()
        self._replaced.close()  # the text layer asks it whether it is closed


def keep_output(board: Board) -> None:
    """Have what is printed from now on copied to the board, where the streams are the standard ones."""
    lock = RLock()
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]
            buffer: Any = stream.buffer  # type: ignore[union-attr]
            if type(buffer) is io.BufferedWriter:
                raw = _Copying(buffer.raw, board, lock)
                io.BufferedWriter.__init__(buffer, raw, raw._blksize)  # type: ignore[attr-defined]  # noqa: SLF001 -- as `open`
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            elif isinstance(buffer, io.FileIO):  # unbuffered, by `python -u`
                raw = _Copying(buffer, board, lock)
                how: Any = stream
                settings = how.encoding, how.errors, "\n", how.line_buffering, how.write_through
                io.TextIOWrapper.__init__(how, raw, *settings)
        except Exception:  # noqa: BLE001, S112 -- None, closed, detached or somebody's own: it stays as it is
            continue
