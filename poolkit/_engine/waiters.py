"""Waiters: who waits for room in a bounded queue, in the order in which they came.

    submitter   finds the queue full, waits to be woken, and submits again: accepted, or waiting at its old place
    pool        after each event wakes as many of the first as there is room for, and takes them out

A woken waiter may be slow or may have given up, so no slot is reserved for it: the next event wakes the next waiter.
One that finds the room taken, by somebody who does not wait, goes back to its old place, which its number tells.
It is still among those who wait when it is accepted before it was taken out, and says so by `gone`: else the next
event, for example the end of its own task, would wake it once more, and nobody the next.
A waiter may give up at any moment, also in a signal handler or finalizer, without a lock: `gone` is set before it looks
at `woken`, and `woken` before it is looked at `gone`, so one of the two wakes the next.
How it waits is its own: a thread on a bare lock, which is all that an interrupt can leave behind, a coroutine on an
event of its loop. `wake` must not block, nor take what a waiter may hold.
Guarded by: the pool's lock; but `gone` is the waiter's, and `wake` is called without it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable


class Waiter:
    """One who waits for room; `wake` is called when there is some, once for each time that it began to wait."""

    __slots__ = ("_wake", "gone", "number", "woken")

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self.number = 0  # 0: it has not waited yet
        self.woken = False  # since it began to wait last
        self.gone = False

    def __lt__(self, other: Waiter) -> bool:
        """Return True if it came before."""
        return self.number < other.number

    def wake(self) -> bool:
        """Wake it; False when it has given up."""
        if self.gone:
            return False
        try:
            self._wake()
        except RuntimeError:  # its event loop was closed
            return False
        return True


class Waiters:
    """Those who wait, and are not woken."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.waiting: list[Waiter] = []  # by number

    def __len__(self) -> int:
        """How many wait; those who gave up may be among them."""
        return len(self.waiting)

    def precedes(self, waiter: Waiter) -> bool:
        """Return True if somebody waits who came before."""
        first = next((other for other in self.waiting if not other.woken), None)
        return first is not None and (not waiter.number or first < waiter)

    def add(self, waiter: Waiter) -> None:
        """Have one wait, at its old place if it had one."""
        while self.waiting and self.waiting[-1].gone:
            self.waiting.pop()
        waiter.number = waiter.number or next(self._numbers)
        waiter.woken = False
        if waiter not in self.waiting:
            bisect.insort(self.waiting, waiter)

    def first(self, count: int) -> list[Waiter]:
        """Return the first, which are to be woken, and then removed."""
        found = self.waiting[:count]
        for waiter in found:
            waiter.woken = True
        return found

    def remove(self, woken: list[Waiter]) -> None:
        """Take out those that were woken, but for who waits again already."""
        known = set(woken)
        self.waiting = [waiter for waiter in self.waiting if waiter not in known or not waiter.woken]


def wake_each(waiters: list[Waiter]) -> int:
    """Wake these; returns how many were there to be woken."""
    return sum(waiter.wake() for waiter in waiters)
