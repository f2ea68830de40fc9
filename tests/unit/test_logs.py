"""Frames of several writers in one outbox; records and outcomes behind them; the marks of threads' records.

Longer than most: each order in which records, outcomes and interrupts can come is one case.
"""

from __future__ import annotations

import logging
import marshal
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit._core.workforce import Logged
from poolkit._engine import log_records
from poolkit._engine.callbacks import Callbacks
from poolkit._engine.log_records import Records
from poolkit._kinds import loggers
from poolkit._wire import link
from poolkit._wire.link import Outbox
from poolkit.task import Task
from support import WATCHDOG
from support_logs import Keeper

# ===== the outbox =====


class Pipe:
    """A pipe that a thread empties."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.received = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self.read_fd, 65536):
            self.received += piece

    def close(self) -> bytes:
        """Returns all that was written."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self._thread.join()
            os.close(self.read_fd)
            self.write_fd = -1
        return self.received


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


class MeddlingOs:
    """`os` for the module under test: each write takes a little, and something happens in the midst of it."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def write(self, fd: int, data: Any) -> int:
        self.action()
        return os.write(fd, bytes(data[:3]))


def _leave_two_in_a_write(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([b"<one>", b"<two>"])

    def leave() -> None:
        for frame in left:
            outbox.leave(frame)

    monkeypatch.setattr(link, "os", MeddlingOs(leave))


def test_what_is_left_in_the_midst_of_a_write_comes_whole_behind_it(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a finalizer or a signal handler."""
    outbox = Outbox(pipe.write_fd)
    _leave_two_in_a_write(outbox, monkeypatch)
    outbox.leave(b"<frame>")
    outbox.send(b"<header", b" payload>")
    assert pipe.close() == b"<frame><one><two><header payload>"


def test_what_is_left_while_the_main_threads_frame_is_written_comes_behind_it(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(pipe.write_fd)
    _leave_two_in_a_write(outbox, monkeypatch)
    outbox.send(b"<header", b" payload>")
    assert pipe.close() == b"<header payload><one><two>"


def test_a_frame_that_was_torn_by_an_exception_is_completed(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(pipe.write_fd)
    calls = []

    def fail() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyError

    monkeypatch.setattr(link, "os", MeddlingOs(fail))
    with pytest.raises(KeyError):
        outbox.leave(b"<a frame of some length>")
    outbox.send(b"<header", b" payload>")
    assert pipe.close() == b"<a frame of some length><header payload>"


def test_a_thread_leaves_its_frame_to_the_one_that_writes_and_does_not_wait(pipe: Pipe) -> None:
    outbox = Outbox(pipe.write_fd)
    outbox._lock.acquire()  # the main thread is in the midst of it
    outbox._writing = True
    thread = threading.Thread(target=outbox.leave, args=(b"<left>",))
    thread.start()
    thread.join()
    outbox._writing = False
    outbox._lock.release()
    outbox.send(b"<header>", b"")
    assert pipe.close() == b"<left><header>"


def test_many_threads_tear_no_frames(pipe: Pipe) -> None:
    outbox = Outbox(pipe.write_fd)

    def run(name: int) -> None:
        for number in range(200):
            outbox.leave(b"%d %d %s;" % (name, number, b"x" * (number * 10)))

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for number in range(200):
        outbox.send(b"main ", b"%d ;" % number)
    for thread in threads:
        thread.join()
    frames = [frame.split() for frame in pipe.close().split(b";")[:-1]]
    for name in (b"0", b"1", b"2", b"3", b"main"):
        assert [int(frame[1]) for frame in frames if frame[0] == name] == list(range(200))
    assert all(len(frame[2]) == int(frame[1]) * 10 for frame in frames if frame[0] != b"main" and frame[1] != b"0")


def test_nothing_is_raised_where_nobody_reads_any_more() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    outbox = Outbox(writer)
    outbox.leave(b"frame")
    os.close(writer)
    outbox.leave(b"frame")
    assert not outbox._frames


def test_what_a_handler_raises_is_not_swallowed_with_that(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(pipe.write_fd)

    def late() -> None:
        raise TimeoutError

    monkeypatch.setattr(link, "os", MeddlingOs(late))
    with pytest.raises(TimeoutError):
        outbox.leave(b"frame")


# ===== records and outcomes =====


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    handler = Keeper()
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


class Owner:
    """Records, what was published behind them, which workers are not read, and the test as the callback thread."""

    def __init__(self) -> None:
        self.callbacks = Callbacks("test", int)  # type: ignore[arg-type]
        self.calls = self.callbacks.queue
        self.published: list[Any] = []
        self.not_read: set[int] = set()
        self.records = Records(self.callbacks, "test", self.published.extend, int, self)  # type: ignore[arg-type]

    def pause(self, worker_id: int) -> bool:
        self.not_read.add(worker_id)
        return True

    def let_talk(self) -> None:
        """None was paused for messages."""

    def resume(self, worker_id: int) -> None:
        self.not_read.remove(worker_id)

    def call(self, count: int) -> None:
        for _ in range(count):
            call, what = self.calls.popleft()
            call(what)


@pytest.fixture
def owner() -> Owner:
    return Owner()


def logged(message: str, worker_id: int = 1, name: str = "support") -> Logged:
    return Logged(worker_id, 2, marshal.dumps({"name": name, "msg": message, "levelno": 30, "levelname": "WARNING"}))


def outcome_of(worker_id: int, attempts: int = 1) -> Any:
    task = Task(None, "name", None, None)
    task.id, task.worker_id, task.attempts = 2 * worker_id, worker_id, attempts
    return [(task, "outcome")]


OUTCOME = outcome_of(1)


def test_outcomes_do_not_wait_where_nothing_was_logged(owner: Owner) -> None:
    assert owner.records.defer(OUTCOME) == OUTCOME


def test_outcomes_are_published_behind_what_was_logged_before(owner: Owner, keeper: Keeper) -> None:
    owner.records.add(deque([logged("one")]))
    owner.records.add(deque([logged("two")]))
    assert owner.records.defer(OUTCOME) == []
    owner.call(2)
    assert keeper.messages == ["one", "two"]
    assert owner.published == []
    owner.call(1)
    assert owner.published == OUTCOME
    assert owner.records.defer(OUTCOME) == OUTCOME


def test_outcomes_of_workers_that_log_nothing_wait_for_nobody(owner: Owner) -> None:
    quiet = outcome_of(2)
    owner.records.add(deque([logged("one", 1)]))
    assert owner.records.defer(quiet + OUTCOME) == quiet
    assert owner.records.defer(quiet) == quiet
    assert owner.records.defer(outcome_of(2, attempts=2)) == [], "what it logged in another worker may be pending"


def test_another_task_of_the_worker_waits_only_for_what_no_task_has_logged(owner: Owner) -> None:
    """A thread that a task has started does not know its task."""
    other = outcome_of(1)
    other[0][0].id = 3
    owner.records.add(deque([logged("one", 1)]))
    assert owner.records.defer(other) == other
    owner.records.add(deque([Logged(1, 0, b"")]))
    assert owner.records.defer(other) == []


def test_a_finalizer_may_wait_for_the_pool_in_the_midst_of_the_records(owner: Owner) -> None:
    """A collection may run it wherever something is allocated, also on the thread that holds the lock."""

    def be_interrupted() -> None:
        with owner.records._lock:
            owner.records.step_aside()

    owner.records.add(deque([logged("one")]))
    assert owner.records.defer(OUTCOME) == []
    thread = threading.Thread(target=be_interrupted, daemon=True)
    thread.start()
    thread.join(WATCHDOG)
    assert not thread.is_alive()
    assert owner.published == OUTCOME


def test_a_worker_that_logs_more_than_is_handled_is_not_read_until_half_of_it_is(
    owner: Owner, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_records, "MANY", 4)
    owner.records.add(deque([logged("quiet", 2)] * 4))
    owner.records.add(deque([logged("noisy", 1)] * 4))
    assert owner.not_read == set()
    owner.records.add(deque([logged("noisy", 1)]))
    assert owner.not_read == {1}
    owner.call(6)
    assert owner.not_read == {1}
    owner.call(1)
    assert owner.not_read == set()
    assert keeper.messages == ["quiet"] * 4 + ["noisy"] * 3


def test_where_the_callback_thread_waits_outcomes_pass_and_all_workers_are_read(
    owner: Owner, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_records, "MANY", 1)

    def wait(_record: object) -> None:
        owner.records.step_aside()
        assert owner.published == OUTCOME
        assert owner.not_read == set()
        assert owner.records.defer(OUTCOME) == OUTCOME
        owner.records.add(deque([logged("two")] * 2))
        assert owner.not_read == set()

    owner.records.add(deque([logged("one")] * 2))
    assert owner.records.defer(OUTCOME) == []
    assert owner.not_read == {1}
    keeper.action = wait
    owner.call(1)
    keeper.action = None
    owner.callbacks.has_waited = False  # as the callback thread does
    assert owner.records.defer(OUTCOME) == []
    owner.call(5)
    assert owner.published == OUTCOME * 2
    assert keeper.messages == ["one"] * 2 + ["two"] * 2


@pytest.mark.parametrize("payload", [b"", b"no marshal", marshal.dumps(3), marshal.dumps({"name": 3, "levelno": 30})])
def test_a_record_that_is_none_is_said_once(owner: Owner, keeper: Keeper, payload: bytes) -> None:
    owner.records.add(deque([Logged(1, 2, payload)] * 2))
    owner.call(2)
    assert [record.name for record in keeper.records] == ["poolkit"]
    assert not owner.records.pending


# ===== beside =====


def test_levels_are_those_that_were_set() -> None:
    logging.getLogger("support.deep.below")
    logging.getLogger("support.deep").setLevel(17)
    try:
        found = loggers.log_levels()
    finally:
        logging.getLogger("support.deep").setLevel(logging.NOTSET)
    assert found[""] == logging.root.level
    assert found["support.deep"] == 17
    assert "support.deep.below" not in found


def test_the_factory_that_was_there_makes_the_records() -> None:
    class Own(logging.LogRecord):
        pass

    before = logging.getLogRecordFactory()
    try:
        logging.setLogRecordFactory(Own)
        loggers.mark_records()
        record = logging.getLogger().makeRecord("name", 30, "file", 1, "message", (), None)
    finally:
        logging.setLogRecordFactory(before)
    assert type(record) is Own
    assert not hasattr(record, "poolkit_task")


def test_records_are_marked_again_when_somebody_has_restored_the_factory() -> None:
    before = logging.getLogRecordFactory()
    try:
        logging.setLogRecordFactory(logging.LogRecord)
        loggers.mark_records()
        marking = logging.getLogRecordFactory()
        loggers.mark_records()
        assert logging.getLogRecordFactory() is marking, "once is enough"
        logging.setLogRecordFactory(logging.LogRecord)
        loggers.mark_records()
        assert logging.getLogRecordFactory() is not logging.LogRecord
    finally:
        logging.setLogRecordFactory(before)
