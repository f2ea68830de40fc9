"""Coroutines: the event loop of one worker, on which its `async def` tasks run, one after the other.

One loop for all of them, made with the first, so that what belongs to a loop (a session, a lock, a pool of connections)
can be kept between tasks. It is nobody's current loop but while a coroutine runs. What a coroutine leaves running is
cancelled and waited for as part of its task; asynchronous generators and the loop's threads end with the worker.
Owner: the worker's task thread; `wake` is for any. Where a task runs a coroutine in another thread of its own while the
loop is in use, or in a process that it forked, that gets a loop of its own, once.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from _weakref import ref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial

from poolkit._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class Coroutines:
    """The event loop of one worker."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = allocate_lock()  # held while the loop is in use; nobody waits for it

    def keep(self) -> None:
        """Have coroutines of this context, the worker's own, run here."""
        _KEEPER.set(ref(self))

    def keeper(self) -> Callable[[], object]:
        """What does the same for each context that it is called in; it costs no call in Python."""
        return partial(_KEEPER.set, ref(self))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it to its end; returns its value, or raises what it raises."""
        import asyncio  # noqa: PLC0415 -- only for those who submit `async def` functions
        import weakref  # noqa: PLC0415 -- which asyncio imports, too

        if self._pid != os.getpid() or not self._lock.acquire(blocking=False):
            return asyncio.run(coroutine)
        try:
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
                weakref.finalize(self, _drop, self._loop, self._pid)
            try:
                return self._loop.run_until_complete(coroutine)
            finally:
                asyncio.runners._cancel_all_tasks(self._loop)  # type: ignore[attr-defined]  # noqa: SLF001 -- as run()
        finally:
            self._lock.release()

    def wake(self) -> None:
        """Have the loop look up, if it waits, for what was raised in its thread meanwhile."""
        loop = self._loop
        try:
            if loop is not None and loop.is_running():
                loop.call_soon_threadsafe(int)
        except RuntimeError:  # it was closed just now
            pass

    def close(self) -> None:
        """End what depends on the loop, and close it. Raises nothing: the worker is about to end."""
        loop, self._loop = self._loop, None
        if loop is None or loop.is_closed() or self._pid != os.getpid():
            return
        try:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        except BaseException as failure:  # noqa: BLE001 -- a generator that exits the interpreter, or stops the loop
            loop.call_exception_handler(
                {"message": "the event loop of a worker did not end well", "exception": failure}
            )
        finally:
            loop.close()

    def drop(self) -> None:
        """Close the loop of a fake worker, which just goes, perhaps while another loop runs in its thread."""
        if self._loop is not None:
            _drop(self._loop, self._pid)


# A reference that keeps nothing alive: what is left in a loop, if only a timer that was cancelled, has its context.
_KEEPER: ContextVar[ref[Coroutines] | None] = ContextVar("poolkit_coroutines", default=None)


def _drop(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    """Close a loop that nobody has closed, where it was made: a fork's would unregister what its owner waits for.

    The finalizer keeps it until then: a loop that the collector found may have had its sockets closed before it.
    """
    if pid == os.getpid() and not loop.is_running():
        loop.close()


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end on the event loop of the worker whose task this is; what it raises propagates.

    Raises:
        RuntimeError: an event loop runs in this thread.
    """
    import asyncio  # noqa: PLC0415 -- only for those who submit `async def` functions

    if asyncio._get_running_loop() is not None:  # noqa: SLF001 -- get_running_loop() raises instead
        name = getattr(coroutine, "__qualname__", "a coroutine")
        coroutine.close()
        raise RuntimeError(f"{name}() cannot be run to its end here, where an event loop is running: await it")
    kept = _KEEPER.get()
    keeper = None if kept is None else kept()
    return asyncio.run(coroutine) if keeper is None else keeper.run(coroutine)
