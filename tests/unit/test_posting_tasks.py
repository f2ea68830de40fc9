"""While all workers are busy, a new task is only left at the desk; nothing that was left there is forgotten."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import poolkit
from poolkit._engine.requests import PASSES_BY


class Busy:
    """A pool of one thread, which is busy until `release`."""

    def __init__(self) -> None:
        self.pool = poolkit.Pool(1, kind="thread")
        self.began, self._over = threading.Event(), threading.Event()
        self.held = self.pool.submit(self._hold)
        self.began.wait()
        self.desk = self.pool._supervisor
        self.ran: list[int] = []

    def _hold(self) -> None:
        self.began.set()
        self._over.wait()

    def release(self) -> None:
        self._over.set()

    def left(self) -> list[poolkit.Task[Any]]:
        return list(self.desk._posted_tasks)

    def do_between_the_looks(self, action: Callable[[], object], *, left: bool) -> None:
        """What another thread does between the two looks of a submitter, before or after the task was left."""

        class Meddling(deque[poolkit.Task[Any]]):
            def append(self, task: poolkit.Task[Any]) -> None:
                if left:
                    super().append(task)
                action()
                if not left:
                    super().append(task)

        self.desk._posted_tasks = Meddling(self.desk._posted_tasks)


@pytest.fixture
def busy() -> Iterator[Busy]:
    made = Busy()
    yield made
    made.release()
    made.pool.shutdown(kill=True)


def in_another_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def test_it_takes_no_lock_and_is_numbered_at_once(busy: Busy) -> None:
    taken, over = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with busy.desk._lock:
            taken.set()
            over.wait()

    thread = threading.Thread(target=hold_the_lock)
    thread.start()
    taken.wait()
    try:
        tasks = [busy.pool.submit(busy.ran.append, number) for number in range(3)]
        assert busy.left() == tasks
        assert [task.id for task in tasks] == [2, 3, 4]
    finally:
        over.set()
        thread.join()


def test_the_step_for_the_next_report_takes_it_in(busy: Busy) -> None:
    tasks = [busy.pool.submit(busy.ran.append, number) for number in range(3)]
    assert busy.left() == tasks
    busy.release()
    for task in reversed(tasks):
        task.result()
    assert busy.ran == [0, 1, 2]
    assert busy.left() == []


def test_a_step_takes_its_word_back_before_it_looks_what_was_left(busy: Busy) -> None:
    """Else who leaves a task between the two finds that all are busy still, and the step does not find the task."""
    desk, words = busy.desk, []

    class Looked(deque[poolkit.Task[Any]]):
        def __bool__(self) -> bool:
            if desk._owns_lock():
                words.append(desk._all_busy)
            return len(self) > 0

    desk._posted_tasks = Looked()
    assert desk._all_busy
    last = busy.pool.options(priority=1).submit(abs, -1)  # a step of the submitter
    assert words.pop() is False
    busy.release()  # one for a report
    last.result()
    assert words
    assert not any(words)


def test_not_too_many_are_left(busy: Busy) -> None:
    for number in range(10 * PASSES_BY):
        busy.pool.submit(busy.ran.append, number)
        assert len(busy.left()) <= PASSES_BY + 1


def test_it_is_counted_and_can_be_cancelled(busy: Busy) -> None:
    task = busy.pool.submit(busy.ran.append, 1)
    assert (busy.pool.stats().submitted, busy.pool.stats().queued, busy.desk.queued()) == (2, 1, 1)
    assert busy.left() == [task], "whoever looks must not change anything"
    other = busy.pool.submit(busy.ran.append, 2)
    assert (task.state, task.running(), task.done()) == ("queued", False, False)
    assert task.cancel()
    busy.release()
    other.result()
    assert busy.ran == [2]


@pytest.mark.parametrize("options", [{"priority": 1}, {"deadline": 60.0}, {"queue_timeout": 60.0}])
def test_what_the_scheduler_has_to_see_at_once_is_not_left(busy: Busy, options: dict[str, Any]) -> None:
    before = busy.pool.submit(busy.ran.append, 1)
    task = busy.pool.options(**options).submit(busy.ran.append, 2)
    assert busy.left() == []
    busy.release()
    assert [before.result(), task.result()] == [None, None]
    assert busy.ran == ([2, 1] if "priority" in options else [1, 2])


def test_a_pool_with_a_bounded_queue_leaves_nothing() -> None:
    began, over = threading.Event(), threading.Event()
    with poolkit.Pool(1, kind="thread", max_queue=1) as pool:
        pool.submit(lambda: (began.set(), over.wait()))
        began.wait()
        pool.submit(int)
        with pytest.raises(poolkit.QueueFull):
            pool.options(block=False).submit(int)
        over.set()


@pytest.mark.parametrize("left", [True, False])
def test_a_worker_that_becomes_idle_before_the_second_look_gets_it(busy: Busy, left: bool) -> None:
    def become_idle() -> None:
        busy.release()
        busy.held.result()

    busy.do_between_the_looks(lambda: in_another_thread(become_idle), left=left)
    busy.pool.submit(busy.ran.append, 1).result()
    assert (busy.ran, busy.left()) == ([1], [])


def test_it_is_refused_when_the_pool_is_shut_down_before_the_second_look(busy: Busy) -> None:
    busy.do_between_the_looks(lambda: in_another_thread(lambda: busy.pool.shutdown(wait=False)), left=False)
    with pytest.raises(poolkit.PoolClosed):
        busy.pool.submit(busy.ran.append, 1)
    assert busy.left() == []
    busy.release()
    busy.pool.shutdown()
    assert busy.ran == []
    assert busy.pool.stats().submitted == 1


@pytest.mark.parametrize("late", [True, False])
def test_what_was_left_before_a_shutdown_is_finished(busy: Busy, late: bool) -> None:
    if late:
        busy.do_between_the_looks(lambda: in_another_thread(lambda: busy.pool.shutdown(wait=False)), left=True)
    task = busy.pool.submit(busy.ran.append, 1)
    busy.pool.shutdown(wait=False)
    busy.release()
    task.result()
    assert busy.ran == [1]


def test_what_was_left_before_a_kill_is_cancelled(busy: Busy) -> None:
    task = busy.pool.submit(busy.ran.append, 1)
    busy.pool.shutdown(wait=False, kill=True)
    with pytest.raises(poolkit.TaskCancelled):
        task.result()
    busy.release()


def test_another_thread_may_take_it_in_at_the_second_look(busy: Busy) -> None:
    """Its submitter comes for it too, and finds that it was accepted."""

    def step() -> None:
        with busy.desk._lock:
            busy.desk._enter()

    busy.do_between_the_looks(step, left=True)
    task = busy.pool.submit(busy.ran.append, 1)
    busy.release()
    task.result()
    assert (busy.ran, busy.pool.stats().submitted) == ([1], 2)


def test_a_signal_handler_within_a_step_may_submit(busy: Busy) -> None:
    """The step that it interrupted has taken the flag back, so the task is postponed until that step is over."""
    with busy.desk._lock:
        busy.desk._enter()
        task = busy.pool.submit(busy.ran.append, 1)
        assert not task.id
        busy.desk._decided()
    busy.release()
    task.result()
    assert busy.ran == [1]


def test_a_signal_handler_that_interrupts_whoever_holds_the_lock_makes_no_step(
    busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the flag still holds: at the end of a step, and while somebody only looks."""
    steps: list[object] = []
    with monkeypatch.context() as patch, busy.desk._lock:
        patch.setattr(busy.desk, "_enter", lambda: steps.append("entered"))
        tasks = [busy.pool.submit(busy.ran.append, number) for number in range(3 * PASSES_BY)]
        assert steps == []
        assert busy.left() == tasks
    busy.release()
    assert [task.result() for task in tasks] == [None] * len(tasks)
    assert busy.ran == list(range(len(tasks)))


def test_processes_too() -> None:
    """There the submitter also reads what is on the links."""
    with poolkit.Pool(2) as pool:
        pool.warm_up()
        for _ in range(20):
            tasks = [pool.submit(abs, -number) for number in range(500)]
            assert [task.id for task in tasks] == list(range(tasks[0].id, tasks[0].id + 500))
            assert [task.result() for task in tasks] == list(range(500))
        stats = pool.stats()
        assert (stats.submitted, stats.succeeded, stats.queued, stats.running) == (10_000, 10_000, 0, 0)
        assert stats.run_time.count == stats.wait_time.count == sum(count for _, count in stats.run_time.buckets)


def test_many_threads_submit_while_workers_come_to_rest_all_the_time() -> None:
    """Every task runs once, and each thread's own in order, whoever is faster."""
    ran: list[tuple[int, int]] = []
    with poolkit.Pool(1, kind="thread") as pool:

        def submit(thread: int) -> None:
            for number in range(300):
                task = pool.submit(ran.append, (thread, number))
                if number % 7 == thread:
                    task.result()

        threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert sorted(ran) == [(thread, number) for thread in range(4) for number in range(300)]
    for thread in range(4):
        assert [number for who, number in ran if who == thread] == list(range(300))
