"""How a program, or a pool of it, can end: by SIGTERM, by being dropped, many at once, or from odd threads."""

from __future__ import annotations

import signal

import pytest

from lifecycle.scripts import Script, python, run, running, text_of

pytestmark = pytest.mark.slow

BUSY = """
import concurrent.futures, os, signal, sys, threading, time
import poolkit

def sleep(_=None):
    os.write(1, b"up\\n")
    time.sleep(3600)

def leave(number, frame):
    sys.exit(7)
"""
WAITS = {
    "result": "tasks[0].result()",
    "map": "list(pool.map(sleep, range(9), chunksize=1))",
    "wait": "concurrent.futures.wait(tasks)",
    "leaving": "pass",
}


@pytest.mark.parametrize("wait", WAITS)
def test_sigterm_ends_a_program_and_everybody_with_it(wait: str) -> None:
    source = f"""
        with poolkit.Pool(2) as pool:
            tasks = [pool.submit(sleep), pool.submit(sleep)]
            {WAITS[wait]}
        """
    with running(BUSY + text_of(source)) as script:
        script.read_lines(2)
        assert script.kill(signal.SIGTERM) == -signal.SIGTERM
        script.wait_until_gone()


@pytest.mark.parametrize("wait", WAITS)
def test_a_handler_of_sigterm_that_exits_leaves_the_pool_first(wait: str) -> None:
    """SystemExit in the body of `with` is no reason to stop what runs; the exit handler of the program is."""
    source = f"""
        signal.signal(signal.SIGTERM, leave)
        with poolkit.Pool(2) as pool:
            tasks = [pool.submit(sleep), pool.submit(sleep)]
            try:
                {WAITS[wait]}
                pool.shutdown()
            except SystemExit:
                pool.shutdown(kill=True)
                print([task.state for task in tasks], flush=True)
                raise
        """
    with running(BUSY + text_of(source)) as script:
        script.read_lines(2)
        assert script.kill(signal.SIGTERM) == 7
        ended = script.finish()
        assert ended.err == ""
        assert "['cancelled', 'cancelled']" in ended.out
        script.wait_until_gone()


@pytest.mark.parametrize("where", ["pool = poolkit.Pool(2)", "pool = poolkit.default_pool()"])
def test_a_handler_of_sigterm_that_exits_finishes_short_work(where: str) -> None:
    """Without a shutdown, the interpreter's exit waits for it; silently."""
    source = f"""
        def work(number):
            time.sleep(0.05)
            return number

        signal.signal(signal.SIGTERM, leave)
        {where}
        tasks = [pool.submit(work, number) for number in range(10)]
        tasks[-1].add_done_callback(lambda task: os.write(1, b"done\\n"))
        os.write(1, b"up\\n")
        signal.pause()
        """
    with running(BUSY + text_of(source)) as script:
        script.read_lines(1)
        assert script.kill(signal.SIGTERM) == 7
        ended = script.finish()
        assert (ended.out, ended.err) == ("done\n", "")
        script.wait_until_gone()


# ===== pools that nobody shuts down =====


@pytest.mark.parametrize("cycle", [False, True])
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_dropped_pool_ends_also_where_its_warning_is_an_error(kind: str, cycle: bool) -> None:
    source = f"""
        import gc, threading
        import poolkit

        pool = poolkit.Pool(2, kind={kind!r})
        if {cycle}:
            pool.itself = pool
        task = pool.submit(abs, -1)
        del pool
        gc.collect()
        print(task.result())
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join()
        print(threading.active_count())
        """
    with Script(python("-W", "error::ResourceWarning", "-c", text_of(source))) as script:
        ended = script.finish()
        assert (ended.code, ended.out) == (0, "1\n1\n")
        assert ended.err.count("was not shut down") == 1
        assert ended.err.count("Traceback") == 1
        script.wait_until_gone()


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize("leave", ["pool.shutdown()", "pass", "poolkit.default_pool().submit(abs, -1).result()"])
@pytest.mark.every_nth(9)
def test_nothing_warns_of_what_is_left_open(method: str, leave: str) -> None:
    """Python's development mode shows all: neither the owner nor a worker, shut down or not, has something to say."""
    source = f"""
        import poolkit
        pool = poolkit.Pool(2, start_method={method!r})
        pool.warm_up()
        print(pool.submit(abs, -1).result())
        {leave}
        """
    with Script(python("-X", "dev", "-c", text_of(source))) as script:
        assert script.finish().check() == ["1"]
        script.wait_until_gone()


# ===== many, and odd threads =====


@pytest.mark.long
def test_twenty_pools_at_once_and_then_nothing() -> None:
    lines = run(
        """
        import contextlib, os, threading
        import poolkit
        from poolkit._spawn import registry

        held = []
        for _ in range(2):
            with contextlib.ExitStack() as stack:
                pools = [stack.enter_context(poolkit.Pool(2, kind=kind)) for kind in ["process", "thread"] * 10]
                tasks = [pool.submit(abs, -number) for number in range(50) for pool in pools]
                print(sum(task.result() for task in tasks))
                threads = [threading.Thread(target=pool.shutdown) for pool in pools for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            registry.end_all()
            held.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
        print(held[0] == held[1], held[0][0])
        """
    )
    assert lines == [str(sum(range(50)) * 20)] * 2 + ["True 1"]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_pool_outlives_the_thread_that_made_it(kind: str) -> None:
    """For workers whose parent-death signal followed a thread, that would be the end."""
    lines = run(
        f"""
        import threading
        import poolkit

        made = []

        def make():
            pool = poolkit.Pool(2, kind={kind!r})
            pool.warm_up()
            made.append((pool, {{worker.pid for worker in pool.workers()}}))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        pool, pids = made.pop()
        print(sum(task.result() for task in [pool.submit(abs, -number) for number in range(100)]))
        print({{worker.pid for worker in pool.workers()}} == pids)
        pool.shutdown()
        """
    )
    assert lines == ["4950", "True"]


def test_a_task_on_a_thread_that_shuts_its_pool_down_does_not_wait_for_itself() -> None:
    lines = run(
        """
        import threading
        import poolkit

        both = threading.Barrier(2)

        def work():
            both.wait()
            pool.shutdown(wait=True)
            return "went on"

        pool = poolkit.Pool(2, kind="thread")
        tasks = [pool.submit(work) for _ in range(2)]
        print([task.result() for task in tasks])
        pool.shutdown()
        """
    )
    assert lines == ["['went on', 'went on']"]
