"""Tasks, pools and maps under asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

import support_functions as work
from poolkit import QueueFull, TaskCancelled
from support import WATCHDOG

pytestmark = [pytest.mark.one_start_method, pytest.mark.needs("unattended")]


def test_a_task_can_be_awaited(pool):
    async def main():
        return await pool.submit(work.add, 1, 2)

    assert asyncio.run(main()) == 3


def test_awaiting_raises_what_the_task_raised(pool):
    async def main():
        await pool.submit(work.raise_value_error, "no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(main())


def test_a_task_can_be_awaited_twice(pool):
    async def main():
        task = pool.submit(work.add, 1, 2)
        return await task, await task

    assert asyncio.run(main()) == (3, 3)


def test_gather(make_pool):
    pool = make_pool(2)

    async def main():
        return await asyncio.gather(*(pool.submit(work.square, number) for number in range(100)))

    assert asyncio.run(main()) == [number**2 for number in range(100)]


@pytest.mark.needs("background")
def test_the_loop_goes_on_while_a_task_runs(pool, hold):
    async def main():
        held = hold(pool, "done")
        asyncio.get_running_loop().call_soon(held.release)
        return await held.task

    assert asyncio.run(main()) == "done"


@pytest.mark.needs("kill_running")
def test_wait_for_cancels_a_running_task(pool, new_gate):
    async def main():
        arrived = new_gate()
        task = pool.submit(work.spin, arrived)
        arrived.wait()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.01)
        return task

    task = asyncio.run(main())
    assert task.cancelled()
    assert pool.submit(work.add, 1, 2).result() == 3


@pytest.mark.needs("background")
def test_cancelling_the_awaiting_coroutine_cancels_a_queued_task(pool, hold, journal):
    held = hold(pool)

    async def main():
        task = pool.submit(work.write_line, journal, "ran")

        async def wait_for_it():
            await task

        waiting = asyncio.ensure_future(wait_for_it())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return task

    task = asyncio.run(main())
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
def test_cancelling_a_task_ends_the_await(pool, hold):
    async def main():
        held = hold(pool)
        asyncio.get_running_loop().call_soon(held.task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await held.task

    asyncio.run(main())


def test_async_with_finishes_the_accepted_work(make_pool):
    async def main():
        async with make_pool() as pool:
            return [pool.submit(work.square, number) for number in range(10)]

    tasks = asyncio.run(main())
    assert [task.result() for task in tasks] == [number**2 for number in range(10)]


@pytest.mark.needs("background")
def test_leaving_async_with_does_not_block_the_loop(make_pool, hold):
    async def main():
        async with make_pool() as pool:
            held = hold(pool, "done")
            asyncio.get_running_loop().call_soon(held.release)
        return held.task

    assert asyncio.run(main()).result() == "done"


@pytest.mark.needs("kill_running")
def test_cancelling_the_body_of_async_with_stops_the_work(make_pool, new_gate):
    arrived = new_gate()
    tasks = []

    async def body():
        async with make_pool() as pool:
            tasks.extend([pool.submit(work.spin, arrived), pool.submit(work.spin)])
            await tasks[0]

    async def main():
        running = asyncio.ensure_future(body())
        await asyncio.sleep(0)
        arrived.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert all(task.cancelled() for task in tasks)


def test_submit_async_gives_a_task(pool):
    async def main():
        task = await pool.submit_async(work.collect, 1, fn=2)
        return task.name, await task

    assert asyncio.run(main()) == ("collect", ((1,), {"fn": 2}))


@pytest.mark.needs("background")
def test_submit_async_waits_for_room_without_blocking_the_loop(make_pool, hold):
    pool = make_pool(max_queue=1)

    async def main():
        held = hold(pool)
        pool.submit(work.none_of_it)
        asyncio.get_running_loop().call_soon(held.release)
        tasks = await asyncio.gather(*(pool.submit_async(work.square, number) for number in range(10)))
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [number**2 for number in range(10)]


@pytest.mark.needs("background")
def test_submit_async_refuses_when_told_not_to_wait(make_pool, hold):
    pool = make_pool(max_queue=1)

    async def main():
        held = hold(pool)
        pool.submit(work.none_of_it)
        with pytest.raises(QueueFull):
            await pool.options(block=False).submit_async(work.none_of_it)
        held.release()

    asyncio.run(main())


def test_map_is_an_async_iterator(make_pool):
    pool = make_pool(2)

    async def main():
        return [value async for value in pool.map(work.square, range(200))]

    assert asyncio.run(main()) == [number**2 for number in range(200)]


def test_map_unordered_is_an_async_iterator(make_pool):
    pool = make_pool(2)

    async def main():
        return {value async for value in pool.map(work.square, range(50), ordered=False, chunksize=3)}

    assert asyncio.run(main()) == {number**2 for number in range(50)}


def test_an_exception_ends_an_async_iteration(pool):
    async def main():
        seen = []
        with pytest.raises(ValueError, match="-1"):
            async for value in pool.map(work.raise_if_negative, [1, 2, -1, 3], chunksize=1):
                seen.append(value)
        return seen

    assert asyncio.run(main()) == [1, 2]


@pytest.mark.needs("background")
def test_an_async_iteration_times_out(pool, hold):
    async def main():
        held = hold(pool)
        with pytest.raises(TimeoutError):
            await pool.map(work.square, [1], timeout=0.01).__anext__()
        held.release()

    asyncio.run(main())


def test_aclosing_cancels_the_rest(pool):
    async def main():
        async with contextlib.aclosing(pool.map(work.square, iter(int, 1))) as results:
            return await results.__anext__()

    assert asyncio.run(main()) == 0


@pytest.mark.needs("background")
def test_an_await_hears_of_shutdown(make_pool, hold):
    pool = make_pool()

    async def main():
        held = hold(pool)
        queued = pool.submit(work.none_of_it)
        waiting = asyncio.ensure_future(asyncio.wait_for(queued, WATCHDOG))
        await asyncio.sleep(0)
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.release()
        await held.task
        return queued

    with pytest.raises(TaskCancelled, match="before it began"):
        asyncio.run(main()).result()


@pytest.mark.needs("background")
def test_two_loops_in_two_threads_share_a_pool(make_pool):
    pool = make_pool(2)
    found = {}

    def run(name):
        async def main():
            return await asyncio.gather(*(pool.submit(work.add, name, number) for number in range(20)))

        found[name] = asyncio.run(main())

    threads = [threading.Thread(target=run, args=(name,)) for name in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [name + number for number in range(20)] for name in (0, 100)}
