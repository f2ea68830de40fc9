"""Timers: what is to be looked at, and when. A heap of instants; what is no longer true when it fires does nothing.

Guarantees: an action is called at most once, at the first tick at or after its instant, earlier instants first; what
an action adds waits for the next tick, so that one tick always ends. A subject that is over is not kept for long.
Guarded by: the pool's one lock. Knows no clock: `now` is an argument.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

Action = Callable[[Any, float], None]

FEW = 32  # entries that are over may always lie around


class Timers:
    """A heap of (instant, action, subject)."""

    __slots__ = ("_count", "_due", "_is_over", "_over", "heap")

    def __init__(self, is_over: Callable[[Any], bool]) -> None:
        self.heap: list[tuple[float, int, Action, Any]] = []  # the earliest first; for looking
        self._due: deque[tuple[float, int, Action, Any]] = deque()  # taken from the heap, to be called in this tick
        self._count = 0
        self._is_over = is_over  # whether a subject is of no interest any more
        self._over = 0  # at least so many entries, fired ones included, became so since the last sweep

    def __len__(self) -> int:
        return len(self.heap)

    def add(self, when: float, action: Action, subject: Any) -> None:
        """Call `action(subject, now)` at the first tick at or after `when`."""
        self._count += 1
        heapq.heappush(self.heap, (when, self._count, action, subject))

    def next(self) -> float | None:
        """The earliest instant at which there is something to do; None when there is none."""
        heap = self.heap
        while heap and self._is_over(heap[0][3]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def fire(self, now: float) -> None:
        """Call what is due. An action that raises is called again by the next tick."""
        heap, due = self.heap, self._due
        while heap and heap[0][0] <= now:
            due.append(heap[0])
            heapq.heappop(heap)
        while due:
            _, _, action, subject = due[0]
            if not self._is_over(subject):
                action(subject, now)
            due.popleft()

    def let_go(self, entries: int) -> None:
        """Note that the subject of so many entries is over; once those are the most, drop them all.

        Otherwise a cancelled task would be kept alive by its deadline, however far away that is.
        """
        self._over += entries
        if self._over > FEW and self._over * 2 > len(self.heap):  # amortised: a sweep costs what was counted
            self.heap = [entry for entry in self.heap if not self._is_over(entry[3])]
            heapq.heapify(self.heap)
            self._over = 0
