"""The page that a worker stamps and the owner reads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from poolkit import _os
from poolkit._wire.board import NBYTES, Board


@pytest.fixture(params=["memfd", "file"])
def boards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Board, Board]]:
    """The worker's and the owner's view of one page."""
    monkeypatch.setattr(_os, "LINUX", request.param == "memfd" and _os.LINUX)
    fd = _os.shared_page(NBYTES)
    mine, theirs = Board(fd), Board(fd)
    os.close(fd)
    yield mine, theirs
    mine.close()
    theirs.close()


def test_a_fresh_board_says_nothing(boards: tuple[Board, Board]) -> None:
    assert boards[1].read() == (0, 0.0, 0)


def test_what_is_stamped_is_read_on_the_other_side(boards: tuple[Board, Board]) -> None:
    worker, owner = boards
    worker.begin(5, 12.5)
    assert owner.read() == (5, 12.5, 0)
    worker.done(5)
    assert owner.read() == (5, 12.5, 5)
    worker.begin(2**64 - 1, 13.0)
    assert owner.read()[:2] == (2**64 - 1, 13.0)


def test_a_task_that_begins_again_is_not_done(boards: tuple[Board, Board]) -> None:
    """A retry may come to the same worker."""
    worker, owner = boards
    worker.begin(5, 1.0)
    worker.done(5)
    worker.begin(5, 2.0)
    begun, since, done = owner.read()
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
    for begun, since, done in seen:
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
