"""An event loop that reads the results of the pools whose tasks it awaits."""

from __future__ import annotations

import asyncio
import threading

import pytest

import support_functions as work
from poolkit import TaskCancelled
from support import WATCHDOG

pytestmark = [pytest.mark.one_start_method, pytest.mark.needs("unattended")]


def test_awaiting_one_quick_task_after_the_other_lets_others_have_their_turn(pool):
    async def main():
        turns = 0

        async def other():
            nonlocal turns
            while turns < 50:
                turns += 1
                await asyncio.sleep(0)

        running = asyncio.ensure_future(other())
        for number in range(60):
            assert await pool.submit(work.square, number) == number**2
        return running.done()

    assert asyncio.run(main())


@pytest.mark.needs("background")
def test_a_loop_that_awaits_and_then_blocks_delays_nothing(make_pool, hold):
    """What the loop would read is read by the pool's own thread when it does not."""
    pool = make_pool(2)

    async def main():
        held = hold(pool)
        waiting = asyncio.ensure_future(asyncio.wait_for(held.task, WATCHDOG))
        await asyncio.sleep(0)  # from now on the loop watches the links
        called = threading.Event()
        for number in range(100):
            pool.submit(work.square, number).add_done_callback(lambda _: called.set())
        called.wait()  # which blocks the loop
        values = [pool.submit(work.square, number) for number in range(100)]
        assert [task.result() for task in values] == [number**2 for number in range(100)]
        held.release()
        await waiting

    asyncio.run(main())


@pytest.mark.needs("background")
def test_a_loop_that_ends_in_the_middle_of_an_await_leaves_nothing(make_pool, hold):
    pool = make_pool()
    held = hold(pool, "kept")

    awaited = held.task.__await__()

    async def main():
        next(awaited)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    held.release()
    assert held.task.result() == "kept"
    awaited.close()


@pytest.mark.needs("background")
def test_a_pool_that_ends_while_a_loop_watches_it(make_pool, hold):
    """A second pool may get the numbers of its descriptors while the loop still runs."""
    first, second = make_pool(), make_pool()

    async def main():
        held = hold(first)
        waiting = asyncio.ensure_future(asyncio.wait_for(held.task, WATCHDOG))
        await asyncio.sleep(0)
        first.shutdown(kill=True)
        with pytest.raises(TaskCancelled):
            await waiting
        return await asyncio.gather(*(second.submit(work.square, number) for number in range(20)))

    assert asyncio.run(main()) == [number**2 for number in range(20)]


def test_many_coroutines_await_one_task_and_many_pools(make_pool):
    pools = [make_pool(), make_pool()]

    async def main():
        for _ in range(5):
            task = pools[0].submit(work.square, 3)

            async def read(task=task):
                return await task

            others = [pool.submit(work.square, number) for number in range(10) for pool in pools]
            assert await asyncio.gather(*(read() for _ in range(5))) == [9] * 5
            assert await asyncio.gather(*others) == [number**2 for number in range(10) for _ in pools]

    asyncio.run(main())
