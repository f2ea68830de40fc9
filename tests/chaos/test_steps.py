"""Every fault at every step of a worker's way, with other tasks queued and running all the time.

One task has its error, if it had begun; all others have their own results, and none runs twice; the pool serves at full
size. By default one cell in three is run, the same ones each time; the others are long tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support
from chaos import faults
from chaos import traps as trapping
from chaos.faults import Ledger, Trap
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

ENDS = {"kill": "SIGKILL", "segfault": "SIGSEGV", "abort": "SIGABRT", "exit": None}
LIFE = ["boot", "initialize", "ready", "idle", "leave"]  # steps of a worker's own life
BEFORE = ["claim", "send", "sent"]  # around a task, where no code of the user is
WITHIN = ["unpickle", "run", "pickle"]
HANGS = ["spin", "hang", "stop"]


def new_pool(size: int, traps: Path, **options: Any) -> poolkit.Pool:
    env = {"POOLKIT_TEST_TRAPS": os.fspath(traps)}
    return faults.new_pool(
        size, preload=["chaos.faults", "chaos.traps"], env=env, initializer=trapping.initialize, **options
    )


def submit_victim(
    pool: poolkit.Pool | poolkit.PoolView, traps: Path, step: str, fault: str, arrived: Gate | None = None
) -> poolkit.Task[Any]:
    """A task that has the fault at that step of its way."""
    if step in BEFORE:
        trapping.set_trap(traps, f"{step}-victim", fault)
    trap = Trap(step, fault, os.getpid(), arrived)
    return pool.options(name="victim").submit(faults.make_trap if step == "pickle" else faults.run_fault, trap)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("fault", [*ENDS, "raise"])
@pytest.mark.parametrize("step", [*WITHIN, *BEFORE])
@pytest.mark.every_nth(9)
def test_a_worker_ends_on_the_way_of_a_task(
    step: str, fault: str, method: str, traps: Path, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    def check(task: poolkit.Task[Any]) -> bool:
        error = task.exception()
        if step == "sent":
            return error is None
        if fault == "raise" and step in WITHIN:
            return isinstance(error, poolkit.SerializationError if step == "pickle" else ZeroDivisionError)
        assert isinstance(error, poolkit.WorkerCrashed), error
        code = {"exit": 0, "raise": 1}.get(fault)
        return (error.signal, error.exitcode) == (ENDS.get(fault), code)

    ledger = Ledger()
    with new_pool(3, traps, start_method=method) as pool:
        ledger.submit(pool, 100, journal)
        ledger.add(submit_victim(pool, traps, step, fault), check)
        ledger.submit(pool, 200, journal)
        assert ledger.settle() == []
        faults.check_serves(pool, new_gate)
    assert trapping.unsprung(traps) == []
    assert len(faults.check_ran_once(journal)) == 300


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("fault", [*ENDS])
@pytest.mark.parametrize("step", LIFE)
@pytest.mark.every_nth(9)
def test_workers_end_where_they_have_no_task(
    step: str, fault: str, method: str, traps: Path, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """Two of them, so that one of the first and one of those that replace them may be among them."""
    if (step, method) == ("boot", "spawn"):
        pytest.skip("what is preloaded comes too late")
    trapping.set_trap(traps, step, fault, count=2)
    ledger = Ledger()
    with new_pool(3, traps, start_method=method, max_tasks_per_child=50 if step == "leave" else None) as pool:
        ledger.submit(pool, 300, journal)
        assert ledger.settle() == []
        faults.check_serves(pool, new_gate)
    assert trapping.unsprung(traps) == []
    assert len(faults.check_ran_once(journal)) == 300


@pytest.mark.parametrize("end", ["timeout", "cancel", "deadline", "shutdown"])
@pytest.mark.parametrize("fault", HANGS)
@pytest.mark.parametrize("step", [*WITHIN, *BEFORE])
@pytest.mark.every_nth(16)
def test_a_task_never_ends(
    step: str, fault: str, end: str, traps: Path, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    """The limit, a cancel and a shutdown reach it wherever it hangs."""
    if (step, end) == ("claim", "timeout"):
        pytest.skip("what has not begun has no time limit")
    expected = {"timeout": poolkit.TaskTimeout, "deadline": poolkit.DeadlineExceeded}
    victims, others = Ledger(), Ledger()

    def check(task: poolkit.Task[Any]) -> bool:
        if step == "sent" and not task.cancelled() and task.exception() is None:
            return True  # else the end came before anybody had read the outcome
        return task.cancelled() if end not in expected else isinstance(task.exception(), expected[end])

    pool = new_pool(3, traps)
    with faults.closed_by_force(pool):
        pool.warm_up()  # a deadline counts from the submit
        others.submit(pool, 100, journal)
        limits = {end: 0.2} if end in expected else {}
        victim = submit_victim(pool.options(**limits), traps, step, fault, arrived := new_gate())
        victims.add(victim, check)
        others.submit(pool, 100, journal)
        if not limits:  # else it may be over before it is there
            if step in WITHIN:
                arrived.wait()
            else:
                support.wait_until(lambda: not trapping.unsprung(traps), "the trap to be sprung")
        if end == "cancel":
            assert victim.cancel() or step == "sent"
        assert others.settle() == []
        if end == "shutdown":
            pool.shutdown(kill=True)
        assert victims.settle() == []
        if end != "shutdown" and step != "sent":  # there, nobody knows that this worker hangs
            faults.check_serves(pool, new_gate)
    assert len(faults.check_ran_once(journal)) == 200


@pytest.mark.parametrize("fault", HANGS)
def test_an_idle_worker_does_nothing_any_more(fault: str, traps: Path, journal: Journal) -> None:
    """Nobody can know, but what it was sent and does not begin runs elsewhere."""
    pool = new_pool(2, traps)
    with faults.closed_by_force(pool):
        pool.warm_up()
        trapping.set_trap(traps, "idle", fault)
        ledger = Ledger()
        for _ in range(5):
            ledger.submit(pool, 1, journal)
            assert ledger.settle() == []
        ledger.submit(pool, 100, journal)
        assert ledger.settle() == []
    assert len(faults.check_ran_once(journal)) == 105
    assert trapping.unsprung(traps) == []


@pytest.mark.parametrize("fault", HANGS)
def test_a_worker_that_is_to_leave_does_not(
    fault: str, traps: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed after a while, and its place is filled long before."""
    monkeypatch.setattr("poolkit._core.policy.STOP_GRACE", 0.3)
    trapping.set_trap(traps, "leave", fault, count=3)
    ledger = Ledger()
    with new_pool(2, traps, max_tasks_per_child=20) as pool:
        ledger.submit(pool, 200, journal)
        assert ledger.settle() == []
    assert len(faults.check_ran_once(journal)) == 200
    assert trapping.unsprung(traps) == []


@pytest.mark.parametrize("step", [*LIFE, *WITHIN, *BEFORE])
def test_the_template_process_is_killed(step: str, traps: Path, journal: Journal, new_gate: Callable[[], Gate]) -> None:
    """All workers end with it: what they ran is told so, and the rest runs on those of a new one."""
    ledger = Ledger()
    if step in LIFE:
        trapping.set_trap(traps, step, "kill-template")
    with new_pool(3, traps, max_tasks_per_child=50 if step == "leave" else None) as pool:
        ledger.submit(pool, 100, journal)
        if step not in LIFE:
            ledger.add(
                submit_victim(pool, traps, step, "kill-template"),
                lambda victim: (victim.exception() is None) == (step == "sent"),
            )
        ledger.submit(pool, 200, journal)
        crashes = ledger.settle()
        assert len(crashes) <= 3  # the tasks of its other workers
        assert {crash.signal for crash in crashes} <= {"SIGKILL"}
        faults.check_serves(pool, new_gate)
    assert trapping.unsprung(traps) == []
    assert len(faults.check_ran_once(journal)) >= 300 - len(crashes)
