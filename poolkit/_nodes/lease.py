"""Lease: how long a node works without its owner, and when the owner may count on it that this has ended.

    Tenant      the node's half: asks, with a stamp of its own clock, and works until `seconds` after the last stamp
                that was answered
    Landlord    the owner's half: answers with the same stamp, and notes by its own clock when it was asked

A question comes later than its stamp was taken, so who counts from its coming counts long enough. Hence no clock is
shared, and it does not matter which direction fails, nor what is late, lost, or overtaken by what came after it.
Guarantees: once a landlord has given up, the tenant's work has ended, and D has passed since, when it is `ends_at` on
the landlord's clock; provided that the tenant was made before the landlord, that all orders for it are given before
that landlord gives up, and that neither clock runs more than 1 % faster than the other.
Pure: the caller brings the time, by one clock of its machine. Owner: one thread, or whoever holds the caller's lock.
"""

from __future__ import annotations

import math

D = 1.0  # seconds after which a node's processes are gone once it ended
_ASKS = 5  # questions in the time of one lease
_STRETCH = 1 / 0.99  # seconds of the landlord's clock in one of the tenant's, at most; 1.01 if it is the faster by 1 %


class Tenant:
    """The node's half. Call `is_over` before `answered`: once it was over, no answer makes it longer."""

    def __init__(self, seconds: float, now: float) -> None:
        self.until = now + seconds  # the work ends then, at the latest; only moved on
        self._seconds = seconds
        self._asked = -math.inf
        self._was_over = False

    def ask(self, now: float) -> float | None:
        """Return a stamp to ask with, if it is time to: at once, and then five times in a lease."""
        if self.is_over(now) or now < self._asked + self._seconds / _ASKS:
            return None
        self._asked = now
        return now

    def answered(self, stamp: float) -> None:
        """The question with this stamp was answered, however long ago."""
        if not self._was_over:
            self.until = max(self.until, stamp + self._seconds)

    def is_over(self, now: float) -> bool:
        """Return True from `until` on, and then for good: the work has ended, and must not begin again."""
        self._was_over = self._was_over or now >= self.until
        return self._was_over


class Landlord:
    """The owner's half. Made when the node has been heard of, and so after the tenant."""

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._asked = now
        self._gave_up = False

    def asked(self, now: float) -> bool:
        """A question has come; True: it is to be answered."""
        if not self._gave_up:
            self._asked = max(self._asked, now)
        return not self._gave_up

    def ends_at(self) -> float:
        """When the node's work has certainly ended and is gone, if no later question is answered."""
        return self._asked + (self._seconds + D) * _STRETCH

    def give_up(self) -> None:
        """Answer no more questions."""
        self._gave_up = True
