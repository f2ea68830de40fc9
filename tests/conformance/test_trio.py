"""What trio expects of who is awaited in it, and what it has that asyncio has not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading

import pytest
import trio

import support_functions as work
from poolkit import TaskCancelled

pytestmark = [pytest.mark.one_start_method, pytest.mark.needs("unattended")]


def test_a_nursery_of_500(make_pool):
    pool = make_pool(2)
    found = {}

    async def square(number):
        found[number] = await pool.submit(work.square, number)

    async def main():
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(square, number)

    trio.run(main)
    assert found == {number: number**2 for number in range(500)}


def test_each_await_is_a_checkpoint_though_the_result_is_there(make_pool):
    pool = make_pool(max_queue=1)

    async def main():
        task = pool.submit(work.add, 1, 2)
        task.result()
        results = pool.map(work.square, range(10), chunksize=1)
        awaits = [
            lambda: _value_of(task),
            lambda: pool.submit_async(work.none_of_it),
            results.__anext__,
            results.__anext__,
            results.aclose,
        ]
        for wait in awaits:
            with trio.testing.assert_checkpoints():
                await wait()
        for wait in awaits:
            with trio.CancelScope() as scope:
                scope.cancel()
                await wait()
            assert scope.cancelled_caught
        assert await task == 3

    trio.run(main)
    assert pool.stats().cancelled <= 9, "only what the map had submitted"


async def _value_of(task):
    return await task


@pytest.mark.needs("background")
def test_a_shielded_await_goes_on(pool, hold):
    async def main():
        held = hold(pool, "done")
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.CancelScope(shield=True):
                trio.lowlevel.current_trio_token().run_sync_soon(held.release)
                return await held.task

    assert trio.run(main) == "done"


@pytest.mark.needs("kill_running")
def test_a_failing_sibling_in_a_nursery_stops_the_work(pool, new_gate):
    arrived = new_gate()
    tasks = []

    async def spin():
        tasks.append(pool.submit(work.spin, arrived))
        await tasks[0]

    async def fail():
        await trio.testing.wait_all_tasks_blocked()
        arrived.wait()
        raise ValueError

    async def main():
        with contextlib.suppress(BaseException):  # a group, which CPython 3.10 has no name for
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spin)
                nursery.start_soon(fail)

    trio.run(main)
    assert tasks[0].cancelled()


@pytest.mark.needs("background")
def test_a_task_that_was_cancelled_elsewhere_is_no_cancellation_of_its_scope(pool, hold):
    async def main():
        held = hold(pool)
        with trio.CancelScope() as scope:
            held.task.cancel()
            with pytest.raises(TaskCancelled):
                await held.task
        return scope.cancelled_caught

    assert not trio.run(main)


@pytest.mark.needs("background")
def test_a_task_that_is_done_just_before_its_scope_is_cancelled_keeps_its_result(pool, hold):
    """The loop has been told both, and wakes the one who waits once."""

    async def main():
        held = hold(pool, "done")

        async def wait():
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await held.task

        scopes = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            held.release()
            held.task.result()
            scopes[0].cancel()
        assert scopes[0].cancelled_caught
        return await held.task

    assert trio.run(main) == "done"


@pytest.mark.needs("background")
def test_trio_as_a_guest_of_asyncio(make_pool, hold, monkeypatch):
    """In one thread, a task of trio waits the way of trio, and a coroutine of asyncio the way of asyncio."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)  # else its thread stays for ten seconds
    pool = make_pool(2)

    async def guest():
        held = hold(pool)
        with trio.move_on_after(0.01) as scope:
            await held.task
        return scope.cancelled_caught, [value async for value in pool.map(work.square, range(20))]

    async def main():
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=ended.set_result
        )
        found = [await pool.submit(work.square, number) for number in range(20)]
        found.extend([value async for value in pool.map(work.square, range(20))])
        return found, (await ended).unwrap()

    squares = [number**2 for number in range(20)]
    assert asyncio.run(main()) == (squares * 2, (True, squares))


@pytest.mark.needs("background")
def test_trio_and_asyncio_in_two_threads_share_a_pool(make_pool):
    pool = make_pool(2)
    found = {}

    async def squares():
        return [await pool.submit(work.square, number) for number in range(50)]

    def run(name, start):
        found[name] = start()

    threads = [
        threading.Thread(target=run, args=("trio", lambda: trio.run(squares))),
        threading.Thread(target=run, args=("asyncio", lambda: asyncio.run(squares()))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    squares_of_50 = [number**2 for number in range(50)]
    assert found == {"trio": squares_of_50, "asyncio": squares_of_50}


@pytest.mark.needs("kill_running")
@pytest.mark.parametrize("enter", ["with", "async with"])
def test_a_cancelled_nursery_within_a_pool_stops_the_work(make_pool, new_gate, enter):
    """It raises a group, in some versions of trio, in which the cancellation is."""
    arrived = new_gate()
    pool = make_pool()
    tasks = []

    async def spin():
        tasks.append(pool.submit(work.spin, arrived))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)

    async def main():
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel():
                    await trio.testing.wait_all_tasks_blocked()
                    arrived.wait()
                    scope.cancel()

                nursery.start_soon(cancel)
                if enter == "with":
                    with pool:
                        await spin()
                else:
                    async with pool:
                        await spin()

    trio.run(main)
    assert tasks[0].cancelled()
    assert pool.workers() == []


@pytest.mark.needs("kill_running")
def test_ctrl_c_in_an_await_stops_the_work(make_pool, new_gate):
    arrived = new_gate()
    tasks = []

    async def main():
        async with make_pool() as pool:
            tasks.append(pool.submit(work.spin, arrived))

            async def interrupt():
                await trio.testing.wait_all_tasks_blocked()
                arrived.wait()
                signal.raise_signal(signal.SIGINT)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(interrupt)
                await tasks[0]

    interrupted = False
    try:
        trio.run(main)
    except KeyboardInterrupt:
        interrupted = True
    except BaseException as exc:
        interrupted = exc.subgroup(KeyboardInterrupt) is not None
    assert interrupted
    assert tasks[0].cancelled()


def test_a_wait_that_is_left_behind_is_not_woken_after_its_run(pool):
    async def main():
        awaited = pool.submit(work.add, 1, 2).__await__()
        next(awaited)
        return awaited

    awaited = trio.run(main)
    awaited.close()
    assert pool.submit(work.add, 1, 2).result() == 3
