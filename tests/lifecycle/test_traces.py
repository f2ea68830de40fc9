"""The timeline and the ends of its owner: killed, forked, or gone without a word."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lifecycle.scripts import run, running
from support import wait_until
from support_traces import load, load_torn, outcomes, runs_of

pytestmark = pytest.mark.slow

BUSY = """
import sys
import poolkit

def noop():
    pass

pool = poolkit.Pool(2)
trace = pool.trace(sys.argv[1])
"""


def test_an_owner_that_is_killed_leaves_a_file_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with running(
        BUSY + "while True:\n    for task in [pool.submit(noop) for _ in range(100)]: task.result()", str(path)
    ) as owner:
        wait_until(lambda: path.exists() and path.stat().st_size > 200_000, "some runs to be written")
        assert owner.kill(signal.SIGKILL) == -signal.SIGKILL
        owner.wait_until_gone()
    runs = runs_of(load_torn(path))
    assert len(runs) > 1_000
    assert {run["name"] for run in runs} == {"noop"}


@pytest.mark.parametrize("end", ["", "pool.shutdown()", "trace.stop()", "del pool"])
def test_an_owner_that_ends_leaves_a_complete_file(end: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    source = BUSY + "import warnings; warnings.simplefilter('ignore')\nfor _ in range(10): pool.submit(noop).result()\n"
    run(source + end, str(path))
    assert outcomes(load(path)) == {("noop", "succeeded"): 10}


def test_a_pool_that_is_dropped_unused_ends_its_trace(tmp_path: Path) -> None:
    source = (
        BUSY
        + """
import warnings; warnings.simplefilter('ignore')
thread = trace._thread
del pool
thread.join()
print(thread.is_alive())
"""
    )
    assert run(source, str(tmp_path / "run.json")) == ["False"]
    assert runs_of(load(tmp_path / "run.json")) == []


def test_a_forked_child_writes_nothing_into_the_file_of_its_parent(tmp_path: Path) -> None:
    source = (
        BUSY
        + """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
with trace:
    pool.submit(noop).result()
    if os.fork() == 0:
        try:
            trace.save(sys.argv[2])
        except poolkit.PoolkitError as exc:
            print("was forked" in str(exc) or exc, flush=True)
        trace.stop()
        with poolkit.Pool(1) as own, own.trace(sys.argv[2]):
            own.options(name="child").submit(noop).result()
        os._exit(0)
    assert os.wait()[1] == 0
    pool.options(name="parent").submit(noop).result()
pool.shutdown()
"""
    )
    assert run(source, str(tmp_path / "run.json"), str(tmp_path / "child.json")) == ["True"]
    assert outcomes(load(tmp_path / "run.json")) == {("noop", "succeeded"): 1, ("parent", "succeeded"): 1}
    assert outcomes(load(tmp_path / "child.json")) == {("child", "succeeded"): 1}
