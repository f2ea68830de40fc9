"""Nodes that are cut off while they live on: short forms of what `python -m tests.engine.partition` shows.

The program has a network of its own, which this process cannot enter.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

import support
import support_dask
from engine import network, partition

LACKS = network.what_lacks()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKS), reason=f"no network namespaces can be made here: {LACKS}"),
]
SECONDS = 110.0  # that one may take: a cluster is started, and leases have to end
TIMES = [0, *(pytest.param(time, marks=pytest.mark.long) for time in range(1, 20))]


def show(case: str) -> None:
    command = [sys.executable, "-m", "engine.partition", "--only", case]
    with support.watchdog(SECONDS):
        ran = subprocess.run(command, env=support_dask.environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"  ok  {case} 1: " in ran.stdout


@pytest.mark.parametrize("_time", TIMES)
@pytest.mark.parametrize("case", [case for case in partition.LOSSES if case != "timeout"])
def test_of_a_node_that_is_cut_off_runs_end_before_they_are_repeated(case: str, _time: int) -> None:
    show(case)


@pytest.mark.long
@pytest.mark.parametrize("_time", range(20))
def test_also_where_the_connection_times_out_before_the_lease_is_over(_time: int) -> None:
    show("timeout")


@pytest.mark.parametrize("_time", TIMES)
@pytest.mark.parametrize("case", partition.HEALS)
def test_what_is_over_within_the_lease_costs_nothing(case: str, _time: int) -> None:
    show(case)
