"""Hooks: what the user's own objects raise when they are looked at, told from what only comes meanwhile."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the enums of `signal`

from poolkit._wire.modules import module_of


def raise_interrupt(error: BaseException) -> None:
    """Raise an exception again, unless an object's own hook raised it.

    A hook may raise SystemExit or anything. Ctrl-C, what a signal handler raises, what stops the task of a thread, and
    a lack of memory are not its.
    """
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        return
    own = (KeyboardInterrupt, MemoryError)
    if isinstance(error, own) or module_of(type(error)).startswith("poolkit.") or is_of_handler(error):
        raise error


def is_of_handler(error: BaseException) -> bool:
    """Return True if a signal handler in Python raised an exception."""
    handlers = {getattr(_signal.getsignal(number), "__code__", None) for number in _signal.valid_signals()}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False
