"""Exceptions at one certain place of a step, as a signal handler may raise: nothing is lost, nobody stands still."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

# What interrupts a function once, on the main thread: before the line that has a text, or when it returns.
TOOLS = """
    import inspect, os, sys, tempfile, threading, time
    import concurrent.futures
    import poolkit

    def interrupt(function, text):
        code = function.__code__
        lines, start = inspect.getsourcelines(code)
        wanted = {start + index for index, line in enumerate(lines) if text and text in line}
        assert wanted or not text, text

        def trace(frame, event, _):
            if frame.f_code is not code:
                return None
            if (event == "line" and frame.f_lineno in wanted) or (event == "return" and not text):
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)

    def interrupted(call, *args):
        try:
            call(*args)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)

    def shut_down(pool):
        thread = threading.Thread(target=pool.shutdown, daemon=True)
        thread.start()
        thread.join(20)
        print(not thread.is_alive())

    def work(value, seconds=0):
        time.sleep(seconds)
        return value
    """


def lines_of(source: str) -> list[str]:
    return run(TOOLS + source)


def test_a_thread_that_was_ordered_is_started() -> None:
    source = """
    from poolkit._kinds.thread import ThreadWorkforce
    pool = poolkit.Pool(1, kind="thread")
    interrupt(ThreadWorkforce._start, "name =")
    print(interrupted(pool.submit, len, "abc"), pool.submit(len, "abcd").result(20))
    shut_down(pool)
    """
    assert lines_of(source) == ["True 4", "True"]


def test_a_thread_whose_start_was_interrupted_is_one_worker() -> None:
    """It runs already while its starter waits to hear that; nobody can tell, so it is started again."""
    source = """
    pool = poolkit.Pool(2, kind="thread", name="twice")
    release = threading.Event()
    held = pool.submit(release.wait)
    while held.state != "running":
        pass
    interrupt(threading.Thread.start, "_started.wait()")
    print(interrupted(pool.submit, len, "abc"), pool.submit(len, "abcd").result(20))
    release.set()
    held.result(20)
    while sum(thread.name == "poolkit-twice-2" for thread in threading.enumerate()) > 1:
        pass
    print([info.state for info in pool.workers()])
    shut_down(pool)
    """
    assert lines_of(source) == ["True 4", "['idle', 'idle']", "True"]


def test_who_waits_for_room_is_woken() -> None:
    source = """
    from poolkit._engine.engine import Engine
    pool = poolkit.Pool(1, kind="thread", max_queue=1)
    release = threading.Event()
    held, queued = pool.submit(release.wait), pool.submit(len, "x")
    waiter = threading.Thread(target=pool.submit, args=(len, "abc"), daemon=True)
    waiter.start()
    while not pool._supervisor._waiters.waiting:
        pass
    interrupt(Engine._wake_waiters, "left = wake_each")
    print(interrupted(queued.cancel))
    release.set()
    waiter.join(20)
    print(waiter.is_alive())
    shut_down(pool)
    """
    assert lines_of(source) == ["True", "False", "True"]


def test_the_condition_of_a_task_is_not_left_held() -> None:
    source = """
    pool = poolkit.Pool(1)
    pool.submit(work, 0).result()
    task = pool.submit(work, 1, 0.3)
    concurrent.futures.wait([task], timeout=0)
    interrupt(threading.Condition.__enter__, "")
    interrupted(task.result)
    other, told = pool.submit(work, 5), threading.Event()
    other.add_done_callback(lambda _: told.set())
    print(told.wait(20), task.result())
    shut_down(pool)
    """
    assert lines_of(source) == ["True 1", "True"]


def test_outcomes_behind_log_records_come() -> None:
    source = """
    import logging
    from poolkit._engine.log_records import Records

    class Slow(logging.Handler):
        def emit(self, record):
            time.sleep(0.1)

    def log(value):
        import logging
        logging.getLogger("w").warning("said")
        return value

    logging.getLogger("w").addHandler(Slow())
    logging.getLogger("w").propagate = False
    pool = poolkit.Pool(1)
    pool.submit(len, "").result()
    interrupt(Records.defer, "self._callbacks.queue.append")
    task = pool.submit(log, 1)
    interrupted(task.result)  # mostly: the supervisor thread may be first
    print([pool.submit(log, number).result(20) for number in range(3)], task.result(20))
    shut_down(pool)
    """
    assert lines_of(source) == ["[0, 1, 2] 1", "True"]


def test_a_worker_that_is_to_leave_leaves() -> None:
    source = """
    from poolkit._core.roster import Roster
    pool = poolkit.Pool(1, max_tasks_per_child=1, initializer=time.sleep, initargs=(0.5,))
    pool.warm_up()
    first, second = pool.submit(work, 1, 0.1), pool.submit(work, 2)
    interrupt(Roster.rest, "worker.idle_since = now")
    interrupted(first.result)  # mostly: see above
    print(first.result(20), second.result(20))
    shut_down(pool)
    """
    assert lines_of(source) == ["1 2", "True"]


def test_a_task_that_was_cancelled_is_stopped() -> None:
    source = """
    from poolkit._core.enforce import Enforcer
    pool = poolkit.Pool(1)
    pool.warm_up()
    task = pool.submit(work, 1, 1000)
    while task.state != "running":
        pass
    interrupt(Enforcer._doom, "wants_outcome")
    print(interrupted(task.cancel), pool.submit(work, 2).result(20), task.cancelled())
    shut_down(pool)
    """
    assert lines_of(source) == ["True 2 True", "True"]


def test_a_run_is_counted_once() -> None:
    source = """
    from poolkit._core.outcomes import Outcomes

    def flaky(path):
        time.sleep(0.2)
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 2:
            raise ValueError("first")
        return "second"

    pool = poolkit.Pool(1)
    pool.submit(work, 1).result()
    task = pool.options(retries=1, retry_on=(ValueError,)).submit(flaky, tempfile.mktemp())
    interrupt(Outcomes.conclude, "if not self._may_run_again")
    interrupted(task.result)
    print(task.result(20), task.attempts)
    shut_down(pool)
    """
    assert lines_of(source) == ["second 2", "True"]


def test_a_result_in_shared_memory_is_taken() -> None:
    source = """
    from poolkit._memory.channel import DescriptorChannel
    pool = poolkit.Pool(1)
    pool.warm_up()
    task = pool.submit(lambda: (time.sleep(0.2), bytes(8_000_000))[1])
    interrupt(DescriptorChannel._receive, "kind, count = ")
    interrupted(task.result)  # mostly: see above
    print(len(task.result(20)))
    shut_down(pool)
    """
    assert lines_of(source) == ["8000000", "True"]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_handler_may_submit_and_wait_or_is_refused(kind: str) -> None:
    """It never stands still, wherever it interrupts its own thread."""
    source = f"""
    import signal

    def ring(*_):
        global is_ringing
        if not is_ringing:
            is_ringing = True
            try:
                results.add(pool.submit(work, 7).result(timeout=20))
            except poolkit.PoolkitError:
                refused.append(1)
            is_ringing = False
        signal.setitimer(signal.ITIMER_REAL, 0.0003)

    results, refused, is_ringing = set(), [], False
    pool = poolkit.Pool(2, kind={kind!r})
    pool.warm_up()
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        try:
            assert pool.submit(work, 1).result(20) == 1
        except poolkit.PoolkitError:
            pass
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    print(results)
    shut_down(pool)
    """
    assert lines_of(source) == ["{7}", "True"]
