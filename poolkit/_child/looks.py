"""Looks: a worker that is asked where it is says so by itself, at its next step in Python.

faulthandler can be asked at any instruction, but what it reads may be changing just then, which crashes a worker once
in some ten thousand times. So it is asked only by who waits in vain: while the main thread is in C, nothing changes.
The signal is one that every interpreter ignores from its start: it ends no template and no worker that boots. The
kernel sends it, too, where a file would grow beyond a limit; then nobody reads the answer. Calls of the system that can
be restarted are, so that C code is not disturbed; others (sleeps, polls) are repeated by Python (PEP 475), or return.
"""

from __future__ import annotations

import errno
import os
import signal

from poolkit import _os
from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire.board import Board

if TYPE_CHECKING:
    from types import FrameType

MOST_FRAMES = 100  # as faulthandler has it


def text_of(frame: FrameType | None) -> str:
    """A stack as faulthandler writes it, most recent call first."""
    lines: list[str] = []
    while frame is not None and len(lines) < MOST_FRAMES:
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}\n')
        frame = frame.f_back
    return "".join(lines) if frame is None else "".join((*lines, "  ...\n"))


def answer_looks(board: Board, page: int) -> None:
    """Have looks answered on the board from now on. In the main thread."""
    home, answering = os.getpid(), [False]

    def answer(_number: int, frame: Any) -> None:
        if answering[0] or os.getpid() != home:  # the signal came again meanwhile; or the task forked
            return
        answering[0] = True
        try:
            board.answer(text_of(frame).encode("utf-8", "replace"), page)
        except (MemoryError, RecursionError):  # there is no room for an answer; what a handler raises here goes on
            pass
        except OSError as exc:
            if exc.errno != errno.EBADF:  # the task has closed the descriptor
                raise
        finally:
            answering[0] = False

    signal.signal(_os.LOOK_SIGNAL, answer)
    signal.siginterrupt(_os.LOOK_SIGNAL, False)
