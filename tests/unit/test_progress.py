"""Progress: what a run has reported is never taken for another run's."""

from __future__ import annotations

import gc
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from unit.scripted import error_of, running, up

from poolkit import Progress
from poolkit._child.cells import Cells
from poolkit._core.workforce import Progressed
from poolkit._wire.board import CELLS, Board, page
from poolkit.context import UNKNOWN, Cell, TaskContext


@pytest.fixture
def board() -> Iterator[Board]:
    fd = page()
    made = Board(fd)
    os.close(fd)
    yield made
    made.close()


class Worker:
    """What a context asks of its worker, and the owner's view of its board."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.reported: dict[float, Cell] = {}
        self.cells = Cells(board, self.reported)
        self.cell = self.cells.of_run
        self.now = 0.0

    def begin(self, task_id: int) -> TaskContext:
        self.now += 1.0
        self.board.begin(task_id, self.now)
        return self.context(task_id)

    def context(self, task_id: int) -> TaskContext:
        context = TaskContext(task_id, "task", 1, None)
        context.end, context._started = self, self.now
        return context


@pytest.fixture
def worker(board: Board) -> Iterator[Worker]:
    made = Worker(board)
    yield made
    made.cells._leave_parent()  # they hold parts of the board


# ===== what is reported =====


def test_the_fraction_is_a_number_from_0_to_1_where_a_total_is_known() -> None:
    assert Progress(1, 4).fraction == 0.25
    assert Progress(5, 4).fraction == 1.0
    assert Progress(-5, 4).fraction == 0.0
    assert Progress(3).fraction is None
    assert Progress(0, 0).fraction == 1.0
    assert Progress(float("inf"), float("inf")).fraction == 0.0
    assert Progress.reported(3, UNKNOWN) == (3, None)


@pytest.mark.parametrize("value", ["3", None, True, 1j, [1], object()])
def test_what_is_no_number_is_refused(worker: Worker, value: Any) -> None:
    for context in (TaskContext(1, "task", 1, None), worker.begin(1)):
        with pytest.raises(TypeError, match="done must be a number, was "):
            context.progress(value)
        if value is not None:
            with pytest.raises(TypeError, match="total must be a number, was "):
                context.progress(1, value)
        assert context.reported() is None


def test_nan_is_refused(worker: Worker) -> None:
    for context in (TaskContext(1, "task", 1, None), worker.begin(1)):
        for values in ((float("nan"),), (1, float("nan")), (Decimal("nan"), 2)):
            with pytest.raises(ValueError, match=r"must be a number, was .*[nN]a[nN]"):
                context.progress(*values)


def test_numbers_of_any_kind_are_taken(worker: Worker) -> None:
    context = worker.begin(1)
    for done, total in ((1, 2), (1.0, 2), (Fraction(1), Decimal(2))):
        context.progress(done, total)  # type: ignore[arg-type]
        assert context.reported() == (1.0, 2.0)
        assert worker.board.progress(1) == (worker.now, 1.0, 2.0)
    context.progress(3)
    assert worker.board.progress(1) == (worker.now, 3.0, UNKNOWN)


def test_a_number_that_no_float_can_be_is_refused_and_changes_nothing(worker: Worker) -> None:
    context = worker.begin(1)
    for _ in range(2 * len(CELLS)):
        with pytest.raises(ValueError, match="invalid value"):
            context.progress(10**400)
        gc.collect()
    assert worker.board.progress(1) is None
    context.progress(1, 2)
    assert worker.board.progress(1) == (worker.now, 1.0, 2.0)


# ===== whose it is =====


def test_a_run_begins_with_none(worker: Worker) -> None:
    worker.begin(1).progress(1, 2)
    assert worker.board.progress(1) == (1.0, 1.0, 2.0)
    worker.begin(2)
    assert worker.board.progress(2) is None
    assert worker.board.progress(1) is None
    worker.begin(2)
    assert worker.board.progress(2) is None


def test_a_board_that_nobody_stamped_tells_no_progress(board: Board) -> None:
    assert board.progress(1) is None


def test_what_is_left_of_an_earlier_task_reports_to_nobody(worker: Worker) -> None:
    left = worker.begin(1)
    left.progress(1, 2)
    silent = worker.context(1)
    silent._started -= 0.5  # a run before that
    context = worker.begin(2)
    for _ in range(3 * len(CELLS)):
        left.progress(7, 8)
        silent.progress(7, 8)
        assert worker.board.progress(worker.board.read()[0]) is None
        context.progress(1, 3)
        left.progress(7, 8)
        silent.progress(7, 8)
        assert worker.board.progress(context.id) == (worker.now, 1.0, 3.0)
        worker.reported.clear()
        context = worker.begin(context.id + 1)


def test_coroutines_of_one_task_report_for_it_together(worker: Worker) -> None:
    """Each has a context of its own."""
    first, second = worker.begin(1), worker.context(1)
    first.progress(1, 4)
    second.progress(2, 4)
    assert worker.board.progress(1) == (1.0, 2.0, 4.0)
    first.progress(3, 4)
    assert worker.board.progress(1) == (1.0, 3.0, 4.0)
    assert list(worker.reported) == [1.0]


def test_where_all_places_are_taken_the_outcome_still_brings_it(worker: Worker) -> None:
    kept = []
    for task_id in range(1, 1 + len(CELLS)):
        kept.append(worker.begin(task_id))
        kept[-1].progress(task_id, 100)
        assert worker.board.progress(task_id) == (worker.now, task_id, 100.0)
        worker.reported.clear()
    last = worker.begin(1000)
    last.progress(1, 2)
    assert worker.board.progress(1000) is None
    assert list(worker.reported[worker.now].values) == [1, 2]
    worker.reported.clear()
    del kept[0]
    context = worker.begin(1001)
    context.progress(3, 4)
    assert worker.board.progress(1001) == (worker.now, 3.0, 4.0)


class Times:
    """The owner's view of the times, in which something happens before each of some reads."""

    def __init__(self, fields: memoryview, happens: dict[int, Callable[[], object]]) -> None:
        self.fields, self.happens = fields, happens
        self.reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        happens = self.happens.pop(self.reads, None)
        if happens is not None:
            happens()
        return self.fields[index]


def test_a_reader_never_takes_a_runs_progress_for_anothers(board: Board) -> None:
    """The worker moves on once or twice between any two reads of the owner: to another task, and back to the first.

    Run k of the first task reports (k, 100 * k), the others report -1; so does what an earlier run has left.
    """
    times, ids = board._times, board._ids
    seen = set()
    for task_ids in ((1, 2, 1), (1, 1, 2), (1, 2, 3), (1, 2, 2)):
        for first, second in itertools.combinations_with_replacement(range(1, 14), 2):
            worker = Worker(board)
            contexts: list[TaskContext] = []

            def go_on(task_ids: tuple[int, ...] = task_ids, contexts: Any = contexts, worker: Worker = worker) -> None:
                board._times, reading = times, board._times
                board._ids, reading_ids = ids, board._ids
                run = len(contexts) + 1
                context = worker.begin(task_ids[len(contexts)])
                context.progress(*((run, 100 * run) if context.id == 1 else (-1, -1)))
                worker.reported.clear()
                for each in contexts:
                    each.progress(-1, -1)
                contexts[:] = [context]  # what the others had is free, and theirs
                contexts += [context] * (run - 1)
                board._times, board._ids = reading, reading_ids

            go_on()
            happens = {first: go_on}
            happens[second + (second == first)] = go_on
            counter: Any = Times(times, happens)
            counter_of_ids: Any = Times(ids, happens)
            board._times, board._ids = counter, counter_of_ids
            try:
                found = board.progress(1)
            finally:
                board._times, board._ids = times, ids
            if found is not None:
                since, done, total = found
                assert (done, total) == (since, 100 * since), (task_ids, first, second)
            seen.add(found)
            worker.cells._leave_parent()
            for at in CELLS:
                times[at] = 0.0
    assert {None, (1.0, 1.0, 100.0)} <= seen


class Stores:
    """The worker's view of the times; calls `look` after each store."""

    def __init__(self, fields: memoryview, look: Callable[[], object]) -> None:
        self.fields, self.look = fields, look

    def __setitem__(self, index: int, value: float) -> None:
        self.fields[index] = value
        self.look()

    def __getitem__(self, index: Any) -> Any:
        return self.fields[index]

    def release(self) -> None:
        self.fields.release()


@pytest.mark.parametrize("read", range(10))
def test_a_place_that_is_given_away_is_not_taken_for_the_run_that_had_it(
    board: Board, worker: Worker, read: int
) -> None:
    """A run is over and not yet accounted for, when what an earlier one has left takes its place: at any moment."""
    worker.cells._free = deque([CELLS[0]])
    left = worker.begin(7)
    context: Any = worker.begin(1)
    context.progress(1, 100)
    times = board._times
    seen = []

    def look() -> None:
        stores, board._times = board._times, times
        seen.append(board.progress(1))
        board._times = stores

    def give_away() -> None:
        nonlocal context
        reading, board._times = board._times, Stores(times, look)  # type: ignore[assignment]
        context = None
        worker.reported.clear()
        left.progress(-1, -1)
        assert left.reported() == (-1, -1)
        board._times = reading

    board._times = Times(times, {read: give_away})  # type: ignore[assignment]
    seen.append(board.progress(1))
    board._times = times
    assert set(seen) <= {None, (2.0, 1.0, 100.0)}
    assert len(seen) == (5 if context is None else 1)


def test_a_forked_child_reports_to_nobody(worker: Worker) -> None:
    context = worker.begin(1)
    context.progress(1, 2)

    pid = os.fork()
    if not pid:
        context.progress(7, 8)
        worker.context(1).progress(7, 8)
        os._exit(worker.board.progress(1) != (1.0, 1.0, 2.0))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert worker.board.progress(1) == (1.0, 1.0, 2.0)
    context.progress(2, 2)
    assert worker.board.progress(1) == (1.0, 2.0, 2.0)


# ===== the scheduler's part =====


def test_a_retry_begins_with_none() -> None:
    pool = up()
    task, worker = running(pool, retries=1, retry_on=ValueError)
    worker.progress = Progress(1, 2)
    pool.scheduler.note_progress(task)
    assert task.reported == (1, 2)
    worker.progress = None
    worker.pipe.append(Progressed(worker.id, task.id, Progress(2, 2)))
    pool.finish(worker, error=ValueError("x"))
    assert task.reported is None
    pool.tick(1000.0)
    assert pool.run(worker) is task
    assert task.reported is None


def test_what_a_killed_run_has_reported_is_kept() -> None:
    pool = up()
    task, worker = running(pool)
    worker.progress = Progress(3, 4)
    pool.die(worker)
    assert type(error_of(pool, task)).__name__ == "WorkerCrashed"
    assert task.reported == (3, 4)


def test_what_a_cancelled_run_has_reported_is_kept() -> None:
    pool = up()
    task, worker = running(pool)
    worker.progress = Progress(3, 4)
    assert pool.cancel(task)
    worker.progress = Progress(4, 4)
    assert task.reported == (3, 4)


def test_a_report_of_progress_of_another_task_changes_nothing() -> None:
    pool = up()
    task, worker = running(pool)
    pool.scheduler.handle_all(deque([Progressed(worker.id, task.id + 1, Progress(1, 2))]), pool.now)
    assert task.reported is None


def test_a_task_that_reports_nothing_has_no_dictionary() -> None:
    """So it takes no byte more."""
    pool = up()
    task, worker = running(pool)
    pool.finish(worker)
    assert task.reported is None
    assert "reported" not in vars(task)


def test_a_context_outside_of_a_worker_process_keeps_it_itself() -> None:
    context = TaskContext(1, "task", 1, None)
    with pytest.raises(ValueError, match="invalid value"):
        context.progress(10**400)
    assert context.reported() is None
    context.progress(1)
    assert context.reported() == (1, UNKNOWN)
