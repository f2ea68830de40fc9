"""The owner's ends of links as one set: what was read is taken into account once, whatever interrupts the reading."""

from __future__ import annotations

import dis
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

from poolkit._core.workforce import Finished, Logged, Report
from poolkit._kinds import links
from poolkit._kinds.links import Links
from poolkit._kinds.peer import Peer
from poolkit._wire import link, messages
from poolkit._wire.link import CHUNK, FrameReader
from poolkit.incoming import Incoming
from poolkit.task import Task


class Rung(BaseException):
    """What a signal handler raises."""


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer(1)
    theirs = peer.open([])
    yield peer
    for fd in theirs:
        os.close(fd)
    peer.close()


@pytest.fixture
def written(peer: Peer) -> Iterator[int]:
    """The descriptor to which the worker would write."""
    reading, writing = os.pipe()
    os.dup2(reading, peer.outcomes_fd)
    os.set_blocking(peer.outcomes_fd, False)
    os.close(reading)
    yield writing
    os.close(writing)


def frame(kind: int, number: int, payload: bytes) -> bytes:
    return messages.FRAME_TO_OWNER.pack(kind, number, 0.0, 0.0, 0, len(payload)) + payload


def lines_of(code: CodeType, last: str, count: int) -> set[int]:
    """So many lines of a function, up to the one with that text."""
    source, start = inspect.getsourcelines(code)
    (at,) = [index for index, line in enumerate(source) if last in line]
    return set(range(start + at - count + 1, start + at + 1))


# Where a report is taken, and where what was read is: stores alone, between which CPython lets no exception in.
COMMITS = {
    Links.take.__code__: lines_of(Links.take.__code__, "reader.large = None", 3)
    | lines_of(Links.take.__code__, "reader.pos = pos = after", 3),
    FrameReader.fill.__code__: lines_of(FrameReader.fill.__code__, "self.read = []", 4),
    FrameReader.begin_large.__code__: lines_of(FrameReader.begin_large.__code__, "self.pos = 0", 5),
}
ALLOWED = {
    "LOAD",
    "STORE",
    "COPY",
    "DUP",
    "BINARY",
    "INPLACE",
    "BUILD",
    "CACHE",
    "NOP",
    "SWAP",
    "ROT",
    "RESUME",
    "PUSH",
}


def test_no_exception_comes_in_where_a_report_is_taken() -> None:
    """Neither a call, nor a jump backwards, nor the entry of a function: there alone CPython looks for signals."""
    looked_at = 0
    for code, lines in COMMITS.items():
        line = 0
        for instruction in dis.get_instructions(code):
            line = getattr(instruction, "line_number", None) or instruction.starts_line or line
            if line not in lines or line == max(lines):  # behind the last store, all is done
                continue
            looked_at += 1
            assert instruction.opname.split("_")[0] in ALLOWED, f"{code.co_name}, line {line}: {instruction.opname}"
    assert looked_at > 20


def interrupted(at: int, call: Callable[[], object]) -> bool:
    """Do something that is interrupted at the line of that number; False if it has not so many."""
    left = at
    files = (links.__file__, link.__file__)

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and frame.f_lineno not in COMMITS.get(frame.f_code, ()):
            left -= 1
            if left == 0:
                raise Rung
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Rung:
        return True
    finally:
        sys.settrace(before)
    return left <= 0


def taken(reports: list[Report] | Any) -> list[Any]:
    return [pickle.loads(report.payload) for report in reports]


@pytest.mark.parametrize("size", [10, 3 * CHUNK])
def test_reading_that_is_interrupted_at_any_line_goes_on_where_it_was(peer: Peer, written: int, size: int) -> None:
    read = Links(lambda: pytest.fail("a link was given up"))
    read.add(peer)
    items = Incoming(None)
    talks: Task[Any] = Task(None, "talks", None, None)
    talks.incoming = items
    read.find = lambda _worker_id, _task_id: talks
    at, number, was_interrupted = 0, 0, True
    expected: list[bytes] = []
    while was_interrupted:
        at += 1
        values = [bytes([at % 256, index]) * size for index in range(2)]
        data = b"".join(frame(messages.VALUE, number, pickle.dumps(value)) for value in values)
        data += frame(messages.LOG, 7, pickle.dumps(at)) + frame(messages.ITEM, 8, pickle.dumps(at))
        expected += values
        was_interrupted = False
        while data:
            count = os.write(written, data[:CHUNK])
            data = data[count:]
            was_interrupted |= interrupted(at, read.read)
            read.read()
            while read.poll(0.0):
                read.read()
        assert (len(read.reports), len(read.logged)) == (2 * at, at)
    assert at > 30
    assert all(type(report) is Finished for report in read.reports)
    assert all(type(record) is Logged for record in read.logged)
    assert taken(read.reports) == expected
    assert taken(read.logged) == [*range(1, at + 1)]
    assert [*map(pickle.loads, items.items)] == [*range(1, at + 1)]
    read.close()
