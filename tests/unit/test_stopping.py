"""That a worker is to stop: for threads, coroutines, callbacks and pollers, whenever they come."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from poolkit._child.stopping import Stopping
from support import WATCHDOG, wait_until


@pytest.fixture
def stopping() -> Iterator[Stopping]:
    stopping = Stopping()
    yield stopping
    stopping.close()


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_it_is_set_once_and_for_ever(stopping: Stopping) -> None:
    assert not stopping
    assert not stopping.is_set()
    assert not is_readable(stopping.fileno())
    stopping.set()
    stopping.set()
    assert stopping
    assert stopping.is_set()
    assert is_readable(stopping.fileno())
    assert stopping.wait()
    assert is_readable(stopping.fileno())


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_a_wait_may_be_too_short(stopping: Stopping, timeout: float) -> None:
    assert stopping.wait(timeout) is False
    stopping.set()
    assert stopping.wait(timeout) is True


def test_all_threads_that_wait_are_woken(stopping: Stopping) -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(stopping.wait(WATCHDOG))) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(stopping._polling) == 5)
    stopping.set()
    for thread in threads:
        thread.join()
    assert found == [True] * 5


@pytest.mark.parametrize("waits", ["wait", "poll_with"])
def test_a_signal_handler_sets_it_for_its_own_thread(stopping: Stopping, waits: str) -> None:
    called: list[str] = []
    stopping.add_callback(lambda: called.append(threading.current_thread().name))
    before = signal.signal(signal.SIGUSR2, lambda *_: stopping.set())
    sender = threading.Thread(
        target=lambda: (wait_until(lambda: stopping._polling), os.kill(os.getpid(), signal.SIGUSR2))
    )
    try:
        sender.start()
        if waits == "wait":
            assert stopping.wait(WATCHDOG)
        else:
            stopping.poll_with(-1, None)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR2, before)
    assert called == ["MainThread"]


def test_callbacks_are_called_once_in_order_and_one_that_raises_is_logged(
    stopping: Stopping, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []

    def fail() -> None:
        called.append(1)
        raise ValueError("no")

    stopping.add_callback(lambda: called.append(0))
    stopping.add_callback(fail)
    stopping.add_callback(lambda: called.append(2))
    assert called == []
    with caplog.at_level(logging.ERROR, "poolkit"):
        stopping.set()
    assert called == [0, 1, 2]
    assert "fail" in caplog.text
    assert "ValueError: no" in caplog.text
    stopping.set()
    stopping.add_callback(lambda: called.append(3))
    assert called == [0, 1, 2, 3]


def test_a_callback_that_is_interrupted_does_not_keep_the_others_from_being_called(stopping: Stopping) -> None:
    called: list[int] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    stopping.add_callback(interrupt)
    stopping.add_callback(lambda: called.append(1))
    with pytest.raises(KeyboardInterrupt):
        stopping.set()
    assert called == [1]
    assert stopping


def test_a_callback_may_set_it_and_add_others(stopping: Stopping) -> None:
    called: list[int] = []

    def first() -> None:
        stopping.set()
        stopping.add_callback(lambda: called.append(2))
        called.append(1)

    stopping.add_callback(first)
    stopping.set()
    assert called == [2, 1]


def test_callbacks_that_are_added_while_it_is_set_are_called_once_each(stopping: Stopping) -> None:
    called: list[int] = []
    start = threading.Barrier(3)

    def add(first: int) -> None:
        start.wait()
        for number in range(first, first + 200):
            stopping.add_callback(lambda number=number: called.append(number))  # type: ignore[misc]

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 200)]
    for thread in threads:
        thread.start()
    start.wait()
    stopping.set()
    for thread in threads:
        thread.join()
    assert sorted(called) == list(range(400))


async def wait_for_it(stopping: Stopping) -> None:
    await stopping


@pytest.mark.parametrize("run", [asyncio.run, "trio"])
def test_a_coroutine_finds_it_set(stopping: Stopping, run: Any) -> None:
    stopping.set()
    if run == "trio":
        trio.run(wait_for_it, stopping)
    else:
        run(wait_for_it(stopping))
    assert not stopping._wakers


def set_when_awaited(stopping: Stopping, waits: int) -> threading.Thread:
    def run() -> None:
        wait_until(lambda: len(stopping._wakers) == waits)
        stopping.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_coroutines_of_asyncio_are_woken(stopping: Stopping) -> None:
    async def main() -> None:
        await asyncio.gather(*(wait_for_it(stopping) for _ in range(3)))

    thread = set_when_awaited(stopping, 3)
    asyncio.run(main())
    thread.join()
    assert not stopping._wakers


def test_tasks_of_trio_are_woken(stopping: Stopping) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait_for_it, stopping)

    thread = set_when_awaited(stopping, 3)
    trio.run(main)
    thread.join()
    assert not stopping._wakers


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_signal_handler_wakes_a_coroutine(stopping: Stopping, library: str) -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: stopping.set())
    sender = threading.Thread(
        target=lambda: (wait_until(lambda: stopping._wakers), os.kill(os.getpid(), signal.SIGUSR2))
    )
    try:
        sender.start()
        if library == "asyncio":
            asyncio.run(wait_for_it(stopping))
        else:
            trio.run(wait_for_it, stopping)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR2, before)


def test_waits_that_are_cancelled_leave_nothing_behind(stopping: Stopping) -> None:
    async def with_asyncio() -> None:
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wait_for_it(stopping), 0.001)

    async def with_trio() -> None:
        for _ in range(20):
            with trio.move_on_after(0.001) as scope:
                await stopping
            assert scope.cancelled_caught

    asyncio.run(with_asyncio())
    trio.run(with_trio)
    assert not stopping._wakers
    assert not stopping


def test_closing_wakes_who_waits_and_calls_no_callback() -> None:
    stopping, called, found = Stopping(), list[int](), list[bool]()
    stopping.add_callback(lambda: called.append(1))
    thread = threading.Thread(target=lambda: found.append(stopping.wait()))
    thread.start()
    wait_until(lambda: stopping._polling)
    stopping.close()
    thread.join()
    stopping.close()
    assert found == [True]
    assert called == []
    assert stopping.wait(0)
    stopping.set()
    assert called == [1]
