"""Dedicated workers under asyncio, under trio, and under anyio on either."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import support_workers as work
from poolkit import ChannelClosed, Worker
from poolkit import worker as worker_module
from support import WATCHDOG
from support_gates import Gate
from support_loops import LOOPS, Loop

pytestmark = [pytest.mark.one_start_method, pytest.mark.needs("kill_running", "here")]

MakeWorker = Callable[..., Worker[Any]]


@pytest.fixture(params=LOOPS, ids=lambda loop: loop.name)
def loop(request: pytest.FixtureRequest) -> Loop:
    found: Loop = request.param
    return found


def test_messages_both_ways(make_worker: MakeWorker, loop: Loop) -> None:
    async def main() -> Any:
        async with make_worker(work.echo_later) as worker:
            for number in range(20):
                await worker.send_async(number)
            first = await worker.recv_async()
            worker.close()
            return [first, *[message async for message in worker]], await worker.task, worker

    found, value, worker = loop.run(main)
    assert (found, value) == ([*range(20)], "done")
    assert not worker.alive


def test_a_wait_that_is_cancelled_loses_nothing(
    make_worker: MakeWorker, new_gate: Callable[[], Gate], loop: Loop
) -> None:
    arrived, release = new_gate(), new_gate()
    worker = make_worker(work.wait_and_count, arrived, release, 300)

    async def main() -> list[int]:
        arrived.wait()
        for _ in range(5):
            assert await loop.is_stopped_after(0.005, worker.recv_async)
        release.signal()
        found: list[int] = []

        async def read() -> None:
            while len(found) < 300:
                found.append(await worker.recv_async())

        while len(found) < 300:
            await loop.is_stopped_after(0.001, read)
        return found

    assert loop.run(main) == [*range(300)]


def test_a_send_waits_for_room_without_blocking_the_loop(
    make_worker: MakeWorker, new_gate: Callable[[], Gate], loop: Loop
) -> None:
    arrived, release = new_gate(), new_gate()
    worker = make_worker(work.wait_and_total, arrived, release)
    sent: list[int] = []

    async def fill() -> None:
        while True:
            await worker.send_async(len(sent))
            sent.append(len(sent))

    async def main() -> None:
        arrived.wait()
        before = -1
        while before < len(sent):
            before = len(sent)
            await loop.is_stopped_after(0.1, fill)
        release.signal()
        await worker.send_async(len(sent))
        sent.append(len(sent))

    loop.run(main)
    worker.close()
    assert worker.task.result(WATCHDOG) == (len(sent), sum(sent))


def test_several_coroutines_and_a_thread_receive(make_worker: MakeWorker, loop: Loop) -> None:
    worker = make_worker(work.count, 600)
    found: list[list[int]] = [[], [], []]

    async def read(mine: list[int]) -> None:
        async for message in worker:
            mine.append(message)

    thread = threading.Thread(target=lambda: found[2].extend(worker))
    thread.start()
    loop.run(partial(loop.together, [partial(read, mine) for mine in found[:2]]))
    thread.join()
    assert sorted(itertools.chain(*found)) == [*range(600)]


def test_the_end_is_told(make_worker: MakeWorker, loop: Loop) -> None:
    async def main() -> None:
        failing = make_worker(work.say_and_raise, 1)
        assert await failing.recv_async() == 1
        with pytest.raises(LookupError):
            await failing.recv_async()
        closed = make_worker(work.total)
        closed.close()
        with pytest.raises(ChannelClosed):
            await closed.send_async(1)
        with pytest.raises(ChannelClosed):
            await closed.recv_async()

    loop.run(main)


def test_a_block_that_is_cancelled_terminates_it(
    make_worker: MakeWorker, new_gate: Callable[[], Gate], loop: Loop
) -> None:
    worker = make_worker(work.say_and_wait, new_gate())

    async def main() -> None:
        async with worker:
            await worker.recv_async()

    async def cancelled() -> bool:
        return await loop.is_stopped_after(0.05, main)

    assert loop.run(cancelled)
    assert worker.join(WATCHDOG)
    assert worker.task.cancelled()


def test_messages_at_hand_let_others_have_their_turn(
    make_worker: MakeWorker, new_gate: Callable[[], Gate], loop: Loop
) -> None:
    arrived, release = new_gate(), new_gate()
    worker = make_worker(work.say_and_arrive, arrived, release, *range(250))
    arrived.wait()
    turns: list[int] = []

    async def read() -> int:
        for _ in range(249):
            await worker.recv_async()
        return len(turns)

    async def others() -> None:
        while len(turns) < 3:
            turns.append(0)
            await loop.turn()

    async def main() -> list[Any]:
        return [await worker.recv_async(), *await loop.together([read, others])]

    assert loop.run(main)[1] == 3
    release.signal()


def test_two_floods_do_not_stall(make_worker: MakeWorker, loop: Loop) -> None:
    """Each side sends more than there is room for, and receives meanwhile."""
    worker, number = make_worker(work.flood, 3000), 3000

    async def send() -> None:
        for each in range(number):
            await worker.send_async(each)

    async def receive() -> int:
        return sum([await worker.recv_async() for _ in range(number)])

    found = loop.run(partial(loop.together, [send, receive]))
    assert found[1] == worker.task.result(WATCHDOG) == sum(range(number))


def test_the_worker_closes_its_descriptor_and_goes_on(
    kind: Any, make_worker: MakeWorker, new_gate: Callable[[], Gate], loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kind.can("process"):
        pytest.skip("it has none")
    monkeypatch.setattr(worker_module, "END_WITHIN", 0.05)
    arrived, release = new_gate(), new_gate()
    worker = make_worker(work.close_descriptor, arrived, release)
    arrived.wait()

    async def main() -> None:
        with pytest.raises(ChannelClosed, match="goes on"):
            await worker.recv_async()

    loop.run(main)
    release.signal()
