"""How many tasks go out in one message."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
from unit.scripted import up

from poolkit._core.batch import BATCH_BYTES, BATCH_SECONDS, REMEMBERED, RunTimes, take_batch
from poolkit._core.options import CallOptions
from poolkit._core.queue import TaskQueue
from poolkit.task import Task
from poolkit.testing import FakePool


def queue_of(count: int, *, name: str = "f", nbytes: int = 10) -> TaskQueue:
    queue = TaskQueue()
    for seq in range(count):
        task: Task[Any] = Task(None, name, None, CallOptions(), nbytes)
        task.id = seq
        queue.push(task)
    return queue


def times_of(seconds: float) -> RunTimes:
    times = RunTimes()
    times.measured(id(None) ^ hash("f"), seconds)
    return times


def test_an_unknown_function_goes_out_alone() -> None:
    """It may run for hours."""
    assert len(take_batch(queue_of(100), RunTimes(), most=64, workers=1)) == 1


def test_a_batch_is_about_a_millisecond_of_work() -> None:
    """As many as fit, and one at least."""
    assert len(take_batch(queue_of(100), times_of(BATCH_SECONDS / 10.5), most=64, workers=1)) == 10
    assert len(take_batch(queue_of(100), times_of(BATCH_SECONDS * 10), most=64, workers=1)) == 1


def test_a_batch_has_a_largest_number_and_no_more_than_its_share() -> None:
    """Nobody takes what another worker could run."""
    times = times_of(0.0)
    assert len(take_batch(queue_of(100), times, most=64, workers=1)) == 64
    assert len(take_batch(queue_of(100), times, most=64, workers=8)) == 13
    assert len(take_batch(queue_of(3), times, most=64, workers=8)) == 1
    assert take_batch(queue_of(0), times, most=64, workers=8) == []


def test_a_batch_fits_the_pipe_but_one_large_task_goes_alone() -> None:
    """Sending a batch never waits for the worker to read."""
    times = times_of(0.0)
    assert len(take_batch(queue_of(100, nbytes=BATCH_BYTES // 4), times, most=64, workers=1)) == 4
    assert len(take_batch(queue_of(100, nbytes=BATCH_BYTES * 2), times, most=64, workers=1)) == 1


def test_what_was_sent_already_counts() -> None:
    """A worker that has work for the while gets nothing more."""
    times = times_of(BATCH_SECONDS / 10.5)
    assert len(take_batch(queue_of(100), times, most=64, workers=1, ahead=BATCH_SECONDS / 2)) == 5
    assert take_batch(queue_of(100), times, most=64, workers=1, ahead=BATCH_SECONDS) == []


def test_a_longer_run_counts_at_once_and_shorter_ones_slowly() -> None:
    """A batch that is too small costs less than one that is too large."""
    times = RunTimes()
    for seconds in (0.001, 0.003):
        times.measured("f", seconds)
    assert times.expected("f") == pytest.approx(0.002)
    times.measured("f", 0.0)
    assert times.expected("f") == pytest.approx(0.002 * 7 / 8)


def test_only_so_many_functions_are_remembered() -> None:
    """The first one seen is forgotten first."""
    times = times_of(0.0)
    for number in range(REMEMBERED):
        times.measured(f"g{number}", 0.0)
    assert times.expected("f") == BATCH_SECONDS
    assert times.expected("g0") == 0.0


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_a_time_that_is_none_is_not_believed(seconds: float) -> None:
    """What a worker says of itself may be anything."""
    times = times_of(seconds)
    assert times.expected("f") == BATCH_SECONDS


def wrapped(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(function)
    def inner(value: Any) -> Any:
        return function(value)

    return inner


class Adder:
    """Can be called, and has a method of a name that others have, too."""

    def __call__(self, value: int) -> int:
        return value + 1

    def real(self, value: int) -> int:
        return value + 2


class Other(Adder):
    """Another class."""

    def real(self, value: int) -> int:
        return value + 3


def test_run_times_are_learnt_for_each_function_not_for_each_name() -> None:
    """Functions of one name, or of one code, have times of their own; the same one made anew has not."""

    def renamed(function: Any) -> Any:
        function.__qualname__ = "work"
        return function

    functions: list[Callable[[Any], Any]] = [
        lambda value: value,
        lambda value: -value,
        renamed(lambda value: value),
        renamed(lambda value: value + 1),
        wrapped(abs),
        wrapped(str),
        functools.partial(pow, 2),
        functools.partial(divmod, 2),
        functools.partial(wrapped(repr)),
        Adder(),
        Other(),
        Adder().real,
        Other().real,
        abs,
        str,
        type("str", (), {"__init__": lambda _self, _value: None}),
    ]
    with FakePool() as pool:
        seen = [pool.submit(function, 1).function for function in functions]
        assert len(set(seen)) == len(seen)
        assert [pool.submit(function, 1).function for function in functions] == seen
        assert len({pool.submit(lambda number=number: number).function for number in range(10)}) == 1
        assert len({pool.submit(functools.partial(pow, number), 2).function for number in range(10)}) == 1
        assert pool.options(name="other").submit(abs, 1).function not in seen

        chunks: list[Any] = []
        pool.on("task_done", lambda event: chunks.append(event.task))
        for function in functions:
            list(pool.map(function, [1]))
        assert len({chunk.function for chunk in chunks} | set(seen)) == 2 * len(functions)


def test_tasks_of_one_name_do_not_share_a_time() -> None:
    """The times of one function make no batch of another."""
    pool = up()
    pool.scheduler._dispatcher.times.measured(id(len) ^ hash("work"), 1e-6)
    for code in (len, sum):
        for _ in range(3):
            task = pool.task("work")
            task.code = code
            pool.scheduler.submit(task, pool.now)
    worker = pool.alive()[0]
    pool.run(worker)
    assert [task.code for task in pool.scheduler.roster.workers[worker.id].sent] == [len, len]
    pool.run_to_rest()
    pool.end()
