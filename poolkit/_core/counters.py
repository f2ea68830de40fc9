"""Counters and histograms of one pool.

Apart from the snapshots made of them (`stats.py`), which most programs never take: these are dataclasses, and importing
those takes 9 ms.
Guarded by: the pool's one lock. Times in seconds, sizes in bytes.
"""

from __future__ import annotations

import bisect
import math
from operator import itemgetter

TYPE_CHECKING = False  # as with all that is imported before the first result
if TYPE_CHECKING:
    from poolkit._core.stats import HistogramSnapshot

_STEPS = 4  # buckets per doubling: a percentile is right to within a fifth
_LEAST = 1e-6  # seconds; everything shorter falls into the first bucket
_COUNT = itemgetter(1)
_BOUNDS = tuple(_LEAST * 2 ** (step / _STEPS) for step in range(44 * _STEPS))  # up to half a year


class Histogram:
    """Counts of times in buckets that grow by the same factor. `add` only takes a time down, for `fold` to count."""

    __slots__ = ("_buckets", "_count", "_largest", "_new", "_total", "add")

    def __init__(self) -> None:
        self._new: list[float] = []
        self.add = self._new.append
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._count = 0
        self._total = 0.0
        self._largest = 0.0

    def fold(self) -> None:
        """Count what was added, in seconds; a negative time, or no number (a worker's own word), counts as 0.

        Sorted, they are counted bucket by bucket, at a third of what it costs to find the bucket of each.
        """
        if not self._new:
            return
        # Stores alone, between which no exception comes.
        self._buckets, self._count, self._total, self._largest, self._new[:] = *self._folded(), ()

    def snapshot(self) -> HistogramSnapshot:
        """What was added so far."""
        from poolkit._core.stats import HistogramSnapshot  # noqa: PLC0415 -- see the header

        self.fold()  # who looks often does not count the same again
        counts = zip((*_BOUNDS, math.inf), self._buckets, strict=True)
        return HistogramSnapshot(self._count, self._total, self._largest, tuple(filter(_COUNT, counts)))

    def _folded(self) -> tuple[list[int], int, float, float]:
        values = sorted([value if 0.0 <= value < math.inf else 0.0 for value in self._new])
        buckets = self._buckets.copy()
        start = 0
        while start < len(values):
            bucket = bisect.bisect_left(_BOUNDS, values[start])
            end = len(values) if bucket == len(_BOUNDS) else bisect.bisect_right(values, _BOUNDS[bucket], start)
            buckets[bucket] += end - start
            start = end
        total = self._total + sum(values)  # not fsum, to which two huge numbers are an error
        return buckets, self._count + len(values), total, max([self._largest, *values[-1:]])


class Counters:
    """What happened to the tasks and workers of a pool; see `PoolStats`."""

    def __init__(self) -> None:
        self.submitted = 0
        self.succeeded = 0
        self.failed = 0
        self.cancelled = 0
        self.timed_out = 0
        self.crashed = 0
        self.retried = 0
        self.abandoned = 0
        self.wait_time = Histogram()
        self.run_time = Histogram()
