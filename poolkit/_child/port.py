"""Port: what a dedicated worker and its owner send each other through, and the worker's end of it.

    Worker, in the owner ── Ends ── Channel ══ two ways, in order ══ Channel ── Ends ── Port, in the worker

Guarantees: a message is sent as a whole or not at all, and given to one receiver, whatever interrupts either: it is
noted by the very instruction that sends or takes it, and what was taken and not returned is put back. What was sent
before an end was shut is received before that is told.
Owner: any thread; what is here takes one atomic operation at a time.
"""

from __future__ import annotations

import contextlib
import contextvars
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from itertools import starmap
from os import getpid

from poolkit._clock import monotonic
from poolkit._core.options import wait_seconds
from poolkit._locks import RLock
from poolkit._typing import Any, Self
from poolkit.context import current_task
from poolkit.errors import ChannelClosed, PoolClosed


class ChannelEnd(Exception):
    """The channel takes no more messages, or has no more to give."""


TURN = 64  # messages at hand after which coroutines of asyncio give others their turn
Left = Callable[[], "float | None"]  # how many seconds one may wait yet; None: for ever


class Channel:
    """One end of a channel. Each kind of worker has its own."""

    fd: int | None = None  # readable when there is something to take, or at the end; None: see `call_when_ready`

    def __init__(self) -> None:
        self._pid = getpid()
        self._back: deque[Any] = deque()  # taken, and then not returned
        self._taking = RLock()  # re-entrant for signal handlers
        self._at_hand = 0  # messages that coroutines have sent and received since the event loop's last turn

    # ===== a kind's own part =====

    @abstractmethod
    def pack(self, message: object) -> Any:
        """Make of a message what is sent. Raises SerializationError, or OSError where there is no memory."""

    @abstractmethod
    def pack_failure(self, error: BaseException) -> Any:
        """Make what is sent of what a call raised, of an object that is hosted."""

    @abstractmethod
    def has_failed(self, taken: list[Any]) -> bool:
        """Whether what was taken is such, without unpickling it."""

    @abstractmethod
    def try_send(self, packed: Any) -> bool:
        """Send it; False where there is no room. Raises ChannelEnd."""

    @abstractmethod
    def try_take(self, taken: list[Any]) -> bool:
        """Take what comes next, into `taken`; False where there is nothing. Raises ChannelEnd."""

    @abstractmethod
    def load(self, taken: list[Any]) -> Any:
        """Return the message in what was taken."""

    @abstractmethod
    def wait(self, seconds: float | None, *, writes: bool) -> None:
        """Return when there may be something to take, or room, or after about so many seconds. Blocks."""

    @abstractmethod
    async def wait_async(self, *, writes: bool) -> None:
        """Do the same, for ever, without blocking the event loop."""

    def call_when_ready(self, ready: Callable[[], object]) -> None:
        """Call `ready` once, when there is something to take, or at the end; where there is no `fd`. In any thread."""
        raise NotImplementedError

    @abstractmethod
    def is_closed(self) -> bool:
        """Whether the other end sends nothing more."""

    @abstractmethod
    def close(self) -> None:
        """Send nothing more from this end. Idempotent; does not block."""

    @abstractmethod
    def shut(self) -> None:
        """Send nothing more, and let nothing more come but what was sent. Idempotent; does not block."""

    # ===== what is common =====

    def countdown(self, timeout: object) -> Left:
        """What tells how many of these seconds are left for a wait."""
        return countdown(timeout)

    def send(self, message: object, left: Left) -> None:
        """Send a message. Raises TimeoutError, and ChannelEnd."""
        self.check_process()
        packed = self.pack(message)
        while not self.try_send(packed):
            if (seconds := left()) == 0.0:
                msg = "there was no room for the message in time: the other side has too many to receive"
                raise TimeoutError(msg)
            self.wait(seconds, writes=True)

    async def send_async(self, message: object) -> None:
        """Do the same in a coroutine."""
        self.check_process()
        packed = self.pack(message)
        await self._checkpoint()
        while not self.try_send(packed):
            await self.wait_async(writes=True)

    def receive(self, left: Left, taken: list[Any]) -> Any:
        """Return the next message. Raises TimeoutError, ChannelEnd, and what unpickling raises: it is gone then.

        For an interrupt, which may come on the way back, too: what `taken` has is to be put back then.
        """
        self.check_process()
        while not self._take(taken):
            if (seconds := left()) == 0.0:
                msg = "no message came in time"
                raise TimeoutError(msg)
            self.wait(seconds, writes=False)
        return self.load(taken)

    async def receive_async(self, taken: list[Any]) -> Any:
        """Do the same in a coroutine, for ever. One that is cancelled has taken nothing."""
        self.check_process()
        await self._checkpoint()
        while not self._take(taken):
            await self.wait_async(writes=False)
        return self.load(taken)

    async def _checkpoint(self) -> None:
        """Give others their turn: under trio each time, under asyncio now and then."""
        from poolkit import waiting  # noqa: PLC0415 -- few workers need it, and it takes 10 ms

        self._at_hand = (self._at_hand + 1) % TURN
        await waiting.checkpoint(is_turn=not self._at_hand)

    def _take(self, taken: list[Any]) -> bool:
        while self._back:
            with contextlib.suppress(IndexError):  # another thread was faster
                taken += starmap(self._back.popleft, ((),))
                return True
        return self.try_take(taken)

    def put_back(self, taken: list[Any]) -> None:
        """Have it taken again, by whoever comes first."""
        self._back.extendleft(taken)

    def check_process(self) -> None:
        """Raise PoolClosed in a forked child."""
        if getpid() != self._pid:
            msg = f"this channel belongs to process {self._pid}, which forked this one ({getpid()})"
            raise PoolClosed(msg)


def countdown(timeout: object) -> Left:
    """What tells how many of these seconds are left: 0.0 when none are, None without a limit."""
    seconds = wait_seconds("timeout", timeout)
    if seconds is None:
        return lambda: None
    give_up = monotonic() + seconds
    return lambda: max(0.0, give_up - monotonic())


class Ends:
    """What is the same at both ends, for users."""

    _channel: Channel
    _no_send = _no_recv = ""  # why one must not

    @abstractmethod
    def _end(self, left: Left, *, sends: bool = False) -> BaseException:
        """What the end of the channel is told by. May block, and raise TimeoutError."""

    @abstractmethod
    async def _end_async(self, *, sends: bool = False) -> BaseException:
        """Do the same in a coroutine."""

    def send(self, message: object, timeout: float | None = None) -> None:
        """Send a message to the other side; it is written when this returns. Thread-safe.

        Packed on this thread. Blocks while some 200 KiB of messages, or 64 MiB in shared memory (threads: 1,000
        messages), are not received; at most `timeout` seconds (None: for ever, 0: not at all).

        Raises:
            TimeoutError: there was no room in time; nothing was sent.
            SerializationError: it cannot be pickled; the channel goes on.
            ChannelClosed: nothing more can be sent. The owner gets what ended the worker, instead.
            RuntimeError: the worker hosts an object.
        """
        left = self._channel.countdown(timeout)
        if self._no_send:
            raise RuntimeError(self._no_send)
        try:
            self._channel.send(message, left)
        except ChannelEnd:
            pass
        else:
            return
        raise self._end(left, sends=True)

    async def send_async(self, message: object) -> None:
        """Do the same as `send` in a coroutine, without blocking its event loop; cancelled, it sent nothing."""
        if self._no_send:
            raise RuntimeError(self._no_send)
        try:
            await self._channel.send_async(message)
        except ChannelEnd:
            pass
        else:
            return
        raise await self._end_async(sends=True)

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message of the other side. Thread-safe; each message goes to one. An interrupt loses none.

        Blocks until one is here, at most `timeout` seconds (None: for ever, 0: not at all).

        Raises:
            TimeoutError: none came in time.
            ChannelClosed: none will come any more. The owner gets what ended the worker, instead.
            RuntimeError: they go to `on_message`, or the worker hosts an object.
            Exception: what unpickling the message raises; the next `recv` gets the next one.
        """
        left = self._channel.countdown(timeout)
        if self._no_recv:
            raise RuntimeError(self._no_recv)
        taken: list[Any] = []
        try:
            return self._channel.receive(left, taken)
        except ChannelEnd:
            pass
        except Exception:
            raise
        except BaseException:
            self._channel.put_back(taken)
            raise
        raise self._end(left)

    async def recv_async(self) -> Any:
        """Do the same as `recv` in a coroutine, without blocking its event loop; cancelled, it loses nothing."""
        if self._no_recv:
            raise RuntimeError(self._no_recv)
        taken: list[Any] = []
        try:
            return await self._channel.receive_async(taken)
        except ChannelEnd:
            pass
        except Exception:
            raise
        except BaseException:
            self._channel.put_back(taken)
            raise
        raise await self._end_async()

    def __iter__(self) -> Self:
        """The messages, until the other side has ended."""
        return self

    def __next__(self) -> Any:
        """The next message, as `recv`."""
        try:
            return self.recv()
        except ChannelClosed:
            raise StopIteration from None

    def __aiter__(self) -> Self:
        """The messages, until the other side has ended."""
        return self

    async def __anext__(self) -> Any:
        """The next message, as `recv_async`."""
        try:
            return await self.recv_async()
        except ChannelClosed:
            raise StopAsyncIteration from None


class Port(Ends):
    """The worker's end of the channel to its owner, which a dedicated worker's target is called with. Thread-safe."""

    def __init__(self, channel: Channel) -> None:
        """Take the channel; ports are made by `Worker`."""
        self._channel = channel

    @property
    def closed(self) -> bool:
        """Whether the owner sends nothing more, or is gone; what it had sent may still be received."""
        return self._channel.is_closed()

    def fileno(self) -> int:
        """The descriptor that is readable when there is something to receive; of a process worker.

        Does not block.

        Raises:
            OSError: this worker is a thread.
        """
        fd = self._channel.fd
        if fd is None:
            msg = "the port of a worker that is a thread has no descriptor"
            raise OSError(msg)
        return fd

    def _end(self, _left: Left, *, sends: bool = False) -> BaseException:  # noqa: ARG002 -- it is all one
        return ChannelClosed("the owner of this worker has closed the channel")

    async def _end_async(self, *, sends: bool = False) -> BaseException:
        return self._end(countdown(None), sends=sends)

    def __reduce__(self) -> Any:
        """Refuse: a port belongs to its worker."""
        msg = "a port cannot be pickled: it belongs to its worker"
        raise TypeError(msg)


_here: contextvars.ContextVar[Port] = contextvars.ContextVar("poolkit.port")
_of_process: Port | None = None  # of a worker that is a process


def current_port() -> Port | None:
    """Return the port of the dedicated worker that this code runs in; None elsewhere.

    Of a worker that is a process, in all its threads; of a thread, in what runs in its context. Does not block.
    """
    return _here.get(_of_process)


def run_target(channel: Channel, target: Callable[..., Any], args: tuple[Any, ...], *, is_process: bool) -> Any:
    """Call the target of a dedicated worker, in that worker."""
    global _of_process  # noqa: PLW0603 -- such a process has one target in its life
    port = Port(channel)
    if is_process:
        _of_process = port
    _here.set(port)
    if (task := current_task()) is not None:
        task.is_dedicated = True
    return target(port, *args)
