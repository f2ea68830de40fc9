"""Odd places to have a pool in: tasks, other processes, behind locks, with closed streams or hostile tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

import support
from lifecycle.scripts import Script, python, run, running, text_of

pytestmark = pytest.mark.slow

PORTABLE = {"POOLKIT_PORTABLE": "1"}


def test_a_pool_inside_a_task() -> None:
    lines = run(
        """
        import poolkit

        def inner(numbers):
            with poolkit.Pool(2) as pool:
                return sum(pool.map(abs, numbers))

        with poolkit.Pool(2) as pool:
            print(list(pool.map(inner, [range(10), range(20)])))
        """
    )
    assert lines == ["[45, 190]"]


def test_the_workers_of_a_pool_inside_a_task_end_with_it() -> None:
    """Cancelled, timed out, or killed with its owner: nobody of the inner pool is left."""
    source = """
        import os, signal, sys, time
        import poolkit

        def sleep():
            os.write(1, b"up\\n")
            time.sleep(3600)

        def inner():
            with poolkit.Pool(1) as pool:
                pool.submit(sleep).result()

        pool = poolkit.Pool(1)
        task = pool.submit(inner)
        input()
        print(task.cancel(), flush=True)
        task = pool.submit(inner)
        signal.pause()
        """
    with running(source) as script:
        script.read_lines(1)
        first = script.family()
        assert len(first) == 5  # owner; template and worker; and inside, template and worker
        script.write_line()
        script.read_lines(2)  # cancelled, and the second is up
        template = set(first) & set(script.family())
        support.wait_until(lambda: len(script.family()) == 5, "the first inner pool to end")
        assert len(template) >= 2
        script.kill()
        script.wait_until_gone()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("daemon", [False, True])
def test_a_pool_inside_a_multiprocessing_process(method: str, daemon: bool, tmp_path: Path) -> None:
    source = f"""
        import multiprocessing, sys
        import poolkit

        def work():
            with poolkit.Pool(2) as pool:
                print(sum(pool.map(lambda x: x * 2, range(10))), flush=True)

        if __name__ == "__main__":
            process = multiprocessing.get_context({method!r}).Process(target=work, daemon={daemon})
            process.start()
            process.join()
            print(process.exitcode)
        """
    path = tmp_path / "script.py"  # multiprocessing imports it again
    path.write_text(text_of(source), encoding="utf-8")
    with Script(python(str(path))) as script:
        assert script.finish().check() == ["90", "0"]
        script.wait_until_gone()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_lock_that_a_thread_holds_while_the_pool_is_made(method: str) -> None:
    """Workers are no copies of the owner, so nothing in them waits for a thread that they do not have."""
    lines = run(
        f"""
        import logging, threading
        from poolkit import Pool  # importing the standard library's futures makes a logger

        logging.basicConfig()
        held, release = threading.Event(), threading.Event()

        def hold():
            with logging._lock, logging.getLogger().handlers[0].lock:
                held.set()
                release.wait()

        def log():
            logging.getLogger("new logger").info("hello")
            return "logged"

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        with Pool(1, start_method={method!r}) as pool:
            result = pool.submit(log).result()
            release.set()
            print(result)
        """
    )
    assert lines == ["logged"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_an_owner_whose_standard_streams_are_closed(closed: list[int], when: str, tmp_path: Path) -> None:
    """Not taken for them is whatever gets their numbers, before the pool is made or after that."""
    path = tmp_path / "result"
    (tmp_path / "noisy.py").write_text(
        "import contextlib, os\nfor fd in (1, 2):\n with contextlib.suppress(OSError): os.write(fd, b'printed')\n",
        encoding="utf-8",
    )
    source = f"""
        import os, sys, tempfile

        sys.path.insert(0, {str(tmp_path)!r})

        def close():
            for fd in {closed}:
                os.close(fd)
                setattr(sys, ["stdin", "stdout", "stderr"][fd], None)

        if {when!r} == "before":
            close()
        import poolkit

        def work(number):
            with tempfile.TemporaryFile() as file:
                for fd in (1, 2):
                    try:
                        os.write(fd, b"printed\\n")
                    except OSError:
                        pass
                print("printed")
                return number, file.seek(0, os.SEEK_END)

        with poolkit.Pool(2, preload=["noisy"]) as pool:
            if {when!r} == "after":
                close()
            results = list(pool.map(work, range(20), chunksize=1))
        with open({str(path)!r}, "w") as file:
            file.write(repr(results))
        """
    with running(source) as script:
        assert script.finish().code == 0
        script.wait_until_gone()
    assert path.read_text(encoding="utf-8") == repr([(number, 0) for number in range(20)])


def test_what_a_task_prints_reaches_the_owners_streams() -> None:
    source = """
        import os, sys
        import poolkit

        def work():
            print("printed")
            print("complained", file=sys.stderr)
            os.system("echo program")
            sys.stdout.write("no line end")

        with poolkit.Pool(1) as pool:
            pool.submit(work).result()
            print(" from the task, so this comes after it")
        """
    with running(source) as script:
        ended = script.finish()
        assert ended.code == 0
        last = "no line end from the task, so this comes after it"
        assert sorted(ended.out.splitlines()) == [last, "printed", "program"]
        assert ended.err == "complained\n"


def test_a_task_that_prints_and_dies_has_printed() -> None:
    lines = run(
        """
        import os, signal
        import poolkit

        def work():
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        with poolkit.Pool(1) as pool:
            print(type(pool.submit(work).exception()).__name__)
        """
    )
    assert lines == ["last words", "WorkerCrashed"]


@pytest.mark.parametrize("portable", [False, True])
def test_a_task_that_closes_every_descriptor_is_a_crash(portable: bool) -> None:
    source = """
        import os
        import poolkit

        with poolkit.Pool(2) as pool:
            for first in (3, 0):
                task = pool.submit(os.closerange, first, 1000)
                print(type(task.exception()).__name__)
                print([task.result() for task in [pool.submit(abs, -number) for number in range(9)]])
        """
    with running(source, env=PORTABLE if portable else {}) as script:
        ended = script.finish()
        assert ended.code == 0
        assert ended.out.splitlines() == ["WorkerCrashed", str(list(range(9)))] * 2
        script.wait_until_gone()


def test_the_fallbacks_of_other_systems_do_all_the_work() -> None:
    """Without eventfd, memfd and the parent-death signal: run, crash, time out, cancel, end."""
    source = """
        import os, time
        import poolkit
        from poolkit import _os
        assert _os.PORTABLE

        def spin():
            while True:
                pass

        with poolkit.Pool(2) as pool:
            print(sum(task.result() for task in [pool.submit(abs, -number) for number in range(5000)]))
            print(sum(pool.map(abs, range(20000))))
            print(pool.submit(os._exit, 3).exception().exitcode)
            print(type(pool.options(timeout=0.05).submit(spin).exception()).__name__)
            task = pool.submit(time.sleep, 3600)
            while task.state != "running":
                pass
            print(task.cancel(), task.cancelled())
            tasks = [pool.submit(time.sleep, 3600) for _ in range(100)]
            pool.cancel_all()
            print(all(task.cancelled() for task in tasks))
            print(sum(task.result() for task in [pool.submit(abs, -number) for number in range(5000)]))
        """
    lines = run(source, env=PORTABLE)
    assert lines == ["12497500", "199990000", "3", "TaskTimeout", "True True", "True", "12497500"]
