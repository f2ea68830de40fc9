"""Histograms."""

from __future__ import annotations

import math

import pytest

from poolkit._core.counters import Histogram


def test_an_empty_histogram_is_all_zeros() -> None:
    """Nothing was seen, so nothing took time."""
    empty = Histogram().snapshot()
    assert (empty.count, empty.total, empty.largest, empty.buckets) == (0, 0.0, 0.0, ())
    assert empty.mean == 0.0
    assert empty.percentile(50) == 0.0


def test_a_percentile_is_right_to_within_a_fifth() -> None:
    """And never larger than the largest value."""
    histogram = Histogram()
    for number in range(1, 1001):
        histogram.add(number / 1000)
    seen = histogram.snapshot()
    assert seen.count == 1000
    assert seen.mean == pytest.approx(0.5005)
    for percent in (1, 25, 50, 90, 99):
        assert percent / 100 <= seen.percentile(percent) <= percent / 100 * 1.2
    assert seen.percentile(100) == seen.largest == 1.0


def test_the_shortest_times_share_a_bucket() -> None:
    """A negative time, from clocks that differ, counts as 0."""
    histogram = Histogram()
    for value in (0.0, 1e-9, -5.0):
        histogram.add(value)
    seen = histogram.snapshot()
    assert [count for _, count in seen.buckets] == [3]
    assert seen.total == pytest.approx(1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_time_counts_as_zero(value: float) -> None:
    """What a worker says of itself may be anything, and harms nothing."""
    histogram = Histogram()
    histogram.add(value)
    seen = histogram.snapshot()
    assert (seen.count, seen.total, seen.largest) == (1, 0.0, 0.0)


@pytest.mark.parametrize("percent", [-1, 101, math.nan])
def test_a_percentile_is_from_0_to_100(percent: float) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="percent must be from 0 to 100"):
        Histogram().snapshot().percentile(percent)


def test_a_percentile_beyond_rounding_is_the_largest() -> None:
    """When all buckets together hold less than was asked for, the largest value is the answer."""
    histogram = Histogram()
    histogram.add(2.0)
    seen = histogram.snapshot()
    more = type(seen)(count=5, total=seen.total, largest=seen.largest, buckets=seen.buckets)
    assert more.percentile(100) == 2.0


def test_a_snapshot_changes_nothing() -> None:
    """Any thread may take one, and be torn away from it."""
    histogram = Histogram()
    for value in (1.0, 2.0):
        histogram.add(value)
    assert histogram.snapshot() == histogram.snapshot()
    histogram.fold()
    histogram.add(3.0)
    found = histogram.snapshot()
    assert (found.count, found.total, found.largest) == (3, 6.0, 3.0)
    assert sum(count for _, count in found.buckets) == 3


def test_huge_times_are_no_error() -> None:
    """They are a worker's own word."""
    histogram = Histogram()
    for _ in range(3):
        histogram.add(1e308)
    histogram.fold()
    assert histogram.snapshot().count == 3
