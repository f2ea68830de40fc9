"""Streams and messages under asyncio, under trio, and under anyio on either."""

from __future__ import annotations

import pytest

import support_messages as said
import support_streams as made
from support_loops import LOOPS, call

pytestmark = [pytest.mark.one_start_method, pytest.mark.needs("unattended", "streams")]


@pytest.fixture(params=LOOPS, ids=lambda loop: loop.name)
def loop(request):
    return request.param


def test_a_stream_is_read(pool, loop):
    async def main():
        stream = await pool.stream_async(made.count, 20)
        return [item async for item in stream], await stream.task

    assert loop.run(main) == ([*range(20)], "counted")


def test_one_that_waits_for_its_reader_lets_others_run(make_pool, loop):
    pool = make_pool(1)

    async def main():
        squares = []
        async for item in pool.options(buffersize=2).stream(made.count, 5):
            squares.append(await pool.submit(pow, item, 2))
        return squares

    assert loop.run(main) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("fn", [made.keep, made.keep_async])
def test_leaving_closes_and_waits_for_the_end(pool, journal, loop, fn):
    async def main():
        async with pool.stream(fn, journal) as stream:
            got = [await anext(stream) for _ in range(3)]
        return got, journal.lines()[-1:], stream.task.state

    assert loop.run(main) == ([0, 1, 2], ["closed"], "cancelled")


@pytest.mark.needs("kill_running")
def test_a_wait_for_an_item_that_is_cancelled_loses_nothing(pool, new_gate, loop):
    gate = new_gate()

    async def main():
        stream = pool.stream(made.wait_after, 3, gate)
        got = [await anext(stream) for _ in range(3)]
        for _ in range(5):
            assert await loop.is_stopped_after(0.005, call(anext(stream)))
        gate.signal()
        return got + [item async for item in stream]

    assert loop.run(main) == [0, 1, 2, -1]


def test_messages_are_read(pool, loop):
    async def main():
        task = pool.submit(said.say_numbers, 20)
        return [message async for message in task.messages()], await task

    assert loop.run(main) == ([*range(20)], "said")


@pytest.mark.needs("background")
def test_a_coroutine_in_a_worker_receives(pool, loop):
    async def main():
        task = pool.submit(said.receive_in_coroutine, 3)
        for number in range(3):
            task.send(number)
        return await task

    assert loop.run(main) == [0, 1, 2]
