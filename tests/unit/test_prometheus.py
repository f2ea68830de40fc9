"""The counts of pools as metrics: as `stats` has them, and never more series."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import poolkit
from poolkit._core.counters import _BOUNDS
from poolkit.extras.prometheus import BOUNDS, Collector
from poolkit.testing import FakePool
from support_scripts import run_script

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)  # as the one that is there by default


def scrape(registry: CollectorRegistry) -> Samples:
    """What Prometheus reads."""
    text = generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def of(found: Samples, name: str, pool: str = "mine", **labels: str) -> float:
    return found[f"poolkit_{name}", frozenset({"pool": pool, **labels}.items())]


def some(number: int) -> Iterator[int]:
    for each in range(number):
        poolkit.current_task().send(each)
        yield each


def fail(_: object) -> None:
    raise KeyError


def assert_same(found: Samples, stats: poolkit.PoolStats) -> None:
    """That each number of `stats` is there."""
    for name in ("queued", "running", "arena_bytes"):
        assert of(found, name) == getattr(stats, name)
    for name in ("timed_out", "crashed", "retried", "respawned", "recycled", "abandoned", "items", "messages"):
        assert of(found, f"{name}_total") == getattr(stats, name)
    for outcome in ("succeeded", "failed", "cancelled"):
        assert of(found, "tasks_total", outcome=outcome) == getattr(stats, outcome)
    for way in ("sent", "received"):
        assert of(found, "bytes_total", way=f"link_{way}") == getattr(stats, f"link_bytes_{way}")
        assert of(found, "bytes_total", way=f"arena_{way}") == getattr(stats, f"arena_bytes_{way}")
    for state, count in stats.workers.items():
        assert of(found, "workers", state=state) == count
    for name, times in (("wait", stats.wait_time), ("run", stats.run_time)):
        assert of(found, f"{name}_seconds_count") == times.count
        assert of(found, f"{name}_seconds_sum") == pytest.approx(times.total)
        assert of(found, f"{name}_seconds_bucket", le="+Inf") == times.count
        bounds = {dict(labels)["le"] for metric, labels in found if metric == f"poolkit_{name}_seconds_bucket"}
        assert len(bounds) == 21
        for bound in bounds:
            exact = sum(count for upper, count in times.buckets if upper <= float(bound))
            assert of(found, f"{name}_seconds_bucket", le=bound) == exact


@pytest.mark.parametrize("kind", ["thread", pytest.param("process", marks=pytest.mark.slow)])
def test_a_scrape_equals_the_stats(registry: CollectorRegistry, kind: str) -> None:
    with poolkit.Pool(1, kind=kind, name="mine") as pool:
        Collector(pool, registry=registry)
        list(pool.map(abs, range(200), chunksize=1))
        assert pool.submit(fail, 1).exception() is not None
        assert pool.submit(bytes, 300_000).result() == bytes(300_000)
        assert sum(pool.stream(some, 10)) == 45
    assert_same(scrape(registry), pool.stats())
    assert pool.stats().items == pool.stats().messages == 10
    assert pool.stats().failed == 1


def test_the_bounds_are_bounds_of_the_stats() -> None:
    assert len(BOUNDS) == 20
    assert list(BOUNDS) == sorted(BOUNDS)
    assert set(BOUNDS) < set(_BOUNDS)


def test_a_thousand_crashes_make_no_more_series(registry: CollectorRegistry) -> None:
    with FakePool(max_workers=2, name="mine") as pool:
        Collector(pool, registry=registry)
        before = scrape(registry)
        pool.when(fail).crashes()
        for number in range(1000):
            assert type(pool.submit(fail, number).exception()) is poolkit.WorkerCrashed
        after = scrape(registry)
    assert of(after, "crashed_total") == of(after, "respawned_total") == 1000
    assert after.keys() == before.keys()


def test_a_pool_counts_until_nobody_has_it(registry: CollectorRegistry) -> None:
    with FakePool(max_workers=1, name="one") as one, FakePool(max_workers=1, name="two") as two:
        Collector(one, two, registry=registry)
        two.submit(abs, 1).result()
    assert of(scrape(registry), "tasks_total", "two", outcome="succeeded") == 1
    del one
    gc.collect()
    assert {dict(labels)["pool"] for _, labels in scrape(registry)} == {"two"}


def test_what_cannot_be_told_apart_or_counted_is_refused(registry: CollectorRegistry) -> None:
    with FakePool(max_workers=1, name="same") as one, FakePool(max_workers=1, name="same") as two:
        with pytest.raises(ValueError, match=r"different names, were same, same$"):
            Collector(one, two, registry=registry)
        view: Any = one.options(timeout=1)
        with pytest.raises(TypeError, match=r"takes pools, was given <poolkit\.PoolView"):
            Collector(view, registry=registry)
        Collector(one, registry=registry)
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            Collector(two, registry=registry)
        unregistered = Collector(two, registry=None)
    assert {sample.labels["pool"] for metric in unregistered.collect() for sample in metric.samples} == {"same"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_forked_child_does_not_show_the_pools_of_its_parent() -> None:
    source = """
import os
import poolkit
from prometheus_client import REGISTRY
from poolkit.extras.prometheus import Collector

with poolkit.Pool(1, kind="thread", name="mine") as pool:
    Collector(pool)
    read, write = os.pipe()
    if not os.fork():
        os.write(write, str(REGISTRY.get_sample_value("poolkit_queued", {"pool": "mine"})).encode())
        os._exit(0)
    os.wait()
    print(os.read(read, 100).decode(), REGISTRY.get_sample_value("poolkit_queued", {"pool": "mine"}))
"""
    assert run_script(source) == "None 0"
