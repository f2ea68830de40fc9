"""A pool inside a worker of something else, which is ended from outside: nobody of the inner pool lives on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import support
from lifecycle.scripts import Script, python, running, text_of

pytestmark = pytest.mark.slow

INNER = """
import concurrent.futures, multiprocessing, os, signal, sys, time
import poolkit

def sleep():
    os.write(1, b"up\\n")
    time.sleep(3600)

def inner():
    with poolkit.Pool(2) as pool:
        for task in [pool.submit(sleep), pool.submit(sleep)]:
            task.result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_with_a_pool_is_killed_from_outside(number: int) -> None:
    """The task is told; its own workers and their template end, and the place serves."""
    source = f"""
        with poolkit.Pool(1) as pool:
            task = pool.submit(inner)
            input()
            os.kill(pool.workers()[0].pid, {int(number)})
            print(type(task.exception()).__name__, pool.submit(abs, -3).result(), flush=True)
            input()
        """
    with running(INNER + text_of(source)) as script:
        assert script.read_lines(2) == ["up", "up"]
        assert len(script.family()) == 6  # owner; template and worker; and inside, template and two
        script.write_line()
        assert script.read_lines(1) == ["WorkerCrashed 3"]
        support.wait_until(lambda: len(script.family()) == 3, "the inner pool to end")
        script.write_line()
        assert script.finish().check() == []
        script.wait_until_gone()


def test_pools_three_deep_end_with_the_task_of_the_first() -> None:
    source = """
        def middle():
            with poolkit.Pool(1) as pool:
                pool.submit(inner).result()

        with poolkit.Pool(1) as pool:
            task = pool.submit(middle)
            input()
            print(task.cancel(), pool.submit(abs, -3).result(), flush=True)
            input()
        """
    with running(INNER + text_of(source)) as script:
        script.read_lines(2)
        script.write_line()
        assert script.read_lines(1) == ["True 3"]
        support.wait_until(lambda: len(script.family()) == 3, "the inner pools to end")
        script.write_line()
        script.finish().check()
        script.wait_until_gone()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.parametrize("end", ["terminate", "kill"])
@pytest.mark.every_nth(3)
def test_a_multiprocessing_process_with_a_busy_pool_is_ended(
    method: str, daemon: bool, end: str, tmp_path: Path
) -> None:
    source = f"""
        if __name__ == "__main__":
            process = multiprocessing.get_context({method!r}).Process(target=inner, daemon={daemon})
            process.start()
            input()
            process.{end}()
            process.join()
            print(process.exitcode, flush=True)
            input()
        """
    path = tmp_path / "script.py"  # multiprocessing imports it again
    path.write_text(INNER + text_of(source), encoding="utf-8")
    with Script(python(str(path))) as script:
        script.read_lines(2)
        inside = script.family()
        script.write_line()
        assert script.read_lines(1) == [str(-signal.SIGTERM if end == "terminate" else -signal.SIGKILL)]
        helpers = {"fork": 1, "spawn": 2, "forkserver": 3}[method]  # the script, and what multiprocessing keeps
        support.wait_until(lambda: len(script.family()) <= helpers, "the pool to end")
        assert len(inside) > helpers
        script.write_line()
        script.finish().check()
        script.wait_until_gone()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_the_script_defines_travels_from_a_multiprocessing_process_too(method: str, tmp_path: Path) -> None:
    """There, the script goes by the name `__mp_main__`, which workers import as little as `__main__`."""
    source = f"""
        import dataclasses
        from poolkit._wire.modules import is_registered

        @dataclasses.dataclass
        class Point:
            x: int

        def move(point, by=1):
            return Point(point.x + by)

        @poolkit.offload
        def twice(number):
            return 2 * number

        def call(offloaded, number):
            return offloaded.local(number) + twice.local(number)

        class Doubler:
            @poolkit.offload(timeout=60)
            def twice(self, number):
                return 2 * number

        def work():
            assert not is_registered()
            with poolkit.Pool(2) as pool:
                assert not is_registered(), "the script alone does not slow all calls down"
                print([pool.submit(call, given, 1).result() for given in (twice, twice.options(timeout=60))])
                with poolkit.use_pool(pool):
                    print(twice(2).result(), Doubler().twice(3).result(), list(twice.map([4, 5])))
                print(sorted(point.x for point in pool.map(move, [Point(1), Point(2)])))
                moved = pool.submit(move, Point(5), by=2).result()
                print(moved == Point(7), type(moved) is Point, flush=True)

        if __name__ == "__main__":
            process = multiprocessing.get_context({method!r}).Process(target=work)
            process.start()
            process.join()
        """
    path = tmp_path / "script.py"
    path.write_text(INNER + text_of(source), encoding="utf-8")
    with Script(python(str(path))) as script:
        assert script.finish().check() == ["[4, 4]", "4 6 [8, 10]", "[2, 3]", "True True"]
        script.wait_until_gone()


def test_a_daemon_with_a_busy_pool_ends_with_its_parent(tmp_path: Path) -> None:
    """It is terminated at exit, by the standard library."""
    source = """
        if __name__ == "__main__":
            multiprocessing.get_context("fork").Process(target=inner, daemon=True).start()
            input()
        """
    path = tmp_path / "script.py"
    path.write_text(INNER + text_of(source), encoding="utf-8")
    with Script(python(str(path))) as script:
        script.read_lines(2)
        script.write_line()
        assert script.finish().check() == []
        script.wait_until_gone()


def test_a_pool_inside_a_worker_of_the_standard_library(tmp_path: Path) -> None:
    """It serves there; and when that worker is killed, nothing of it is left."""
    source = """
        def summed(numbers):
            with poolkit.Pool(2) as pool:
                return sum(pool.map(abs, numbers))

        if __name__ == "__main__":
            with concurrent.futures.ProcessPoolExecutor(1) as executor:
                print(executor.submit(summed, range(10)).result(), flush=True)
                future = executor.submit(inner)
                input()
                os.kill(next(iter(executor._processes)), signal.SIGKILL)
                print(type(future.exception()).__name__, flush=True)
        """
    path = tmp_path / "script.py"
    path.write_text(INNER + text_of(source), encoding="utf-8")
    with Script(python(str(path))) as script:
        assert script.read_lines(3) == ["45", "up", "up"]
        script.write_line()
        assert script.finish().check() == ["BrokenProcessPool"]
        script.wait_until_gone()


def test_a_pool_in_a_process_that_was_forked_and_leaves_without_a_word() -> None:
    """`os.fork`, a pool of the child's own, and `os._exit` in its midst."""
    source = """
        pid = os.fork()
        if pid == 0:
            pool = poolkit.Pool(2)
            tasks = [pool.submit(sleep), pool.submit(sleep)]
            input()
            os._exit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    with running(INNER + text_of(source)) as script:
        script.read_lines(2)
        script.write_line()
        assert script.finish().check() == ["5"]
        script.wait_until_gone()
