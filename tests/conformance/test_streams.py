"""Streams: items as they are made, with back-pressure, an early close, and an end that is always told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

import support_functions as work
import support_streams as made
from poolkit import (
    DeadlineExceeded,
    Pool,
    PoolClosed,
    QueueFull,
    SerializationError,
    Stream,
    TaskCancelled,
    TaskTimeout,
    WorkerCrashed,
)
from poolkit.testing import FakePool
from support import wait_until
from support_gates import Gate, Journal

pytestmark = pytest.mark.needs("streams")

MakePool = Callable[..., Pool]


def wait_for(pool: Pool, condition: Callable[[], bool], what: str) -> None:
    """Wait for what a pool does by itself; a fake pool has to be driven."""
    if isinstance(pool, FakePool):
        pool.run_all()
    wait_until(condition, what)


@pytest.fixture
def journal(tmp_path: Any) -> Journal:
    return Journal(tmp_path / "journal")


def pause(seconds: float) -> None:
    """Be as slow as that."""
    threading.Event().wait(seconds)


def is_closed(journal: Journal) -> bool:
    return journal.lines()[-1:] == ["closed"]


# ===== what comes =====


@pytest.mark.each_start_method
@pytest.mark.parametrize("fn", [made.count, made.count_async, made.numbers, made.list_of, made.Iteration])
def test_all_items_come_in_order_whatever_makes_them(pool: Pool, fn: Any) -> None:
    assert [*pool.stream(fn, 20)] == [*range(20)]


def test_methods_lambdas_and_keywords(pool: Pool) -> None:
    assert [*pool.stream(made.Counter().up_to, 3)] == [0, 1, 2]
    assert [*pool.stream(lambda stop: (number * number for number in range(stop)), stop=3)] == [0, 1, 4]


def test_the_task_has_what_the_generator_returned(pool: Pool) -> None:
    stream = pool.stream(made.count, 3)
    assert [*stream] == [0, 1, 2]
    assert (stream.task.result(), stream.task.state, stream.task.name) == ("counted", "succeeded", "count")


def test_none_and_nothing(pool: Pool) -> None:
    assert [*pool.stream(list)] == []
    assert [*pool.stream(list, [None, None])] == [None, None]


def test_many_items(pool: Pool) -> None:
    assert [*pool.stream(range, 5000)] == [*range(5000)]


@pytest.mark.needs("by_value")
def test_an_item_is_packed_at_its_yield(pool: Pool) -> None:
    assert [len(box) for box in pool.stream(made.changing)] == [1, 2, 3, 4, 5]


@pytest.mark.needs("background")
def test_the_first_item_is_here_before_the_second_is_made(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    stream = pool.stream(made.wait_after, 1, gate)
    assert next(stream) == 0
    gate.signal()
    assert [*stream] == [-1]


def test_large_items_come_writable(pool: Pool) -> None:
    np = pytest.importorskip("numpy")
    total = 0.0
    for array in pool.stream(made.arrays, 12, 1 << 20):
        array[0] = array[1]
        total += float(array.sum())
    assert total == sum(range(12)) * (1 << 17)
    assert np is not None


# ===== back-pressure =====


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_no_more_are_made_than_the_buffer_holds(pool: Pool, journal: Journal, size: int) -> None:
    """An item is written down when the generator goes on behind it, so one less than were made."""
    stream = pool.options(buffersize=size).stream(made.keep, journal)
    for taken in range(4):
        assert next(stream) == taken
        # Those at hand were taken by half a buffer at a time, of which the worker is told at the next.
        wait_for(pool, lambda: len(journal.lines()) >= size - 1, "the buffer is full")
        assert len(journal.lines()) <= taken + size
    stream.close()


def test_by_default_the_buffer_holds_1024_items(pool: Pool, journal: Journal) -> None:
    stream = pool.stream(made.keep, journal)
    next(stream)
    wait_for(pool, lambda: len(journal.lines()) >= 1023, "the buffer is full")
    assert len(journal.lines()) == 1023
    stream.close()


@pytest.mark.needs("by_value")
def test_by_default_it_holds_4_mib(pool: Pool) -> None:
    pytest.importorskip("numpy")
    stream = pool.stream(made.arrays, 100, 1 << 20)
    next(stream)
    wait_for(pool, lambda: stream.task.incoming.come >= 4, "the buffer is full")
    assert stream.task.incoming.come <= 5
    assert sum(1 for _ in stream) == 99


@pytest.mark.parametrize("max_queue", [None, 1])
def test_while_a_stream_waits_for_its_reader_another_task_has_its_place(
    make_pool: MakePool, max_queue: int | None
) -> None:
    pool = make_pool(max_queue=max_queue)
    squares = [pool.submit(work.square, item).result() for item in pool.options(buffersize=2).stream(made.count, 10)]
    assert squares == [number * number for number in range(10)]


@pytest.mark.parametrize("max_queue", [None, 1])
def test_many_streams_are_read_by_turns_on_few_workers(make_pool: MakePool, max_queue: int | None) -> None:
    """Also more of them than the queue takes: those that wait for their readers are in nobody's way."""
    pool = make_pool(2, max_queue=max_queue)
    streams = [pool.options(buffersize=2).stream(made.count, 5) for _ in range(12)]
    for number in range(5):
        assert [next(stream) for stream in streams] == [number] * 12
    assert [list(stream) for stream in streams] == [[]] * 12
    wait_for(pool, lambda: sum(pool.stats().workers.values()) <= 2, "there are no more workers than places again")


@pytest.mark.needs("background")
def test_readers_who_all_need_the_pool_do_not_wait_for_each_other(make_pool: MakePool) -> None:
    """Each stream has the last place of the queue, or of the workers, and each reader waits for one."""
    pool = make_pool(max_queue=1)
    squares: list[list[int]] = []

    def read() -> None:
        view = pool.options(buffersize=2)
        squares.append([pool.submit(work.square, item).result() for item in view.stream(made.count, 4)])

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert squares == [[0, 1, 4, 9]] * 5


@pytest.mark.needs("background")
def test_while_an_async_generator_waits_for_its_reader_its_event_loop_goes_on(pool: Pool, journal: Journal) -> None:
    stream = pool.options(buffersize=1).stream(made.beat_while_it_waits, journal)
    assert next(stream) == 0
    wait_until(lambda: len(journal.lines()) > 20, "it beats")
    assert [*stream] == [1, 2]


@pytest.mark.needs("background")
def test_a_worker_that_was_started_in_the_place_of_a_stream_does_its_task(pool: Pool, journal: Journal) -> None:
    """Also where the stream goes on meanwhile."""
    stream = pool.options(buffersize=2).stream(made.keep, journal)
    assert next(stream) == 0
    task = pool.submit(work.square, 3)
    while not task.done():
        next(stream)
    assert task.result() == 9
    stream.close()


# ===== how it ends =====


@pytest.mark.each_start_method
def test_an_exception_comes_after_the_items_and_once(pool: Pool) -> None:
    stream = pool.stream(made.raise_after, 3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError) as caught:
        next(stream)
    assert caught.value.args == ("no more", 3)
    assert [*stream] == []
    assert stream.task.state == "failed"
    assert pool.submit(work.square, 3).result() == 9


def test_the_call_itself_may_raise(pool: Pool) -> None:
    with pytest.raises(LookupError, match="at once"):
        next(pool.stream(made.raise_at_once, 3))


def test_what_returns_nothing_to_iterate_over_is_told(pool: Pool) -> None:
    with pytest.raises(TypeError, match=r"square\(\) was called by stream\(\) and returned 9, which is not iterable"):
        next(pool.stream(work.square, 3))  # type: ignore[arg-type]


@pytest.mark.needs("by_value")
def test_an_item_that_cannot_be_pickled_is_told_by_its_number(pool: Pool) -> None:
    stream = pool.stream(made.unpicklable_after, 2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(SerializationError, match=r"item 3 of the stream: .*lock"):
        next(stream)
    assert pool.submit(work.square, 3).result() == 9


@pytest.mark.needs("by_value")
def test_who_submits_a_generator_function_is_told_of_stream(pool: Pool) -> None:
    with pytest.raises(SerializationError, match=r"pool\.stream\(\) gives the items"):
        pool.submit(made.count, 3).result()


@pytest.mark.needs("by_value")
def test_a_call_that_cannot_be_pickled_is_told(pool: Pool) -> None:
    with pytest.raises(SerializationError, match="lock"):
        next(pool.stream(made.count, threading.Lock()))  # type: ignore[arg-type]


@pytest.mark.needs("by_value")
@pytest.mark.parametrize(("spoilt", "error"), [(made.Spoilt, ValueError), (made.Stopped, RuntimeError)])
def test_behind_an_item_that_cannot_be_unpickled_comes_the_next(
    pool: Pool, spoilt: type, error: type[Exception]
) -> None:
    stream = pool.stream(made.spoilt_in_the_middle, spoilt)
    assert next(stream) == 0
    with pytest.raises(error):
        next(stream)
    assert [*stream] == [2]


@pytest.mark.needs("crash")
@pytest.mark.each_start_method
@pytest.mark.parametrize("items", [0, 1, 7, 2000])
def test_all_that_was_yielded_before_a_crash_comes(pool: Pool, items: int) -> None:
    got: list[int] = []
    with pytest.raises(WorkerCrashed) as caught:
        got.extend(iter(pool.stream(made.die_after, items)))
    assert got == [*range(items)]
    assert caught.value.signal == "SIGKILL"
    assert pool.submit(work.square, 3).result() == 9


@pytest.mark.needs("crash")
def test_a_stream_runs_again_only_while_nothing_of_it_has_come(pool: Pool, journal: Journal) -> None:
    assert [*pool.options(retries=5).stream(made.attempts)] == [3]
    stream = pool.options(retries=5).stream(made.die_once_after_an_item, journal)
    assert next(stream) == 0
    with pytest.raises(WorkerCrashed):
        next(stream)
    assert journal.lines() == ["began"]


@pytest.mark.needs("real_time")
def test_the_time_limit_is_for_each_item_and_not_for_its_reader(pool: Pool) -> None:
    assert [*pool.stream(made.count, 1)] == [0]  # what it imports is not to count
    limited = pool.options(timeout=0.2, buffersize=1)
    stream = limited.stream(made.count, 4)
    got = []
    for item in stream:
        pause(0.3)  # the reader, whose time does not count
        got.append(item)
    assert got == [0, 1, 2, 3]
    stream = limited.stream(made.hang_after, 2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(TaskTimeout) as caught:
        next(stream)
    assert "hang_after" in caught.value.stack


@pytest.mark.needs("real_time")
def test_the_deadline_is_for_all_of_it(pool: Pool, journal: Journal) -> None:
    stream = pool.options(deadline=0.5, buffersize=2).stream(made.keep, journal)
    with pytest.raises(DeadlineExceeded):
        for _ in stream:
            pause(0.05)


@pytest.mark.parametrize("how", ["task", "pool"])
def test_a_cancelled_one_says_so_at_once(pool: Pool, journal: Journal, how: str) -> None:
    stream = pool.stream(made.keep, journal)
    assert next(stream) == 0
    if how == "task":
        assert stream.task.cancel()
    else:
        pool.cancel_all()
    with pytest.raises(TaskCancelled):
        next(stream)
    assert [*stream] == []
    assert pool.submit(work.square, 3).result() == 9


# ===== an early end =====


@pytest.mark.each_start_method
@pytest.mark.parametrize("fn", [made.keep, made.keep_async])
def test_closing_runs_what_the_generator_has_to_do_at_its_end(pool: Pool, journal: Journal, fn: Any) -> None:
    with pool.stream(fn, journal) as stream:
        assert [next(stream) for _ in range(10)] == [*range(10)]
    assert is_closed(journal)
    assert [*stream] == []
    assert stream.task.state == "cancelled"
    stream.close()
    pool.submit(work.square, 3).result()
    assert sum(pool.stats().workers.values()) == 1  # the same


def test_dropping_closes(pool: Pool, journal: Journal) -> None:
    stream = pool.stream(made.keep, journal)
    assert next(stream) == 0
    del stream
    gc.collect()
    pool.submit(work.square, 3).result()
    assert is_closed(journal)


def test_a_loop_that_is_left_closes(pool: Pool, journal: Journal) -> None:
    for item in pool.stream(made.keep, journal):
        if item == 5:
            break
    gc.collect()
    pool.submit(work.square, 3).result()
    assert is_closed(journal)


def test_one_that_has_not_begun_never_does(pool: Pool, journal: Journal, hold: Any) -> None:
    if isinstance(pool, FakePool):
        pytest.skip("it runs one thing at a time")
    held = hold(pool)
    stream = pool.stream(made.keep, journal)
    stream.close()
    held.release()
    assert [*stream] == []
    assert (journal.lines(), stream.task.state, stream.task.attempts) == ([], "cancelled", 0)


@pytest.mark.needs("real_time")
def test_one_that_does_not_end_is_killed_after_its_grace(
    pool: Pool, journal: Journal, new_gate: Callable[[], Gate]
) -> None:
    stream = pool.stream(made.stubborn, journal, new_gate())
    assert next(stream) == 0
    stream.close(grace=0.1)
    with contextlib.suppress(TaskCancelled):
        stream.task.result(timeout=10)
    assert (journal.lines(), stream.task.state) == (["closing"], "cancelled")
    assert pool.submit(work.square, 3).result() == 9


@pytest.mark.parametrize("fn", [made.raise_when_closed, made.yield_when_closed])
def test_what_is_raised_when_it_is_closed_is_logged(pool: Pool, fn: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pool.options(buffersize=1).stream(fn) as stream:
        assert next(stream) == 0
    assert stream.task.state == "cancelled"
    assert pool.submit(work.square, 3).result() == 9
    assert "raised when it was closed" in caplog.text


@pytest.mark.needs("real_time")
def test_one_that_computes_for_long_is_told(pool: Pool, journal: Journal) -> None:
    with pool.stream(made.until_cancelled, journal) as stream:
        assert next(stream) == 0
        wait_until(lambda: journal.lines(), "it computes")
    assert (journal.lines(), stream.task.state) == (["computes", "was told"], "cancelled")


@pytest.mark.needs("real_time")
def test_many_that_are_closed_at_once_end_by_themselves(pool: Pool) -> None:
    """Also those that have not made an item. A worker may leave, as another has its place, but none is killed."""
    causes: list[str] = []
    pool.on("worker_exited", lambda event: causes.append(event.cause))
    for _ in range(100):
        pool.stream(made.count, 10**9).close()
    assert pool.submit(work.square, 3).result() == 9
    pool.shutdown()
    assert set(causes) <= {"shrunk", "stopped"}


# ===== the end of the pool =====


@pytest.mark.parametrize("take_all", [True, False])
def test_a_graceful_end_waits_for_a_stream_that_is_read_and_for_no_other(
    pool: Pool, journal: Journal, take_all: bool
) -> None:
    stream = pool.options(buffersize=5).stream(made.keep, journal, 50)
    assert next(stream) == 0
    if take_all and not isinstance(pool, FakePool):
        thread = threading.Thread(target=pool.shutdown)
        thread.start()
        assert [*stream] == [*range(1, 50)]
        thread.join()
        return
    with pool:
        pass
    left = []
    with pytest.raises(PoolClosed, match="nobody took an item"):
        left.extend(iter(stream))
    assert is_closed(journal)


def test_a_pool_that_is_killed_cancels(pool: Pool, journal: Journal) -> None:
    stream = pool.stream(made.keep, journal)
    assert next(stream) == 0
    pool.shutdown(kill=True)
    with pytest.raises(TaskCancelled):
        next(stream)


def test_one_that_is_refused_is_none(make_pool: MakePool, hold: Any) -> None:
    pool = make_pool(max_queue=1)
    if isinstance(pool, FakePool):
        pytest.skip("it makes room")
    held = hold(pool)
    waiting = pool.submit(work.square, 3)
    with pytest.raises(QueueFull):
        pool.options(block=False).stream(made.count, 3)
    gc.collect()
    held.release()
    assert waiting.result() == 9
    assert [*pool.stream(made.count, 3)] == [0, 1, 2]


def test_after_its_end_there_are_no_more(pool: Pool) -> None:
    pool.shutdown()
    with pytest.raises(PoolClosed):
        pool.stream(made.count, 3)


# ===== who reads =====


@pytest.mark.needs("unattended")
def test_one_reader_at_a_time(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    if isinstance(pool, FakePool):
        pytest.skip("it runs one thing at a time")
    gate = new_gate()
    stream = pool.stream(made.wait_after, 0, gate)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(iter(stream)))
    thread.start()
    wait_until(lambda: stream._items.reader, "somebody waits")
    with pytest.raises(RuntimeError, match="one at a time"):
        next(stream)
    gate.signal()
    thread.join()
    assert got == [-1]


def test_it_may_be_handed_to_another_thread(pool: Pool) -> None:
    stream = pool.options(buffersize=2).stream(made.count, 20)
    got = [next(stream)]
    thread = threading.Thread(target=lambda: got.extend(iter(stream)))
    thread.start()
    thread.join()
    assert got == [*range(20)]


def test_it_cannot_be_pickled(pool: Pool) -> None:
    stream = pool.stream(made.count, 3)
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        pickle.dumps(stream)
    assert isinstance(stream, Stream)
    assert "count" in repr(stream)


@pytest.mark.needs("unattended")
def test_a_coroutine_reads_it_and_a_loop_too(pool: Pool, journal: Journal) -> None:
    async def read() -> list[int]:
        stream = await pool.stream_async(made.keep, journal)
        got = [await anext(stream), next(stream)]
        async for item in stream:
            got.append(item)
            if item == 9:
                break
        await stream.aclose()
        assert is_closed(journal)
        return got

    assert asyncio.run(read()) == [*range(10)]


@pytest.mark.needs("real_time")
def test_a_wait_that_is_cancelled_loses_nothing(pool: Pool, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()

    async def read() -> list[int]:
        stream = pool.stream(made.wait_after, 3, gate)
        got = [await anext(stream) for _ in range(3)]
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(stream), 0.005)
        gate.signal()
        got.append(await anext(stream))
        assert [item async for item in stream] == []
        return got

    assert asyncio.run(read()) == [0, 1, 2, -1]


@pytest.mark.needs("unattended")
def test_an_exception_comes_to_a_coroutine(pool: Pool) -> None:
    async def read() -> list[int]:
        got = []
        with pytest.raises(LookupError):
            async for item in pool.stream(made.raise_after, 3):
                got.append(item)
        return got

    assert asyncio.run(read()) == [0, 1, 2]
