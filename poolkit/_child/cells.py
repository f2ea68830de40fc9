"""Cells: where the runs of a worker process report their progress. Imported when a task first reports any.

Guarantees: what a run reports is never taken for another run's, though threads that a task left behind go on reporting,
and reporting takes no lock. For a cell of the board belongs to one run's `Cell` as long as that lives, and whoever is
about to write to it holds the context, which holds the `Cell`. The owner goes by when the run began, see
`_wire/board.py`.
Where all cells of the board are taken, as contexts are kept, progress is not seen before the outcome, with which it is
sent.
Guarded by: `_lock`: which run has which cell. Re-entrant, as a signal handler may report. `_free` is used by anybody.
"""

from __future__ import annotations

import os
from collections import deque
from weakref import ref

from poolkit._locks import RLock
from poolkit._wire.board import CELLS, Board
from poolkit.context import Cell


class Cells:
    """The cells of one worker process."""

    def __init__(self, board: Board, reported: dict[float, Cell]) -> None:
        self._board = board
        self._reported = reported  # by when the runs began; the worker's loop takes them out
        self._free = deque(CELLS)  # from the left: a run that was awaited can be read for as long as possible
        self._taken: dict[int, ref[Cell]] = {}
        self._lock = RLock()
        os.register_at_fork(after_in_child=self._leave_parent)

    def of_run(self, since: float, done: float, total: float) -> Cell:
        """Return the cell of the run that began then; a new one has these values."""
        with self._lock:  # coroutines of one task have a context each
            cell = self._reported.get(since)
            if cell is None:
                cell = self._reported[since] = self._new(since, done, total)
        return cell

    def _new(self, since: float, done: float, total: float) -> Cell:
        cell = Cell(done, total)
        if self._free:
            at = self._free.popleft()
            self._taken[at] = ref(cell, lambda _: self._free.append(at))
            cell.values = self._board.give_cell(at, since, done, total)
        return cell

    def _leave_parent(self) -> None:
        """Be a copy in a forked child, which nobody asks: its tasks report to nobody."""
        self._lock = RLock()
        self._free.clear()
        for each in list(self._taken.values()):
            cell = each()
            if cell is not None:
                cell.values = Cell(0.0, 0.0).values
