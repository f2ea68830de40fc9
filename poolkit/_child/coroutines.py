"""Coroutines: the event loop of one worker, on which its `async def` tasks run, one after the other.

One loop for all of them, made with the first, so that what belongs to a loop (a session, a lock, a pool of connections)
can be kept between tasks. It is nobody's current loop but while a coroutine runs. What a coroutine leaves running is
cancelled and waited for as part of its task; asynchronous generators and the loop's threads end with the worker.
A task that is told to end while its coroutine runs is cancelled, as asyncio does it: see `Running`.
Owner: the worker's task thread; `wake` and `Running.end` are for any. Where a task runs a coroutine in another thread
of its own while the loop is in use, or in a process that it forked, that gets a loop of its own, once.
"""

from __future__ import annotations

import contextlib
import os
from _thread import allocate_lock
from _weakref import ref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial

from poolkit import _os_processes
from poolkit._typing import TYPE_CHECKING, Any
from poolkit.context import current_task

if TYPE_CHECKING:
    import asyncio

RUNS = -1.0  # on the board and in `Status.made`: what runs is a coroutine, which can be told to end


class Ended(BaseException):
    """The task ended as it was told to; never seen outside of poolkit. `stack` tells where it was, if known."""

    stack = ""


class Running:
    """A coroutine that runs as a task, or as a part of one, for who tells the task to end."""

    def __init__(self, task_id: int, main: asyncio.Task[Any], coroutine: Coroutine[Any, Any, Any]) -> None:
        self.task_id = task_id
        self.loop = main.get_loop()
        self.is_to_end = False
        self.stack = ""  # where the coroutine was when it was told
        self.children: set[int] = set()  # of a worker process, that were there before
        self._threads, _ = self._count_threads()
        self._main = main
        self._coroutine = coroutine

    def end(self) -> None:
        """Have CancelledError raised where it awaits, once. From any thread."""
        if self.is_to_end:
            return
        self.is_to_end = True
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self.stack = _stack_of(self._coroutine)
        self._main.cancel()

    def leaves_threads(self) -> bool:
        """Whether threads go on that were not there before, or the loop's own are at work."""
        count, is_busy = self._count_threads()
        return is_busy or count > self._threads

    def leaves_programs(self) -> bool:
        """Whether programs run that did not before."""
        return any(not _os_processes.has_ended(pid) for pid in _os_processes.children() - self.children)

    def _count_threads(self) -> tuple[int, bool]:
        """Return how many there are, but for those of the loop's executor, and whether one of those is not idle."""
        import threading  # noqa: PLC0415 -- which asyncio imports, too

        executor = getattr(self.loop, "_default_executor", None)
        threads, idle = getattr(executor, "_threads", ()), getattr(executor, "_idle_semaphore", None)
        return threading.active_count() - len(threads), idle is not None and idle._value < len(threads)  # noqa: SLF001

    def ended(self, failure: BaseException | None) -> Ended:
        """Return what says that it has ended; what it raised instead of CancelledError is told to the log."""
        import asyncio  # noqa: PLC0415 -- it is imported

        if isinstance(failure, Exception) and not isinstance(failure, asyncio.CancelledError):
            tell(failure, "task %s raised when it was cancelled")
        ended = Ended()
        ended.stack = self.stack
        return ended


class Coroutines:
    """The event loop of one worker; `host` is that worker, which is told what runs."""

    def __init__(self, host: Any = None) -> None:
        self._host = host
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left_threads = False  # whether a coroutine that was told to end left the loop's threads at work
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
            return self._run(self._loop, self._loop.create_task(coroutine), coroutine)
        finally:
            self._lock.release()

    def _run(
        self, loop: asyncio.AbstractEventLoop, main: asyncio.Task[Any], coroutine: Coroutine[Any, Any, Any]
    ) -> Any:
        import asyncio  # noqa: PLC0415 -- it is imported

        host, context = self._host, current_task()
        running: Running | None = None
        failure: BaseException | None = None
        try:
            try:
                if host is not None and context is not None:
                    running = host.begin_coroutine(Running(context.id, main, coroutine))
                return loop.run_until_complete(main)
            finally:
                asyncio.runners._cancel_all_tasks(loop)  # type: ignore[attr-defined]  # noqa: SLF001 -- as run()
        except BaseException as exc:
            if running is None or not running.is_to_end:
                raise
            failure = exc
        finally:
            if running is not None:
                host.end_coroutine(running)
                if running.is_to_end:
                    self._left_threads = self._left_threads or running.leaves_threads()
                    host.closed = ended = running.ended(failure)
                    del failure  # its traceback holds this frame
                    raise ended from None

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
            if not self._left_threads:
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


def _stack_of(coroutine: Any) -> str:
    """The Python stack of a coroutine that waits, most recent call first."""
    lines: list[str] = []
    while (frame := getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)) is not None:
        lines.insert(0, f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return "\n".join(lines)


def tell(failure: BaseException, what: str) -> None:
    """Tell the log of what a task raised that was told to end."""
    import logging  # noqa: PLC0415 -- only where something is wrong

    context = current_task()
    logging.getLogger("poolkit").error(what, context.name if context else "", exc_info=failure)


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
