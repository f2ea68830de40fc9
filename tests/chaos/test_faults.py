"""A fault at every step: the one task gets its error, its neighbours get their results, the pool serves on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import poolkit
import support
import support_functions as work
import support_objects as objects
from chaos import faults
from support_gates import Gate

pytestmark = pytest.mark.slow

ENDS = {"kill": "SIGKILL", "exit": None, "segfault": "SIGSEGV"}


def submit_trap(
    pool: poolkit.Pool | poolkit.PoolView, step: str, fault: str, arrived: Gate | None = None
) -> poolkit.Task[object]:
    trap = faults.Trap(step, fault, os.getpid(), arrived)
    return pool.submit(faults.make_trap if step == "pickle" else faults.run_fault, trap)


@pytest.mark.parametrize("step", ["unpickle", "run", "pickle"])
@pytest.mark.parametrize("fault", [*ENDS, "raise"])
def test_a_task_that_ends_its_worker_or_raises(step: str, fault: str, new_gate: Callable[[], Gate]) -> None:
    with faults.new_pool(2) as pool:
        tasks = [pool.submit(work.identity, number) for number in range(10)]
        trapped = submit_trap(pool, step, fault)
        tasks += [pool.submit(work.identity, number) for number in range(10, 20)]
        error = trapped.exception()
        if fault == "raise":
            assert isinstance(error, poolkit.SerializationError if step == "pickle" else ZeroDivisionError)
        else:
            assert isinstance(error, poolkit.WorkerCrashed)
            assert error.signal == ENDS[fault]
            assert error.exitcode == (0 if fault == "exit" else None)
        assert [task.result() for task in tasks] == list(range(20))
        faults.check_serves(pool, new_gate)


@pytest.mark.parametrize("step", ["unpickle", "run", "pickle"])
@pytest.mark.parametrize("fault", ["hang", "stop"])
@pytest.mark.parametrize("end", ["timeout", "cancel", "deadline", "shutdown"])
@pytest.mark.every_nth(3)
def test_a_task_that_never_ends(step: str, fault: str, end: str, new_gate: Callable[[], Gate]) -> None:
    """The limit, a cancel and a shutdown reach it wherever it hangs."""
    arrived = new_gate()
    pool = faults.new_pool(2)
    with faults.closed_by_force(pool):
        limits = {end: 0.1} if end in {"timeout", "deadline"} else {}
        pool.warm_up()  # a deadline counts from the submit
        trapped = submit_trap(pool.options(**limits), step, fault, arrived)
        tasks = [pool.submit(work.identity, number) for number in range(20)]
        assert [task.result() for task in tasks] == list(range(20))
        if not limits:
            arrived.wait()
        if end == "cancel":
            assert trapped.cancel()
        elif end == "shutdown":
            pool.shutdown(kill=True)
            assert trapped.cancelled()
            return
        expected = {"timeout": poolkit.TaskTimeout, "deadline": poolkit.DeadlineExceeded}
        with pytest.raises(expected.get(end, poolkit.TaskCancelled)):
            trapped.result()
        faults.check_serves(pool, new_gate)


@pytest.mark.parametrize("fault", ["kill", "exit"])
def test_a_thread_left_behind_that_ends_the_idle_worker(fault: str, new_gate: Callable[[], Gate]) -> None:
    """Nobody's task: the worker is replaced, and what comes next runs."""
    release = new_gate()
    with faults.new_pool(1) as pool:
        for number in range(faults.scaled(5)):
            pid = pool.submit(faults.leave_thread_behind, release, fault).result()
            release.signal()
            if number % 2:
                support.wait_for_exit(pid)
            assert pool.submit(work.identity, number).exception() is None or not number % 2
            support.wait_for_exit(pid)  # or it might be the next round's task that it takes along
        faults.check_serves(pool, new_gate)


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize("fault", ["kill", "exit", "raise"])
@pytest.mark.every_nth(3)
def test_an_initializer_that_fails(method: str, fault: str) -> None:
    """The tasks are told, after a few tries, and the pool does not spin."""
    trap = faults.Trap("initialize", fault, os.getpid())
    with faults.new_pool(2, initializer=faults.initialize_with, initargs=(trap,), start_method=method) as pool:
        tasks = [pool.submit(work.identity, number) for number in range(5)]
        for task in tasks:
            error = task.exception()
            if fault == "raise":
                assert isinstance(error, poolkit.InitializerFailed)
                assert isinstance(error.__cause__, ZeroDivisionError)
            else:
                assert isinstance(error, poolkit.WorkerCrashed)
                assert "before they were ready" in str(error)


@pytest.mark.parametrize("fault", ["hang", "stop"])
def test_an_initializer_that_never_ends(fault: str, new_gate: Callable[[], Gate]) -> None:
    arrived = new_gate()
    trap = faults.Trap("initialize", fault, os.getpid(), arrived)
    pool = faults.new_pool(1, initializer=faults.initialize_with, initargs=(trap,))
    with faults.closed_by_force(pool):
        task, cancelled = pool.submit(work.identity, 1), pool.submit(work.identity, 2)
        arrived.wait()
        assert cancelled.cancel()
        with pytest.raises(TimeoutError):
            pool.warm_up(timeout=0.01)
        pool.shutdown(kill=True)
        assert task.cancelled()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize(
    ("statement", "expected"),
    [("raise LookupError('no')", poolkit.InitializerFailed), ("import os; os._exit(1)", poolkit.WorkerCrashed)],
)
@pytest.mark.every_nth(2)
def test_a_module_to_preload_that_fails(
    statement: str, expected: type[Exception], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_preload.py").write_text(statement, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with faults.new_pool(2, preload=["bad_preload"], start_method=method) as pool:
        for task in [pool.submit(work.identity, number) for number in range(5)]:
            assert isinstance(task.exception(), expected)


def test_a_module_to_preload_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_gate: Callable[[], Gate]
) -> None:
    """The template process does not even hear that it is to end; it is killed in the end."""
    arrived = new_gate()
    statements = f"import support_gates\nsupport_gates.Gate({arrived.path!r}).signal()\nwhile True: pass"
    (tmp_path / "endless_preload.py").write_text(statements, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("poolkit._spawn.templates.END_GRACE", 0.2)
    monkeypatch.setattr("poolkit._core.policy.STOP_GRACE", 0.2)
    pool = faults.new_pool(2, preload=["endless_preload"])
    with faults.closed_by_force(pool):
        task = pool.submit(work.identity, 1)
        arrived.wait()
        pool.shutdown(kill=True)
        assert task.cancelled()


def test_a_result_that_cannot_be_read_here(new_gate: Callable[[], Gate]) -> None:
    with faults.new_pool(1) as pool:
        task = pool.submit(objects.make_bad_here, os.getpid())
        with pytest.raises(LookupError, match="unpickled here"):
            task.result()
        assert pool.submit(work.pid).result() == pool.submit(work.pid).result()
        faults.check_serves(pool, new_gate)


def test_the_directory_and_the_program_that_started_it_may_be_gone(
    tmp_path: Path, new_gate: Callable[[], Gate]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = Path.cwd()
    try:
        os.chdir(gone)
        gone.rmdir()
        with faults.new_pool(1) as pool:
            faults.check_serves(pool, new_gate)
    finally:
        os.chdir(before)
