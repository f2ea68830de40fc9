"""Leaks, wrong results, slow death: rows 18 to 26 of the pains that users of worker pools complain of most.

One test a row, named after what holds here; `docs/comparison.md` says what other pools do in the same situation.
No test asserts a time: what hangs meets the watchdog.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """What of ours has a name in shared memory; other programs have theirs."""
    return {path.name for path in Path("/dev/shm").glob("poolkit*")}  # noqa: S108 -- looked at


@pytest.mark.long
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


@pytest.mark.long
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
    support.wait_until(lambda: segments() <= before, "all names to go, also of tests beside this one")


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


@pytest.mark.long
def test_row_23_arguments_and_results_are_let_go(pool: poolkit.Pool) -> None:
    def serve(count: int) -> None:
        for got in pool.map(work.identity, (np.zeros(MB // 8) for _ in range(count)), chunksize=1):
            assert len(got) == MB // 8

    serve(200)
    before = resident()
    serve(600)
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


@pytest.mark.long
def test_row_26_a_cancel_hits_no_neighbour(pool: poolkit.Pool) -> None:
    """At any moment of the tasks' lives; a thousand times."""
    rng = random.Random(26)
    innocent: list[poolkit.Task[int]] = []
    killed = 0
    for number in range(1000):
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
