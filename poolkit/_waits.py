"""Waits in which the main thread misses no signal.

CPython looks for signals between two instructions, and a wait of the system that one interrupts ends early. One that
comes in between, when the thread has looked and does not sleep yet, is noted and not seen until the wait is over; and
just there the thread hands over the interpreter's lock, which may take milliseconds where others want it. Nor is one
seen then that the system has given to another thread. So on the main thread, where Python calls the handlers, no wait
is longer than LOOK_UP: it looks up, and goes on. Other threads have nothing to see, and sleep on.

Whatever may wait for long on a caller's thread waits by what is here. A loop that waits anew by itself asks `capped`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from poolkit._clock import monotonic

T = TypeVar("T")

LOOK_UP = 0.25  # seconds


def capped(seconds: float | None) -> float | None:
    """For how long this thread may sleep at once, who wants to for so many seconds; None: for ever."""
    if (seconds is None or seconds > LOOK_UP) and threading.get_ident() == threading.main_thread().ident:
        return LOOK_UP
    return seconds


def until(sleep: Callable[[float], object], seconds: float | None = None) -> bool:
    """Call `sleep(part)`, for parts of so many seconds, until it returns what is true; whether it has. Blocks.

    `sleep` waits for at most as long as it is told, for example `Event.wait`.
    """
    give_up = math.inf if seconds is None else monotonic() + seconds
    left = give_up - monotonic()
    while not sleep(_of_a_lock(left)):
        left = give_up - monotonic()
        if left <= 0.0:
            return False
    return True


def get(queue: SimpleQueue[T], seconds: float | None = None) -> T:
    """Do what `queue.get(timeout=seconds)` does. Blocks."""
    give_up = math.inf if seconds is None else monotonic() + seconds
    while True:
        left = give_up - monotonic()
        try:
            return queue.get(timeout=_of_a_lock(left))
        except Empty:
            if monotonic() >= give_up:
                raise


def wait_for(condition: threading.Condition, predicate: Callable[[], object], seconds: float | None) -> bool:
    """Do what `Condition.wait_for` does, by poolkit's clock. Blocks."""
    give_up = math.inf if seconds is None else monotonic() + seconds
    while not predicate():
        left = give_up - monotonic()
        if left <= 0.0:
            return False
        condition.wait(_of_a_lock(left))
    return True


def _of_a_lock(seconds: float) -> float:
    return max(0.0, min(capped(seconds) or 0.0, threading.TIMEOUT_MAX))
