"""A worker thread never waits for the pool's lock to hand its report in, and what it leaves is taken in."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import poolkit
from poolkit._workforce.desk import Desk
from support import wait_until

ROUNDS = 3000


class Held:
    """Holds the pool's lock in a thread of its own until `release`."""

    def __init__(self, desk: Desk) -> None:
        self._taken, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(desk,))
        self._thread.start()
        self._taken.wait()

    def _hold(self, desk: Desk) -> None:
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


def test_it_goes_on_with_what_it_was_sent_while_another_thread_has_the_lock(pool: poolkit.Pool) -> None:
    ran: list[int] = []
    worker = next(iter(pool._supervisor._scheduler.roster))
    held = Held(pool._supervisor)
    try:
        worker_thread = pool._supervisor.workforce._members[worker.id]  # type: ignore[attr-defined]
        sent = [poolkit.Task(pool._supervisor, "sent", (ran.append, (number,), {}), pool._options) for number in (1, 2)]
        worker_thread.claims.extend((task, False) for task in sent)
        worker_thread.inbox.put("go")
        wait_until(lambda: len(ran) == 2, "it ran both without the lock")
    finally:
        held.release()
    assert ran == [1, 2]


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
        wait_until(lambda: pool._supervisor._left, "its report was left")
        assert not task.done()
    finally:
        held.release()
    assert task.result() == "done"
    assert not pool._supervisor._left


def test_no_report_is_forgotten_while_others_take_the_lock_all_the_time() -> None:
    over = threading.Event()
    with poolkit.Pool(3, kind="thread") as pool:

        def look() -> None:
            while not over.is_set():
                pool.stats()

        lookers = [threading.Thread(target=look) for _ in range(2)]
        for looker in lookers:
            looker.start()
        try:
            for turn in range(ROUNDS // 100):
                tasks = [pool.submit(abs, -number) for number in range(100)]
                assert [task.result(timeout=60) for task in tasks] == list(range(100)), turn
        finally:
            over.set()
            for looker in lookers:
                looker.join()
        assert pool.stats().succeeded == ROUNDS
