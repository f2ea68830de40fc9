"""Waiting: what a coroutine waits for, under asyncio or trio, and under anyio on either.

Which one it is, is asked at each wait: a running *task of trio* decides, before a running loop of asyncio, as in
trio's guest mode both are there. trio is never imported here, but found where the program has imported it.
What is waited for is a task, or whatever has the methods of a `Target`.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
import threading
import types
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from poolkit._owner import Arrivals, Target

T = TypeVar("T")


def in_trio() -> bool:
    """Whether it is a task of trio that runs in this thread."""
    lowlevel = sys.modules.get("trio.lowlevel")  # not whole while another thread imports it
    is_so = getattr(lowlevel, "in_trio_task", None)
    return is_so is not None and bool(is_so())


def begin(target: Target[T]) -> Generator[Any, None, T]:
    """Wait under asyncio, trio or anyio; cancelling the waiting coroutine, or its scope, cancels what it waits for."""
    if sys.modules.get("trio") is not None and in_trio():
        from poolkit import awaiting_trio  # noqa: PLC0415 -- it needs trio

        return awaiting_trio.wait_for(target, target.add_waker)
    from poolkit import awaiting  # noqa: PLC0415 -- a worker half that never awaits should not pay for asyncio

    return awaiting.wait_for(target, target.add_waker)


async def wait_for(target: Target[T]) -> T:
    """Wait for `target`, and return its result."""
    return await _wait_for(target)


@types.coroutine
def _wait_for(target: Target[T]) -> Generator[Any, None, T]:
    return (yield from begin(target))


async def wait_until(arrivals: Arrivals, seconds: float | None) -> bool:
    """Wait until it is rung, for at most so many seconds; False when that was too short."""
    is_late = False
    try:
        if seconds is None:
            await wait_for(arrivals)
        elif in_trio():
            with sys.modules["trio"].move_on_after(seconds) as scope:
                await wait_for(arrivals)
            is_late = scope.cancelled_caught
        else:
            import asyncio  # noqa: PLC0415 -- not for those who use trio

            def give_up() -> None:
                nonlocal is_late
                is_late = True
                arrivals.ring()

            timer = asyncio.get_running_loop().call_later(seconds, give_up)
            try:
                await wait_for(arrivals)
            finally:
                timer.cancel()
    finally:
        arrivals.cancel()
    return not is_late


async def checkpoint(*, is_turn: bool = False) -> None:
    """Under trio, give others their turn, or raise if the scope was cancelled; under asyncio only where `is_turn`."""
    if in_trio():
        await sys.modules["trio"].lowlevel.checkpoint()
    elif is_turn:
        import asyncio  # noqa: PLC0415 -- not for those who use trio

        await asyncio.sleep(0)


@types.coroutine
def _give_way() -> Generator[None, None, None]:
    yield


async def turn() -> None:
    """Give others their turn, under both; under trio, raise if the scope was cancelled."""
    await (sys.modules["trio"].lowlevel.checkpoint() if in_trio() else _give_way())


async def wait_ready(fd: int, *, writes: bool) -> None:
    """Wait until a descriptor can be read, or written. It may be waited for elsewhere, too."""
    own = os.dup(fd)  # an event loop has one reader for each
    try:
        if in_trio():
            lowlevel = sys.modules["trio"].lowlevel
            await (lowlevel.wait_writable if writes else lowlevel.wait_readable)(own)
            return
        import asyncio  # noqa: PLC0415 -- not for those who use trio

        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        (loop.add_writer if writes else loop.add_reader)(own, ready.set)
        try:
            await ready.wait()
        finally:
            (loop.remove_writer if writes else loop.remove_reader)(own)
    finally:
        os.close(own)


async def run_in_thread(fn: Callable[..., T], *args: Any, name: str) -> T:
    """Call `fn` in a thread of its own: the loop's threads may be full of calls that wait for a pool.

    Where the wait is cancelled, the call goes on, and nobody hears of what it gives.
    """
    end, found, errors = Arrivals(), list[T](), list[BaseException]()

    def run() -> None:
        try:
            found.append(fn(*args))
        except BaseException as exc:  # noqa: BLE001 -- raised below, or the wait would not end
            errors.append(exc)
        finally:
            end.ring()

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name=name, daemon=True).start()
    await wait_for(end)
    if errors:
        try:
            raise errors.pop()
        finally:
            del errors  # it holds this frame
    return found.pop()


def caller() -> Callable[[Callable[[], object]], object]:
    """What any thread may have the running loop call something by; that raises RuntimeError once the loop has ended."""
    if in_trio():
        tell: Callable[[Callable[[], object]], object] = sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon
        return tell
    import asyncio  # noqa: PLC0415 -- see above

    return asyncio.get_running_loop().call_soon_threadsafe


def shield() -> contextlib.AbstractContextManager[object]:
    """A context in which a scope that was cancelled outside of it does not cancel what is awaited.

    asyncio itself needs none: a coroutine of it is cancelled once, while scopes of trio and anyio go on cancelling.
    """
    library = sys.modules.get("trio" if in_trio() else "anyio")
    scope: Any = getattr(library, "CancelScope", None)
    return contextlib.nullcontext() if scope is None else scope(shield=True)


def interruptions() -> tuple[type[BaseException], ...]:
    """What ends a `with` block from outside: Ctrl-C, and the cancellation of the coroutine that it stands in."""
    found: list[type[BaseException]] = [KeyboardInterrupt]
    for library, name in (("asyncio", "CancelledError"), ("trio", "Cancelled")):
        error = getattr(sys.modules.get(library), name, None)
        if error is not None:
            found.append(error)
    return tuple(found)


def is_interruption(error: BaseException | None) -> bool:
    """Whether it is such, or a group with such in it, as trio's nurseries raise."""
    kinds = interruptions()
    split = getattr(error, "subgroup", None) if hasattr(error, "exceptions") else None
    return isinstance(error, kinds) or (split is not None and split(kinds) is not None)
