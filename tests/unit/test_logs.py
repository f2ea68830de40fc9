"""Frames of several writers in one outbox; records and outcomes at the teller; the marks of threads' records.

Longer than most: each order in which records, outcomes and interrupts can come is one case.
"""

from __future__ import annotations

import itertools
import logging
import marshal
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit._core.workforce import Logged
from poolkit._wire import link
from poolkit._wire.link import Outbox
from poolkit._workforce import logs
from poolkit._workforce.logs import Teller
from poolkit.task import Task
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


class Owner:
    """A teller, what it has published, and how often it woke the supervisor thread."""

    def __init__(self) -> None:
        self.links = SomeLinks()
        self.published: list[Any] = []
        self.woken = 0
        self.teller = Teller("test", self.published.extend, self.wake, self.links)  # type: ignore[arg-type]

    def wake(self) -> None:
        self.woken += 1


class SomeLinks:
    """Which workers are not read."""

    def __init__(self) -> None:
        self.paused: set[int] = set()

    def pause(self, worker_id: int) -> bool:
        self.paused.add(worker_id)
        return True

    def resume(self, worker_id: int) -> None:
        self.paused.remove(worker_id)


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    yield made
    made.teller.close(30.0)


@pytest.fixture
def teller(owner: Owner) -> Teller:
    return owner.teller


@pytest.fixture
def release(keeper: Keeper, owner: Owner) -> Iterator[threading.Semaphore]:
    """Handlers wait until they are let go of, one release a record."""
    semaphore = threading.Semaphore(0)
    keeper.action = lambda _: semaphore.acquire()
    yield semaphore
    semaphore.release(1000)


def logged(message: str, worker_id: int = 1, name: str = "support") -> Logged:
    return Logged(worker_id, 2, marshal.dumps({"name": name, "msg": message, "levelno": 30, "levelname": "WARNING"}))


def outcome_of(worker_id: int, attempts: int = 1) -> Any:
    task = Task(None, "name", None, None)
    task.worker_id, task.attempts = worker_id, attempts
    return [(task, "outcome")]


OUTCOME = outcome_of(1)


def test_outcomes_do_not_wait_where_nothing_was_logged(teller: Teller) -> None:
    assert teller.hold([], OUTCOME) == OUTCOME


def test_outcomes_are_published_when_what_was_logged_before_is_told(
    owner: Owner, keeper: Keeper, release: threading.Semaphore
) -> None:
    teller = owner.teller
    assert teller.hold([logged("one")], []) == []
    assert teller.hold([logged("two")], OUTCOME) == []
    release.release()
    wait_until(lambda: len(keeper.records) == 2, "the second is being told")
    assert teller.take_due() == owner.published == []
    release.release()
    wait_until(lambda: owner.published == OUTCOME, "it is published")
    assert keeper.messages == ["one", "two"]
    assert teller.hold([], OUTCOME) == OUTCOME


def test_outcomes_do_not_wait_for_a_handler_that_hangs(
    owner: Owner, release: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller = owner.teller
    monkeypatch.setattr(logs, "STALL", 0.01)
    assert teller.hold([logged("one")], OUTCOME) == []
    assert owner.woken, "the supervisor thread is to look"
    assert 0.0 <= teller.patience() <= 0.01
    wait_until(lambda: teller.take_due() == OUTCOME, "it is due")
    assert teller.hold([logged("two")], OUTCOME) == OUTCOME, "from now on, until the first is told"
    monkeypatch.setattr(logs, "STALL", 30.0)
    release.release()
    wait_until(lambda: len(teller.untold) == 1, "the first is told")
    assert teller.hold([logged("three")], OUTCOME) == []
    assert owner.published == []


def test_outcomes_wait_under_any_load_where_each_waits_for_a_moment_only(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, release: threading.Semaphore
) -> None:
    """Records come for longer than an outcome may wait, and there is always one that is untold."""
    teller = owner.teller
    monkeypatch.setattr(logs, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(logs, "STALL", 30.0)
    teller.hold([logged("first")], [])
    began = time.monotonic()
    times = [began] * 3
    for count in itertools.count():
        times = [*times[1:], time.monotonic()]
        early = teller.hold([logged("next")], OUTCOME) + teller.take_due()
        assert not early or time.monotonic() > times[0] + 0.1, "it has not waited for long"
        release.release()
        wait_until(lambda least=count: len(owner.published) >= least, "those before are published")  # type: ignore[misc]
        if time.monotonic() > began + 0.4:
            return


def test_outcomes_of_workers_that_log_nothing_wait_for_nobody(owner: Owner, release: threading.Semaphore) -> None:
    teller, quiet = owner.teller, outcome_of(2)
    assert teller.hold([logged("one", 1)], quiet + OUTCOME) == quiet
    assert teller.hold([], quiet) == quiet
    assert teller.hold([], outcome_of(2, attempts=2)) == [], "what it logged in another worker may be untold"


def test_each_outcome_waits_for_so_long_at_most_whatever_the_others_do(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, release: threading.Semaphore
) -> None:
    monkeypatch.setattr(logs, "LONGEST_WAIT", 0.01)
    teller = owner.teller
    teller.hold([logged("one")], OUTCOME)
    wait_until(lambda: teller.take_due() == OUTCOME, "it has waited for that long")
    monkeypatch.setattr(logs, "LONGEST_WAIT", 30.0)
    assert teller.hold([logged("two")], OUTCOME) == []


def test_the_supervisor_thread_is_not_woken_for_each_outcome_that_is_held(teller: Teller, owner: Owner) -> None:
    for _ in range(50):
        teller.hold([logged("one")], OUTCOME)
        teller.patience()
        wait_until(lambda: not teller.untold, "it is told")
    assert owner.woken < 10


def test_a_worker_that_logs_more_than_can_be_told_is_not_read_until_half_of_it_is(
    owner: Owner, release: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MANY", 4)
    teller, paused = owner.teller, owner.links.paused
    teller.hold([logged("quiet", 2)] * 4, [])
    teller.hold([logged("noisy", 1)] * 4, [])
    assert paused == set()
    teller.hold([logged("noisy", 1)], [])
    assert paused == {1}
    release.release(6)
    wait_until(lambda: len(teller.untold) == 3, "two of it are told")
    assert paused == {1}
    release.release()
    wait_until(lambda: paused == set(), "two of it are left")
    assert owner.woken


def test_a_handler_that_waits_for_the_pool_has_all_workers_read(
    owner: Owner, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for a task of the one that logs so much."""
    monkeypatch.setattr(logs, "MANY", 1)
    asked, release = threading.Event(), threading.Semaphore(0)

    def ask(_record: object) -> None:
        asked.wait()
        owner.teller.step_aside()
        release.acquire()

    keeper.action = ask
    owner.teller.hold([logged("one")] * 2, OUTCOME)
    assert owner.links.paused == {1}
    asked.set()
    wait_until(lambda: owner.links.paused == set(), "it is read again")
    assert owner.teller.take_due() == OUTCOME
    assert owner.teller.hold([logged("two")], OUTCOME) == OUTCOME
    assert owner.links.paused == set()
    release.release(3)


def test_without_a_thread_outcomes_do_not_wait_and_records_are_told_at_the_end(
    owner: Owner, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the interpreter no thread can be started."""

    def refuse(_self: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("poolkit._workforce.logs.TellerThread.start", refuse)
    monkeypatch.setattr(logs, "MANY", 1)
    for number in range(3):
        assert owner.teller.hold([logged(str(number))], OUTCOME) == OUTCOME
    assert owner.links.paused == set()
    assert not keeper.records
    owner.teller.close(30.0)
    assert keeper.messages == ["0", "1", "2"]


def test_closing_tells_what_is_left_but_does_not_wait_for_a_handler_that_hangs(
    owner: Owner, keeper: Keeper, release: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "STALL", 0.01)
    owner.teller.hold([logged("one"), logged("two")], OUTCOME)
    owner.teller.close(30.0)
    assert owner.published == OUTCOME
    assert owner.teller.hold([], OUTCOME) == OUTCOME
    release.release(2)
    monkeypatch.setattr(logs, "STALL", 30.0)
    owner.teller.close(30.0)
    assert keeper.messages == ["one", "two"]
    assert owner.published == OUTCOME


def test_closing_in_no_time_waits_for_no_handler(owner: Owner, release: threading.Semaphore) -> None:
    owner.teller.hold([logged("one"), logged("two")], OUTCOME)
    began = time.monotonic()
    owner.teller.close(0.0)
    assert time.monotonic() - began < logs.STALL
    assert owner.published == OUTCOME


@pytest.mark.parametrize("payload", [b"", b"no marshal", marshal.dumps(3), marshal.dumps({"name": 3, "levelno": 30})])
def test_a_record_that_is_none_is_said(owner: Owner, keeper: Keeper, payload: bytes) -> None:
    for count in (1, 2):
        owner.teller.hold([Logged(1, 2, payload)], OUTCOME)
        wait_until(lambda least=count: len(owner.published) == least, "it was tried")  # type: ignore[misc]
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
        logs.mark_records()
        record = logging.getLogger().makeRecord("name", 30, "file", 1, "message", (), None)
    finally:
        logging.setLogRecordFactory(before)
    assert type(record) is Own
    assert not hasattr(record, "poolkit_task")


def test_records_are_marked_again_when_somebody_has_restored_the_factory() -> None:
    before = logging.getLogRecordFactory()
    try:
        logging.setLogRecordFactory(logging.LogRecord)
        logs.mark_records()
        marking = logging.getLogRecordFactory()
        logs.mark_records()
        assert logging.getLogRecordFactory() is marking, "once is enough"
        logging.setLogRecordFactory(logging.LogRecord)
        logs.mark_records()
        assert logging.getLogRecordFactory() is not logging.LogRecord
    finally:
        logging.setLogRecordFactory(before)
