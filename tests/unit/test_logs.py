"""Frames of several writers in one outbox; records and outcomes at the teller; the marks of threads' records."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit._core.workforce import Logged
from poolkit._wire import link
from poolkit._wire.link import Outbox
from poolkit._workforce import logs
from poolkit._workforce.logs import Teller
from support import wait_until
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


def test_what_is_left_in_the_midst_of_a_write_comes_whole_behind_it(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a finalizer or a signal handler."""
    outbox = Outbox(pipe.write_fd)
    left = iter([b"<one>", b"<two>"])

    def leave() -> None:
        for frame in left:
            outbox.leave(frame)

    monkeypatch.setattr(link, "os", MeddlingOs(leave))
    outbox.leave(b"<frame>")
    outbox.send(b"<header", b" payload>")
    assert pipe.close() == b"<frame><one><two><header payload>"


def test_what_is_left_while_the_main_threads_frame_is_written_comes_behind_it(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(pipe.write_fd)
    left = iter([b"<one>", b"<two>"])

    def leave() -> None:
        for frame in left:
            outbox.leave(frame)

    monkeypatch.setattr(link, "os", MeddlingOs(leave))
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


def test_threads_that_leave_more_than_can_be_written_wait_for_the_writer(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LONGEST_WAIT", 0.01)
    outbox = Outbox(pipe.write_fd)
    outbox._lock.acquire()
    thread = threading.Thread(target=lambda: [outbox.leave(b"x") for _ in range(link.MOST_LEFT + 3)])
    thread.start()
    thread.join()
    outbox._lock.release()
    outbox.leave(b"y")
    assert pipe.close() == b"x" * (link.MOST_LEFT + 3) + b"y"


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


# ===== the teller =====


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    handler = Keeper()
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


@pytest.fixture
def teller() -> Iterator[Teller]:
    made = Teller("test", lambda: None)
    yield made
    made.close()


def logged(message: str, name: str = "support") -> Logged:
    return Logged(1, 2, pickle.dumps({"name": name, "msg": message, "levelno": 30, "levelname": "WARNING"}))


OUTCOME: Any = [("task", "outcome")]


def test_outcomes_do_not_wait_where_nothing_was_logged(teller: Teller) -> None:
    assert teller.hold([], OUTCOME) is OUTCOME


def test_outcomes_wait_until_what_was_logged_before_is_told(teller: Teller, keeper: Keeper) -> None:
    release = threading.Event()
    keeper.action = lambda _: release.wait()
    assert teller.hold([logged("one")], []) == []
    assert teller.hold([logged("two")], OUTCOME) == []
    teller.attend()
    wait_until(lambda: keeper.records, "the first is being told")
    assert teller.take_held() == []
    release.set()
    teller.wait()
    assert teller.take_held() == OUTCOME
    assert keeper.messages == ["one", "two"]
    assert teller.hold([], OUTCOME) is OUTCOME


def test_outcomes_do_not_wait_for_a_handler_that_hangs(
    teller: Teller, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "STALL", 0.01)
    release = threading.Event()
    keeper.action = lambda _: release.wait()
    assert teller.hold([logged("one")], OUTCOME) == []
    teller.attend()
    teller.wait()
    assert teller.take_held() == OUTCOME
    assert teller.hold([logged("two")], OUTCOME) is OUTCOME, "from now on, until it has caught up"
    release.set()
    wait_until(lambda: not teller.untold, "all is told")
    assert teller.hold([logged("three")], OUTCOME) == []


def test_who_reads_more_than_can_be_told_waits(teller: Teller, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MANY", 2)
    release = threading.Event()
    keeper.action = lambda _: release.wait()
    teller.hold([logged("one")], [])
    teller.attend()
    teller.take_held()
    wait_until(lambda: keeper.records, "the first is being told")
    held = len(teller.held)
    teller.hold([logged("two")], [])
    assert len(teller.held) == held
    teller.hold([logged("three")], [])
    assert len(teller.held) == held + 1
    release.set()


def test_without_a_thread_records_are_told_by_who_read_them(
    teller: Teller, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the interpreter no thread can be started."""

    def refuse(_self: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("poolkit._workforce.logs.TellerThread.start", refuse)
    for number in range(2):
        assert teller.hold([logged(str(number))], OUTCOME) == []
        teller.attend()
        teller.wait()
        assert teller.take_held() == OUTCOME
    assert keeper.messages == ["0", "1"]


def test_closing_tells_what_is_left_but_does_not_wait_for_a_handler_that_hangs(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "STALL", 0.01)
    release = threading.Event()
    keeper.action = lambda _: release.wait()
    teller = Teller("test", lambda: None)
    teller.hold([logged("one"), logged("two")], [])
    teller.attend()
    teller.close()
    release.set()
    monkeypatch.setattr(logs, "STALL", 30.0)
    teller.close()
    assert keeper.messages == ["one", "two"]


@pytest.mark.parametrize("payload", [b"", b"no pickle", pickle.dumps(3), pickle.dumps({"name": 3, "levelno": 30})])
def test_a_record_that_is_none_is_said(teller: Teller, keeper: Keeper, payload: bytes) -> None:
    for _ in range(2):
        teller.hold([Logged(1, 2, payload)], OUTCOME)
        teller.attend()
        teller.wait()
    assert [record.name for record in keeper.records] == ["poolkit"]


# ===== beside =====


def test_levels_are_those_that_were_set() -> None:
    logging.getLogger("support.deep.below")
    logging.getLogger("support.deep").setLevel(17)
    try:
        found = logs.log_levels()
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
        logs.mark_records.__wrapped__()
        record = logging.getLogger().makeRecord("name", 30, "file", 1, "message", (), None)
    finally:
        logging.setLogRecordFactory(before)
    assert type(record) is Own
    assert not hasattr(record, "poolkit_task")
