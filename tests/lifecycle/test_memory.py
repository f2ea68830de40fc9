"""Shared memory where there is little of it, or its owner is killed: nothing is left, nothing crashes."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support
import support_arrays
from lifecycle.scripts import in_tiny_shared_memory, run, running, text_of
from poolkit._memory import holds

pytestmark = pytest.mark.slow

PORTABLE = {"POOLKIT_PORTABLE": "1"}

ALL_OF_IT = """
    import logging, sys, warnings
    import numpy as np
    import poolkit

    def echo(value):
        return value

    def total(shared):
        return float(shared.array.sum())

    def checksum(array):
        return float(array.sum())

    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("poolkit").addHandler(handler)
    array = np.arange(500_000.0)
    with poolkit.Pool(2) as pool:
        for got in pool.map(echo, [array] * 20):
            assert np.array_equal(got, array) and got.flags.writeable
        assert pool.submit(echo, b"x" * 3_000_000).result() == b"x" * 3_000_000
        with poolkit.SharedArray.copy_of(array) as shared:
            assert pool.submit(total, shared).result() == array.sum()
        broadcast = pool.broadcast(array)
        assert all(pool.submit(checksum, broadcast).result() == array.sum() for _ in range(5))
        print(len(records), pool.stats().arena_bytes_sent > 0)
"""

OWNER = """
import os, signal, sys, time
import numpy as np
import poolkit

def echo(value):
    os.write(1, b"up\\n")
    return value

array = np.zeros(1_000_000)
pool = poolkit.Pool(2)
shared = poolkit.SharedArray(100_000)
broadcast = pool.broadcast(array)
held = [pool.submit(echo, array), pool.submit(echo, [shared, broadcast])]
held = [task.result() for task in held]
tasks = [pool.submit(echo, array) for _ in range(1000)]
signal.pause()
"""


def names() -> set[str]:
    shm = Path("/dev/shm")  # noqa: S108 -- looked at
    return {path.name for path in shm.iterdir() if path.name.startswith("poolkit")} if shm.is_dir() else set()


@pytest.mark.parametrize("env", [{}, PORTABLE], ids=["usual", "portable"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_in_shared_memory_by_an_owner_that_is_killed(number: int, env: dict[str, str]) -> None:
    before = names()
    with running(OWNER, env=env) as owner:
        owner.read_lines(2)
        assert owner.kill(number) == -number
        owner.wait_until_gone()
    support.wait_until(lambda: names() <= before, "all names to go, also of tests beside this one")


@pytest.mark.parametrize("env", [{}, PORTABLE], ids=["usual", "portable"])
def test_all_of_it_works(env: dict[str, str]) -> None:
    assert run(ALL_OF_IT, env=env) == ["0 True"]


@pytest.mark.parametrize("env", [{}, PORTABLE], ids=["usual", "portable"])
def test_all_of_it_works_where_shared_memory_is_tiny(env: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(text_of(ALL_OF_IT))
    done = in_tiny_shared_memory([sys.executable, os.fspath(script)], env)
    assert (done.returncode, done.stderr) == (0, "")
    warned, used = done.stdout.split()
    if env:
        assert int(warned) == 1  # once
    else:
        assert (warned, used) == ("0", "True")  # this memory has no limit of /dev/shm


def test_what_a_forked_template_saw_is_let_go_of_with_its_pool() -> None:
    """No other pool may come that would look whether that process is gone."""
    with poolkit.Pool(1) as pool:
        kept = pool.submit(support_arrays.numbered, 1).result()
        forked = poolkit.Pool(1, start_method="fork")
        assert forked.submit(support_arrays.checksum, kept).result() == len(kept)
    assert holds.pins
    forked.shutdown()
    assert not holds.pins


@pytest.mark.long
def test_all_arenas_together_hold_less_than_twice_of_what_was_alive() -> None:
    """Arrays of mixed sizes, both ways, a few in flight and a few results kept: owner and workers together."""
    numpy = pytest.importorskip("numpy")
    rng = random.Random(1)
    until, most_alive, most_held = time.monotonic() + 12.0, 0, 0
    in_flight: deque[tuple[poolkit.Task[Any], int]] = deque()
    results: deque[Any] = deque(maxlen=3)
    with poolkit.Pool(2) as pool:
        while time.monotonic() < until:
            size = rng.choice([1, 2, 3, 5, 8, 12, 16]) << 20
            in_flight.append((pool.submit(support_arrays.echo, numpy.zeros(size, numpy.uint8)), size))
            if len(in_flight) > 4:
                results.append(in_flight.popleft()[0].result())
            alive = sum(2 * size for _, size in in_flight) + sum(result.nbytes for result in results)
            most_alive, most_held = max(most_alive, alive), max(most_held, pool.stats().arena_bytes)
    assert 0 < most_held < 2 * most_alive
