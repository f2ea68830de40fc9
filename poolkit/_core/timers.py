"""Timers: what is to be looked at, and when. A heap of instants; what is no longer true when it fires does nothing.

Guarded by: the pool's one lock. Knows no clock: `now` is an argument.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Action = Callable[[Any, float], None]


class Timers:
    """A heap of (instant, action, subject)."""

    __slots__ = ("_count", "_dead", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._count = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, action: Action, subject: Any) -> None:
        """Call `action(subject, now)` at the first tick at or after `when`."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, action, subject))

    def next(self) -> float | None:
        """The earliest instant; None when there is none."""
        return self._heap[0][0] if self._heap else None

    def fire(self, now: float) -> None:
        """Call what is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, action, subject = heapq.heappop(heap)
            action(subject, now)

    def let_go(self, is_dead: Callable[[Any], bool], *, entries: int) -> None:
        """Note that `entries` more subjects are of no interest; once they are the most, drop them all.

        Otherwise a cancelled task would be kept alive by its deadline, however far away that is.
        """
        self._dead += entries
        if self._dead > 32 and self._dead * 2 > len(self._heap):  # noqa: PLR2004 -- amortised: a sweep per doubling
            # In place: `fire` may be walking this very list.
            self._heap[:] = [entry for entry in self._heap if not is_dead(entry[3])]
            heapq.heapify(self._heap)
            self._dead = 0
