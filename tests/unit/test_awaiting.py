"""Futures of other threads under asyncio."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from poolkit import awaiting


class Waited(Future[Any]):
    def add_waker(self, waker: Callable[[Any], object]) -> None:
        self.add_done_callback(waker)


class Awaitable:
    def __init__(self, future: Waited) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, Any]:
        return awaiting.wait_for(self._future, self._future.add_waker)


async def value_of(future: Waited) -> Any:
    return await Awaitable(future)


def test_many_that_finish_together_wake_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        futures = [Waited() for _ in range(50)]
        waiting = [asyncio.ensure_future(value_of(future)) for future in futures]
        await asyncio.sleep(0)
        wakes = []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call: (wakes.append(call), wake(call)))

        def finish() -> None:
            for number, future in enumerate(futures):
                future.set_result(number)

        thread = threading.Thread(target=finish)
        thread.start()
        thread.join()  # the loop is not running meanwhile
        return await asyncio.gather(*waiting), len(wakes)

    values, wakes = asyncio.run(main())
    assert values == list(range(50))
    assert wakes == 1


def test_what_finishes_while_the_box_is_emptied_is_handed_over_too() -> None:
    async def main() -> list[int]:
        first = Waited()
        second = Waited()
        waiting = [asyncio.ensure_future(value_of(future)) for future in (first, second)]
        await asyncio.sleep(0)
        waiting[0].add_done_callback(lambda _: second.set_result(2))
        first.set_result(1)
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [1, 2]


def test_an_exception_arrives_and_a_cancellation_goes_both_ways() -> None:
    async def main() -> None:
        failed = Waited()
        failed.set_exception(KeyError("no"))
        with pytest.raises(KeyError, match="no"):
            await Awaitable(failed)
        cancelled = Waited()
        cancelled.cancel()
        cancelled.set_running_or_notify_cancel()
        with pytest.raises(CancelledError):
            await Awaitable(cancelled)
        pending = Waited()
        waiting = asyncio.ensure_future(value_of(pending))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pending.cancelled()

    asyncio.run(main())


def test_an_exception_that_no_loop_takes_harms_no_other() -> None:
    async def main() -> int:
        odd = Waited()
        even = Waited()
        waiting = [asyncio.ensure_future(value_of(odd)), asyncio.ensure_future(value_of(even))]
        await asyncio.sleep(0)
        odd.set_exception(StopIteration("odd"))
        even.set_result(2)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await waiting[0]
        return int(await waiting[1])

    assert asyncio.run(main()) == 2


def test_who_finishes_after_the_loop_was_closed_is_not_disturbed() -> None:
    future = Waited()

    async def main() -> None:
        waiting = value_of(future).__await__()
        next(waiting)

    asyncio.run(main())
    future.set_result(1)


def test_no_loop_is_kept_alive() -> None:
    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        future = Waited()
        waiting = asyncio.ensure_future(value_of(future))
        await asyncio.sleep(0)
        future.set_result(1)
        await waiting
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None
