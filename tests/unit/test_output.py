"""The copy of what a worker prints: the streams stay what they are, and only the process itself is copied."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolkit import _os
from poolkit._child import output
from poolkit._wire.board import NBYTES, Board

FACTS = "encoding errors line_buffering write_through name mode closed newlines"


@pytest.fixture
def board() -> Iterator[Board]:
    fd = _os.shared_page(NBYTES)
    made = Board(fd)
    os.close(fd)
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    os.close(read)
    os.close(write)


Make = Callable[..., io.TextIOWrapper]


@pytest.fixture
def make_stdout(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make this process's standard output a stream over a pipe, as the interpreter would make it."""

    def make(*, unbuffered: bool = False, **settings: Any) -> io.TextIOWrapper:
        raw = io.FileIO(pipe[1], "wb", closefd=False)
        raw.name = "<stdout>"
        stream = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
            **{"encoding": "utf-8", "errors": "strict", "newline": "\n", "write_through": unbuffered, **settings},
        )
        stream.mode = "w"  # type: ignore[misc]
        monkeypatch.setattr(sys, "__stdout__", stream)
        monkeypatch.setattr(sys, "__stderr__", None)
        return stream

    return make


@pytest.mark.parametrize(
    "settings",
    [{}, {"line_buffering": True}, {"encoding": "latin-1", "errors": "replace"}, {"unbuffered": True}],
    ids=["usual", "lines", "encoding", "unbuffered"],
)
def test_a_stream_stays_the_object_that_it_is_with_all_it_is_set_to(
    board: Board, pipe: tuple[int, int], make_stdout: Make, settings: dict[str, Any]
) -> None:
    stream = make_stdout(**settings)
    buffer = stream.buffer
    before = {name: getattr(stream, name) for name in FACTS.split()}
    before["line_buffering"] = True
    output.keep_output(board)
    assert {name: getattr(stream, name) for name in FACTS.split()} == before
    assert (stream.fileno(), stream.isatty()) == (pipe[1], False)
    assert (stream.buffer is buffer) != bool(settings.get("unbuffered"))  # which is given one
    assert (stream.buffer.name, stream.buffer.mode) == ("<stdout>", "wb")
    print("héllo", file=stream, flush=True)
    stream.buffer.write(b"bytes\n")
    stream.flush()
    written = os.read(pipe[0], 100)
    assert written == "héllo\nbytes\n".encode(stream.encoding)
    assert board.output() == written.decode("utf-8", "replace")


def test_what_is_still_in_a_buffer_when_it_is_replaced_comes_out_once(
    board: Board, pipe: tuple[int, int], make_stdout: Make
) -> None:
    stream = make_stdout()
    stream.write("before ")
    output.keep_output(board)
    print("after", file=stream)
    assert os.read(pipe[0], 100) == b"before after\n"
    assert board.output() == "after\n"


def test_a_line_that_was_printed_is_not_in_a_buffer(board: Board, pipe: tuple[int, int], make_stdout: Make) -> None:
    stream = make_stdout()
    output.keep_output(board)
    print("important", file=stream)
    assert os.read(pipe[0], 100) == b"important\n"
    assert board.output() == "important\n"
    print("not yet", end="", file=stream)
    assert board.output() == "important\n"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_line_is_written_when_it_has_its_end_and_its_rest_when_the_task_is_done(
    board: Board, pipe: tuple[int, int], make_stdout: Make, *, unbuffered: bool
) -> None:
    stream = make_stdout(unbuffered=unbuffered)
    output.keep_output(board)

    def written() -> bytes:
        try:
            return os.read(pipe[0], 1 << 20)
        except BlockingIOError:
            return b""

    for part in ("a ", "b", " c"):
        print(part, end="", file=stream, flush=True)
        stream.buffer.flush()
    assert written() == b""
    assert board.output() == "a b c", "it is kept, should the worker die now"
    print(file=stream)
    assert written() == b"a b c\n"
    print("one\ntwo", end="", file=stream, flush=True)
    assert written() == b"one\n"
    print(" 50 %", end="\r", file=stream, flush=True)
    assert written() == b"two 50 %\r"
    print("rest", end="", file=stream)
    stream.flush()
    assert written() == b""
    output.flush()
    assert written() == b"rest"
    output.flush()
    assert written() == b""
    assert board.output() == "a b c\none\ntwo 50 %\rrest"
    print("last", end="", file=stream)
    stream.close()
    assert written() == b"last"


def test_a_line_without_an_end_is_held_up_to_a_bound(
    board: Board, make_stdout: Make, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    monkeypatch.setattr(output, "MOST_HELD", 100)
    stream = make_stdout()
    output.keep_output(board)
    for _ in range(25):
        stream.write("12345678")
        stream.flush()
    assert os.read(pipe[0], 1000) == b"12345678" * 13
    stream.flush()
    output.flush()
    assert os.read(pipe[0], 1000) == b"12345678" * 12


def test_a_stream_that_was_closed_afterwards_is_closed(board: Board, make_stdout: Make) -> None:
    stream = make_stdout()
    output.keep_output(board)
    stream.close()
    assert stream.closed
    with pytest.raises(ValueError, match="closed"):
        print("too late", file=stream)


def test_streams_that_are_none_closed_detached_or_somebodys_own_are_left_alone(
    board: Board, make_stdout: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stdout().close()
    output.keep_output(board)
    make_stdout().detach()
    output.keep_output(board)
    monkeypatch.setattr(sys, "__stdout__", io.TextIOWrapper(io.BytesIO()))
    output.keep_output(board)
    for stream in (None, io.StringIO(), object()):
        monkeypatch.setattr(sys, "__stdout__", stream)
        output.keep_output(board)
    assert board.output() == ""


def test_a_forked_child_prints_and_is_not_copied(board: Board, pipe: tuple[int, int], make_stdout: Make) -> None:
    stream = make_stdout()
    output.keep_output(board)
    pid = os.fork()
    if not pid:
        print("child", file=stream, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(pipe[0], 100) == b"child\n"
    assert board.output() == ""


def test_threads_that_print_at_once_leave_whole_pieces(board: Board, make_stdout: Make) -> None:
    stream = make_stdout()
    output.keep_output(board)
    barrier = threading.Barrier(4)

    def talk(number: int) -> None:
        barrier.wait()
        for _ in range(50):
            stream.write(f"{number}{number}\n")
            stream.flush()

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = board.output().split()
    assert len(lines) == 200
    assert set(lines) == {"00", "11", "22", "33"}


def test_a_write_that_fails_raises_what_it_raised_before(board: Board, make_stdout: Make) -> None:
    stream = make_stdout()
    output.keep_output(board)
    raw = stream.buffer.raw
    with pytest.raises(TypeError):
        raw.write("text")  # type: ignore[arg-type]
    assert raw.write(b"") == 0
    assert board.output() == ""
    raw.close()
    with pytest.raises(ValueError, match="closed"):
        raw.write(b"bytes\n")
