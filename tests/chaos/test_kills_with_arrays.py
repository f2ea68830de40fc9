"""Workers are killed at random while arrays fly: values are right, and every lease returns."""

from __future__ import annotations

import gc
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

import poolkit
import support
import support_arrays as work
from chaos import faults
from support_gates import Gate

pytestmark = pytest.mark.slow


def all_is_back(pool: poolkit.Pool) -> bool:
    gc.collect()
    return pool.stats().arena_blocks_leased == 0


@pytest.mark.long
@pytest.mark.parametrize("retries", [0, 100])
def test_every_lease_returns(retries: int, new_gate: Callable[[], Gate]) -> None:
    rng = faults.new_rng()
    with faults.new_pool(3, retries=retries, preload=["numpy"]) as pool:
        crashes = 0
        with faults.Killer(pool, rng) as killer:
            flying: deque[tuple[int, poolkit.Task[Any]]] = deque()
            for number in range(faults.scaled(300)):
                flying.append((number, pool.submit(work.double, work.numbered(number, rng.choice([20_000, 60_000])))))
                if len(flying) > 12:
                    oldest, task = flying.popleft()
                    try:
                        value = task.result()
                    except poolkit.WorkerCrashed:
                        crashes += 1
                    else:
                        assert (value == oldest * 2).all()
                    del task
            for oldest, task in flying:
                if task.exception() is None:
                    assert (task.result() == oldest * 2).all()
                else:
                    crashes += 1
            flying.clear()
        assert crashes <= (0 if retries else killer.kills)
        value = task = None
        support.wait_until(lambda: all_is_back(pool), "every lease to return")
        faults.check_serves(pool, new_gate)


def test_every_lease_returns_when_the_template_process_is_killed() -> None:
    with poolkit.Pool(2, preload=["numpy"]) as pool:
        for _ in range(3):
            tasks = [pool.submit(work.double, work.numbered(number)) for number in range(50)]
            tasks[0].result()
            template = pool._supervisor.workforce._template
            if template is not None:
                os.kill(template.pid, signal.SIGKILL)
            for task in tasks:
                assert task.exception() is None or isinstance(task.exception(), poolkit.WorkerCrashed)
            assert int(pool.submit(work.double, work.numbered(2)).result()[0]) == 4
            del task, tasks
        support.wait_until(lambda: all_is_back(pool), "every lease to return")
