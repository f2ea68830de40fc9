"""CommChannel: a `Channel` over one of Dask's connections (TCP or TLS), at either end.

    wake (any thread) ── flag, loop ──> writer: take, write, wait until the network has it, take the next
    reader: a message ── on_message, or on_control for what the two halves of the provider tell each other

On the wire a message is a list: the head, then its parts; small ones stand in it as they are, large ones follow it as
frames of their own, which are read into memory of their own. What is no list is a control.

Guarantees: ordered; ends once, and then `on_end` is called once and nothing else; `wake` takes no lock of ours.
Owner: the event loop that it was made on, where all callbacks are called; only `wake`, `start` and `abort` come from
other threads. Used of Dask, and not promised by it: `Comm.read`, `write`, `abort`, `allow_offload`, `stream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from distributed.protocol import to_serialize

from poolkit._kinds.loggers import log
from poolkit._nodes.interfaces import Message

INLINE = 16 * 1024  # bytes; copying so many costs less than a frame
SHARED = 8  # a part keeps the memory that it was read into if it is no more than 1/8 larger
TURNS = 16  # messages that are read before others on the loop get their turn, where all have come already
# Ends of a connection that the other end has no part in, and may not notice.
UNHEARD = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN}


class CommChannel:
    """One end of a connection. `start` once the callbacks are set."""

    take: Callable[[], Message | None]
    on_message: Callable[[bytes, list[Any]], object]
    on_end: Callable[[str], object]

    def __init__(
        self,
        comm: Any,
        *,
        why: Callable[[], str],
        on_control: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        """Make one of a connection that nobody reads or writes any more.

        Args:
            comm: the connection.
            why: asked for the reason when it has ended.
            on_control: gets what the other half of the provider says.
        """
        comm.allow_offload = False  # another thread takes longer than what is to be done
        self._comm = comm
        self._stream = getattr(comm, "stream", None)  # which the comm lets go of at its end
        self._why = why
        self._on_control = on_control
        self._loop = asyncio.get_running_loop()
        self._woken = False  # set by any thread, cleared by the writer before it takes
        self._rung = asyncio.Event()
        self._controls: deque[dict[str, Any]] = deque()
        self._both: asyncio.Task[None] | None = None
        self._quiet = asyncio.Event()  # nothing is to be written
        self.ended = asyncio.Event()

    def start(self) -> None:
        """Have the callbacks called from now on."""
        self._call(self._start)

    def wake(self) -> None:
        """There is something to take. From any thread, under locks too: cheap, never blocks, raises nothing."""
        if not self._woken:
            self._woken = True
            self._call(self._rung.set)

    def abort(self) -> None:
        """End it at once; `on_end` is called soon. From any thread. Idempotent."""
        self._call(self._comm.abort)  # the reader finds it closed

    # ===== on the loop =====

    def control(self, message: dict[str, Any]) -> None:
        """Tell the other half something, before what is to be taken."""
        self._controls.append(message)
        self._rung.set()

    async def written(self, timeout: float) -> None:
        """Wait until all that was there to be taken is on its way, or the connection has ended; not for longer."""
        self._quiet.clear()
        self._rung.set()
        await first_of(self._quiet, self.ended, timeout=timeout)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop was closed, and with it all connections
            return

    def _start(self) -> None:
        if self._both is None:
            self._both = self._loop.create_task(self._live())

    async def _live(self) -> None:
        """Read and write until the first of them ends."""
        halves = [self._loop.create_task(self._read()), self._loop.create_task(self._write())]
        self._rung.set()  # for what was there before the start
        with contextlib.suppress(asyncio.CancelledError):  # with the loop
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        self._comm.abort()
        for half in halves:
            half.cancel()
        for failure in await asyncio.gather(*halves, return_exceptions=True):
            if isinstance(failure, Exception) and not isinstance(failure, OSError):
                log.error("the connection to %s ends by an error", self._comm.peer_address, exc_info=failure)
        self.ended.set()
        error = getattr(self._stream, "error", None)
        self.on_end("silent" if getattr(error, "errno", None) in UNHEARD else self._why())

    async def _read(self) -> None:
        turns = 0
        while True:
            message = await self._comm.read()
            if isinstance(message, (list, tuple)):
                self.on_message(message[0], [_own(part) for part in message[1:]])
            elif self._on_control is not None:
                self._on_control(message)
            del message  # the next may be long in coming
            turns += 1
            if turns % TURNS == 0:
                await asyncio.sleep(0)

    async def _write(self) -> None:
        while True:
            await self._rung.wait()
            self._rung.clear()
            self._woken = False
            while (message := self._next()) is not None:
                await self._comm.write(message)
                del message
                await _drain(self._comm)
                await asyncio.sleep(0)  # what came meanwhile is read first
            self._quiet.set()

    def _next(self) -> Any:
        if self._controls:
            return self._controls.popleft()
        message = self.take()
        return None if message is None else _packed(*message)


async def first_of(*events: asyncio.Event, timeout: float | None = None) -> bool:
    """Wait until one of these is set; False if none was in that time."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for one in waiting:
            one.cancel()


def _packed(head: bytes, parts: Sequence[Any]) -> list[Any]:
    message: list[Any] = [head]
    for part in parts:
        view = memoryview(part) if isinstance(part, (bytes, bytearray)) else pickle.PickleBuffer(part).raw()
        message.append(bytes(view) if view.nbytes <= INLINE else to_serialize(view))
    return message


def _own(part: Any) -> Any:
    """The part, writable, in memory that belongs to it alone."""
    if isinstance(part, memoryview) and not part.readonly:
        whole = memoryview(part.obj).nbytes
        if whole - part.nbytes <= part.nbytes // SHARED:
            return part
    return bytearray(part)


async def _drain(comm: Any) -> None:
    """Wait until the network has taken what was written: TCP's `write` only hands it over."""
    stream = getattr(comm, "stream", None)
    if stream is not None and stream.writing():
        await stream.write(b"")
