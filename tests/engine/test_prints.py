"""What tasks print on nodes reaches the standard output and errors of the owner, as it does on one machine."""

from __future__ import annotations

import collections
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from poolkit import _os
from poolkit._nodes import prints
from poolkit._nodes.prints import Printer, Prints
from support import WATCHDOG, wait_until
from support_scripts import run_script

pytestmark = pytest.mark.slow

HALVES = """
import fcntl, sys
def lock(how): fcntl.lockf(1, how)
lock(fcntl.LOCK_EX)
sys.stdout.write("half a")
sys.stdout.flush()
sys.stdin.readline()
sys.stdout.write(" line\\n")
sys.stdout.flush()
lock(fcntl.LOCK_UN)
"""

POOL = """
import os, sys
import poolkit
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool

def pool(nodes):
    return NodePool(LocalProvider(nodes, 1), min_nodes=nodes)
"""

IN_ORDER = """
def work(number):
    print("task", number)
    os.system(f"echo program {number}")
    print("end of", number, end=";")

with pool(2) as nodes:
    for number in range(20):
        nodes.submit(work, number).result()
        print("result", number, flush=True)
"""

MIXED = """
def work(word):
    for count in (1, 300, 3_000, 50_000):
        print(word * count)
        print(word, word, word, file=sys.stderr)

os.dup2(1, 2)
with pool(2) as nodes:
    list(nodes.map(work, ["xa", "yb"] * 20, chunksize=1))
"""

UNREAD = """
import logging

class Noted(logging.Handler):
    def emit(self, record):
        noted.append(record.getMessage())

def work(number):
    print("x" * 1000)
    return number

noted = []
logging.getLogger("poolkit").addHandler(Noted())
kept, (reading, writing) = os.dup(1), os.pipe()
os.dup2(writing, 1)
with pool(1) as nodes:
    # More than fits the pipe, and may be under way, so that the rest has to wait, and is dropped.
    assert list(nodes.map(work, range(4000), chunksize=1000)) == list(range(4000))
    os.set_blocking(reading, False)
    count = 0
    while not noted or count < 1 << 20:  # so much was under way
        try:
            count += len(os.read(reading, 1 << 16))
        except BlockingIOError:
            nodes.submit(print, "again").result()
os.write(kept, noted[0].encode())
"""


@pytest.fixture
def of_node() -> Iterator[Prints]:
    """What a node has printed; nobody is woken for it."""
    made = Prints(lambda: None)
    yield made
    made.close()


def taken(of_node: Prints) -> bytes:
    """What was printed to its output and not taken."""
    return b"".join(data for _, data, _ in of_node.take())


@pytest.mark.skipif(not _os.LINUX, reason="writes on another thread")
def test_what_was_printed_before_an_outcome_is_there_before_it() -> None:
    lines = run_script(POOL + IN_ORDER).splitlines()
    wanted = "task {0}", "program {0}", "end of {0};result {0}"
    assert lines == [line.format(number) for number in range(20) for line in wanted]


def test_lines_of_two_nodes_never_mix() -> None:
    kinds = collections.Counter(frozenset(line) - {" "} for line in run_script(POOL + MIXED).splitlines())
    assert kinds == {frozenset("xa"): 160, frozenset("yb"): 160}


def test_an_output_that_nobody_reads_holds_nothing_up_for_ever() -> None:
    assert "bytes that tasks printed on node local:" in run_script(POOL + UNREAD)


def test_half_a_line_waits_for_the_other_half(of_node: Prints) -> None:
    writer = subprocess.Popen([sys.executable, "-c", HALVES], stdin=subprocess.PIPE, stdout=of_node.streams[0])
    wait_until(lambda: of_node.take() or of_node._rest[0], "the first half")
    assert of_node._rest[0] == b"half a"
    assert taken(of_node) == b""
    writer.communicate(b"\n", WATCHDOG)
    assert taken(of_node) == b"half a line\n"


def test_what_has_no_end_is_told_when_nobody_writes_on(of_node: Prints) -> None:
    os.write(of_node.streams[0], b"one\ntwo")
    os.write(of_node.streams[1], b"errors")
    assert of_node.take() == [(0, b"one\ntwo", 0), (1, b"errors", 0)]


def test_its_pool_is_woken_for_what_no_outcome_takes_along() -> None:
    woken = threading.Event()
    of_node = Prints(woken.set)
    try:
        os.write(of_node.streams[1], b"here")
        assert woken.wait(WATCHDOG)
        assert of_node.take() == [(1, b"here", 0)]
    finally:
        of_node.close()


def test_what_is_not_shown_is_dropped_after_a_while_and_counted(
    monkeypatch: pytest.MonkeyPatch, of_node: Prints
) -> None:
    monkeypatch.setattr(prints, "MOST", 10_000)
    monkeypatch.setattr(prints, "PATIENCE", WATCHDOG)
    line, output = b"y" * 999 + b"\n", of_node.streams[0]
    os.write(output, line * 10)
    assert taken(of_node) == line * 10
    writer = threading.Thread(target=lambda: [os.write(output, line) for _ in range(1000)])
    writer.start()
    wait_until(lambda: not select.select([], [output], [], 0)[1], "the pipe to be full")
    assert of_node.take() == []
    assert writer.is_alive()
    assert not of_node._lost
    monkeypatch.setattr(prints, "PATIENCE", 0.0)
    writer.join(WATCHDOG)
    wait_until(lambda: of_node._lost == 1_000_000, "all of it to be dropped")
    assert of_node.take() == []
    of_node.shown(10_000)
    os.write(output, b"again\n")
    assert of_node.take() == [(0, b"again\n", 1_000_000)]


@pytest.mark.parametrize("is_blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_pipe_that_is_full_gets_the_rest_later(is_blocking: bool) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)  # as a standard stream is
    os.set_blocking(writing, is_blocking)
    counts: list[int] = []
    printer, data = Printer(), [bytes([65 + n]) * 50_000 for n in range(4)]
    for each in data:
        printer.write(writing, each, counts.append)
    assert sum(counts) < 200_000
    found = b""
    while len(found) < 200_000 and select.select([reading], [], [], WATCHDOG)[0]:
        found += os.read(reading, 1 << 16)
    printer.close(WATCHDOG)
    assert found == b"".join(data)
    assert sum(counts) == 200_000
    printer.write(writing, b"more", counts.append)
    assert os.read(reading, 10) == b"more"
    os.close(reading)
    os.close(writing)


def test_what_no_thread_could_be_started_for_is_written_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    counts: list[int] = []
    printer = Printer()

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(prints, "_write_some", lambda _fd, _data: 0)
        patch.setattr(threading.Thread, "start", fail)
        printer.write(writing, b"one", counts.append)
    printer.write(writing, b"two", counts.append)
    printer.close(WATCHDOG)
    assert counts == [3, 3]
    assert os.read(reading, 10) == b"onetwo"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("is_broken", [True, False], ids=["broken", "closed"])
def test_what_nobody_can_have_counts_as_shown(is_broken: bool) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    os.close(reading)
    if not is_broken:
        os.close(writing)
    counts: list[int] = []
    printer = Printer()
    printer.write(writing, b"gone", counts.append)
    printer.close(WATCHDOG)
    assert counts == [4]
    if is_broken:
        os.close(writing)
