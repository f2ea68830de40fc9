"""Hangs, lost work, poisoned pools: rows 1 to 17 of the pains that users of worker pools complain of most.

One test a row, named after what holds here; `docs/comparison.md` says what other pools do in the same situation.
No test asserts a time: what hangs meets the watchdog.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import signal
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

import poolkit
import support
import support_functions as work
from chaos import faults
from lifecycle.scripts import Script, python, run, running, text_of
from pains.functions import run_command
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

Crash = poolkit.WorkerCrashed


@pytest.fixture
def pool() -> Iterator[poolkit.Pool]:
    with poolkit.Pool(2) as pool:
        yield pool
        pool.cancel_all()


def error_of(task: poolkit.Task[object], kind: type[BaseException]) -> BaseException:
    """The exception of a task, which must be of that kind."""
    error = task.exception()
    assert isinstance(error, kind), error
    return error


def test_row_01_a_killed_worker_fails_its_task_at_once(pool: poolkit.Pool) -> None:
    error = pool.submit(lambda: os.kill(os.getpid(), 9)).exception()
    assert isinstance(error, Crash)
    assert (error.signal, error.exitcode) == ("SIGKILL", None)
    assert "SIGKILL" in str(error)
    assert f"pid {error.pid}" in str(error)
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.long
def test_row_02_killing_workers_all_the_time_blocks_and_loses_nothing() -> None:
    """A kill every hundred tasks, under ten thousand tasks: no worker can die with a lock that another one needs."""
    rng = random.Random(2)
    kills = 0
    with poolkit.Pool(4, retries=100, preload=["support_functions"]) as pool:  # a worker may just have begun a task
        tasks: list[poolkit.Task[int]] = []
        while len(tasks) < 10_000:
            tasks += [pool.submit(work.square, number) for number in range(len(tasks), len(tasks) + 100)]
            tasks[-100].result()
            if pids := faults.worker_pids(pool, tasks_done=1):
                kills += faults.kill_worker(pool, rng.choice(pids))
        assert [task.result() for task in tasks] == [number * number for number in range(10_000)]
    assert kills > 50


def test_row_03_one_crash_fails_one_task(new_gate: Callable[[], Gate]) -> None:
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(5) as pool:
        slow = [pool.submit(work.arrive_and_wait, arrived, release, number) for number in range(4)]
        arrived.wait(4)
        crash = pool.submit(work.leave, 3)
        assert error_of(crash, Crash).exitcode == 3  # type: ignore[attr-defined]
        release.signal(4)
        assert [task.result() for task in slow] == [0, 1, 2, 3]
        assert list(pool.map(work.square, range(20))) == [number * number for number in range(20)]
        stats = pool.stats()
    assert (stats.crashed, stats.failed) == (1, 1)


def test_row_04_a_timeout_stops_the_work(pool: poolkit.Pool, new_gate: Callable[[], Gate]) -> None:
    pool.warm_up()
    arrived = new_gate()
    task = pool.options(timeout=0.5).submit(work.spin, arrived)
    arrived.wait()
    (pid,) = [worker.pid for worker in pool.workers() if worker.task is task]
    error_of(task, poolkit.TaskTimeout)
    assert pid is not None
    assert not support.is_alive(pid), "the caller hears of the timeout when the work has stopped"
    support.wait_until(lambda: [worker.state for worker in pool.workers()] == ["idle", "idle"], "the pool's full size")


def test_row_05_a_timeout_stops_c_code_that_holds_the_interpreters_lock(pool: poolkit.Pool) -> None:
    error = pool.options(timeout=1).submit(work.hold_the_gil).exception()
    assert isinstance(error, poolkit.TaskTimeout)
    assert "hold_the_gil" in error.stack


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_row_06_a_lock_that_a_thread_holds_holds_up_no_worker(method: str) -> None:
    source = f"""
        import logging, threading, time
        import poolkit

        logging.basicConfig()
        held, release = threading.Event(), threading.Event()

        def hold():
            with logging.getLogger().handlers[0].lock:
                held.set()
                release.wait()

        def write():
            import logging
            logging.getLogger("mine").error("logged")
            return "done"

        threading.Thread(target=hold).start()
        held.wait()
        with poolkit.Pool(1, start_method={method!r}) as pool:
            task = pool.submit(write)
            while not pool.stats().succeeded:
                time.sleep(0.01)
            release.set()  # here, the record waits for that lock, and the outcome for the record
            print(task.result())
        """
    with running(source) as script:
        ended = script.finish()
        assert (ended.code, ended.out) == (0, "done\n"), ended.err
        assert ended.err.count("logged") == 1
        script.wait_until_gone()


def test_row_07_an_exception_that_cannot_be_unpickled_fails_its_task_only(pool: poolkit.Pool) -> None:
    error = pool.submit(work.raise_unbuildable).exception()
    assert type(error) is work.UnbuildableError
    assert error.args == ("this and that",)
    assert "raise_unbuildable" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    lost = pool.submit(work.raise_lost).exception()
    assert isinstance(lost, poolkit.RemoteError)
    assert lost.type_name == "only_in_the_worker.LostError"
    assert lost.message == "this and that"
    assert "raise_lost" in lost.traceback_text
    assert pool.submit(work.add, 1, 2).result() == 3


def test_row_08_what_cannot_be_pickled_fails_its_task_only(pool: poolkit.Pool) -> None:
    """Also what can: a lambda is a result like any other here."""
    pids = {pool.submit(work.pid).result() for _ in range(20)}
    argument = pool.submit(work.identity, threading.Lock())
    assert argument.done(), "no worker is needed to see that"
    assert "args[0]" in str(error_of(argument, poolkit.SerializationError))
    assert "lock" in str(error_of(pool.submit(lambda: [1, threading.Lock()]), poolkit.SerializationError))
    assert pool.submit(lambda: lambda: 1).result()() == 1
    assert {pool.submit(work.pid).result() for _ in range(20)} <= pids, "no worker died of it"


def test_row_09_no_worker_outlives_an_owner_that_is_killed() -> None:
    source = """
        import os, time
        import poolkit

        def work(how):
            os.write(1, b"up\\n")
            while how == "spin":
                pass
            time.sleep(3600)

        pool = poolkit.Pool(3)
        tasks = [pool.submit(work, how) for how in ("spin", "sleep")]
        pool.warm_up()
        tasks[0].result()
        """
    with running(source) as owner:
        owner.read_lines(2)
        assert len(owner.family()) >= 4
        owner.kill()
        owner.wait_until_gone()


def test_row_10_one_ctrl_c_ends_it_with_one_traceback() -> None:
    source = """
        import os, time
        import poolkit

        def work(_):
            os.write(1, b"up\\n")
            time.sleep(3600)

        with poolkit.Pool(4) as pool:
            list(pool.map(work, range(100), chunksize=1))
        """
    with Script(python("-c", text_of(source)), terminal=True) as script:
        script.wait_for_text("up", 4)
        script.press_ctrl_c()
        ended = script.finish()
        assert ended.code == -signal.SIGINT
        assert ended.out.count("Traceback") == ended.out.count("KeyboardInterrupt") == 1, ended.out
        assert ended.out.splitlines().count("up") == 4, "nothing of what was queued began"
        script.wait_until_gone()


@pytest.mark.long
def test_row_11_recycling_never_stops_the_pool() -> None:
    with poolkit.Pool(1, max_tasks_per_child=2) as pool:
        tasks = [pool.submit(work.pid) for _ in range(40)]
        pids = [task.result() for task in tasks]
    assert len(pids) == 40
    assert len(set(pids)) >= 20


def test_row_12_a_worker_that_does_not_read_holds_up_nobody(new_gate: Callable[[], Gate]) -> None:
    """It stops in the middle of an argument of 100 MB; then it dies there."""
    arrived, release = new_gate(), new_gate()
    payload = bytes(100_000_000)
    with poolkit.Pool(2, shm_threshold=None) as pool:
        pool.warm_up()
        other = pool.submit(work.arrive_and_wait, arrived, release, "other")
        arrived.wait()
        (deaf,) = [worker.pid for worker in pool.workers() if worker.state == "idle"]
        assert deaf is not None
        os.kill(deaf, signal.SIGSTOP)
        try:
            large = pool.submit(len, payload)
            release.signal()
            assert other.result() == "other"
            assert [pool.submit(work.square, number).result() for number in range(200)] == [n * n for n in range(200)]
            assert not large.done()
        finally:
            os.kill(deaf, signal.SIGKILL)
        assert large.result() == len(payload), "it had not begun, so it runs elsewhere"
        assert pool.stats().crashed == 0


def test_row_13_a_thread_that_never_ends_does_not_keep_the_interpreter() -> None:
    """A shutdown with a limit gives it up, and its task says so."""
    source = """
        import sys, threading
        import poolkit

        def wait_for_ever():
            running.set()
            threading.Event().wait()

        running = threading.Event()
        pool = poolkit.Pool(1, kind="thread")
        task = pool.submit(wait_for_ever)
        running.wait()
        pool.shutdown(timeout=0.5)
        print(task.done(), type(task.exception() if not task.cancelled() else None).__name__, task.cancelled())
        print(pool.stats().abandoned, task.name)
        sys.exit(0)
        """
    assert run(source) == ["True NoneType True", "1 wait_for_ever"]


def test_row_14_a_pool_dropped_in_a_cycle_lets_the_interpreter_exit() -> None:
    source = """
        import gc
        import poolkit

        class Holder:
            pass

        holder = Holder()
        holder.itself = holder
        holder.pool = poolkit.Pool(2)
        holder.task = holder.pool.submit(abs, -1)
        del holder
        {}
        print("end")
        """
    assert run(source.format("pass")) == ["end"]
    with running(source.format("gc.collect()")) as script:
        ended = script.finish()
        assert (ended.code, ended.out) == (0, "end\n"), ended.err
        script.wait_until_gone()


def test_row_15_functions_of_a_session_reach_the_workers() -> None:
    source = """
        import poolkit

        def double(number):
            return 2 * number

        with poolkit.Pool(2, start_method="spawn") as pool:
            print(list(pool.map(double, range(5))))
        """
    with Script(python("-")) as script:
        assert script.finish(text_of(source)).check() == ["[0, 2, 4, 6, 8]"]
        script.wait_until_gone()


@pytest.mark.parametrize(("kind", "rounds"), [("thread", 200), ("process", 20)])
def test_row_16_whoever_waits_hears_of_a_cancelling_shutdown(kind: str, rounds: int) -> None:
    rng = random.Random(16)
    for _ in range(rounds):
        pool = poolkit.Pool(2, kind=kind)  # type: ignore[arg-type]
        tasks: list[poolkit.Task[object]] = [pool.submit(work.square, number) for number in range(20)]
        tasks[rng.randrange(20)].cancel()
        stopper = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True})
        if rng.random() < 0.5:
            concurrent.futures.wait([tasks[rng.randrange(20)]])
        stopper.start()
        assert sum(1 for _ in concurrent.futures.as_completed(tasks)) == 20
        stopper.join()
        assert not concurrent.futures.wait(tasks).not_done


def test_row_17_a_timeout_ends_the_programs_of_the_task_and_their_children(
    pool: poolkit.Pool, journal: Journal
) -> None:
    """The shell's child holds the pipe that the task reads."""
    task = pool.options(timeout=2).submit(run_command, journal.path)
    error_of(task, poolkit.TaskTimeout)
    (pid,) = map(int, journal.lines())
    support.wait_for_exit(pid)
    assert pool.submit(work.add, 1, 2).result() == 3
