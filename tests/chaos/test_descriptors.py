"""A task closes a descriptor on which its worker depends, or puts another in its place: one task suffers at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import poolkit
import support_arrays as arrays
import support_functions as work
from chaos import faults, traps
from chaos.faults import Ledger
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

LINK = ["calls", "outcomes", "tokens", "evidence", "channel"]


def new_pool(size: int) -> poolkit.Pool:
    return faults.new_pool(size, preload=["chaos.faults", "chaos.traps", "numpy"])


@pytest.mark.parametrize("how", ["close", "dup2"])
@pytest.mark.parametrize("which", [*LINK, "all"])
def test_one_worker_without_a_descriptor(which: str, how: str, journal: Journal, new_gate: Callable[[], Gate]) -> None:
    """The task that did it has its value or a crash; what was sent behind it runs once, somewhere."""

    def check(task: poolkit.Task[Any]) -> bool:
        error = task.exception()
        if which in {"outcomes", "all"}:
            return isinstance(error, poolkit.WorkerCrashed)
        return error is None and task.result() == "done"

    ledger = Ledger()
    with new_pool(2) as pool:
        ledger.submit(pool, 100, journal)
        ledger.add(pool.submit(traps.spoil, which, how), check)
        ledger.submit(pool, 200, journal)
        assert ledger.settle() == []
        faults.check_serves(pool, new_gate)
    assert len(faults.check_ran_once(journal)) == 300


@pytest.mark.parametrize("how", ["close", "dup2"])
@pytest.mark.parametrize("which", LINK)
def test_what_comes_next_has_a_large_argument(which: str, how: str, new_gate: Callable[[], Gate]) -> None:
    """And no memory of that size was handed over yet, so the descriptor channel is needed."""
    with new_pool(1) as pool:
        spoiled = pool.submit(traps.spoil, which, how)
        array = arrays.numbered(3, 1_000_000)
        tasks = [pool.submit(arrays.double, array) for _ in range(4)]
        assert spoiled.exception() is None or which == "outcomes"
        failed = 0
        for task in tasks:
            error = task.exception()
            if error is None:
                assert (task.result() == 6).all()
            else:
                failed += 1
                assert which == "channel", error
        assert failed <= 1, "the worker goes on with what it cannot do"
        faults.check_serves(pool, new_gate)


@pytest.mark.parametrize("fault", ["timeout", "segfault"])
def test_without_the_pipe_for_evidence_there_is_no_stack_and_the_rest_as_usual(
    fault: str, new_gate: Callable[[], Gate]
) -> None:
    with new_pool(1) as pool:
        assert pool.submit(traps.spoil, "evidence", "close").result() == "done"
        if fault == "timeout":
            error = pool.options(timeout=0.1).submit(work.spin).exception()
            assert isinstance(error, poolkit.TaskTimeout)
        else:
            error = pool.submit(work.segfault).exception()
            assert isinstance(error, poolkit.WorkerCrashed)
            assert error.signal == "SIGSEGV"
        faults.check_serves(pool, new_gate)
