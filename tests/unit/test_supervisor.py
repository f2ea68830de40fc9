"""The supervisor: what it publishes, and what interrupts it."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from typing import Any

import pytest

from poolkit import Pool, QueueFull
from poolkit._engine.engine import publishing
from poolkit.outcome import Outcome
from poolkit.task import Task, settled_task
from poolkit.testing import FakePool


def test_what_one_thread_has_to_publish_is_not_filled_by_the_next() -> None:
    """A list that was handed out empty stays empty: otherwise two threads would publish the same outcome."""
    with Pool(1, kind="thread") as pool:
        supervisor = pool._supervisor
        settled = settled_task("name", Outcome(1, ok=True)), Outcome(1, ok=True)
        with supervisor._lock:
            mine = supervisor._decided()
        with supervisor._lock:
            supervisor._scheduler.settled.append(settled)
            theirs = supervisor._decided()
        assert mine == []
        assert theirs == [settled]


def test_an_interrupt_while_publishing_leaves_the_rest_to_be_published() -> None:
    """A Ctrl-C in one task's callback loses no other task's outcome."""
    release = threading.Event()
    with Pool(1, kind="thread") as pool:
        tasks = [pool.submit(release.wait) for _ in range(4)]

        def interrupt(_task: object) -> None:
            raise KeyboardInterrupt

        tasks[1].add_done_callback(interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.cancel_all()
        release.set()
        wait(tasks, 30)
        assert [task.cancelled() for task in tasks] == [True] * 4


def test_a_callback_that_submits_to_a_full_queue_is_refused_instead_of_waiting() -> None:
    """Waiting in a callback would wait for the thread that runs it."""
    caught: list[BaseException] = []
    done = threading.Event()
    release = threading.Event()
    with Pool(1, kind="thread", max_queue=1) as pool:

        def submit_again(_task: object) -> None:
            try:
                for _ in range(3):
                    pool.submit(release.wait)
            except BaseException as exc:
                caught.append(exc)
            finally:
                done.set()

        begin = threading.Event()
        task = pool.submit(begin.wait)
        task.add_done_callback(submit_again)  # before it is done, or this thread would call it
        begin.set()
        assert done.wait(30)
        release.set()
    assert [type(error) for error in caught] == [QueueFull]


def test_warm_up_keeps_idle_workers_until_all_are_up() -> None:
    """With a short `idle_timeout`, the first worker does not leave while the last one starts."""
    with FakePool("manual", max_workers=2, idle_timeout=1) as pool:
        roster = pool._supervisor.scheduler.roster
        pool.submit(len, "ab")
        pool.run_all()
        roster.warming += 1
        pool.advance(10)
        assert roster.counted == 1
        roster.warming -= 1
        pool.advance(10)
        assert roster.counted == 0


def test_an_interrupted_warm_up_keeps_no_idle_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come the moment after it was counted as waiting."""
    with Pool(1, kind="thread") as pool:
        decide = pool._supervisor._decide

        def interrupted(step: Any) -> None:
            decide(step)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pool._supervisor, "_decide", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.warm_up()
        assert pool._supervisor._scheduler.roster.warming == 0


def test_what_an_argument_does_when_it_is_dropped_counts_as_done_in_a_callback() -> None:
    """It is dropped by the thread that makes room in a full queue, which must not wait for room itself."""
    depths: list[int] = []

    class Argument:
        def __del__(self) -> None:
            depths.append(publishing.depth)

    with Pool(1, kind="thread") as pool:
        task: Task[int] = Task(None, "name", Argument(), None)
        pool._supervisor._publish([(task, Outcome(1, ok=True))])
        assert depths == [1]
        assert publishing.depth == 0


def test_who_published_nothing_looks_after_the_leader_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it read may have been the word to a sleeping leader that its task is done."""
    looked: list[bool] = []
    with Pool(1, kind="thread") as pool:
        with monkeypatch.context() as patch:
            patch.setattr(pool._supervisor._reader, "awaited", settled_task("name", Outcome(1, ok=True)))
            patch.setattr(pool._supervisor._reader, "published", lambda: looked.append(True))
            pool._supervisor._publish([])
        assert looked == [True]
