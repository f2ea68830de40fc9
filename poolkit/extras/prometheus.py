"""Collector: the counts of pools as metrics of Prometheus. Needs the extra `poolkit[prometheus]`.

Nothing is counted here: each scrape translates `Pool.stats()`. The series are those of the names of states, outcomes
and ways, so their number is fixed, whatever happens to workers and tasks.
Owner: whoever scrapes. Labels are made once, as a scrape consists of some 80 series for each pool.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping

from prometheus_client import registry as registries
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from poolkit._core.stats import HistogramSnapshot, PoolStats
from poolkit.pool import Pool

# Seconds; each is a bound of `PoolStats`, too, so a count here is that there; closest where most tasks are.
BOUNDS = tuple(1e-6 * 2.0**power for power in (4, 6, 8, 10, *range(12, 23), 24, 26, 28, 30, 32))

_GAUGES = {
    "queued": "Tasks that are accepted and have not begun.",
    "running": "Tasks that have begun and are not done.",
    "arena_bytes": "Shared memory of the pool and its workers.",
}
_COUNTERS = {
    "timed_out": "Tasks that a limit on time has stopped; they are among those that failed.",
    "crashed": "Runs whose worker died.",
    "retried": "Runs that were repeated.",
    "respawned": "Workers replaced after a death that nobody asked for.",
    "recycled": "Workers replaced on plan.",
    "abandoned": "Threads given up because they would not stop.",
    "items": "Items of streams that came from workers.",
    "messages": "Messages of tasks that came from workers.",
}
_OUTCOMES = ("succeeded", "failed", "cancelled")
_WAYS = ("link_sent", "link_received", "arena_sent", "arena_received")


class Collector(registries.Collector):
    """Shows pools to Prometheus: gauges, counters and histograms `poolkit_...`, with the pool's name as label `pool`.

    A pool that was shut down keeps its last counts as long as somebody refers to it; one that nobody refers to is left
    out, and so are those of the parent in a forked child. Thread-safe.
    """

    def __init__(self, *pools: Pool, registry: registries.CollectorRegistry | None = registries.REGISTRY) -> None:
        """Register with `registry`, unless that is None.

        Raises:
            TypeError: one of `pools` is none.
            ValueError: two have the same name, or the registry has a `Collector` already.
        """
        for pool in pools:
            if not isinstance(pool, Pool):
                msg = f"a Collector takes pools, was given {pool!r}"
                raise TypeError(msg)
        names = [pool.name for pool in pools]
        if len({*names}) < len(names):
            msg = f"the pools of a Collector must have different names, were {', '.join(names)}"
            raise ValueError(msg)
        self._pools = [(weakref.ref(pool), _Labels(pool.name)) for pool in pools]
        if registry is not None:
            registry.register(self)

    def collect(self) -> list[Metric]:
        """Translate the counts of the pools as they are now."""
        pools = [(made(), labels) for made, labels in self._pools]
        here = os.getpid()
        stats = [(pool.stats(), labels) for pool, labels in pools if pool and pool._supervisor.pid == here]  # noqa: SLF001
        return [
            *(_plain(name, "gauge", text, stats) for name, text in _GAUGES.items()),
            *(_plain(name, "counter", text, stats) for name, text in _COUNTERS.items()),
            _labelled("workers", "gauge", "Workers, by state.", "state", stats, lambda each: each.workers),
            _labelled("tasks", "counter", "Tasks that are done, by outcome.", "outcome", stats, _outcomes),
            _labelled(
                "bytes",
                "counter",
                "Bytes to and from workers, through pipes (link) and shared memory (arena).",
                "way",
                stats,
                _ways,
            ),
            _histogram("wait_seconds", "From submit until the task began.", stats, lambda each: each.wait_time),
            _histogram("run_seconds", "Runs that ended by themselves.", stats, lambda each: each.run_time),
        ]


class _Labels(dict[tuple[str, str], dict[str, str]]):
    """The labels of one pool's series."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.plain = {"pool": pool}
        self.up_to = [self["le", bound] for bound in (*map(str, BOUNDS), "+Inf")]

    def __missing__(self, pair: tuple[str, str]) -> dict[str, str]:
        return self.setdefault(pair, {**self.plain, pair[0]: pair[1]})


Stats = list[tuple[PoolStats, _Labels]]


def _outcomes(stats: PoolStats) -> dict[str, int]:
    return {outcome: getattr(stats, outcome) for outcome in _OUTCOMES}


def _ways(stats: PoolStats) -> dict[str, int]:
    return {way: getattr(stats, way.replace("_", "_bytes_")) for way in _WAYS}


def _metric(name: str, kind: str, text: str) -> tuple[Metric, str]:
    """A metric without samples, and what its samples are called."""
    metric = Metric(f"poolkit_{name}", text, kind)
    return metric, f"{metric.name}_total" if kind == "counter" else metric.name


def _plain(name: str, kind: str, text: str, stats: Stats) -> Metric:
    metric, series = _metric(name, kind, text)
    metric.samples = [Sample(series, labels.plain, getattr(each, name)) for each, labels in stats]
    return metric


def _labelled(
    name: str, kind: str, text: str, label: str, stats: Stats, values: Callable[[PoolStats], Mapping[str, int]]
) -> Metric:
    metric, series = _metric(name, kind, text)
    for each, labels in stats:
        metric.samples += [Sample(series, labels[label, word], value) for word, value in values(each).items()]
    return metric


def _histogram(name: str, text: str, stats: Stats, of: Callable[[PoolStats], HistogramSnapshot]) -> Metric:
    metric, series = _metric(name, "histogram", text)
    for each, labels in stats:
        seen, at, found = 0, 0, of(each)
        buckets = found.buckets
        for bound, label in zip((*BOUNDS, float("inf")), labels.up_to, strict=True):
            while at < len(buckets) and buckets[at][0] <= bound:
                seen += buckets[at][1]
                at += 1
            metric.samples.append(Sample(f"{series}_bucket", label, seen))
        metric.samples += (
            Sample(f"{series}_count", labels.plain, found.count),
            Sample(f"{series}_sum", labels.plain, found.total),
        )
    return metric
