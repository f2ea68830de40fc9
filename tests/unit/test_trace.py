"""What a trace writes and keeps, on a virtual clock: nothing happens but what a test does."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import poolkit
import support_functions as work
from poolkit._wire.remote import pack_error
from poolkit.testing import FakePool
from support_traces import load, load_torn, runs_of


def test_in_a_fake_pool_times_are_virtual(tmp_path: Path) -> None:
    with FakePool(mode="manual") as pool:
        pool.when(work.square).takes(3)
        tasks = [pool.submit(work.square, number) for number in range(2)]
        with pool.trace(tmp_path / "run.json") as trace:
            pool.run_all()
            assert [task.result() for task in tasks] == [0, 1]
        assert not trace._thread.is_alive()
        runs = runs_of(load(tmp_path / "run.json"))
        assert [(run["ts"], run["dur"], run["args"]["wait"]) for run in runs] == [(0.0, 3e6, 0.0), (3e6, 3e6, 3.0)]
        assert "2 runs in 6 s" in trace._repr_svg_()


def test_names_are_escaped_and_few_are_remembered(tmp_path: Path) -> None:
    names = ['"}<script>&\\', "\x00\ud800", *(f"job {number}" for number in range(3_000))]
    with FakePool(name='"&<') as pool, pool.trace(tmp_path / "run.json") as trace:
        for name in names:
            pool.options(name=name).submit(work.square, 1).result()
        trace.stop()
        assert len(trace._events._strings) <= 1024
    assert [run["name"] for run in runs_of(load(tmp_path / "run.json"))] == names


def test_times_and_errors_of_a_worker_that_lies_harm_nothing(tmp_path: Path) -> None:
    with FakePool() as pool, pool.trace(tmp_path / "run.json") as trace:
        times = [(math.nan, 1.0), (1.0, math.inf), (-math.inf, math.inf), (5.0, 1.0)]
        for number, (began, ended) in enumerate(times):
            trace.take((1, number, "f", 1, 2.0, began, ended, None))
        trace.take((1, 5, "f", 1, 2.0, 3.0, 4.0, b"no pickle"))
        trace.take((1, 6, "f", 1, 2.0, 3.0, 4.0, pack_error(poolkit.QueueFull("x"))))
    events = load(tmp_path / "run.json")
    runs = [event for event in events if event["ph"] == "X"]
    assert [(run["ts"] / 1e6, run["dur"] / 1e6) for run in runs[:4]] == [(2, 0), (1, 0), (2, 0), (5, 0)]
    assert [run["args"]["error"] for run in runs[4:]] == [
        "an exception that cannot be read",
        "poolkit.errors.QueueFull",
    ]


def test_a_run_that_is_told_twice_after_an_interruption_is_there_once() -> None:
    with FakePool() as pool, pool.trace() as trace:
        for record in [(1, 7, "f", 1, 0.0, 1.0, 2.0, None), (2, 8, "f", 1, 0.0, 1.0, 2.0, None)] * 2:
            trace.take(record)
        trace.take((1, 7, "f", 2, 0.0, 3.0, 4.0, None))
        trace.stop()
        assert [(run[1], run[3]) for run in trace._runs] == [(7, 1), (8, 1), (7, 2)]


def test_a_burst_is_written_in_parts_and_not_lost(tmp_path: Path) -> None:
    with FakePool() as pool, pool.trace(tmp_path / "run.json", most=10) as trace:
        for number in range(6_000):
            trace.take((1, number, "f", 1, 0.0, float(number), number + 0.5, None))
        with trace._lock:
            trace._sort(2_000)
        assert 1_990 < len(runs_of(load_torn(tmp_path / "run.json"))) <= 2_000
        trace.stop()
        assert len(runs_of(load(tmp_path / "run.json"))) == 6_000
        assert len(trace._runs) == 10


def test_counts_that_follow_each_other_closely_are_thinned_but_what_lasts_stays() -> None:
    with FakePool() as pool, pool.trace() as trace:
        for number in [*range(400), *range(3_000_000, 3_000_400)]:
            trace.take((1.0 + number / 1e6, number, 0))
        pool.advance(10)
        trace.stop()
        assert [load[1] for load in trace._loads if load[1]] == [399, 3_000_000, 3_000_399]


def test_saving_while_it_goes_on_shows_what_was_so_far(tmp_path: Path) -> None:
    with FakePool() as pool:
        trace = pool.trace()
        pool.submit(work.square, 1).result()
        trace.save(tmp_path / "first.json")
        pool.submit(work.square, 2).result()
        trace.save(str(tmp_path / "second.json"))
        trace.save(tmp_path / "second.svg")
        assert len(runs_of(load(tmp_path / "first.json"))) == 1
        assert len(runs_of(load(tmp_path / "second.json"))) == 2
        assert "running" in repr(trace)


def test_a_trace_whose_thread_cannot_be_started_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with poolkit.Pool(kind="thread") as pool:
        monkeypatch.setattr("poolkit.trace.TraceThread.start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            pool.trace(tmp_path / "run.json")
        assert pool._supervisor.traces.all == ()
        assert runs_of(load(tmp_path / "run.json")) == []
