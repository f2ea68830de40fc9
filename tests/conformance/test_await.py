"""Tasks, pools and maps under asyncio, under trio, and under anyio on either."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

import support_functions as work
from poolkit import QueueFull, SerializationError, TaskCancelled
from poolkit._given import LARGE
from support_loops import LOOPS, call

pytestmark = [pytest.mark.one_start_method, pytest.mark.needs("unattended")]


@pytest.fixture(params=LOOPS, ids=lambda loop: loop.name)
def loop(request):
    return request.param


# ===== tasks =====


def test_a_task_can_be_awaited(pool, loop):
    async def main():
        return await pool.submit(work.add, 1, 2)

    assert loop.run(main) == 3


def test_awaiting_raises_what_the_task_raised(pool, loop):
    async def main():
        with pytest.raises(ValueError, match="no"):
            await pool.submit(work.raise_value_error, "no")

    loop.run(main)


def test_a_task_can_be_awaited_twice(pool, loop):
    async def main():
        task = pool.submit(work.add, 1, 2)
        return await task, await task

    assert loop.run(main) == (3, 3)


def test_many_are_awaited_together(make_pool, loop):
    pool = make_pool(2)

    async def main():
        return await loop.together([call(pool.submit(work.square, number)) for number in range(500)])

    assert loop.run(main) == [number**2 for number in range(500)]


@pytest.mark.needs("background")
def test_the_loop_goes_on_while_a_task_runs(pool, hold, loop):
    async def main():
        held = hold(pool, "done")
        loop.soon(held.release)
        return await held.task

    assert loop.run(main) == "done"


@pytest.mark.needs("kill_running")
def test_a_time_limit_on_an_await_stops_the_work(pool, new_gate, journal, loop):
    """What the task would have written, had it gone on, is not there."""
    arrived, release = new_gate(), new_gate()

    async def main():
        task = pool.submit(work.write_when_released, arrived, release, journal)
        arrived.wait()
        assert await loop.is_stopped_after(0.01, call(task))
        return task

    task = loop.run(main)
    assert task.cancelled()
    assert pool.submit(work.add, 1, 2).result() == 3  # on a new worker, so the other is no more
    release.signal()
    release.wait()
    assert journal.lines() == []


@pytest.mark.needs("background")
def test_cancelling_the_awaiting_coroutine_cancels_a_queued_task(pool, hold, journal, loop):
    held = hold(pool)

    async def main():
        task = pool.submit(work.write_line, journal, "ran")

        await loop.cancel(call(task))
        return task

    task = loop.run(main)
    assert task.cancelled()
    held.release()
    held.task.result()
    pool.submit(work.none_of_it).result()
    assert journal.lines() == []


@pytest.mark.needs("background")
def test_a_failing_sibling_in_gather_leaves_the_others(make_pool, hold):
    pool = make_pool(2)

    async def main():
        held = hold(pool, "kept")
        with pytest.raises(ValueError, match="no"):
            await asyncio.gather(held.task, pool.submit(work.raise_value_error, "no"))
        held.release()
        return await held.task

    assert asyncio.run(main()) == "kept"


@pytest.mark.needs("background")
def test_a_task_that_was_cancelled_elsewhere_raises_its_own_error(pool, hold, loop):
    """The loop's own is for coroutines that were cancelled themselves."""

    async def main():
        held = hold(pool)
        loop.soon(held.task.cancel)
        with pytest.raises(TaskCancelled, match="in attempt 1"):
            await held.task
        with pytest.raises(TaskCancelled, match="in attempt 1"):
            await held.task  # which is done now

    loop.run(main)


@pytest.mark.needs("background")
def test_an_await_hears_of_shutdown(make_pool, hold, loop):
    pool = make_pool()

    async def main():
        held = hold(pool)
        queued = pool.submit(work.none_of_it)
        loop.soon(lambda: pool.shutdown(wait=False, cancel_futures=True))
        with pytest.raises(TaskCancelled, match="before it began"):
            await queued
        held.release()
        await held.task

    loop.run(main)


@pytest.mark.needs("background")
def test_loops_in_three_threads_share_a_pool(make_pool, loop):
    pool = make_pool(2)
    found = {}

    def run(name):
        async def main():
            return await loop.together([call(pool.submit(work.add, name, number)) for number in range(20)])

        found[name] = loop.run(main)

    threads = [threading.Thread(target=run, args=(name,)) for name in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [name + number for number in range(20)] for name in (0, 100, 200)}


@pytest.mark.needs("background")
def test_what_nobody_awaits_goes_on_after_the_end_of_the_loop(pool, hold, loop):
    async def main():
        return hold(pool, "kept")

    held = loop.run(main)
    held.release()
    assert held.task.result() == "kept"


@pytest.mark.needs("background")
def test_an_await_that_is_left_in_a_loop_that_ends_keeps_its_outcome(pool, hold, loop):
    held = hold(pool, "kept")

    async def main():
        awaited = held.task.__await__()
        next(awaited)
        return awaited

    awaited = loop.run(main)
    held.release()
    assert held.task.result() == "kept"
    awaited.close()


# ===== pools =====


def test_async_with_finishes_the_accepted_work(make_pool, loop):
    async def main():
        async with make_pool() as pool:
            return [pool.submit(work.square, number) for number in range(10)]

    tasks = loop.run(main)
    assert [task.result() for task in tasks] == [number**2 for number in range(10)]


@pytest.mark.needs("background")
def test_leaving_async_with_does_not_block_the_loop(make_pool, hold, loop):
    async def main():
        async with make_pool() as pool:
            held = hold(pool, "done")
            loop.soon(held.release)
        return held.task

    assert loop.run(main).result() == "done"


@pytest.mark.needs("kill_running")
def test_when_the_body_of_async_with_was_cancelled_the_work_has_stopped(make_pool, new_gate, loop):
    arrived = new_gate()
    tasks = []

    async def body():
        try:
            async with make_pool() as pool:
                tasks.extend([pool.submit(work.spin, arrived), pool.submit(work.spin)])
                await tasks[1]
        finally:
            assert all(task.cancelled() for task in tasks)
            assert pool.workers() == []

    loop.run(lambda: loop.cancel(body, arrived.wait))
    assert len(tasks) == 2


@pytest.mark.needs("kill_running")
def test_when_the_end_of_async_with_was_cancelled_the_work_has_stopped(make_pool, new_gate, loop):
    arrived = new_gate()
    tasks = []

    async def body():
        try:
            async with make_pool() as pool:
                tasks.append(pool.submit(work.spin, arrived))
        finally:
            assert tasks[0].cancelled()
            assert pool.workers() == []

    loop.run(lambda: loop.cancel(body, arrived.wait))
    assert len(tasks) == 1


# ===== submit_async =====


def test_submit_async_gives_a_task(pool, loop):
    async def main():
        task = await pool.submit_async(work.collect, 1, fn=2)
        return task.name, await task

    assert loop.run(main) == ("collect", ((1,), {"fn": 2}))


class Noted:
    """Notes in which threads it is pickled; then it is a number."""

    def __init__(self, nbytes, before=lambda: None):
        self._nbytes = nbytes
        self._before = before
        self.threads = []

    @property
    def nbytes(self):
        return self._nbytes

    def __reduce__(self):
        self.threads.append(threading.get_ident())
        self._before()
        return int, ("3",)


@pytest.mark.needs("by_value")
def test_large_arguments_are_packed_in_a_thread_and_small_ones_in_the_loop(pool, loop):
    large, small = Noted(LARGE + 1), Noted(LARGE)

    async def main():
        here = threading.get_ident()
        tasks = [await pool.submit_async(work.square, large), await pool.submit_async(work.identity, {"a": [small]})]
        assert here not in large.threads
        assert {here} == set(small.threads)
        return [await task for task in tasks]

    assert loop.run(main) == [9, {"a": [3]}]


@pytest.mark.needs("by_value")
def test_what_cannot_be_packed_in_a_thread_is_the_error_of_its_task(pool, loop):
    def fail():
        raise RuntimeError("cannot be copied")

    async def main():
        task = await pool.submit_async(work.identity, Noted(LARGE + 1, fail))
        with pytest.raises(SerializationError, match="cannot be copied"):
            await task

    loop.run(main)


@pytest.mark.needs("by_value", "background")
def test_what_was_being_packed_for_who_gave_up_is_not_submitted(pool, loop):
    arrived, go_on = threading.Event(), threading.Event()

    def wait():
        arrived.set()
        go_on.wait()

    async def main():
        large = Noted(LARGE + 1, wait)
        try:
            await loop.cancel(lambda: pool.submit_async(work.identity, large), arrived.wait)
        finally:
            go_on.set()

    loop.run(main)
    assert pool.submit(work.add, 1, 2).result() == 3
    assert pool.stats().submitted == 1


@pytest.mark.needs("background")
def test_submit_async_waits_for_room_without_blocking_the_loop(make_pool, hold, loop):
    pool = make_pool(max_queue=1)

    async def main():
        held = hold(pool)
        pool.submit(work.none_of_it)
        loop.soon(held.release)

        async def square(number):
            return await (await pool.submit_async(work.square, number))

        return await loop.together([lambda number=number: square(number) for number in range(10)])

    assert loop.run(main) == [number**2 for number in range(10)]


@pytest.mark.needs("background")
def test_who_stops_waiting_for_room_leaves_it_to_others(make_pool, hold, loop):
    pool = make_pool(max_queue=1)

    async def main():
        held = hold(pool)
        pool.submit(work.none_of_it)
        assert await loop.is_stopped_after(0.01, lambda: pool.submit_async(work.none_of_it))
        loop.soon(held.release)
        return await (await pool.submit_async(work.add, 1, 2))

    assert loop.run(main) == 3
    assert pool.stats().submitted == 3


@pytest.mark.needs("background")
def test_submit_async_refuses_when_told_not_to_wait(make_pool, hold, loop):
    pool = make_pool(max_queue=1)

    async def main():
        held = hold(pool)
        pool.submit(work.none_of_it)
        with pytest.raises(QueueFull):
            await pool.options(block=False).submit_async(work.none_of_it)
        held.release()

    loop.run(main)


# ===== maps =====


def test_map_is_an_async_iterator(make_pool, loop):
    pool = make_pool(2)

    async def main():
        return [value async for value in pool.map(work.square, range(200))]

    assert loop.run(main) == [number**2 for number in range(200)]


def test_map_unordered_is_an_async_iterator(make_pool, loop):
    pool = make_pool(2)

    async def main():
        return {value async for value in pool.map(work.square, range(50), ordered=False, chunksize=3)}

    assert loop.run(main) == {number**2 for number in range(50)}


def test_both_ways_of_iterating_may_be_mixed(make_pool, loop):
    pool = make_pool(2)

    async def main():
        results = pool.map(work.square, range(20), chunksize=1, ordered=False)
        found = [await results.__anext__(), next(results), await results.__anext__(), next(results)]
        return {*found, *[value async for value in results]}

    assert loop.run(main) == {number**2 for number in range(20)}


def test_an_exception_ends_an_async_iteration(pool, loop):
    async def main():
        seen = []
        with pytest.raises(ValueError, match="-1"):
            async for value in pool.map(work.raise_if_negative, [1, 2, -1, 3], chunksize=1):
                seen.append(value)
        return seen

    assert loop.run(main) == [1, 2]


@pytest.mark.needs("background")
@pytest.mark.parametrize("ordered", [True, False])
def test_an_async_iteration_times_out(pool, hold, loop, ordered):
    async def main():
        held = hold(pool)
        with pytest.raises(TimeoutError):
            await pool.map(work.square, [1], timeout=0.01, ordered=ordered).__anext__()
        held.release()

    loop.run(main)


@pytest.mark.needs("background")
def test_an_async_iteration_with_a_timeout_that_is_not_reached(make_pool, loop):
    pool = make_pool(2)

    async def main():
        return [value async for value in pool.map(work.square, range(50), timeout=3600, chunksize=3)]

    assert loop.run(main) == [number**2 for number in range(50)]


@pytest.mark.needs("background")
@pytest.mark.parametrize("ordered", [True, False])
def test_cancelling_an_async_iteration_cancels_the_rest(pool, hold, journal, loop, ordered):
    async def main():
        held = hold(pool)
        results = pool.map(work.write_line, [journal], ["ran"], ordered=ordered)
        assert await loop.is_stopped_after(0.01, results.__anext__)
        held.release()
        await held.task

    loop.run(main)
    pool.submit(work.none_of_it).result()
    assert journal.lines() == []


@pytest.mark.needs("background")
def test_closing_a_map_ends_who_waits_for_its_items(pool, hold, loop):
    async def main():
        held = hold(pool)
        results = pool.map(work.square, range(10))
        loop.soon(results.close)
        found = [value async for value in results]
        held.release()
        return found

    assert loop.run(main) == []


def test_aclosing_cancels_the_rest(pool, loop):
    async def main():
        async with contextlib.aclosing(pool.map(work.square, iter(int, 1))) as results:
            return await results.__anext__()

    assert loop.run(main) == 0
