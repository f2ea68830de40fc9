"""A bounded queue under pressure: whoever waits for room gets it in turn, or hears that there will be none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import poolkit
import support
import support_functions as work
from chaos import faults
from poolkit._engine.waiters import Waiter, Waiters
from support import WATCHDOG
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

KINDS = pytest.mark.parametrize("kind", ["process", "thread"])


def full(pool: poolkit.Pool, new_gate: Callable[[], Gate], waiting: int) -> tuple[poolkit.Task[object], Gate]:
    """A pool with one worker, which is held, and a full queue; returns what it runs and what lets go of that."""
    arrived, release = new_gate(), new_gate()
    held = pool.submit(work.arrive_and_wait, arrived, release)
    arrived.wait()
    for _ in range(waiting):
        pool.submit(work.none_of_it)
    return held, release


def line_of(pool: poolkit.Pool) -> int:
    return len(pool._supervisor._waiters)


def wait_for_line(pool: poolkit.Pool, count: int) -> None:
    support.wait_until(lambda: line_of(pool) == count, f"{count} that wait")


async def join_line(pool: poolkit.Pool, number: int, journal: Journal) -> asyncio.Task[poolkit.Task[object]]:
    """A coroutine that waits for room, when this returns."""
    before = line_of(pool)
    waiting = asyncio.ensure_future(pool.submit_async(work.write_line, journal, number))
    await asyncio.sleep(0)
    assert line_of(pool) == before + 1
    return waiting


def press(pool: poolkit.Pool, seed: int, accepted: list[poolkit.Task[object]], ends: list[type]) -> None:
    """Submit, cancel and resize until that raises."""
    rng = random.Random(seed)
    try:
        while True:
            view = pool.options(block=rng.random() < 0.8, priority=rng.randint(0, 1))
            with contextlib.suppress(poolkit.QueueFull):
                accepted.append(view.submit(work.identity, len(accepted)))
            if accepted and rng.random() < 0.2:
                rng.choice(accepted).cancel()
            if rng.random() < 0.05:
                pool.resize(rng.randint(1, 3))
    except BaseException as exc:
        ends.append(type(exc))


@KINDS
@pytest.mark.parametrize("how", [{}, {"cancel_futures": True}, {"kill": True}])
def test_twenty_threads_that_submit_cancel_and_resize_all_hear_of_the_end(kind: str, how: dict[str, bool]) -> None:
    rng = faults.new_rng()
    for _ in range(faults.scaled(2)):
        pool = faults.new_pool(2, kind=kind, max_queue=2)
        accepted: list[list[poolkit.Task[object]]] = [[] for _ in range(20)]
        ends: list[type] = []
        threads = [threading.Thread(target=press, args=(pool, rng.randrange(2**32), mine, ends)) for mine in accepted]
        for thread in threads:
            thread.start()
        while pool.stats().submitted < 200:
            threading.Event().wait(0.001)
        pool.shutdown(**how)
        for thread in threads:
            thread.join()
        assert ends == [poolkit.PoolClosed] * 20
        for mine in accepted:
            assert all(task.cancelled() or task.result() == number for number, task in enumerate(mine))
        assert line_of(pool) == 0


def test_threads_and_coroutines_stand_in_one_queue(
    journal: Journal, new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First come, first called; there is room for two, so the second called may come before the first.

    It is decided under the pool's lock; two threads that wake those whom they took out may overtake each other.
    """
    called: list[Waiter] = []
    first = Waiters.first

    def note(line: Waiters, count: int) -> list[Waiter]:
        woken = first(line, count)
        called.extend(woken)
        return woken

    monkeypatch.setattr(Waiters, "first", note)
    with faults.new_pool(1, max_queue=1) as pool:
        _, release = full(pool, new_gate, 1)
        threads = []

        async def main() -> None:
            coroutines = []
            for number in range(10):
                if number % 2:
                    coroutines.append(await join_line(pool, number, journal))
                else:
                    threads.append(threading.Thread(target=pool.submit, args=(work.write_line, journal, number)))
                    threads[-1].start()
                    wait_for_line(pool, number + 1)
            line.extend(pool._supervisor._waiters.waiting)
            release.signal()
            for waiting in coroutines:
                await waiting

        line: list[Waiter] = []
        asyncio.run(main())
        for thread in threads:
            thread.join()
    assert list(dict.fromkeys(called)) == line
    assert sorted(map(int, journal.lines())) == list(range(10))


def test_a_coroutine_that_stops_waiting_leaves_no_task_and_no_gap(
    journal: Journal, new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while it waits, and in the moment in which it was called and has not come yet."""
    with faults.new_pool(1, max_queue=1) as pool:
        _, release = full(pool, new_gate, 1)

        async def main() -> None:
            first, second, third = [await join_line(pool, number, journal) for number in range(3)]
            second.cancel()
            call, loop = Waiter.wake, asyncio.get_running_loop()

            def call_and_cancel(waiter: Waiter) -> bool:
                loop.call_soon_threadsafe(first.cancel)
                return call(waiter)

            monkeypatch.setattr(Waiter, "wake", call_and_cancel)
            release.signal()
            assert await (await third) == 2
            for waiting in (first, second):
                with pytest.raises(asyncio.CancelledError):
                    await waiting

        asyncio.run(main())
        monkeypatch.undo()
        assert line_of(pool) == 0
        assert pool.stats().submitted == 3
        faults.check_serves(pool, new_gate)
    assert journal.lines() == ["2"]


def test_an_async_map_beside_others_does_not_block_its_loop(new_gate: Callable[[], Gate]) -> None:
    """They have filled the queue, and what lets go of them is done by the loop."""

    async def main(pool: poolkit.Pool) -> list[int]:
        results = pool.map(work.identity, range(6), chunksize=1, buffersize=1)
        first = await results.__anext__()
        release = await asyncio.to_thread(lambda: full(pool.options(block=True), new_gate, 1)[1])  # type: ignore[arg-type]
        asyncio.get_running_loop().call_later(0.05, release.signal)
        return [first, *[result async for result in results]]

    with faults.new_pool(1, max_queue=1) as pool:
        assert asyncio.run(main(pool)) == list(range(6))


def test_what_an_async_iteration_held_back_a_plain_one_submits(new_gate: Callable[[], Gate]) -> None:
    async def main(pool: poolkit.Pool) -> list[int]:
        results = pool.map(work.identity, range(6), chunksize=1, buffersize=1)
        release = await asyncio.to_thread(lambda: full(pool.options(block=True), new_gate, 1)[1])  # type: ignore[arg-type]
        found = [await results.__anext__()]
        release.signal()
        return found + list(results)

    with faults.new_pool(1, max_queue=1) as pool:
        assert asyncio.run(main(pool)) == list(range(6))


def test_a_fork_in_a_signal_handler_while_its_thread_waits_for_room(new_gate: Callable[[], Gate]) -> None:
    """The child's copy of the wait ends."""
    children: list[int] = []
    parent = os.getpid()

    def fork(_number: int, _frame: object) -> None:
        if (child := os.fork()) != 0:
            children.append(child)

    before = signal.signal(signal.SIGUSR1, fork)
    try:
        with faults.new_pool(1, max_queue=1) as pool:
            _, release = full(pool, new_gate, 1)

            def press() -> None:
                wait_for_line(pool, 1)
                os.kill(parent, signal.SIGUSR1)
                support.wait_until(lambda: children, "the fork")
                assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
                release.signal()

            thread = threading.Thread(target=press)
            thread.start()
            try:
                task = pool.submit(work.identity, 3)
            except poolkit.PoolClosed:
                os._exit(7)
            if os.getpid() != parent:
                os._exit(8)
            thread.join()
            assert task.result() == 3
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_those_who_gave_up_are_not_kept(new_gate: Callable[[], Gate]) -> None:
    with faults.new_pool(1, max_queue=1) as pool:
        held, release = full(pool, new_gate, 1)

        async def main() -> None:
            for _ in range(100):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(pool.submit_async(work.none_of_it), 0.001)

        asyncio.run(main())
        assert line_of(pool) <= 1
        release.signal()
        held.result()
        faults.check_serves(pool, new_gate)


def test_a_wait_for_room_that_is_interrupted_leaves_the_line(
    new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C in the moment in which it was called."""
    with faults.new_pool(1, max_queue=1) as pool:
        _, release = full(pool, new_gate, 1)
        found: list[object] = []
        is_waiting = threading.Event()

        class Interrupted:
            """A lock whose second `acquire`, which waits, raises when it has it."""

            def __init__(self) -> None:
                self._lock = threading.Lock()
                self.release = self._lock.release

            def acquire(self, *_: object) -> None:
                if not self._lock.acquire(blocking=False):
                    is_waiting.set()
                    self._lock.acquire()
                    raise KeyboardInterrupt

        def submit() -> None:
            try:
                found.append(pool.submit(work.identity, "ghost"))
            except KeyboardInterrupt as exc:
                found.append(exc)

        monkeypatch.setattr(poolkit._engine.requests, "allocate_lock", Interrupted)
        first = threading.Thread(target=submit)
        first.start()
        wait_for_line(pool, 1)
        assert is_waiting.wait(WATCHDOG)
        monkeypatch.undo()
        second = threading.Thread(target=lambda: found.append(pool.submit(work.identity, "second").result()))
        second.start()
        wait_for_line(pool, 2)
        release.signal()
        first.join()
        second.join()
        assert sorted(map(str, found)) == ["", "second"]
        faults.check_serves(pool, new_gate)


def test_an_interrupt_that_comes_with_the_turn_to_wait_gives_it_up(
    new_gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has taken its place in the line by then, and nobody wakes it in vain."""
    with faults.new_pool(1, max_queue=1) as pool:
        held, release = full(pool, new_gate, 1)

        decided = pool._supervisor._decided

        def interrupt() -> Any:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return decided()

        with monkeypatch.context() as patch:
            patch.setattr(pool._supervisor, "_decided", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(work.none_of_it)
        assert all(waiter.gone for waiter in pool._supervisor._waiters.waiting)
        release.signal()
        held.result()
        faults.check_serves(pool, new_gate)


@pytest.mark.long
@KINDS
def test_twenty_coroutines_and_twenty_threads_share_the_room(kind: str) -> None:
    """None of them gets a tenth only of what another gets; all the coroutines have but one thread."""
    counts: Counter[int] = Counter()
    rounds = faults.scaled(40)
    with faults.new_pool(2, kind=kind, max_queue=2) as pool:
        over = threading.Event()

        def use(who: int) -> None:
            while not over.is_set():
                pool.submit(work.none_of_it)
                counts[who] += 1

        async def use_async(who: int) -> None:
            while not over.is_set():
                await pool.submit_async(work.none_of_it)
                counts[who] += 1
                if counts[who] >= rounds:
                    over.set()

        async def main() -> None:
            await asyncio.gather(*(use_async(who) for who in range(20, 40)))

        threads = [threading.Thread(target=use, args=(who,)) for who in range(20)]
        for thread in threads:
            thread.start()
        asyncio.run(main())
        for thread in threads:
            thread.join()
    for first in (0, 20):
        share = [counts[who] for who in range(first, first + 20)]
        assert min(share) * 10 >= max(share)


@KINDS
@pytest.mark.parametrize("how", [{}, {"chunksize": 3}, {"buffersize": 2}, {"chunksize": 1, "ordered": False}])
def test_maps_beside_others_in_a_small_queue_neither_hang_nor_fail(kind: str, how: dict[str, int]) -> None:
    found: dict[int, list[int]] = {}
    with faults.new_pool(2, kind=kind, max_queue=1) as pool:

        def use(who: int) -> None:
            numbers = range(who, who + 60)
            found[who] = sorted(pool.map(work.identity, numbers, **how))

        def submit() -> None:
            for number in range(100):
                pool.submit(work.identity, number)

        threads = [threading.Thread(target=use, args=(who,)) for who in range(6)]
        threads += [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {who: list(range(who, who + 60)) for who in range(6)}


def test_a_map_that_must_not_wait_fails_only_when_it_has_nothing_to_wait_for(new_gate: Callable[[], Gate]) -> None:
    with faults.new_pool(1, max_queue=1) as pool:
        view = pool.options(block=False)
        assert list(view.map(work.identity, range(50), chunksize=1)) == list(range(50))
        _, release = full(pool, new_gate, 1)
        with pytest.raises(poolkit.QueueFull):
            view.map(work.identity, range(50))
        release.signal()


def test_offloaded_calls_wait_for_room_too(new_gate: Callable[[], Gate]) -> None:
    with faults.new_pool(1, max_queue=1) as pool, poolkit.use_pool(pool):
        square = poolkit.offload(work.square)
        _, release = full(pool, new_gate, 1)
        with pytest.raises(poolkit.QueueFull):
            square.options(block=False)(3)
        release.signal()
        assert [task.result() for task in [square(number) for number in range(20)]] == [n * n for n in range(20)]
