"""Leaks, wrong results, slow death: rows 18 to 35 of the pains that users of worker pools complain of most.

One test a row, named after what holds here; `docs/comparison.md` says what other pools do in the same situation.
No test asserts a time: what hangs meets the watchdog.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poolkit
import support
import support_functions as work
from lifecycle.scripts import in_tiny_shared_memory, python, run, running, text_of
from pains import functions
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

MB = 1_000_000


@pytest.fixture
def pool() -> Iterator[poolkit.Pool]:
    with poolkit.Pool(2) as pool:
        yield pool
        pool.cancel_all()


def resident() -> int:
    """The resident memory of this process, shared memory included, in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def segments() -> set[str]:
    """What has a name in shared memory."""
    return set(os.listdir("/dev/shm"))  # noqa: PTH208, S108 -- looked at


def test_row_18_a_worker_that_attached_takes_no_shared_memory_with_it() -> None:
    """Neither the library's nor the standard library's; and not a word on stderr."""
    source = """
        import os
        from multiprocessing.shared_memory import SharedMemory
        import numpy as np
        import poolkit

        def fill(buffer, array, name):
            buffer[:3] = b"abc"
            array.array[:] = 7
            attached = SharedMemory(name)
            attached.buf[:3] = b"def"
            attached.close()

        named = SharedMemory(create=True, size=100)
        with poolkit.SharedBuffer(100) as buffer, poolkit.SharedArray(10) as array:
            for _ in range(3):
                with poolkit.Pool(1) as pool:
                    pool.submit(fill, buffer, array, named.name).result()
                    crash = pool.submit(lambda *_: os._exit(1), buffer, array)
                    print(type(crash.exception()).__name__)
            print(bytes(memoryview(buffer)[:3]), array.array.sum())
        again = SharedMemory(named.name)
        print(bytes(again.buf[:3]))
        again.close()
        named.close()
        named.unlink()
        """
    assert run(source) == ["WorkerCrashed"] * 3 + ["b'abc' 70.0", "b'def'"]


def test_row_19_no_word_of_leaked_shared_memory_and_no_segment_left() -> None:
    """`run` fails on whatever is written to stderr."""
    source = """
        import os
        import numpy as np
        import poolkit

        array = np.ones(300_000)
        pool = poolkit.Pool(2)
        kept = [pool.submit(lambda x: x, array) for _ in range(5)]
        shared = pool.broadcast(array)
        buffer = poolkit.SharedBuffer(100_000)
        print(pool.submit(lambda x, y: (float(x.sum()), len(y)), shared, buffer).result())
        print(type(pool.submit(lambda x: os._exit(1), array).exception()).__name__)
        {}
        """
    before = segments()
    expected = ["(300000.0, 100000)", "WorkerCrashed"]
    assert run(source.format("pool.shutdown()")) == expected
    assert run(source.format("pass")) == expected
    with running(source.format("print(flush=True); os._exit(0)")) as script:
        assert script.finish().check()[:2] == expected
        script.wait_until_gone()
    assert {name for name in segments() - before if "poolkit" in name or "psm" in name} == set()


def test_row_20_a_view_is_unchanged_for_as_long_as_it_is_kept(pool: poolkit.Pool) -> None:
    array = np.arange(100_000.0)
    result = pool.submit(work.identity, array).result()
    view, expected = result[10:20], array[10:20].copy()
    del result
    gc.collect()
    for number in range(50):
        pool.submit(work.identity, np.full(100_000, float(number))).result()
    assert np.array_equal(view, expected)
    pool.shutdown()
    assert np.array_equal(view, expected)


def test_row_21_large_data_needs_no_room_in_dev_shm(tmp_path: Path) -> None:
    """Of which there is 1 MiB here: no SIGBUS, and no error."""
    script = tmp_path / "script.py"
    script.write_text(
        text_of(
            """
            import poolkit

            with poolkit.Pool(2) as pool:
                print({pool.submit(bytes.upper, b"x" * 10_000_000).result() == b"X" * 10_000_000 for _ in range(5)})
            """
        )
    )
    done = in_tiny_shared_memory(python(str(script)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "{True}\n", "")


def test_row_22_map_of_an_endless_input_yields(pool: poolkit.Pool) -> None:
    assert next(pool.map(work.square, itertools.count())) == 0
    results = pool.map(work.square, itertools.count())
    assert [next(results) for _ in range(1000)] == [number * number for number in range(1000)]
    results.close()


def test_row_23_arguments_and_results_are_let_go(pool: poolkit.Pool) -> None:
    def serve(count: int) -> None:
        for got in pool.map(work.identity, (np.zeros(MB // 8) for _ in range(count)), chunksize=1):
            assert len(got) == MB // 8

    serve(200)
    before = resident()
    serve(2000)
    assert resident() - before < 20 * MB

    argument = np.zeros(MB // 8)
    task = pool.submit(work.identity, argument)
    result = task.result()
    argument_gone, result_gone = weakref.ref(argument), weakref.ref(result)
    del argument
    assert argument_gone() is None
    del result, task
    gc.collect()
    assert result_gone() is None


def test_row_24_a_kill_for_memory_comes_with_figures(pool: poolkit.Pool) -> None:
    error = pool.submit(functions.grow_and_die, 200 * MB).exception()
    assert isinstance(error, poolkit.WorkerCrashed)
    assert error.signal == "SIGKILL"
    assert error.peak_rss is not None
    assert error.peak_rss > 200 * MB
    assert f"{error.peak_rss / 1e6:.0f} MB" in str(error)
    assert "memory" in error.hint
    assert error.hint in str(error)


def test_row_25_a_task_that_was_cancelled_never_starts(journal: Journal, new_gate: Callable[[], Gate]) -> None:
    arrived, release = new_gate(), new_gate()
    with poolkit.Pool(1) as pool:
        holder = pool.submit(work.arrive_and_wait, arrived, release)
        arrived.wait()
        tasks = [pool.submit(work.write_line, journal, number) for number in range(100)]
        assert all(task.cancel() for task in tasks)
        release.signal()
        holder.result()
        assert pool.submit(work.write_line, journal, "last").result() == "last"
    assert journal.lines() == ["last"]


def test_row_26_a_cancel_hits_no_neighbour(pool: poolkit.Pool) -> None:
    """At any moment of the tasks' lives; two thousand times."""
    rng = random.Random(26)
    innocent: list[poolkit.Task[int]] = []
    killed = 0
    for number in range(2000):
        task = pool.submit(work.square, number)
        if rng.random() < 0.3:
            pool.submit(work.square, 0).result()
        killed += task.cancel()
        innocent.append(pool.submit(work.square, number))
        if number % 40 == 0:
            spinning = pool.submit(work.spin)
            support.wait_until(lambda spinning=spinning: spinning.state == "running")
            assert spinning.cancel()
            innocent.append(pool.submit(work.square, number))
    assert [task.exception() for task in innocent] == [None] * len(innocent)
    assert killed > 0


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
    """By default 256 MB; POOLKIT_LARGE_BYTES=3000000000 is beyond all 32-bit lengths, and needs 9 GB."""
    size = int(os.environ.get("POOLKIT_LARGE_BYTES", 256 * MB))
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
