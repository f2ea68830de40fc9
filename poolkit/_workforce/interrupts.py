"""Interrupts: a Ctrl-C must not tear a decision in two.

Python raises KeyboardInterrupt between any two instructions of the main thread, so also between taking a task from the
queue and noting which worker got it; that task would be lost, and whoever waits for it, or for the pool, would hang.
So the main thread puts its interrupts off while it decides: `put_off` exchanges the handler of SIGINT for one that
takes a note, `let_come` puts it back and has it handle what was noted. About 1.5 microseconds, on the main thread only.

    before = put_off()
    try:
        with lock: ... decide, publish
    finally:
        let_come(before)

In a worker thread it is the exception that stops the thread's task which is kept out, by the task's own shield.

What must stay interruptible (waiting for room, for results, for the end) is outside.
If another signal's handler raises just between `put_off` and its `try`, nobody calls `let_come`: the note-taker sees
at the next Ctrl-C that no frame below it is putting interrupts off, and puts the handler back by itself.
Owner: the main thread.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal.signal` makes enums of what it gives and takes, which costs fifteen times as much
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from poolkit.context import Shield, current_task

Handler = Callable[[int, "FrameType | None"], Any]

_SIGINT = int(_signal.SIGINT)
_noted: list[tuple[int, FrameType | None]] = []
_before: Handler | None = None  # what was put aside last
_deciding: set[CodeType] = set()  # functions that put interrupts off


# Signals other than SIGINT for which a program may have a handler that raises, as for SIGTERM and SIGALRM. Nothing puts
# those off: while there is one, the main thread leaves the reading of results to others.
MAY_RAISE = tuple(
    number for number in range(1, 32) if number not in {_SIGINT, _signal.SIGKILL, getattr(_signal, "SIGSTOP", 0)}
)


def may_be_torn() -> bool:
    """Whether this is the main thread, and a signal's handler may raise in it at any instruction. Takes 2 us there."""
    if threading.get_ident() != threading.main_thread().ident:
        return False
    return any(map(callable, map(_signal.getsignal, MAY_RAISE)))


def deciding(function: Any) -> Any:
    """Mark a function that calls `put_off`, so that the note-taker knows it on the stack."""
    _deciding.add(function.__code__)
    return function


def put_off() -> Handler | Shield | None:
    """From now on, note interrupts of this thread. Returns what `let_come` is to be given; None: nothing to put off.

    Raises what stops the task that runs here, where that was to come anyway.
    """
    global _before  # noqa: PLW0603 -- a signal has one handler
    if threading.get_ident() != threading.main_thread().ident:
        context = current_task()
        shield = None if context is None else context.shield()
        if shield is not None:
            shield.hold()
        return shield
    handler: Any = _signal.getsignal(_SIGINT)
    if handler is _note or not callable(handler):  # within another, ignored, or not Python's
        return None
    _before = handler
    try:
        _signal.signal(_SIGINT, _note)
    except ValueError:  # a subinterpreter
        return None
    return handler  # type: ignore[no-any-return]


def let_come(handler: Handler | Shield | None) -> None:
    """Undo `put_off`. Raises what the handler makes of an interrupt that came meanwhile: KeyboardInterrupt, mostly."""
    if handler is None:
        return
    if not callable(handler):
        handler.let_go()
        return
    if _signal.getsignal(_SIGINT) is _note:  # else a callback has set its own
        _signal.signal(_SIGINT, handler)
    if _noted:
        number, frame = _noted[-1]
        _noted.clear()
        handler(number, frame)


def _note(number: int, frame: FrameType | None) -> None:
    below = frame
    while below is not None:
        if below.f_code in _deciding:
            _noted.append((number, frame))
            return
        below = below.f_back
    handler = _before
    if handler is not None:
        _signal.signal(_SIGINT, handler)
        handler(number, frame)
