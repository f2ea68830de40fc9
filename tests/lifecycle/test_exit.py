"""The interpreter ends without a shutdown: what was accepted is finished, promptly and silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.scripts import run, running

pytestmark = pytest.mark.slow

PENDING = """
import os, sys
import poolkit

def note(path, number):
    with open(path, "a") as file:
        file.write(f"{number}\\n")

pool = poolkit.Pool(2, kind=sys.argv[2])
tasks = [pool.submit(note, sys.argv[1], number) for number in range(40)]
"""


def numbers(path: Path) -> list[int]:
    return sorted(map(int, path.read_text(encoding="utf-8").split()))


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_pending_work_is_finished_at_exit(tmp_path: Path, kind: str) -> None:
    assert run(PENDING, str(tmp_path / "notes"), kind) == []
    assert numbers(tmp_path / "notes") == list(range(40))


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_pending_work_is_finished_after_sys_exit(tmp_path: Path, kind: str) -> None:
    with running(PENDING + "sys.exit(3)", str(tmp_path / "notes"), kind) as script:
        ended = script.finish()
        assert (ended.code, ended.out, ended.err) == (3, "", "")
        script.wait_until_gone()
    assert numbers(tmp_path / "notes") == list(range(40))


def test_pending_work_is_finished_after_an_uncaught_exception(tmp_path: Path) -> None:
    with running(PENDING + "raise ValueError('mine')", str(tmp_path / "notes"), "process") as script:
        ended = script.finish()
        assert ended.code == 1
        assert ended.err.count("Traceback") == 1
        assert ended.err.endswith("ValueError: mine\n")
        script.wait_until_gone()
    assert numbers(tmp_path / "notes") == list(range(40))


def test_pending_work_of_a_pool_that_nobody_holds_is_finished_at_exit(tmp_path: Path) -> None:
    assert run(PENDING + "del pool, tasks", str(tmp_path / "notes"), "process") == []
    assert numbers(tmp_path / "notes") == list(range(40))


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_default_pools_end_without_a_word(kind: str) -> None:
    """They live until modules lose their globals."""
    source = """
        import sys
        import poolkit

        @poolkit.offload(kind=sys.argv[1])
        def double(number):
            return 2 * number

        print(double(4).result())
        """
    assert run(source, kind) == ["8"]


@pytest.mark.parametrize("holder", ["sys", "sys.modules['__main__']"])
def test_whatever_a_program_holds_ends_without_a_word(holder: str) -> None:
    source = """
        import asyncio, sys
        import poolkit
        from poolkit.testing import FakePool

        kept = eval(sys.argv[1]).kept = []
        for pool in (poolkit.Pool(1), poolkit.Pool(1, kind="thread"), FakePool()):
            buffer, view, shared = poolkit.SharedBuffer(100_000), pool.options(timeout=5), pool.broadcast([1])
            results = pool.map(abs, range(1000))
            kept += [pool, buffer, view, shared, results, next(results), pool.submit(bytes, 1 << 20).result()]
            kept += [pool.submit(len, "ab"), pool.submit(len, shared)]

            async def awaited():
                return await pool.submit(abs, -1)

            kept.append(asyncio.run(awaited()))
        print("kept")
        """
    assert run(source, holder) == ["kept"]


def test_what_pending_work_logs_is_told_at_exit() -> None:
    """With tasks that begin to log only then, when no thread may be started any more."""
    script = """
    import logging, poolkit, sys

    logging.basicConfig(stream=sys.stdout, format="%(message)s")

    def say(number):
        logging.getLogger("own").warning("%d", number)

    pool = poolkit.Pool(1)
    for number in range(40):
        pool.submit(say, number)
    """
    assert run(script) == [str(number) for number in range(40)]


def test_an_idle_pool_ends_with_the_interpreter() -> None:
    assert run("import poolkit\npool = poolkit.Pool(2)\npool.warm_up()\nprint(pool.submit(abs, -1).result())") == ["1"]
    assert run("import poolkit\npool = poolkit.Pool(2)") == []


def test_a_thread_that_outlives_main_may_submit() -> None:
    """The pool accepts work until its own exit hook, which comes after the threads have ended."""
    lines = run(
        """
        import threading
        import poolkit

        pool = poolkit.Pool(1)
        pool.submit(abs, -1).result()  # it runs: CPython 3.12 starts no thread any more when main has ended

        def later():
            threading.main_thread().join()
            print(pool.submit(abs, -1).result())

        threading.Thread(target=later).start()
        """
    )
    assert lines == ["1"]


def test_submitting_after_the_pools_own_exit_hook_says_so() -> None:
    lines = run(
        """
        import atexit

        def late():
            try:
                pool.submit(abs, -1)
            except poolkit.PoolClosed:
                print("closed")

        atexit.register(late)
        import poolkit
        from poolkit import Pool
        pool = Pool(1)
        print(pool.submit(abs, -1).result())
        """
    )
    assert lines == ["1", "closed"]


def test_a_first_submit_after_main_has_ended_runs_or_says_why_not() -> None:
    lines = run(
        """
        import threading
        import poolkit

        pool = poolkit.Pool(1)

        def later():
            threading.main_thread().join()
            try:
                print(pool.submit(abs, -1).result())
            except poolkit.PoolClosed as exc:
                print(1 if "interpreter shutdown" in str(exc) else exc)

        threading.Thread(target=later).start()
        """
    )
    assert lines == ["1"]


def test_an_exit_handler_of_the_program_may_submit() -> None:
    lines = run(
        """
        import atexit
        import poolkit

        pool = poolkit.Pool(1)
        pool.submit(abs, -1).result()  # see above
        atexit.register(lambda: print(pool.submit(abs, -1).result()))
        """
    )
    assert lines == ["1"]


@pytest.mark.parametrize("cycle", [False, True])
def test_a_dropped_pool_warns_and_finishes_its_work(cycle: bool) -> None:
    lines = run(
        f"""
        import gc, os, threading, warnings
        import poolkit
        from poolkit._spawn import registry

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pool = poolkit.Pool(2)
            if {cycle}:
                pool.itself = pool
            tasks = [pool.submit(abs, -number) for number in range(100)]
            del pool
            gc.collect()
        print([warning.category.__name__ for warning in caught])
        print(sum(task.result() for task in tasks))
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join()
        registry.end_all()  # it would wait for the next pool
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child")
        print(sorted(os.listdir("/proc/self/fd"), key=int)[:-1])
        """
    )
    assert lines == ["['ResourceWarning']", "4950", "no child", "['0', '1', '2']"]


def test_a_dropped_pool_that_was_never_used_leaves_at_most_a_template() -> None:
    lines = run(
        """
        import os, threading
        import poolkit
        from poolkit._spawn import registry
        poolkit.Pool(2)
        poolkit.Pool(2, start_method="fork")
        registry.end_all()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no child")
        print(len(threading.enumerate()), sorted(os.listdir("/proc/self/fd"), key=int)[:-1])
        """
    )
    assert lines == ["no child", "1 ['0', '1', '2']"]


@pytest.mark.long
def test_a_hundred_pools_one_after_another_leave_one_template() -> None:
    lines = run(
        """
        import os, threading
        import poolkit
        from poolkit._spawn import registry

        def look():
            return sorted(os.listdir("/proc/self/fd")), threading.enumerate()

        for kind in ["process"] * 20 + ["thread"] * 80:
            with poolkit.Pool(1, kind=kind) as pool:
                assert pool.submit(abs, -1).result() == 1
            if kind == "process":
                first = locals().get("first") or look()
        print(look() == first, len(registry._templates))
        registry.end_all()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no child")
        """
    )
    assert lines == ["True 1", "no child"]
