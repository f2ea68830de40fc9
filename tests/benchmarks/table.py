"""The tables that are printed: medians, ranges, and how many times faster poolkit is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.contenders import ENTRIES, MACHINE
from benchmarks.machine import LIMITS
from benchmarks.measure import Measure, Row, Samples

_HEAD = f"  {'':<38}{'median':>10}{'smallest':>11}{'largest':>10}   poolkit is"


def lines_of(measure: Measure, contenders: Sequence[str], samples: Samples) -> Iterator[str]:
    """The table of one measure."""
    rounds = len(samples.rounds)
    yield f"## {measure.name}: {measure.title} ({rounds} round{'s' * (rounds != 1)})"
    for row in measure.rows:
        yield ""
        yield f"  {row.title} [{row.unit}]"
        yield _HEAD
        for contender in contenders:
            yield _line(row, contender, measure.contenders[0], samples)
        for limit in row.limits:
            yield from _limit_line(row, limit, measure.contenders[0], samples)
    yield ""


def _line(row: Row, contender: str, ours: str, samples: Samples) -> str:
    title = f"  {ENTRIES[contender].title:<38}"
    found = samples.of(contender, row.key)
    if contender in samples.failures:
        return f"{title}{'failed':>10}   {samples.failures[contender]}"
    if not found:
        return f"{title}{'-':>10}"
    told = ""
    if contender != ours and row.words and (ratio := samples.ratio(contender, ours, row.key)):
        told = compare(ratio, row.words)
    bar = f"bar: {row.bars[contender]}" if contender in row.bars else ""
    return f"{title}{_spread(found)}   {told:<22}{bar}".rstrip()


def _limit_line(row: Row, limit: str, ours: str, samples: Samples) -> Iterator[str]:
    found = samples.of(MACHINE, limit)
    if not found:
        yield f"  {'machine: ' + LIMITS[limit].title:<38}{'failed':>10}   {samples.failures.get(MACHINE, '')}"
        return
    mine = samples.of(ours, row.key)
    unit = LIMITS[limit].unit
    told = ""
    if mine and unit == row.unit:
        told = f"{statistics.median(mine) / statistics.median(found):.3g} times that"
    bar = f"bar: {row.bars[limit]}" if limit in row.bars else ""
    yield f"  {'machine: ' + LIMITS[limit].title:<38}{_spread(found)}   {told:<22}{bar}".rstrip()


def _spread(found: Sequence[float]) -> str:
    return f"{number(statistics.median(found)):>10}{number(min(found)):>11}{number(max(found)):>10}"


def compare(ratio: float, words: tuple[str, str]) -> str:
    """`6.9 times faster`, `1.4 times slower`; `even` for what rounds to the same."""
    better, worse = words
    if f"{max(ratio, 1 / ratio):.1f}" == "1.0":
        return "even"
    return f"{ratio:.3g} times {better}" if ratio > 1 else f"{1 / ratio:.3g} times {worse}"


def number(value: float) -> str:
    """Three digits that count; small counts of events stay whole."""
    if value == int(value) and abs(value) < 100_000:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
