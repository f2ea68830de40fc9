"""Interrupts: an exception of a signal handler must not end a step in the middle.

Python raises KeyboardInterrupt between any two instructions of the main thread, so also between taking a task from the
queue and noting which worker got it; that task would be lost, and whoever waits for it, or for the pool, would hang.
Handlers of other signals may raise as well: for SIGTERM to exit, for SIGALRM to end what takes too long.
So the main thread defers signals during a step: `defer_signals` exchanges the handlers for one that takes a note,
`restore_signals` restores them and has them handle what was noted. About 2 microseconds, on the main thread only.

    before = defer_signals()
    try:
        with lock: ... decide, publish
    finally:
        restore_signals(before)

In a worker thread it is the exception that stops the thread's task which is kept out, by the task's own shield.

What must stay interruptible (waiting for room, for results, for the end) is outside.
If the handler of a signal that is not deferred raises just between `defer_signals` and its `try`, nobody calls
`restore_signals`: the next signal, or the next `defer_signals`, finds the note-taker where no frame defers signals, and
restores the handlers.
Owner: the main thread.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal.signal` makes enums of what it gives and takes, which costs fifteen times as much
import os
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType

from poolkit.context import current_task

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from poolkit.context import Shield

    F = TypeVar("F", bound=Callable[..., Any])

Handler = Callable[[int, "FrameType | None"], object]
Handlers = tuple[tuple[int, Handler], ...]

_NAMES = "INT TERM ALRM HUP USR1 USR2 QUIT VTALRM PROF CHLD IO WINCH"
NUMBERS = tuple(int(getattr(_signal, f"SIG{name}")) for name in _NAMES.split() if hasattr(_signal, f"SIG{name}"))
"""The signals that are deferred: those for which programs have handlers in Python."""

_noted: dict[int, FrameType | None] = {}
_before: dict[int, Handler] = {}  # what was put aside last
_seen: list[Any] = []  # the handlers as they were found last, and what is to be put aside then
_plan: Handlers = ()
_deciding: set[CodeType] = set()  # functions that put signals off
_main = threading.main_thread().ident


def _main_in_child() -> None:
    global _main  # noqa: PLW0603 -- whichever thread forks is the child's main thread
    _main = threading.get_ident()


if hasattr(os, "register_at_fork"):  # not on Windows, where importing must work
    os.register_at_fork(after_in_child=_main_in_child)


def deciding(function: F) -> F:
    """Mark a function that calls `defer_signals`, so that the note-taker knows it on the stack."""
    _deciding.add(function.__code__)
    return function


def defer_signals() -> Handlers | Shield | None:
    """From now on, note signals of this thread. Returns what `restore_signals` is to be given; None: nothing to defer.

    Raises what stops the task that runs here, where that was to come anyway.
    """
    global _seen, _plan
    if threading.get_ident() != _main:
        context = current_task()
        shield = None if context is None else context.shield()
        if shield is not None:
            shield.hold()
        return shield
    found, plan = list(map(_signal.getsignal, NUMBERS)), _plan
    if found != _seen:
        if _note in found and not _is_put_off(sys._getframe(2)):  # noqa: SLF001 -- who called is deciding, of course
            _put_back()
            found = list(map(_signal.getsignal, NUMBERS))
        plan = tuple(
            (number, handler)
            for number, handler in zip(NUMBERS, found, strict=True)
            if callable(handler) and handler is not _note
        )
        if _note not in found:  # else this is within another, and the same is found if the end of that is interrupted
            _plan, _seen = plan, found
    try:
        for number, handler in plan:
            _before[number] = handler
            _signal.signal(number, _note)
        return plan or None  # noqa: TRY300 -- none: within another, or all are ignored, or not Python's
    except BaseException as exc:  # mostly of the handler of a signal that had not had its turn
        if isinstance(exc, ValueError) and _signal.getsignal(plan[0][0]) is not _note:  # a subinterpreter
            return None
        restore_signals(plan)
        raise


def restore_signals(before: Handlers | Shield | None) -> None:
    """Undo `defer_signals`. Raises what a handler makes of a signal that came meanwhile: KeyboardInterrupt, mostly."""
    if before is None:
        return
    if not isinstance(before, tuple):
        before.let_go()
        return
    for number, handler in before:
        if _signal.getsignal(number) is _note:  # else a callback has set its own
            _signal.signal(number, handler)
    while _noted:
        number, frame = _noted.popitem()
        handle = _before.get(number)
        if handle is not None:
            handle(number, frame)


def _note(number: int, frame: FrameType | None) -> None:
    if _is_put_off(frame):
        _noted[number] = frame
        return
    _put_back()
    handle = _before.get(number)
    if handle is not None:
        handle(number, frame)


def _is_put_off(frame: FrameType | None) -> bool:
    """Return True if this frame, or one that called it, defers signals."""
    while frame is not None:
        if frame.f_code in _deciding:
            return True
        frame = frame.f_back
    return False


def _put_back() -> None:
    """Restore the handlers that an interrupted `defer_signals` has left aside."""
    for number, handler in _before.items():
        if _signal.getsignal(number) is _note:
            _signal.signal(number, handler)
