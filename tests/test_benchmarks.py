"""The benchmarks run and print what the documentation says; how fast anything is, no test asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import account, arrays, calls
from benchmarks.measure import Measure, Row, run_rounds
from benchmarks.table import lines_of
from support import WATCHDOG

RUN = Path(__file__).resolve().parent / "benchmarks/run.py"
COMPARE = Path(__file__).resolve().parent / "pains/compare.py"


@pytest.mark.long
@pytest.mark.slow
def test_a_tiny_run_prints_a_table_and_writes_its_samples(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(RUN),
            "latency",
            "--repeat=1",
            "--scale=0.01",
            f"--json={tmp_path / 'samples.json'}",
            "--only",
            "poolkit",
            "ppe-fork",
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["##", "latency:"] in [line[:2] for line in lines]
    told = {line[0].rstrip(","): line for line in lines if line}
    assert "failed" not in done.stdout
    assert {"faster", "slower", "even"} & set(told["ProcessPoolExecutor"])
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert set(samples["rounds"]["latency"][0]) == {"poolkit", "ppe-fork", "machine"}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "measure",
    [*arrays.MEASURES, *account.MEASURES, *(measure for measure in calls.MEASURES if measure.name == "arguments")],
    ids=lambda measure: measure.name,
)
def test_a_measure_runs_with_tiny_sizes(measure: Measure) -> None:
    samples = run_rounds(measure, ["poolkit"], repeat=1, scale=0.01)
    assert samples.failures == {}
    assert samples.rounds[0]["poolkit"].keys() <= {row.key for row in measure.rows}  # a row may have no figure
    assert samples.rounds[0].get("machine", {}).keys() == set(measure.limits)


@pytest.mark.slow
def test_a_contender_that_fails_is_told_and_does_not_run_again() -> None:
    unknown = Measure("unknown", "not in the catalogue", ("poolkit",), (Row("key", "a call", "us"),), lambda *_: {})
    samples = run_rounds(unknown, unknown.contenders, repeat=2, scale=1)
    assert samples.failures == {"poolkit": "KeyError: 'unknown'"}
    assert samples.rounds == [{}, {}]
    assert any(
        line.split() == ["poolkit", "failed", "KeyError:", "'unknown'"]
        for line in lines_of(unknown, ["poolkit"], samples)
    )


@pytest.mark.long
@pytest.mark.slow
def test_the_comparison_of_failures_shows_what_each_pool_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(COMPARE), "nested"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  "))
    assert shown["poolkit"] == "ok"
    assert {"concurrent.futures", "multiprocessing"} <= shown.keys()
