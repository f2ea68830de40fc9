"""Reading: who takes what a command's program writes: lines or chunks, in loops, or by a callback.

    Lines, Chunks    iterators of both sorts; each item goes to one reader
    Caller           calls a callback with each line

Thread-safe, all of it.
"""

from __future__ import annotations

import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from poolkit import waiting
from poolkit._kinds.commands import shown
from poolkit._kinds.loggers import log
from poolkit._locks import RLock
from poolkit._owner import Arrivals
from poolkit._spawn.output import Output

Item = TypeVar("Item")


class Taking:
    """What was taken of some outputs, as lines or as chunks, for whoever of their readers is next."""

    def __init__(self, outputs: list[Output], *, lines: bool, paired: bool) -> None:
        self.outputs = outputs
        self.ready: deque[Any] = deque()
        self._lines, self._paired = lines, paired
        self._lock = RLock()  # so that nothing is on its way from the outputs to `ready` while somebody looks

    def fetch(self) -> bool | None:
        """Take what is there: whether there is something; None at the end."""
        with self._lock:
            is_over = True
            for output in self.outputs:
                found = output.take(lines=self._lines)
                is_over &= found is None
                if found:
                    self.ready.extend([(output.name, item) for item in found] if self._paired else found)
            return True if self.ready else None if is_over else False

    def has_some(self) -> bool:
        """Whether a reader need not wait."""
        with self._lock:
            some = bool(self.ready) or any(output.has_some() for output in self.outputs)
            return some or all(output.has_ended for output in self.outputs)


class _Reader(Generic[Item]):
    """Takes what comes. Thread-safe."""

    def __init__(self, command: Any, taking: Taking) -> None:
        self._command, self._taking = command, taking

    def __iter__(self) -> Iterator[Item]:
        """Take one after the other, at the speed of a generator."""
        ready = self._taking.ready
        while True:
            try:
                while True:
                    yield ready.popleft()
            except IndexError:
                pass
            if not self._more():
                return

    def __next__(self) -> Item:
        """Take the next. Blocks."""
        while True:
            try:
                item: Item = self._taking.ready.popleft()
            except IndexError:
                if not self._more():
                    raise StopIteration from None
            else:
                return item

    def _more(self) -> bool:
        """Wait until there is more, or may be; at the end False, or the error of the command."""
        found = self._taking.fetch()
        if found is None:
            self._command.result()
            return False
        if not found:
            with _Waiting(self._taking.outputs) as arrivals:
                if not self._taking.has_some():
                    self._command.wait_for_output(arrivals)
        return True

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Take one after the other, without blocking the event loop."""
        ready = self._taking.ready
        while True:
            try:
                while True:
                    yield ready.popleft()
            except IndexError:
                pass
            if not await self._more_async():
                return

    async def __anext__(self) -> Item:
        """Take the next, without blocking the event loop."""
        while True:
            try:
                item: Item = self._taking.ready.popleft()
            except IndexError:
                if not await self._more_async():
                    raise StopAsyncIteration from None
            else:
                return item

    async def _more_async(self) -> bool:
        found = self._taking.fetch()
        if found is None:
            await self._command
            return False
        if found:
            await waiting.turn()
            return True
        with _Waiting(self._taking.outputs) as arrivals:
            if not self._taking.has_some():
                await waiting.wait_for(arrivals)
        return True


class Lines(_Reader[Item]):
    """The lines of a command's output, as they come: an iterator and an async iterator. Each goes to one reader."""


class Chunks(_Reader[bytes]):
    """A command's output, as it comes, in bytes: an iterator and an async iterator. Each chunk goes to one reader."""


class _Waiting:
    """What is rung when one of these outputs has something."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._arrivals = Arrivals()

    def __enter__(self) -> Arrivals:
        for output in self._outputs:
            output.waiters.append(self._arrivals.ring)
        return self._arrivals

    def __exit__(self, *_exc: object) -> None:
        for output in self._outputs:
            output.waiters.remove(self._arrivals.ring)


class Caller:
    """Has a callback called with each line, on the callback thread; see `Records.add_call`.

    The command is not kept by it, whose outputs have it.
    """

    def __init__(self, command: Any, output: Output, callback: Callable[[Any], object]) -> None:
        self._command, self._engine, self._output = weakref.ref(command), command._owner, output  # noqa: SLF001 -- its own half
        self._callback: Callable[[Any], object] | None = callback
        self._is_called = allocate_lock()  # held while a call is on its way
        self.task_id = self.worker_id = 0
        output.ask()
        output.waiters.append(self._ring)

    def _ring(self) -> None:
        command = self._command()
        if command is not None and self._output.has_some() and self._is_called.acquire(blocking=False):
            self.task_id, self.worker_id = command.id, command.worker_id or 0
            assert self._engine is not None  # noqa: S101 -- it runs
            self._engine.deliver(self, None)

    def call_back(self, _entry: object) -> None:
        """Call the callback with what is there. On the callback thread."""
        self._is_called.release()  # before the look: what comes from now on is called again
        self._call_some()
        while self._output.run_is_over():  # the outcome comes behind this call
            self._call_some()
        self._ring()  # others have their turn before what a program goes on to write

    def _call_some(self) -> None:
        command = self._command()
        if command is not None and command.cancelled():  # that is told already, and what it still writes is dropped
            self._callback = None
        try:
            for line in self._output.take(lines=self._callback is not None) or ():
                if self._callback is not None:
                    self._callback(line)
        except Exception:  # of decoding, too; what comes from now on is dropped
            self._callback = None
            how = "on_%s of %s (pid %s), task %d (%s), raised, and is not called again"
            if command is not None:
                log.exception(how, self._output.name, shown(command.argv), command.pid, command.id, command.name)
        except BaseException:
            self._callback = None
            raise
