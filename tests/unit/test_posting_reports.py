"""A worker thread never waits for the pool's lock to hand its report in, and what it leaves is taken in."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

import poolkit
from poolkit._engine.engine import Engine
from support import wait_until

ROUNDS = 400
WATCHDOG = 60.0  # seconds


class Held:
    """Holds the pool's lock in a thread of its own until `release`."""

    def __init__(self, desk: Engine) -> None:
        self._taken, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(desk,))
        self._thread.start()
        self._taken.wait()

    def _hold(self, desk: Engine) -> None:
        with desk._lock:
            self._taken.set()
            self._over.wait()

    def release(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def pool() -> Iterator[poolkit.Pool]:
    with poolkit.Pool(1, kind="thread") as made:
        made.warm_up()
        yield made


def test_a_report_that_was_left_is_taken_in_by_the_supervisor_thread(pool: poolkit.Pool) -> None:
    began, go_on = threading.Event(), threading.Event()

    def run() -> str:
        began.set()
        go_on.wait()
        return "done"

    task = pool.submit(run)
    began.wait()
    held = Held(pool._supervisor)
    try:
        go_on.set()
        wait_until(lambda: pool._supervisor._posted_reports, "its report was left")
        assert not task.done()
    finally:
        held.release()
    assert task.result() == "done"
    assert not pool._supervisor._posted_reports


def test_whoever_has_the_lock_looks_afterwards_but_calls_nobody_back(
    pool: poolkit.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback may take a lock that the caller has; it runs on a thread of the pool."""
    began, go_on = threading.Event(), threading.Event()

    def run() -> None:
        began.set()
        go_on.wait()

    task = pool.submit(run)
    called_by: list[threading.Thread] = []
    task.add_done_callback(lambda _: called_by.append(threading.current_thread()))
    began.wait()
    held = Held(pool._supervisor)
    with monkeypatch.context() as patch:
        patch.setattr(pool._supervisor.workforce, "wake", lambda: None)  # nobody but this thread knows
        go_on.set()
        wait_until(lambda: pool._supervisor._posted_reports, "its report was left")
        held.release()
    assert pool.options(priority=1).submit(abs, -1).result() == 1  # which cannot be handed in without the lock
    wait_until(lambda: called_by, "it was called back")
    assert called_by[0] is not threading.current_thread()
    assert task.done()


def test_tasks_that_wait_for_each_other_do_not_wait_for_ever() -> None:
    """They begin in the order of the queue, as with the standard library's threads."""
    with poolkit.Pool(2, kind="thread") as pool:
        tasks: list[poolkit.Task[int]] = []
        for _ in range(200):
            barrier = threading.Barrier(2)
            tasks += [pool.submit(barrier.wait, WATCHDOG) for _ in range(2)]
        for task in tasks:
            task.result()


def test_no_report_is_forgotten_while_others_take_the_lock_all_the_time() -> None:
    over = threading.Event()
    left: set[int] = set()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    with poolkit.Pool(3, kind="thread") as pool:

        def look() -> None:
            while not over.is_set():
                with pool._supervisor._lock:
                    sum(range(1000))
                left.update(map(id, pool._supervisor._posted_reports.copy()))

        lookers = [threading.Thread(target=look) for _ in range(2)]
        for looker in lookers:
            looker.start()
        try:
            turn = 0
            while turn < ROUNDS // 100 or (not left and turn < ROUNDS):  # who looks may come at the wrong moments
                tasks = [pool.submit(abs, -number) for number in range(100)]
                assert [task.result(timeout=60) for task in tasks] == list(range(100)), turn
                turn += 1
        finally:
            sys.setswitchinterval(before)
            over.set()
            for looker in lookers:
                looker.join()
        assert pool.stats().succeeded == 100 * turn
    assert left, "none was left"
