"""Event loops, each behind the same few verbs: asyncio, trio, and anyio on either."""

from __future__ import annotations

import asyncio
import functools
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import trio

Main = Callable[[], Awaitable[Any]]


class Loop:
    """One library, `name`."""

    cancelled: type[BaseException]  # what it raises in a coroutine that it cancels

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def run(self, main: Main) -> Any:
        """Run a coroutine to its end."""

    @abstractmethod
    def soon(self, call: Callable[[], object]) -> None:
        """Have the running loop call something in its next turn."""

    @abstractmethod
    async def turn(self) -> None:
        """Let the others have a turn."""

    @abstractmethod
    async def together(self, mains: list[Main]) -> list[Any]:
        """Run coroutines side by side; returns their values."""

    @abstractmethod
    async def is_stopped_after(self, seconds: float, main: Main) -> bool:
        """Run a coroutine for so long at most; whether it was stopped then."""

    @abstractmethod
    async def cancel(self, main: Main, before: Callable[[], object] = lambda: None) -> None:
        """Run a coroutine until it waits, call `before`, cancel it, and wait for its end."""


class Asyncio(Loop):
    cancelled = asyncio.CancelledError

    def run(self, main: Main) -> Any:
        return asyncio.run(main())  # type: ignore[arg-type]

    def soon(self, call: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(call)

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def together(self, mains: list[Main]) -> list[Any]:
        return await asyncio.gather(*(main() for main in mains))

    async def is_stopped_after(self, seconds: float, main: Main) -> bool:
        try:
            await asyncio.wait_for(main(), seconds)
        except asyncio.TimeoutError:
            return True
        return False

    async def cancel(self, main: Main, before: Callable[[], object] = lambda: None) -> None:
        running = asyncio.ensure_future(main())
        await asyncio.sleep(0)
        before()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()


class Trio(Loop):
    cancelled = trio.Cancelled

    def run(self, main: Main) -> Any:
        return trio.run(main)

    def soon(self, call: Callable[[], object]) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(call)

    async def turn(self) -> None:
        await trio.lowlevel.checkpoint()

    async def together(self, mains: list[Main]) -> list[Any]:
        values: list[Any] = [None] * len(mains)

        async def run(place: int, main: Main) -> None:
            values[place] = await main()

        async with trio.open_nursery() as nursery:
            for place, main in enumerate(mains):
                nursery.start_soon(run, place, main)
        return values

    async def is_stopped_after(self, seconds: float, main: Main) -> bool:
        with trio.move_on_after(seconds) as scope:
            await main()
        return scope.cancelled_caught

    async def cancel(self, main: Main, before: Callable[[], object] = lambda: None) -> None:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await main()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            before()
            scope.cancel()
        assert scope.cancelled_caught


class Anyio(Loop):
    """anyio on `backend`."""

    def __init__(self, backend: str) -> None:
        super().__init__(f"anyio-{backend}")
        self._backend = backend
        self.cancelled = asyncio.CancelledError if backend == "asyncio" else trio.Cancelled
        self._of: Loop = Asyncio("asyncio") if backend == "asyncio" else Trio("trio")

    def run(self, main: Main) -> Any:
        return anyio.run(main, backend=self._backend)

    def soon(self, call: Callable[[], object]) -> None:
        self._of.soon(call)

    async def turn(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def together(self, mains: list[Main]) -> list[Any]:
        values: list[Any] = [None] * len(mains)

        async def run(place: int, main: Main) -> None:
            values[place] = await main()

        async with anyio.create_task_group() as group:
            for place, main in enumerate(mains):
                group.start_soon(run, place, main)
        return values

    async def is_stopped_after(self, seconds: float, main: Main) -> bool:
        with anyio.move_on_after(seconds) as scope:
            await main()
        return scope.cancelled_caught

    async def cancel(self, main: Main, before: Callable[[], object] = lambda: None) -> None:
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await main()

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            before()
            scope.cancel()
        assert scope.cancelled_caught


LOOPS = [Asyncio("asyncio"), Trio("trio"), Anyio("asyncio"), Anyio("trio")]


def call(awaitable: Any) -> Main:
    """What awaits something that can be awaited and is no coroutine."""

    async def wait() -> Any:
        return await awaitable

    return wait


def each(fn: Callable[..., Awaitable[Any]], *arguments: tuple[Any, ...]) -> list[Main]:
    """Calls of one function."""
    return [functools.partial(fn, *args) for args in arguments]
