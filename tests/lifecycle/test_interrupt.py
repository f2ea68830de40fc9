"""Ctrl-C on a terminal: one KeyboardInterrupt in the owner, not a word from the workers, and everybody is gone."""

from __future__ import annotations

import signal
import time

import pytest

from lifecycle.scripts import Script, python, run, text_of

pytestmark = pytest.mark.slow

PATIENCE = 10.0  # seconds; what takes a grace of poolkit's takes longer, on any machine

TASKS = """
import ctypes, os, sys, time
import poolkit

def sleep(_=None):
    os.write(1, b"up\\n")
    time.sleep(3600)

def hold_the_gil():
    os.write(1, b"up\\n")
    ctypes.PyDLL(None).sleep(3600)

def spin():
    os.write(1, b"up\\n")
    while True:
        pass
"""


def interrupted(source: str, ups: int = 2) -> str:
    """What the terminal shows of a script that is interrupted once, when so many tasks run."""
    with Script(python("-c", TASKS + text_of(source)), terminal=True) as script:
        script.wait_for_text("up", ups)
        pressed = time.monotonic()
        script.press_ctrl_c()
        ended = script.finish()
        seconds = time.monotonic() - pressed
        print(f"ended {seconds * 1000:.0f} ms after Ctrl-C")  # under 500 where nothing else runs
        assert ended.code == -signal.SIGINT, ended.out
        assert seconds < PATIENCE
        script.wait_until_gone()
        return ended.out


def check(shown: str) -> None:
    assert shown.count("Traceback") == 1, shown
    assert shown.count("KeyboardInterrupt") == 1, shown
    assert shown.replace("^C", "").rstrip().endswith("KeyboardInterrupt"), shown


def test_while_a_result_is_waited_for() -> None:
    check(
        interrupted(
            """
            with poolkit.Pool(3) as pool:
                tasks = [pool.submit(work) for work in (sleep, hold_the_gil, spin, sleep, sleep)]
                tasks[0].result()
            """,
            3,
        )
    )


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_with_other_start_methods(method: str) -> None:
    check(
        interrupted(
            f"""
            with poolkit.Pool(2, start_method={method!r}) as pool:
                tasks = [pool.submit(work) for work in (sleep, hold_the_gil)]
                tasks[0].result()
            """
        )
    )


def test_in_map() -> None:
    check(
        interrupted(
            """
            with poolkit.Pool(2) as pool:
                for _ in pool.map(sleep, range(1000), chunksize=1):
                    pass
            """
        )
    )


def test_in_as_completed_and_wait() -> None:
    for wait in ("next(concurrent.futures.as_completed(tasks))", "concurrent.futures.wait(tasks)"):
        check(
            interrupted(
                f"""
                import concurrent.futures
                with poolkit.Pool(2) as pool:
                    tasks = [pool.submit(sleep) for _ in range(5)]
                    {wait}
                """
            )
        )


@pytest.mark.long
def test_while_the_program_does_something_else() -> None:
    for doing in ("time.sleep(3600)", "input()", "while True: pass", "threading.Event().wait()"):
        check(
            interrupted(
                f"""
                import threading
                with poolkit.Pool(2) as pool:
                    tasks = [pool.submit(work) for work in (sleep, hold_the_gil, spin)]
                    {doing}
                """
            )
        )


def test_on_threads() -> None:
    """They are asked to stop, and what does not is left behind by the end of the process."""
    check(
        interrupted(
            """
            with poolkit.Pool(2, kind="thread") as pool:
                tasks = [pool.submit(work) for work in (spin, sleep, sleep)]
                tasks[0].result()
            """
        )
    )


def test_while_the_pool_is_left() -> None:
    """The body is over, and `with` waits for what runs."""
    check(
        interrupted(
            """
            with poolkit.Pool(2) as pool:
                tasks = [pool.submit(sleep) for _ in range(5)]
            """
        )
    )


def test_in_asyncio() -> None:
    shown = interrupted(
        """
        import asyncio

        async def main():
            async with poolkit.Pool(2) as pool:
                await asyncio.gather(*[pool.submit(sleep) for _ in range(5)])

        asyncio.run(main())
        """
    )
    # asyncio chains the cancellation that it made of the interrupt.
    assert shown.rstrip().endswith("KeyboardInterrupt"), shown
    assert "Process" not in shown
    assert shown.count("KeyboardInterrupt") <= 2, shown


def test_while_the_interpreter_waits_at_exit() -> None:
    """One Ctrl-C ends the wait, and there is nothing to say about it."""
    source = """
        pool = poolkit.Pool(2)
        tasks = [pool.submit(sleep) for _ in range(5)]
        """
    with Script(python("-c", TASKS + text_of(source)), terminal=True) as script:
        script.wait_for_text("up", 2)
        script.press_ctrl_c()
        ended = script.finish()
        assert "Traceback" not in ended.out
        assert ended.out.count("up") == 2
        script.wait_until_gone()


def test_a_program_that_goes_on_after_the_interrupt_keeps_its_pool() -> None:
    """As in a REPL: what ran goes on, and the pool serves."""
    source = """
        pool = poolkit.Pool(2)
        task = pool.submit(sleep)
        try:
            task.result()
        except KeyboardInterrupt:
            print("interrupted", task.state)
        print(pool.submit(abs, -5).result(), task.cancel())
        pool.shutdown()
        """
    with Script(python("-c", TASKS + text_of(source)), terminal=True) as script:
        script.wait_for_text("up")
        script.press_ctrl_c()
        ended = script.finish()
        assert ended.code == 0, ended.out
        assert ended.out.replace("^C", "").splitlines() == ["up", "interrupted running", "5 True"]
        script.wait_until_gone()


def test_a_program_of_a_task_is_stopped_without_its_own_interrupt() -> None:
    """The programs that tasks start are not in the terminal's foreground group; they end with their task."""
    check(
        interrupted(
            """
            import subprocess
            program = "import os, signal; os.write(1, b'up\\\\n'); signal.pause()"
            with poolkit.Pool(2) as pool:
                tasks = [pool.submit(subprocess.run, [sys.executable, "-c", program]) for _ in range(2)]
                tasks[0].result()
            """
        )
    )


def test_interrupts_at_any_moment_of_a_busy_submitter_tear_nothing() -> None:
    """Without a terminal, and very often: every task that was accepted ends, the pool serves on, and can be left."""
    source = """
        import random, signal, sys
        import poolkit

        rng = random.Random(1)
        sys.unraisablehook = lambda _: None  # what comes inside a finalizer Python drops with a word
        signal.signal(signal.SIGALRM, signal.default_int_handler)  # a thread that sends SIGINT would wait for the GIL

        def interrupt_soon():
            # Again later, should it come inside a finalizer or a callback of the collector: there Python drops it.
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.01), 5)

        def interrupted():
            signal.setitimer(signal.ITIMER_REAL, 0)

        for _ in range(10):
            tasks = []
            try:
                with poolkit.Pool(2) as pool:
                    for _ in range(2):
                        try:
                            interrupt_soon()
                            while True:
                                tasks.append(pool.submit(abs, -len(tasks)))
                                if len(tasks) % 500 == 0:
                                    tasks[-100].cancel()
                        except KeyboardInterrupt:
                            interrupted()
                        assert pool.submit(abs, -1).result() == 1
                    assert all(task.done() or task.result() is not None for task in tasks)
                    interrupt_soon()
                    while True:
                        tasks.append(pool.submit(abs, -len(tasks)))
            except KeyboardInterrupt:
                interrupted()
            for number, task in enumerate(tasks):
                assert task.cancelled() or task.result() >= 0
        print("whole")
        """
    assert run(source) == ["whole"]


def test_a_shut_down_pool_leaves_nothing_that_would_swallow_an_interrupt() -> None:
    """What Python raises in the callback of a weak reference is lost; `threading` has one for each of its threads."""
    source = """
        import gc, threading, weakref
        import poolkit

        gc.disable()
        with poolkit.Pool(1) as pool:
            assert pool.submit(abs, -1).result() == 1
            threads = [weakref.ref(one) for one in threading.enumerate() if one.name.startswith("poolkit-")]
        assert threads
        print([ref() for ref in threads])
        """
    assert run(source) == ["[None]"]


def test_alarms_that_raise_at_any_moment_tear_nothing() -> None:
    """Many programs limit the time of a call so; every later task must have its result all the same."""
    source = """
        import random, signal, sys
        import poolkit

        sys.unraisablehook = lambda _: None  # what comes inside a finalizer Python drops with a word

        class Alarm(BaseException):
            pass

        def ring(number, frame):
            raise Alarm

        signal.signal(signal.SIGALRM, ring)
        rng = random.Random(1)
        rings = 0
        with poolkit.Pool(2) as pool:
            pool.submit(abs, -1).result()
            for _ in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.00001, 0.001))
                    for _ in range(20):
                        pool.submit(abs, -1).result()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Alarm:
                    rings += 1
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            assert pool.submit(abs, -7).result() == 7
        assert rings > 100, rings
        print("whole")
        """
    assert run(source) == ["whole"]


@pytest.mark.long
def test_what_an_alarm_raises_comes_out_of_a_map() -> None:
    """Also if it is an Exception, or the class that waits raise, and the results before it are there by then."""
    source = """
        import itertools, signal, time
        import poolkit

        class Alarm(Exception):
            pass

        def ring(number, frame):
            raise kind("mine")

        signal.signal(signal.SIGALRM, ring)
        with poolkit.Pool(1) as pool:
            pool.submit(abs, -1).result()
            for kind, ordered in itertools.product((Alarm, TimeoutError), (True, False)):
                results = pool.map(time.sleep, [0.6] * 2, chunksize=1, ordered=ordered)
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                try:
                    list(results)
                except kind as error:
                    print(error)
        """
    assert run(source) == ["mine"] * 4


def test_a_handler_that_a_task_left_ends_its_worker_with_one_line() -> None:
    """If it raises between two tasks; the next one has another worker."""
    source = """
        import os, signal, threading
        import poolkit

        def ring(number, frame):
            raise ValueError("mine")

        def leave():
            signal.signal(signal.SIGALRM, ring)
            return os.getpid()

        os.dup2(1, 2)
        with poolkit.Pool(1) as pool:
            before = pool.submit(leave).result()
            exited = threading.Event()
            pool.on("worker_exited", lambda *_: exited.set())
            os.kill(before, signal.SIGALRM)
            exited.wait()
            print(pool.submit(os.getpid).result() != before)
        """
    line, last = run(source)
    assert line.endswith("ends, as between two tasks a signal handler that a task left raised ValueError: mine")
    assert last == "True"
