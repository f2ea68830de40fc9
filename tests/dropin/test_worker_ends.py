"""How workers end, and what does not end them: threads, finalizers and exit handlers of tasks; signals; privileges."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lifecycle.scripts import run, running, text_of

pytestmark = pytest.mark.slow

METHODS = ["forkserver", "spawn", "fork"]

THREAD = """
import os, sys, threading, time
import poolkit

def upload(path):
    def finish():
        time.sleep(0.5)
        with open(path, "w") as file:
            file.write("done")

    threading.Thread(target=finish).start()
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("leave", ["pool.shutdown()", "pool.submit(abs, 1).result()", "pass"])
@pytest.mark.every_nth(9)
def test_a_thread_that_a_task_left_finishes_its_work(method: str, leave: str, tmp_path: Path) -> None:
    """When the pool is shut down, the worker recycled, or the interpreter ends."""
    path = tmp_path / "done"
    source = f"""
        pool = poolkit.Pool(1, start_method={method!r}, max_tasks_per_child={1 if "abs" in leave else None})
        pool.submit(upload, {str(path)!r}).result()
        {leave}
        """
    with running(THREAD + text_of(source)) as script:
        assert script.finish().check() == []
        script.wait_until_gone()
    assert path.read_text(encoding="utf-8") == "done"


@pytest.mark.long
def test_a_thread_that_never_ends_keeps_nobody_for_ever() -> None:
    lines = run(
        """
        import threading
        import poolkit

        def leave_a_thread():
            threading.Thread(target=threading.Event().wait).start()

        with poolkit.Pool(1) as pool:
            pool.submit(leave_a_thread).result()
        print("left")
        """
    )
    assert lines == ["left"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preload", [[], ["tempfile", "logging", "multiprocessing.util"]])
@pytest.mark.every_nth(9)
def test_what_a_task_wants_done_at_the_end_is_done(method: str, preload: list[str], tmp_path: Path) -> None:
    """Also by those who registered themselves before the worker was forked."""
    source = f"""
        import atexit, logging.handlers, multiprocessing, os, tempfile, weakref
        import poolkit

        class Thing:
            pass

        def work(folder):
            global kept
            target = logging.FileHandler(folder + "/log", delay=True)
            memory = logging.handlers.MemoryHandler(1000, target=target)
            memory.emit(logging.makeLogRecord({{"msg": "logged", "levelno": 20}}))
            thing = Thing()
            weakref.finalize(thing, open, folder + "/finalized", "w")
            atexit.register(open, folder + "/exited", "w")
            kept = tempfile.TemporaryDirectory(dir=folder), memory, thing
            import builtins
            builtins.kept = kept

        with poolkit.Pool(1, start_method={method!r}, preload={preload}) as pool:
            pool.submit(work, {str(tmp_path)!r}).result()
        print(*sorted(os.listdir({str(tmp_path)!r})))
        """
    with running(source) as script:
        assert script.finish().out.splitlines() == ["exited finalized log"]
        script.wait_until_gone()


def test_what_the_owner_wants_done_at_its_end_is_not_done_by_workers() -> None:
    """Nor what it wants done when an object is gone that a worker has a copy of."""
    lines = run(
        """
        import atexit, gc, os, tempfile, weakref
        import poolkit

        class Thing:
            pass

        owner = os.getpid()

        def told(what):
            os.write(1, f"{what} in the {'owner' if os.getpid() == owner else 'worker'}\\n".encode())

        things = [Thing(), Thing()]
        for number, thing in enumerate(things):
            weakref.finalize(thing, told, f"finalizer {number}")
        atexit.register(told, "exit handler")
        folder = tempfile.TemporaryDirectory()

        def lose_it():
            global folder
            things.pop()
            folder = None
            gc.collect()

        with poolkit.Pool(1, start_method="fork") as pool:
            name = folder.name
            pool.submit(lose_it).result()
        print(os.path.isdir(name), flush=True)
        """
    )
    assert lines[0] == "True"
    assert sorted(lines[1:]) == ["exit handler in the owner", "finalizer 0 in the owner", "finalizer 1 in the owner"]


@pytest.mark.long
def test_a_pool_that_a_task_leaves_open_finishes_its_work(tmp_path: Path) -> None:
    """Also where poolkit was there before the worker was forked."""
    source = f"""
        import builtins
        import poolkit

        def work(path):
            builtins.kept = poolkit.Pool(1)
            builtins.kept.submit(write, path)

        def write(path):
            import time
            time.sleep(0.3)
            open(path, "w").close()

        with poolkit.Pool(1, start_method="fork") as pool:
            pool.submit(work, {str(tmp_path / "written")!r}).result()
        """
    assert run(source) == []
    assert (tmp_path / "written").exists()


NUMBERS = sorted(
    signal.valid_signals()
    - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT}
    - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
)


@pytest.mark.parametrize("method", METHODS)
def test_no_signal_to_a_workers_parent_ends_it(method: str) -> None:
    """`os.kill(os.getppid(), ...)` is how some programs talk to their main process. Workers have the defaults."""
    lines = run(
        f"""
        import os, signal
        import poolkit

        def talk(numbers):
            for number in numbers:
                os.kill(os.getppid(), number)
            return os.getpid()

        IGNORED = {{int(each) for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN}}

        def dispositions():
            left = IGNORED | {{signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE, signal.SIGXFSZ}}
            found = {{signal.getsignal(number) for number in signal.valid_signals() - left}}
            return found - {{None}} == {{signal.SIG_DFL}}, signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN

        with poolkit.Pool(1, start_method={method!r}) as pool:
            first = pool.submit(talk, {[int(number) for number in NUMBERS]}).result()
            print(pool.submit(talk, []).result() == first, pool.stats().respawned)
            print(*pool.submit(dispositions).result())
        """
    )
    assert lines[0] == "True 0"
    assert lines[1] == "True True"


def test_a_signal_that_the_owner_ignores_is_ignored_by_workers() -> None:
    """As of programs started by nohup."""
    lines = run(
        """
        import os, signal
        import poolkit

        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

        def work():
            os.kill(os.getpid(), signal.SIGHUP)
            return signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL

        with poolkit.Pool(1) as pool:
            print(pool.submit(work).result())
        """
    )
    assert lines == ["True"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_privileges_may_be_dropped_after_the_pool_was_made() -> None:
    """What may not be killed any more ends by itself."""
    source = """
        import os, signal, threading
        import poolkit

        def stop_the_template():
            os.kill(os.getppid(), signal.SIGSTOP)
            signal.pause()

        threading.excepthook = lambda told: print("raised:", told.exc_value)
        pool = poolkit.Pool(1)
        pool.warm_up()
        poolkit.WorkerCrashed  # later, the interpreter's files may not be readable
        os.setgid(65534)
        os.setuid(65534)
        print(pool.submit(abs, -1).result())
        print(pool.submit(os._exit, 3).exception().exitcode)
        pool.shutdown()
        """
    with running(source) as script:
        assert script.finish().check() == ["1", "3"]
        script.wait_until_gone()
