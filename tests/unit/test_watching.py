"""An event loop that reads the results of a pool by itself."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from typing import Any

import pytest

from poolkit.outcome import Outcome
from poolkit.task import Task


class FakeOwner:
    """A pool whose links are a pipe; a byte in it settles the oldest task."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        self.tasks: list[Task[Any]] = []
        self.leases_ended = 0
        self.watches = True
        self.open = True
        self.done_at_once = False

    def task(self) -> Task[Any]:
        self.tasks.append(Task(self, "name", None, None))  # type: ignore[arg-type]
        return self.tasks[-1]

    def settle(self) -> None:
        task = self.tasks.pop(0)
        for callback in task.publish(Outcome(len(self.tasks), ok=True)) or ():
            callback(task)

    def finish(self) -> None:
        os.write(self.write_fd, b"x")

    def look_in(self) -> bool:
        for _ in os.read(self.read_fd, 100):
            self.settle()
        return self.open

    def watch(self, task: Task[Any]) -> tuple[int, Callable[[], bool]] | None:
        if self.done_at_once:
            self.settle()
        return (self.read_fd, self.look_in) if self.watches else None

    def end_lease(self) -> None:
        self.leases_ended += 1

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


@pytest.fixture
def owner() -> Any:
    made = FakeOwner()
    yield made
    made.close()


async def value_of(task: Task[Any]) -> Any:
    return await task


def wakes_of(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    wakes: list[object] = []
    loop = asyncio.get_running_loop()
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call: (wakes.append(call), wake(call)))
    return wakes


def test_what_the_loop_reads_wakes_no_loop(owner: FakeOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        wakes = wakes_of(monkeypatch)
        waiting = [asyncio.ensure_future(value_of(owner.task())) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(3):
            owner.finish()
        assert await asyncio.gather(*waiting) == [2, 1, 0]
        assert wakes == []

    asyncio.run(main())


def test_what_another_thread_settles_wakes_it(owner: FakeOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        wakes = wakes_of(monkeypatch)
        waiting = asyncio.ensure_future(value_of(owner.task()))
        await asyncio.sleep(0)
        owner.settle()
        assert await waiting == 0
        assert len(wakes) == 1

    asyncio.run(main())


def test_a_task_that_is_done_during_the_look_is_handed_over_after_one_turn(owner: FakeOwner) -> None:
    async def main() -> None:
        owner.done_at_once = True
        turns = []
        asyncio.get_running_loop().call_soon(lambda: turns.append(1))
        assert await owner.task() == 0
        assert turns == [1]

    asyncio.run(main())


def test_the_loop_watches_a_copy_for_as_long_as_something_is_awaited(owner: FakeOwner) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        added: list[int] = []
        removed: list[int] = []
        add, remove = loop.add_reader, loop.remove_reader
        loop.add_reader = lambda fd, *args: (added.append(fd), add(fd, *args))  # type: ignore[assignment]
        loop.remove_reader = lambda fd: (removed.append(fd), remove(fd))  # type: ignore[assignment, func-returns-value]
        for _ in range(3):  # one after the other, without anything in between
            task = owner.task()
            owner.finish()
            await task
        assert len(added) == 1
        assert added[0] != owner.read_fd
        await asyncio.sleep(0)
        assert removed == added
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(added[0])

    asyncio.run(main())


def test_a_pool_that_is_gone_is_watched_no_longer(owner: FakeOwner) -> None:
    async def main() -> None:
        first, second = owner.task(), owner.task()
        waiting = [asyncio.ensure_future(value_of(task)) for task in (first, second)]
        await asyncio.sleep(0)
        owner.open = False
        owner.finish()
        assert await waiting[0] == 1
        owner.finish()  # nobody looks
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not second.done()
        owner.settle()
        assert await waiting[1] == 0

    asyncio.run(main())


@pytest.mark.parametrize("why", ["nothing to watch", "a loop that cannot", "no descriptors"])
def test_where_nothing_can_be_watched_the_pool_reads(
    owner: FakeOwner, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        if why == "nothing to watch":
            owner.watches = False
        elif why == "a loop that cannot":
            monkeypatch.setattr(loop, "add_reader", refuse(NotImplementedError()))
        else:
            monkeypatch.setattr(os, "dup", refuse(OSError(24, "Too many open files")))
        waiting = asyncio.ensure_future(value_of(owner.task()))
        await asyncio.sleep(0)
        assert owner.leases_ended == (why != "nothing to watch")  # there the pool has done so by itself
        owner.settle()
        assert await waiting == 0

    asyncio.run(main())


def refuse(error: Exception) -> Callable[..., Any]:
    def raising(*_: object) -> Any:
        raise error

    return raising


def test_a_result_that_exits_when_it_is_unpickled_stops_nobody_elses(owner: FakeOwner) -> None:
    """Asyncio lets such an exception end the loop; whoever runs it again finds the others done."""

    def exit_loudly(_: object) -> None:
        raise SystemExit(3)

    loop = asyncio.new_event_loop()
    try:
        first, second = owner.task(), owner.task()
        waiting = [loop.create_task(value_of(task)) for task in (first, second)]
        loop.run_until_complete(asyncio.sleep(0))
        owner.tasks.clear()
        first.publish(Outcome(b"", ok=True, load=exit_loudly))
        second.publish(Outcome(2, ok=True))
        with pytest.raises(SystemExit):
            loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        assert loop.run_until_complete(waiting[1]) == 2
        assert waiting[0].cancelled()
    finally:
        loop.close()


@pytest.mark.parametrize("noticed_by", ["the task that ends", "the next loop"])
def test_a_loop_that_was_closed_in_the_middle_leaves_no_descriptor(
    owner: FakeOwner, noticed_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    dup = os.dup

    def noting_dup(fd: int) -> int:
        copies.append(dup(fd))
        return copies[-1]

    async def advance(waiting: Any) -> None:
        next(waiting)

    loop = asyncio.new_event_loop()
    awaited = owner.task().__await__()
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", noting_dup)
        loop.run_until_complete(advance(awaited))
    loop.close()
    (copy,) = copies
    os.fstat(copy)
    if noticed_by == "the task that ends":
        owner.settle()
    else:
        asyncio.run(value_of(settled()))
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(copy)
    awaited.close()


def settled() -> Task[Any]:
    task: Task[Any] = Task(None, "name", None, None)
    task.publish(Outcome(None, ok=True))
    return task


def test_a_cancelled_wait_for_what_is_done_complains_of_nothing(owner: FakeOwner) -> None:
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        owner.done_at_once = True
        waiting = asyncio.ensure_future(value_of(owner.task()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    gc.collect()
    assert complaints == []
