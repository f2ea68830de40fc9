"""All workers at once, or the owner, end at some step; and workers end with large buffers in flight."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support
import support_arrays as arrays
from chaos import faults
from chaos import traps as trapping
from chaos.faults import Ledger, Trap
from chaos.test_steps import BEFORE, ENDS, LIFE, WITHIN, new_pool, submit_victim
from lifecycle.scripts import running
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

# ===== all workers =====


@pytest.mark.parametrize("fault", ENDS)
def test_all_workers_end_at_the_same_moment_in_their_tasks(
    fault: str, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """Several times in a row: each running task crashes, nothing else does."""
    arrived, release = new_gate(), new_gate()
    ledger = Ledger()
    with faults.new_pool(4) as pool:
        for _ in range(3):
            held = [pool.submit(faults.arrive_and_do, arrived, release, fault) for _ in range(4)]
            arrived.wait(4)
            ledger.submit(pool, 100, journal)
            release.signal(4)
            for task in held:
                error = task.exception()
                assert isinstance(error, poolkit.WorkerCrashed)
                assert error.signal == ENDS[fault]
        assert ledger.settle() == []
        faults.check_serves(pool, new_gate)
        assert pool.stats().crashed == 12
    assert len(faults.check_ran_once(journal)) == 300


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_all_workers_are_killed_from_outside_under_load(
    number: int, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    ledger = Ledger()
    with faults.new_pool(4) as pool:
        pool.warm_up()
        ledger.submit(pool, 100, journal)
        for pid in faults.worker_pids(pool):
            os.kill(pid, number)
        ledger.submit(pool, 300, journal)
        crashes = ledger.settle()
        assert len(crashes) <= 4
        assert {crash.signal for crash in crashes} <= {signal.Signals(number).name}
        faults.check_serves(pool, new_gate)
    assert 400 - len(crashes) <= len(faults.check_ran_once(journal)) <= 400


@pytest.mark.parametrize("step", ["initialize", "ready", "idle", "leave"])
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.every_nth(2)
def test_all_workers_end_at_the_same_step_of_their_lives(
    step: str, method: str, traps: Path, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """As many as there are workers, which counts as one start that failed at most."""
    trapping.set_trap(traps, step, "kill", count=3)
    ledger = Ledger()
    with new_pool(3, traps, start_method=method, max_tasks_per_child=30 if step == "leave" else None) as pool:
        pool.warm_up()  # all are started at the same moment
        ledger.submit(pool, 300, journal)
        assert ledger.settle() == []
        faults.check_serves(pool, new_gate)
    assert len(faults.check_ran_once(journal)) == 300


# ===== recycling =====


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("step", [*LIFE, *WITHIN, *BEFORE])
@pytest.mark.every_nth(40)
def test_workers_end_while_all_are_replaced_all_the_time(
    step: str, most: int, traps: Path, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """A replacement that boots, one that takes over, one that leaves: each task runs once all the same."""
    ledger = Ledger()
    with new_pool(2, traps, max_tasks_per_child=most) as pool:
        ledger.submit(pool, 10, journal)
        if step in LIFE:
            trapping.set_trap(traps, step, "kill", count=2)
        else:
            victim = submit_victim(pool, traps, step, "kill")
            ledger.add(victim, lambda task: (task.exception() is None) == (step == "sent"))
        ledger.submit(pool, 20, journal)
        assert ledger.settle() == []
        faults.check_serves(pool, new_gate)
    assert len(faults.check_ran_once(journal)) == 30


# ===== the owner =====

OWNER = """
import os, sys
sys.path.insert(0, {tests!r})
os.environ["POOLKIT_TEST_OWNER"] = str(os.getpid())
import numpy
import poolkit, support_functions, support_arrays
from chaos import faults, traps
from pathlib import Path
from typing import Any

step, directory = sys.argv[1:]
traps.set_trap(Path(directory), step if step in {life!r} else step + "-victim", "kill-owner")
pool = poolkit.Pool(
    3, preload=["chaos.faults", "chaos.traps"], env={{"POOLKIT_TEST_TRAPS": directory}},
    initializer=traps.initialize, max_tasks_per_child=20 if step == "leave" else None,
)
kept = pool.broadcast(numpy.ones(1_000_000)), poolkit.SharedArray((1_000_000,), "f8")
tasks = [pool.submit(support_arrays.double, support_arrays.numbered(number, 300_000)) for number in range(50)]
trap = faults.Trap(step, "kill-owner", os.getpid())
tasks.append(pool.options(name="victim").submit(faults.make_trap if step == "pickle" else faults.run_fault, trap))
for task in tasks + [pool.submit(support_arrays.checksum, kept[0]) for _ in range(50)]:
    task.result()
pool.shutdown()
"""


@pytest.mark.parametrize("step", [*LIFE, *WITHIN, *BEFORE])
@pytest.mark.every_nth(9)
def test_the_owner_is_killed_at_a_step_of_a_worker(step: str, traps: Path) -> None:
    """Nobody is left, and nothing in shared memory."""
    before = names()
    source = OWNER.format(tests=os.fspath(Path(__file__).parents[1]), life=LIFE)
    with running(source, step, os.fspath(traps)) as owner:
        assert owner.process.wait(support.WATCHDOG) == -signal.SIGKILL
        owner.wait_until_gone()
    support.wait_until(lambda: names() <= before, "all names to go, also of tests beside this one")


def names() -> set[str]:
    """What of ours has a name in shared memory."""
    return {path.name for path in Path("/dev/shm").glob("*poolkit*")}  # noqa: S108 -- looked at


# ===== large buffers in flight =====

SIZES = [300_000, 1_000_000, 4_000_000]  # numbers of four bytes


def all_is_back(pool: poolkit.Pool) -> bool:
    gc.collect()
    return pool.stats().arena_blocks_leased == 0


def submit_arrays(pool: poolkit.Pool, ledger: Ledger, sent: Any, shared: Any) -> None:
    for number in range(6):
        task = pool.submit(arrays.double, arrays.numbered(number, SIZES[number % 3]))
        ledger.add(task, lambda task, number=number: bool((task.result() == 2 * number).all()))
        ledger.add(pool.submit(arrays.checksum, sent), lambda task: task.result() == 2_500_000)
        ledger.add(pool.submit(faults.shared_sum, shared), lambda task: task.result() == 3_500_000)


@pytest.mark.parametrize("threshold", [64 * 1024, None])
@pytest.mark.parametrize("fault", [*ENDS, "raise"])
@pytest.mark.parametrize("step", [*WITHIN, *BEFORE])
@pytest.mark.every_nth(20)
def test_a_worker_ends_with_large_buffers_in_flight(
    step: str, fault: str, threshold: int | None, traps: Path, new_gate: Callable[[], Gate]
) -> None:
    """Arrays both ways, a broadcast, a shared array: all others arrive whole, and every block comes back."""
    with new_pool(3, traps, shm_threshold=threshold) as pool:
        ledger = Ledger()
        shared = poolkit.SharedArray((500_000,), "u4")
        shared.array[:] = 7
        sent = pool.broadcast(arrays.numbered(5, 500_000))

        submit_arrays(pool, ledger, sent, shared)
        if step in BEFORE:
            trapping.set_trap(traps, f"{step}-victim", fault)
        trap = Trap(step, fault, os.getpid())
        victim = pool.options(name="victim").submit(faults.carry, trap, arrays.numbered(9, SIZES[2]), sent, shared)
        ledger.add(victim, lambda task: (task.exception() is None) == (step == "sent"))
        submit_arrays(pool, ledger, sent, shared)
        assert ledger.settle() == []
        del victim, ledger, trap  # and with them the results
        shared.close()
        sent.close()
        support.wait_until(lambda: all_is_back(pool), "every block to come back")
        faults.check_serves(pool, new_gate)
