"""Callbacks of dedicated workers: messages in order on one thread of the process, then the end, told once."""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import support_workers as work
from poolkit import ChannelClosed, Worker, WorkerExited
from poolkit._engine.callbacks import CallbackThread
from poolkit._engine.services import WatcherThread
from support import WATCHDOG, wait_until
from support_gates import Gate

pytestmark = pytest.mark.needs("kill_running", "here")  # there are no fakes of them

MakeWorker = Callable[..., Worker[Any]]


class Heard:
    """Notes what the callbacks of a worker get, and on which threads."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.threads: set[threading.Thread] = set()
        self.exits: queue.SimpleQueue[tuple[WorkerExited, int]] = queue.SimpleQueue()

    def on_message(self, message: Any) -> None:
        self.threads.add(threading.current_thread())
        self.messages.append(message)

    def on_exit(self, exited: WorkerExited) -> None:
        self.threads.add(threading.current_thread())
        self.exits.put((exited, len(self.messages)))

    def exit(self) -> WorkerExited:
        """Wait until it has ended; all messages came before."""
        exited, messages = self.exits.get(timeout=WATCHDOG)
        assert messages == len(self.messages)
        return exited


@pytest.fixture
def heard() -> Heard:
    return Heard()


def threads_of(kind: type[threading.Thread]) -> list[str]:
    """The names of the threads of that kind that belong to no pool."""
    return [
        thread.name for thread in threading.enumerate() if isinstance(thread, kind) and "-workers-" not in thread.name
    ]


@pytest.mark.each_start_method
def test_messages_come_in_order_and_then_the_end(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.count, 1000)
    worker.on_message(heard.on_message)  # first: it may have ended before the next line
    worker.on_exit(heard.on_exit)
    exited = heard.exit()
    assert heard.messages == [*range(1000)]
    assert (exited.cause, exited.signal) == ("finished", None)
    assert {type(thread) for thread in heard.threads} == {CallbackThread}
    assert worker.join(WATCHDOG)


def test_messages_that_came_before_come_first(
    make_worker: MakeWorker, new_gate: Callable[[], Gate], heard: Heard
) -> None:
    arrived, release = new_gate(), new_gate()
    worker = make_worker(work.say_and_arrive, arrived, release, 1, 2, 3)
    arrived.wait()
    assert worker.recv(WATCHDOG) == 1
    worker.on_message(heard.on_message)
    worker.on_exit(heard.on_exit)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on_message"):
            worker.recv(0)
    with pytest.raises(RuntimeError, match="on_message"):
        next(worker)
    with pytest.raises(RuntimeError, match="on_message"):
        worker.on_message(heard.on_message)
    release.signal()
    assert heard.exit().cause == "finished"
    assert heard.messages == [2, 3]


def test_one_thread_for_all_workers_and_none_when_they_have_ended(make_worker: MakeWorker) -> None:
    ears = [Heard() for _ in range(5)]
    workers = [make_worker(work.echo) for _ in ears]
    for worker, heard in zip(workers, ears, strict=True):
        worker.on_message(heard.on_message)
        worker.on_exit(heard.on_exit)
        for number in range(200):
            worker.send(number)
    assert len(threads_of(CallbackThread)) <= 1
    assert len(threads_of(WatcherThread)) <= 1
    for worker in workers:
        worker.close()
    for heard in ears:
        assert heard.exit().cause == "finished"
        assert heard.messages == [*range(200)]
    assert len(set().union(*(heard.threads for heard in ears))) == 1
    before = threading.enumerate()
    for thread in before:
        if isinstance(thread, (CallbackThread, WatcherThread)):
            thread.join(WATCHDOG)
    assert threads_of(CallbackThread) == threads_of(WatcherThread) == []


def test_the_end_is_told_at_once_when_it_was_before(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.say, 1)
    assert worker.recv(WATCHDOG) == 1
    assert worker.join(WATCHDOG)
    worker.on_exit(heard.on_exit)
    assert heard.exit().cause == "finished"
    worker.on_message(heard.on_message)
    worker.on_exit(heard.on_exit)
    assert heard.exit().cause == "finished"
    assert heard.messages == []


def test_a_callback_that_raises_is_logged_and_not_called_again(
    make_worker: MakeWorker, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(message: Any) -> None:
        heard.on_message(message)
        msg = "not mine"
        raise ValueError(msg)

    def exit_badly(_exited: WorkerExited) -> None:
        raise SystemExit

    worker = make_worker(work.count, 500, name="teller")
    with caplog.at_level(logging.ERROR, "poolkit"):
        worker.on_message(refuse)
        worker.on_exit(exit_badly)
        worker.on_exit(heard.on_exit)
        assert heard.exit().cause == "finished"
    assert heard.messages == [0], "the others are dropped, and its worker does not wait"
    assert [record.getMessage() for record in caplog.records] == [
        "a callback of worker teller raised; it is not called again"
    ] * 2
    caplog.clear()  # the records hold frames, and those the worker


def test_a_message_that_cannot_be_loaded_is_logged(
    kind: Any, make_worker: MakeWorker, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    if kind.can("by_reference"):
        pytest.skip("nothing is loaded")
    worker = make_worker(work.unloadable_between)
    with caplog.at_level(logging.ERROR, "poolkit"):
        worker.on_message(heard.on_message)
        worker.on_exit(heard.on_exit)
        heard.exit()
    assert heard.messages == [1, 2]
    assert "could not be unpickled" in caplog.text
    caplog.clear()  # as above


# ===== what the end is told by =====


def test_target_raises(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.say_and_raise, 1)
    worker.on_message(heard.on_message)
    worker.on_exit(heard.on_exit)
    assert heard.exit().cause == "failed"
    assert heard.messages == [1]


def test_terminated(make_worker: MakeWorker, new_gate: Callable[[], Gate], heard: Heard) -> None:
    worker = make_worker(work.say_and_wait, new_gate(), 1)
    assert worker.recv(WATCHDOG) == 1
    worker.on_message(heard.on_message)
    worker.on_exit(heard.on_exit)
    worker.terminate()
    assert heard.exit().cause == "terminated"


def test_terminated_before_it_is_up(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.echo)
    worker.on_exit(heard.on_exit)
    worker.terminate()
    assert heard.exit().cause in {"terminated", "finished"}  # a thread may be up, and end by itself, meanwhile


@pytest.mark.needs("crash")
def test_dies_after_a_thousand_messages(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.count_and_die, 1000)
    worker.on_message(heard.on_message)
    worker.on_exit(heard.on_exit)
    exited = heard.exit()
    assert heard.messages == [*range(1000)]
    assert (exited.cause, exited.exitcode, exited.pid) == ("crashed", 3, worker.pid)


@pytest.mark.needs("crash")
def test_is_killed(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.sleep)
    pid = worker.recv(WATCHDOG)
    worker.on_exit(heard.on_exit)
    os.kill(pid, signal.SIGKILL)
    exited = heard.exit()
    assert (exited.cause, exited.signal, exited.pid) == ("crashed", "SIGKILL", pid)


@pytest.mark.needs("process")
@pytest.mark.one_start_method
def test_memory_limit(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.grow, 300 << 20, memory_limit=100 << 20)
    worker.on_exit(heard.on_exit)
    assert heard.exit().cause == "memory"


def test_a_callback_may_wait_for_its_own_worker_and_send(make_worker: MakeWorker, heard: Heard) -> None:
    worker = make_worker(work.echo)

    def again(message: int) -> None:
        heard.on_message(message)
        if message < 20:
            worker.send(message + 1)
        else:
            worker.close()
        assert not worker.join(WATCHDOG), "it only looks"

    worker.on_message(again)
    worker.on_exit(heard.on_exit)
    worker.send(0)
    assert heard.exit().cause == "finished"
    assert heard.messages == [*range(21)]


def test_bad_input(make_worker: MakeWorker) -> None:
    worker = make_worker(work.echo)
    for register in (worker.on_message, worker.on_exit):
        with pytest.raises(TypeError, match="callback must be something to call, was 3"):
            register(3)  # type: ignore[arg-type]
    worker.send(1)
    assert worker.recv(WATCHDOG) == 1
    worker.close()
    with pytest.raises(ChannelClosed):
        worker.recv(WATCHDOG)


@pytest.mark.one_start_method
def test_nothing_is_kept_of_one_that_has_ended(kind: Any, heard: Heard) -> None:
    gc.disable()
    try:
        workers: Any = [Worker(work.say, 1, **kind.settings), Worker.hosting(work.Counter, 5, **kind.settings)]
        workers[0].on_message(heard.on_message)
        channels = [weakref.ref(worker._channel) for worker in workers]
        for worker in workers:
            worker.on_exit(heard.on_exit)
            worker.close()
            assert worker.join(WATCHDOG)
            heard.exit()
        del workers, worker
        wait_until(lambda: [channel() for channel in channels] == [None, None])
    finally:
        gc.enable()
