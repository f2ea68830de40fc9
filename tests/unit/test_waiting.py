"""What coroutines wait for, under either library, with nothing of a pool."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import trio

from poolkit import waiting
from poolkit._engine.waiters import Waiter
from poolkit._owner import Arrivals
from support_loops import LOOPS, Loop

pytestmark = pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)


class Withdrawn(Arrivals):
    """What was waited for notes that a wait for it was cancelled."""

    cancels = 0

    def cancel(self) -> None:
        super().cancel()
        self.cancels += 1


def test_who_waits_is_woken_by_any_thread(loop: Loop) -> None:
    async def main() -> bool:
        arrivals = Arrivals()
        thread = threading.Thread(target=arrivals.ring)
        thread.start()
        await waiting.wait_for(arrivals)
        thread.join()
        return arrivals.done()

    assert loop.run(main)


def test_what_is_done_already_is_not_waited_for(loop: Loop) -> None:
    async def main() -> None:
        arrivals = Arrivals()
        arrivals.ring()
        await waiting.wait_for(arrivals)

    loop.run(main)


def test_cancelling_a_wait_tells_what_was_waited_for_and_loses_nothing(loop: Loop) -> None:
    arrivals, told = Withdrawn(), list[int]()

    async def main() -> None:
        async def wait() -> None:
            try:
                await waiting.wait_for(arrivals)
            finally:
                told.append(arrivals.cancels)  # before the coroutine goes on: it may wait for it again

        await loop.cancel(wait)
        assert told == [1]
        loop.soon(arrivals.ring)
        await waiting.wait_for(arrivals)

    loop.run(main)


def test_one_thing_is_waited_for_again_and_again(loop: Loop) -> None:
    async def main() -> int:
        arrivals, count = Arrivals(), 0
        for _ in range(20):
            loop.soon(arrivals.ring)
            await waiting.wait_for(arrivals)
            arrivals.clear()
            count += 1
        return count

    assert loop.run(main) == 20


def test_a_wait_with_a_limit(loop: Loop) -> None:
    async def main() -> list[bool]:
        arrivals, found = Arrivals(), []
        found.append(await waiting.wait_until(arrivals, 0.001))
        arrivals.clear()
        loop.soon(arrivals.ring)
        found.append(await waiting.wait_until(arrivals, 3600))
        found.append(await waiting.wait_until(arrivals, None))
        return found

    assert loop.run(main) == [False, True, True]


def test_a_wait_with_a_limit_leaves_no_waker(loop: Loop) -> None:
    arrivals = Arrivals()

    async def main() -> None:
        await waiting.wait_until(arrivals, 0.001)
        await loop.is_stopped_after(0.001, lambda: waiting.wait_until(arrivals, 3600))

    loop.run(main)
    assert arrivals._waker is None


def test_a_call_in_a_thread_gives_its_value_and_its_error(loop: Loop) -> None:
    def fail() -> None:
        raise KeyError("no")

    async def main() -> None:
        here = threading.get_ident()
        assert await waiting.run_in_thread(threading.get_ident, name="named") != here
        assert await waiting.run_in_thread(lambda: threading.current_thread().name, name="named") == "named"
        with pytest.raises(KeyError, match="no"):
            await waiting.run_in_thread(fail, name="named")

    loop.run(main)


def test_a_call_in_a_thread_goes_on_when_nobody_waits_any_more(loop: Loop) -> None:
    go_on, ended = threading.Event(), threading.Event()

    def call() -> None:
        go_on.wait()
        ended.set()

    async def main() -> bool:
        stopped = await loop.is_stopped_after(0.01, lambda: waiting.run_in_thread(call, name="named"))
        go_on.set()
        return stopped

    assert loop.run(main)
    ended.wait()


def test_a_scope_that_was_cancelled_cancels_nothing_behind_a_shield(loop: Loop) -> None:
    ended = []

    async def body() -> None:
        try:
            await waiting.wait_for(Arrivals())
        finally:
            with waiting.shield():
                await waiting.run_in_thread(lambda: None, name="named")
                ended.append(True)

    async def main() -> None:
        await loop.cancel(body)

    loop.run(main)
    assert ended == [True]


def test_a_loop_that_has_ended_is_told_by_nobody(loop: Loop) -> None:
    """So who waits for room in it is known to have left."""

    async def main() -> Callable[..., object]:
        return waiting.caller()

    call = loop.run(main)
    assert not Waiter(lambda: call(lambda: None)).wake()


def test_what_cancels_a_coroutine_is_an_interruption(loop: Loop) -> None:
    async def main() -> None:
        async def body() -> None:
            try:
                await waiting.wait_for(Arrivals())
            except BaseException as exc:
                found.append(exc)
                raise

        await loop.cancel(body)

    found: list[BaseException] = []
    loop.run(main)
    assert waiting.is_interruption(found[0])
    assert waiting.is_interruption(KeyboardInterrupt())
    assert not waiting.is_interruption(ValueError())
    assert not waiting.is_interruption(None)


def test_trio_that_is_just_being_imported_is_not_there_yet(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await loop.turn()
        with monkeypatch.context() as patch:
            for name in ("trio", "trio.lowlevel"):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            assert not waiting.in_trio()
            assert waiting.interruptions() == (KeyboardInterrupt, asyncio.CancelledError)

    loop.run(main)


def test_a_run_that_ends_is_not_told_of_what_comes_later(loop: Loop) -> None:
    arrivals = Arrivals()

    async def main() -> Any:
        waited = waiting.begin(arrivals)
        next(waited)
        return waited

    waited = loop.run(main)
    arrivals.ring()
    waited.close()


def test_no_run_is_kept_alive_by_what_it_waited_for(loop: Loop) -> None:
    import gc
    import weakref

    class Kept:
        pass

    arrivals = Arrivals()

    async def main() -> weakref.ref[Kept]:
        kept = Kept()

        async def wait() -> Kept:
            await waiting.wait_until(arrivals, None)
            return kept

        arrivals.ring()
        return weakref.ref(await wait())

    reference = loop.run(main)
    gc.collect()
    assert reference() is None


def test_the_choice_is_made_at_each_wait(loop: Loop) -> None:
    async def trio_main() -> bool:
        return waiting.in_trio()

    async def main() -> bool:
        return waiting.in_trio()

    assert loop.run(main) == (loop.name in {"trio", "anyio-trio"})
    assert trio.run(trio_main)
