"""What programs see and hand in: rows 27 to 35 of the pains that users of worker pools complain of most.

One test a row, named after what holds here; `docs/comparison.md` says what other pools do in the same situation.
No test asserts a time: what hangs meets the watchdog.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poolkit
import support
import support_functions as work
from lifecycle.scripts import run, running, text_of
from pains import functions
from support_gates import Gate

pytestmark = pytest.mark.slow

MB = 1_000_000


@pytest.fixture
def pool() -> Iterator[poolkit.Pool]:
    with poolkit.Pool(2) as pool:
        yield pool
        pool.cancel_all()


def test_row_27_a_cancelled_await_stops_the_work(pool: poolkit.Pool, new_gate: Callable[[], Gate]) -> None:
    arrived = new_gate()

    async def main() -> None:
        task = pool.submit(work.spin, arrived)
        await asyncio.to_thread(arrived.wait)
        (pid,) = [worker.pid for worker in pool.workers() if worker.task is task]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.2)
        assert task.cancelled()
        support.wait_for_exit(pid or 0)
        assert await pool.submit(work.add, 1, 2) == 3

    asyncio.run(main())


def test_row_28_cause_notes_type_and_remote_frames_all_arrive(pool: poolkit.Pool) -> None:
    import traceback

    error = pool.submit(work.raise_with_cause_and_notes).exception()
    assert type(error) is RuntimeError
    assert error.args == ("the effect",)
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.args == ("the cause",)
    shown = "".join(traceback.format_exception(error))
    assert shown.count("in raise_with_cause_and_notes") == 2
    if sys.version_info >= (3, 11):
        assert error.__notes__ == ["a note"]
        assert "a note" in shown


def test_row_29_what_a_task_prints_and_logs_reaches_the_owner() -> None:
    source = """
        import logging, os, sys
        import poolkit

        def talk():
            print("printed")
            print("to stderr", file=sys.stderr)
            logging.getLogger("mine").warning("logged")

        with poolkit.Pool(1) as pool:
            pool.submit(talk).result()
        """
    with running(source) as script:
        ended = script.finish()
        assert (ended.code, ended.out) == (0, "printed\n")
        assert sorted(ended.err.splitlines()) == ["logged", "to stderr"]
        script.wait_until_gone()


def test_row_30_a_pool_inside_a_task_goes_with_it() -> None:
    source = """
        import os, time
        import poolkit

        def sleep():
            os.write(1, b"up\\n")
            time.sleep(3600)

        def inner():
            with poolkit.Pool(2) as pool:
                list(pool.map(abs, range(3)))
                pool.submit(sleep).result()

        with poolkit.Pool(1) as pool:
            task = pool.submit(inner)
            input()
            print(task.cancel(), pool.submit(abs, -1).result(), flush=True)
            input()
        """
    with running(source) as script:
        script.read_lines(1)
        inside = set(script.family())
        script.write_line()
        assert script.read_lines(1) == ["True 1"]
        support.wait_until(lambda: len(inside & set(script.family())) == 2, "all but the owner and its template to end")
        script.write_line()
        assert script.finish().code == 0
        script.wait_until_gone()


def test_row_31_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
        with poolkit.Pool(1) as one, poolkit.Pool(64) as many:
            cpus = one.submit(work.environment, name).result()
            assert cpus is not None
            assert 1 <= int(cpus) <= len(os.sched_getaffinity(0))
            assert many.submit(work.environment, name).result() == "1"


def test_row_32_a_script_without_a_guard_is_run_once(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(
        text_of(
            """
            import sys
            import poolkit
            print("script", sys.argv[1])

            def double(number):
                return 2 * number

            with poolkit.Pool(2, start_method=sys.argv[1]) as pool:
                print(pool.submit(double, 21).result())
            """
        )
    )
    for method in ("forkserver", "spawn", "fork"):
        source = f"import runpy, sys; sys.argv[1:] = [{method!r}]; runpy.run_path({str(path)!r}, run_name='__main__')"
        assert run(source) == [f"script {method}", "42"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="figures of Linux")
def test_row_33_large_payloads_go_there_and_back(pool: poolkit.Pool) -> None:
    """By default 128 MB; POOLKIT_LARGE_BYTES=3000000000 POOLKIT_TIMEOUT_SCALE=6 is beyond all 32-bit lengths.

    A worker has the argument and the result, twice the payload; the owner both of them, and its own array: 10 GB.
    """
    size = int(os.environ.get("POOLKIT_LARGE_BYTES", 128 * MB))
    array = np.arange(size // 8)
    got, worker_peak = pool.submit(functions.same_and_peak, array).result()
    assert got.nbytes == array.nbytes
    assert np.array_equal(got, array)
    assert worker_peak < 2.3 * size + 100 * MB
    del got
    text = pool.submit(work.identity, "x" * (size // 4)).result()
    assert (len(text), text[-1]) == (size // 4, "x")


def test_row_34_a_thread_that_outlives_main_may_submit() -> None:
    source = """
        import threading
        import poolkit

        pool = poolkit.Pool(1)
        {}

        def later():
            threading.main_thread().join()
            try:
                print(pool.submit(abs, -1).result())
            except (poolkit.PoolkitError, RuntimeError) as error:
                print("refused:", error)

        threading.Thread(target=later).start()
        """
    assert run(source.format("pool.submit(abs, -1).result()")) == ["1"]
    (line,) = run(source.format("pass"))
    assert line == "1" or line.startswith("refused: ")


def test_row_35_a_kind_that_is_not_there_is_refused_by_name(pool: poolkit.Pool) -> None:
    kind: Any = "interpreter"
    with pytest.raises(ValueError, match="kind must be one of 'process', 'thread', was 'interpreter'"):
        poolkit.Pool(1, kind=kind)
