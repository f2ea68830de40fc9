"""The tables and pictures of docs/performance.md, made from the record of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import groupby

from benchmarks.catalogue import MEASURES
from benchmarks.contenders import ENTRIES, MACHINE
from benchmarks.machine import LIMITS
from benchmarks.picture import draw
from benchmarks.record import Line, Record
from benchmarks.table import number
from benchmarks.way import draw_way

_QUIET = 0.5  # load that others may make before a figure says little; of two CPUs it is a quarter


def filled(page: str, record: Record) -> str:
    """The page with the figures of this record instead of those that it has."""
    for block, lines in (("results", _results(record)), ("account", _account(record))):
        begin, end = f"<!-- {block}: made by tests/benchmarks/report.py -->\n", f"<!-- end of {block} -->\n"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page has no {begin.strip()} with its end")
        page = before + begin + "\n".join(lines) + "\n" + end + after
    return page


def pictures(record: Record) -> dict[str, str]:
    """The pictures in docs/ that are made of a record, by their files: all rows, the first of each measure, a call."""
    lines = list(record.lines())
    shown = (line for line in lines if line.is_compared and line.ratios(line.peers[0]))
    first = [next(rows) for _, rows in groupby(shown, lambda line: line.measure.name)]
    return {"performance.svg": draw(lines), "peers.svg": draw(first), "call.svg": draw_way(lines)}


def _results(record: Record) -> Iterator[str]:
    environment = record.environment
    rounds = sorted({len(samples.rounds) for samples in record.samples.values()})
    told = " to ".join(map(str, sorted({rounds[0], rounds[-1]}))) + " round" + "s" * (rounds[-1] != 1)
    peers = ", ".join(f"{entry.short} {environment[name]}" for name, entry in ENTRIES.items() if environment.get(name))
    yield f"{told}; {environment['python']}; {environment['system']}; commit {environment['commit']}; {peers}."
    after = environment.get("load after", "unknown")
    yield f"Load averages of the machine (1, 5, 15 minutes): {environment['load']} before, {after} after the run."
    if float(environment["load"].split()[0]) > _QUIET:
        yield (
            "**Others used the machine when the run began: "
            "these figures show that everything runs, and are no result.**"
        )
    if record.scale != 1:
        yield f"**Sizes were multiplied by {record.scale:g}: these figures are no result.**"
    yield ""
    yield "| row | unit | poolkit | others | bar |"
    yield "| --- | --- | --- | --- | --- |"
    for line in record.lines():
        others, bars = "; ".join(_others(line)), "; ".join(_bars(line))
        yield f"| {line.name} | {line.row.unit} | {_median(line, line.ours)} | {others} | {bars} |"


def _account(record: Record) -> Iterator[str]:
    """The parts of a call, and what share of the CPU time each is."""
    measure = MEASURES["account"]
    yield f"| us a call | {' | '.join(ENTRIES[contender].short for contender in measure.contenders)} |"
    yield "| --- |" + " --- |" * len(measure.contenders)
    for line in record.lines():
        if line.measure is measure:
            yield f"| {line.row.title} | {' | '.join(_part(line, contender) for contender in measure.contenders)} |"


def _part(line: Line, contender: str) -> str:
    found, total = (line.samples.of(contender, key) for key in (line.row.key, "total"))
    if not found or line.is_compared:
        return _median(line, contender)
    share = statistics.median(part / whole for part, whole in zip(found, total, strict=True))
    return f"{_median(line, contender)} ({share:.0%})"


def _median(line: Line, contender: str) -> str:
    if contender in line.samples.failures:
        return "failed"
    found = line.samples.of(contender, line.row.key)
    return number(statistics.median(found)) if found else "-"


def _others(line: Line) -> Iterator[str]:
    """Each peer's median, the median of the ratios and their range; then the limits of the machine."""
    for peer in line.peers:
        said = f"{ENTRIES[peer].short} {_median(line, peer)}"
        ratios = line.ratios(peer)
        if ratios:
            said += f", {statistics.median(ratios):.2g} times ({min(ratios):.2g} to {max(ratios):.2g})"
        if not said.endswith(" -"):
            yield said
    for limit in line.row.limits:
        found = line.samples.of(MACHINE, limit)
        if found:
            yield f"{LIMITS[limit].title} {number(statistics.median(found))}"


def _bars(line: Line) -> Iterator[str]:
    for against, bar in line.row.bars.items():
        if against == line.ours:
            yield bar
        else:
            title = LIMITS[against].title if against in LIMITS else ENTRIES[against].short
            yield f"{title}: {bar}"
