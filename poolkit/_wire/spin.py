"""Spin: look for a little while before sleeping, because to be woken on another CPU takes some fifty microseconds.

After GIVE_UP waits in a row that outlasted the spin one sleeps at once, until a sleep was short enough to pay. So an
idle pool does not spin at all. Owner: the one thread that waits.
"""

from __future__ import annotations

import math

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._select import poll

SPIN = 100e-6 if "spinning" not in _os.SWITCHED_OFF else 0.0  # seconds
WORTH = 250e-6  # seconds; a sleep that was over so soon, its own wake-up included, would have been a short spin
GIVE_UP = 3


class Spin:
    """How one waiter waits. Not thread-safe."""

    __slots__ = ("in_vain", "seconds")

    def __init__(self) -> None:
        self.in_vain = 0  # waits in a row that outlasted the spin; set to 0 when one was over while spinning
        self.seconds = SPIN  # how long to look before the next sleep

    def slept(self, seconds: float) -> None:
        """It took a sleep, after so many seconds in all."""
        self.in_vain = 0 if seconds < WORTH else self.in_vain + 1
        self.seconds = SPIN if self.in_vain < GIVE_UP else 0.0

    def wait(self, poller: poll, seconds: float | None = None) -> None:
        """Return when there is something to read, or after about so many seconds. Blocks."""
        started = monotonic()
        end = started + self.seconds
        while monotonic() < end:
            if poller.poll(0):
                self.in_vain = 0
                return
            _os.yield_cpu()
        poller.poll(None if seconds is None else math.ceil(seconds * 1000))
        self.slept(monotonic() - started)
