"""Line: who waits for room in a bounded queue, in the order in which they came.

    waiter   hands in; refused, he has a place, waits to be woken, and hands in again: accepted, or back at his place
    pool     after each event wakes as many of the first as there is room for, and takes them out of the line

Who is called may be late, or never come. So no room is kept for him: the next event calls the next. Who comes and finds
his room taken, by one who does not wait, goes back to where he stood, which his ticket tells.
A waiter may leave at any moment, also from a signal handler or a finalizer, without a lock: `gone` is set before he
looks whether he was called, and `called` before it is looked whether he is gone, so one of the two calls the next.
How he waits is his own: a thread on a bare lock, which is all that an interrupt can leave behind, a coroutine on an
event of its loop. `wake` must not block, nor take what a waiter may hold.
Guarded by: the pool's lock; but `gone` is the waiter's, and `wake` is called without it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable


class Place:
    """One who waits for room; `wake` is called when his turn has come, once for each time that he lined up."""

    __slots__ = ("called", "gone", "ticket", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.ticket = 0  # 0: he has not been in the line yet
        self.called = False  # since he lined up last
        self.gone = False

    def __lt__(self, other: Place) -> bool:
        """Whether he came before."""
        return self.ticket < other.ticket

    def call(self) -> bool:
        """Wake him; false when he has left."""
        if self.gone:
            return False
        try:
            self.wake()
        except RuntimeError:  # his event loop was closed
            return False
        return True


class Line:
    """The places of those who wait, and are not called."""

    def __init__(self) -> None:
        self._tickets = itertools.count(1)
        self.places: list[Place] = []  # by ticket

    def __len__(self) -> int:
        """How many wait; those who left may be among them."""
        return len(self.places)

    def precedes(self, place: Place) -> bool:
        """Whether somebody waits who came before."""
        return bool(self.places) and (not place.ticket or self.places[0] < place)

    def stand(self, place: Place) -> None:
        """Have one wait, where he stood if he did."""
        while self.places and self.places[-1].gone:
            self.places.pop()
        place.ticket = place.ticket or next(self._tickets)
        place.called = False
        bisect.insort(self.places, place)

    def take(self, count: int) -> list[Place]:
        """Take out the first, to be called."""
        taken, self.places = self.places[:count], self.places[count:]
        for place in taken:
            place.called = True
        return taken
