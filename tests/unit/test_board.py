"""The page that a worker stamps and the owner reads."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from poolkit import _os
from poolkit._child.outgoing import Outgoing
from poolkit._clock import monotonic
from poolkit._core.workforce import Status
from poolkit._wire import board as boards_module
from poolkit._wire.board import RING, Board, page


@pytest.fixture(params=["memfd", "file"])
def boards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Board, Board]]:
    """The worker's and the owner's view of one page."""
    monkeypatch.setattr(_os, "LINUX", request.param == "memfd" and _os.LINUX)
    fd = page()
    mine, theirs = Board(fd), Board(fd)
    os.close(fd)
    yield mine, theirs
    mine.close()
    theirs.close()


@pytest.fixture
def written_to() -> Iterator[tuple[int, Board]]:
    """What faulthandler writes to, and the owner's view."""
    fd = page()
    owner = Board(fd)
    yield fd, owner
    owner.close()
    os.close(fd)


def test_what_faulthandler_writes_is_read_once(written_to: tuple[int, Board]) -> None:
    fd, owner = written_to
    assert not owner.evidence()
    for text in ("File\n", "caf\xe9 "):
        os.write(fd, text.encode())
        assert owner.evidence() == text
        assert not owner.evidence()
    assert (owner.read(), owner.output()) == ((0, 0.0, 0, 0.0), "")


def test_what_does_not_fit_is_left_out(written_to: tuple[int, Board]) -> None:
    fd, owner = written_to
    os.write(fd, b"x" * 1_000_000)
    assert owner.evidence() == "x" * (64 << 10)
    assert not owner.evidence()


def test_a_fresh_board_says_nothing(boards: tuple[Board, Board]) -> None:
    assert boards[1].read() == (0, 0.0, 0, 0.0)


def test_what_is_stamped_is_read_on_the_other_side(boards: tuple[Board, Board]) -> None:
    worker, owner = boards
    worker.begin(5, 12.5)
    assert owner.read() == (5, 12.5, 0, 0.0)
    worker.done(5)
    assert owner.read() == (5, 12.5, 5, 0.0)
    worker.begin(2**64 - 1, 13.0)
    assert owner.read()[:2] == (2**64 - 1, 13.0)


def test_a_task_that_begins_again_is_not_done(boards: tuple[Board, Board]) -> None:
    """A retry may come to the same worker."""
    worker, owner = boards
    worker.begin(5, 1.0)
    worker.done(5)
    worker.begin(5, 2.0)
    begun, since, done, _ = owner.read()
    assert (begun, since) == (5, 2.0)
    assert done != 5


def test_a_reader_never_sees_a_task_with_an_older_time(boards: tuple[Board, Board]) -> None:
    """Between any two stores of the writer: else a limit would seem to have passed before the task began."""
    worker, owner = boards
    seen = []

    class Stores:
        """Looks with the owner's eyes after each store."""

        def __init__(self, fields: memoryview) -> None:
            self.fields = fields

        def __setitem__(self, index: int, value: float) -> None:
            self.fields[index] = value
            seen.append(owner.read())

        def __getitem__(self, index: int) -> float:
            return self.fields[index]

        def release(self) -> None:
            self.fields.release()

    worker.begin(1, 10.0)
    worker._ids, worker._times = Stores(worker._ids), Stores(worker._times)  # type: ignore[assignment]
    worker.begin(2, 20.0)
    worker.done(2)
    assert seen
    for begun, since, done, _ in seen:
        assert begun != 2 or since == 20.0
        assert done != 2 or begun == 2


def test_a_reader_looks_again_when_the_worker_moves_on_meanwhile(boards: tuple[Board, Board]) -> None:
    worker, owner = boards
    worker.begin(1, 10.0)
    times = owner._times
    moves = [lambda: worker.begin(2, 20.0)]

    class Times:
        def __getitem__(self, index: int) -> float:
            value = times[index]
            while moves:
                moves.pop()()
            return value

        def release(self) -> None:
            times.release()

    owner._times = Times()  # type: ignore[assignment]
    assert owner.read()[:2] == (2, 20.0)


def test_closing_twice_is_fine(boards: tuple[Board, Board]) -> None:
    boards[0].close()
    boards[0].close()


# ===== the ring of what was printed =====


def keep(board: Board, text: str | bytes) -> None:
    board.keep_output(memoryview(text.encode() if isinstance(text, str) else text))


def test_what_was_printed_is_read_on_the_other_side(boards: tuple[Board, Board]) -> None:
    worker, owner = boards
    assert owner.output() == ""
    keep(worker, "while it boots\n")
    assert owner.output() == "while it boots\n"
    worker.begin(1, 5.0)
    assert owner.output() == ""
    keep(worker, "one\n")
    keep(worker, "twö")
    assert owner.output() == "one\ntwö"
    worker.done(1)
    worker.begin(1, 6.0)  # the same task, for the second time
    assert owner.output() == ""
    keep(worker, "again")
    assert owner.output() == "again"


@pytest.mark.parametrize("size", [1, 7, 100, RING - 1, RING, RING + 1, 3 * RING + 5])
def test_of_much_the_last_whole_lines_are_kept(boards: tuple[Board, Board], size: int) -> None:
    """In pieces of every size, over the end of the ring and over its whole length."""
    worker, owner = boards
    text = "".join(f"line {number}\n" for number in range(2000)).encode()
    for start in range(0, len(text), size):
        keep(worker, text[start : start + size])
    output = owner.output().encode()
    assert text.endswith(output)
    assert output.startswith(b"line ")
    assert RING - 20 <= len(output) <= RING


def test_a_line_longer_than_the_ring_is_cut_between_characters(boards: tuple[Board, Board]) -> None:
    keep(boards[0], "ö" * RING + "!")
    assert boards[1].output() == "ö" * (RING // 2 - 1) + "!"


def test_bytes_that_are_no_text_are_told_all_the_same(boards: tuple[Board, Board]) -> None:
    keep(boards[0], b"caf\xe9\n")
    assert boards[1].output() == "caf\ufffd\n"


@pytest.mark.parametrize("size", [10, RING - 100, 2 * RING])
def test_a_kill_between_any_two_stores_costs_the_last_piece_at_most(boards: tuple[Board, Board], size: int) -> None:
    worker, owner = boards
    before = "".join(f"{number}\n" for number in range(2000))
    piece = "".join(f"{number}\n" for number in range(2000, 4000))[:size]
    keep(worker, before)
    seen = []

    class Stores:
        """Looks with the owner's eyes after each store."""

        def __init__(self, fields: memoryview) -> None:
            self.fields = fields

        def __setitem__(self, index: object, value: object) -> None:
            self.fields[index] = value  # type: ignore[call-overload]
            seen.append(owner.output())

        def __getitem__(self, index: int) -> float:
            return self.fields[index]  # type: ignore[no-any-return]

        def release(self) -> None:
            self.fields.release()

    for name in ("_ids", "_times", "_ring"):
        setattr(worker, name, Stores(getattr(worker, name)))
    keep(worker, piece)
    assert len(seen) >= 3
    for output in seen[:-1]:
        assert before.endswith(output)
    assert (before + piece).endswith(seen[-1])
    assert seen[-1].endswith(piece[-100:])


@pytest.mark.parametrize("fields", [(0, 0, 2**64 - 1), (2**64 - 1, 5, 5), (5, 3, 4), (0, 2**64 - 1, 2**64 - 1)])
def test_a_worker_that_lies_about_its_output_is_read_without_harm(
    boards: tuple[Board, Board], fields: tuple[int, int, int]
) -> None:
    worker, owner = boards
    worker._ids[5], worker._ids[6], worker._ids[7] = fields
    assert len(owner.output()) <= RING
    worker._times[4] = float("nan")
    assert owner.output() == ""


def test_what_is_read_while_the_worker_still_prints_is_whole(boards: tuple[Board, Board]) -> None:
    """As when the template process died, and the workers do in this moment."""
    worker, owner = boards
    worker.begin(1, 1.0)
    pid = os.fork()
    if not pid:
        number = 0
        while True:
            number += 1
            worker.keep_output(memoryview(b"line %07d\n" % number))
    try:
        while not owner.output():
            pass
        for _ in range(1000):
            lines = owner.output().split()[1::2]
            first = int(lines[0]) if lines else 0
            assert [int(line) for line in lines] == list(range(first, first + len(lines)))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_stream_that_has_ended_is_not_taken_for_a_task_that_ran_all_the_time(boards: tuple[Board, Board]) -> None:
    """Its limit is for each item, and for its outcome, which is still to be sent."""
    mine, theirs = boards
    began = monotonic() - 1000.0
    mine.begin(7, began)
    loop = SimpleNamespace(board=mine, running=None)
    Outgoing(loop, 7, 1, math.inf).finish()  # type: ignore[arg-type]
    since = Status(*theirs.read()).limited_since(7, monotonic())
    assert since is not None
    assert since > began + 900.0
    mine.done(7)
    mine.begin(8, monotonic())
    assert Status(*theirs.read()).limited_since(8, math.inf) == theirs.read()[1]


def test_an_answer_is_told_once_it_is_whole_and_only_if_it_came_since(written_to: tuple[int, Board]) -> None:
    fd, owner = written_to
    worker = Board(fd)
    since = owner.answers()
    assert owner.answered(since) is None
    worker.answer(b"a stack", fd)
    assert owner.answered(since) == "a stack"
    assert owner.answered(owner.answers()) is None
    worker.answer(b"x" * 100_000, fd)
    assert owner.answered(since) == "x" * (16 << 10)
    worker._ids[boards_module._ANSWERS] |= 1  # as while it writes one
    assert owner.answered(since) is None
    worker.answer(b"caf\xc3\xa9", fd)
    assert owner.answered(since) == "caf\xe9"
    assert owner.evidence() == ""
    worker.close()


def test_an_answer_makes_room_for_evidence(written_to: tuple[int, Board]) -> None:
    fd, owner = written_to
    worker = Board(fd)
    os.write(fd, b"first" * 10_000)
    assert len(owner.evidence()) == 50_000
    worker.answer(b"", fd)
    assert owner.evidence() == ""
    os.write(fd, b"second")
    assert owner.evidence() == "second"
    worker.close()
