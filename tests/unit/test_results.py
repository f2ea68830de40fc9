"""`Results` is iterated in C, and keeps its promises when it is interrupted, closed, mixed or dropped."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import pickle
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from poolkit._child.chunk import run_chunk
from poolkit._engine.feed import AHEAD, Feed
from poolkit._engine.maps import Maps
from poolkit.outcome import CANCELLED, Outcome
from poolkit.results import Results
from poolkit.task import Task


class Here:
    """Runs each chunk when it is submitted; the first wait of each task may be interrupted."""

    def __init__(self, interrupts: Sequence[BaseException] = ()) -> None:
        self.interrupts = list(interrupts)
        self.cancelled: list[Task[Any]] = []

    def submit_chunk(
        self, fn: Callable[..., Any], items: list[Any], *, starred: bool, block: bool | None, late: bool
    ) -> Task[list[Any]]:
        task = Interrupted(self.interrupts.pop()) if self.interrupts else Task(None, "chunk", None, None)
        task.publish(Outcome(run_chunk(fn, items, starred=starred), ok=True))
        return task

    async def submit_chunk_async(
        self, fn: Callable[..., Any], items: list[Any], *, starred: bool, late: bool
    ) -> Task[list[Any]]:
        return self.submit_chunk(fn, items, starred=starred, block=None, late=late)

    def cancel_soon(self, task: Task[Any]) -> None:
        self.cancelled.append(task)


class Interrupted(Task[Any]):
    """Its first wait raises."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        super().__init__(None, "chunk", None, None)
        self._error: BaseException | None = error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return super().exception(timeout)


class Later(Here):
    """Runs no chunk; the test publishes what it wants."""

    def __init__(self) -> None:
        super().__init__()
        self.submitted: list[tuple[Task[Any], list[Any]]] = []

    def submit_chunk(
        self, fn: Callable[..., Any], items: list[Any], *, starred: bool, block: bool | None, late: bool
    ) -> Task[list[Any]]:
        self.submitted.append((Task(None, "chunk", None, None), items))
        return self.submitted[-1][0]


def results_of(
    pool: Here, items: Iterable[Any], *, chunksize: int = 2, ordered: bool = True, maps: Maps | None = None
) -> Results[Any]:
    return Results(
        pool,
        abs,
        iter(items),
        name="map(abs)",
        starred=False,
        chunksize=chunksize,
        buffersize=None,
        workers=1,
        ordered=ordered,
        timeout=None,
        maps=maps,
    )


def test_an_interrupted_wait_is_taken_up_again_and_nothing_is_missing() -> None:
    results = results_of(Here([KeyboardInterrupt(), KeyboardInterrupt()]), range(-9, 0))
    got: list[int] = []
    interrupts = 0
    while True:
        try:
            got.append(next(results))
        except KeyboardInterrupt:
            interrupts += 1
        except StopIteration:
            break
    assert interrupts == 2
    assert got == list(range(9, 0, -1))


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_after_close_nothing_more_comes(taken: int) -> None:
    results = results_of(Here(), range(10))
    assert list(itertools.islice(results, taken)) == list(range(taken))
    results.close()
    assert list(results) == []
    results.close()


def test_after_its_end_it_stays_at_its_end() -> None:
    results = results_of(Here(), range(3))
    assert list(results) == [0, 1, 2]
    assert list(results) == []


def test_next_and_anext_may_take_turns() -> None:
    results = results_of(Here(), range(7), chunksize=3)

    async def main() -> list[int]:
        got: list[int] = []
        while True:
            try:
                got.append(await anext(results) if len(got) % 2 else next(results))
            except (StopIteration, StopAsyncIteration):
                return got

    assert asyncio.run(main()) == list(range(7))


def test_an_endless_map_keeps_nothing_of_what_went_by() -> None:
    results = results_of(Here(), itertools.repeat(-1), chunksize=1)
    for _ in range(100):
        next(results)
    assert len(results._feed) <= 1
    assert len(results._chunks._tasks) == AHEAD


def test_a_yielded_item_is_not_kept_alive() -> None:
    class Item:
        def __abs__(self) -> Item:
            return self

    results = results_of(Here(), (Item() for _ in range(4)), chunksize=4)
    seen = weakref.ref(next(results))
    assert seen() is None
    assert next(results) is not None


def test_dropping_it_cancels_what_is_left_at_once() -> None:
    gc.disable()  # it must not take a collection
    try:
        pool = Here()
        results = results_of(pool, range(100))
        assert next(results) == 0
        del results
        assert len(pool.cancelled) == AHEAD
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_cannot_be_copied(make: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="make a list"):
        make(results_of(Here(), range(3)))


def test_a_chunk_that_was_cancelled_ends_the_iteration_with_that() -> None:
    class Cancelling(Here):
        def submit_chunk(
            self, fn: Callable[..., Any], items: list[Any], *, starred: bool, block: bool | None, late: bool
        ) -> Task[list[Any]]:
            task = Task(None, "chunk", None, None)
            task.publish(CANCELLED)
            return task

    results = results_of(Cancelling(), range(3))
    with pytest.raises(BaseException, match="cancelled"):
        next(results)
    assert list(results) == []


def test_asynchronous_iteration_adds_nothing_to_a_slow_chunk_for_each_result() -> None:
    """And each result is there as soon as its chunk is done."""
    pool = Later()

    async def read() -> int:
        results = results_of(pool, itertools.count(), ordered=False)
        slow, _ = pool.submitted[0]
        done = 1
        for _ in range(200):
            task, items = pool.submitted[done]
            done += 1
            asyncio.get_running_loop().call_soon(task.publish, Outcome(items, ok=True))
            for item in items:
                assert await anext_of(results) == item
        results.close()
        return len(slow._wakers or ()) + len(slow._callbacks or ())

    assert asyncio.run(read()) <= 2


async def anext_of(results: Results[Any]) -> Any:
    """`anext`, which CPython 3.10 has as well, with a type."""
    return await results.__anext__()


def test_what_arrives_in_any_order_is_waited_for_without_a_callback_for_each_result() -> None:
    pool = Later()
    results = results_of(pool, range(1000), ordered=False)
    slow, _ = pool.submitted[0]
    for done in range(1, 200):
        task, items = pool.submitted[done]
        task.publish(Outcome(items, ok=True))
        assert [next(results) for _ in items] == items
    assert len(slow._wakers or ()) <= 1
    assert results._chunks._arrivals.qsize() <= 1, "what was rung is not kept"
    results.close()


class Torn(BaseException):
    """What a signal handler raises, between any two instructions."""


class MapsOfAPoolThatEnds(Maps):
    """Another thread ends each map as soon as it is known; then a signal handler raises."""

    def enlist(self, feed: Feed[Any]) -> bool:
        super().enlist(feed)
        assert feed.go_on(wait=False)
        feed.close()
        raise Torn


def test_a_map_is_known_to_its_pool_when_it_is_whole_and_not_after_it_was_torn() -> None:
    """Its input may be endless, and nobody has what would end it."""
    maps = MapsOfAPoolThatEnds("pool", lambda: None, lambda: True)
    with pytest.raises(Torn):
        results_of(Later(), itertools.count(), maps=maps)
    assert not maps.open
    assert maps.left.empty()


def test_results_that_were_torn_while_they_were_made_are_dropped_without_a_word() -> None:
    half_made = Results.from_iterable([[1]])
    del half_made
    gc.collect()
