"""A template process that hangs cannot carry out kills: it is given up, and its workers end with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

import poolkit
import support_functions as work
from chaos import faults
from support import wait_for_exit
from support_gates import Gate

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolkit._spawn.templates.ANSWER_GRACE", 0.2)


def test_a_time_limit_stops_the_task_all_the_same(new_gate: Callable[[], Gate]) -> None:
    arrived = new_gate()
    with faults.new_pool(1) as pool:
        pool.submit(work.none_of_it).result()
        template, (worker,) = faults.template_pid(pool), faults.worker_pids(pool)
        os.kill(template, signal.SIGSTOP)
        with pytest.raises(poolkit.TaskTimeout):
            pool.options(timeout=0.1).submit(work.spin, arrived).result()
        wait_for_exit(worker, template)
        faults.check_serves(pool, new_gate)
        assert faults.template_pid(pool) != template


def test_a_worker_that_dies_meanwhile_is_noticed(new_gate: Callable[[], Gate]) -> None:
    """Nobody reports its death but the end of its link."""
    with faults.new_pool(1) as pool:
        pool.submit(work.none_of_it).result()
        os.kill(faults.template_pid(pool), signal.SIGSTOP)
        task = pool.submit(work.die)
        with pytest.raises(poolkit.WorkerCrashed, match=r"did not answer for .* s and was killed"):
            task.result()
        faults.check_serves(pool, new_gate)


def test_a_kill_by_shutdown_is_prompt(new_gate: Callable[[], Gate]) -> None:
    arrived = new_gate()
    pool = faults.new_pool(1)
    with faults.closed_by_force(pool):
        task = pool.submit(work.spin, arrived)
        arrived.wait()
        (worker,) = faults.worker_pids(pool)
        template = faults.template_pid(pool)
        os.kill(template, signal.SIGSTOP)
        pool.shutdown(kill=True)
        assert task.cancelled()
        wait_for_exit(worker, template)
