"""Shared-memory transport, the owner's side: large arguments out, large results in.

A call keeps its blocks while its task is unsettled, and while a worker that was sent it may begin it (`calls`). What
the worker sees of them then, it frees itself, or its death does. A call that may have to run again is copied by the
worker, so that each run sees the same input.

A worker is dead for this purpose when nobody can write to its memory any more: when it was reaped, or (when the process
that reaps was killed) when its ends of the link are closed, which the kernel does after it has freed its memory.
Guarded by: the pool's lock: `_dying`, and what is put into `calls`. The arena guards itself. `pack` is for any thread,
without a lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._memory.arena import Arena, use_of
from poolkit._memory.channel import DescriptorChannel
from poolkit._memory.holds import pins, unpin
from poolkit._memory.memory import Memory
from poolkit._memory.out_of_band import OutOfBand, Received, pack
from poolkit._wire import buffers, codec
from poolkit._wire.arrays import stand_ins
from poolkit._wire.buffers import PLAIN, Found, found_from
from poolkit._wire.handover import is_loaded
from poolkit._wire.messages import FLAG_ANNOUNCE, FLAG_COPIES, FLAG_OUT_OF_BAND
from poolkit.errors import SerializationError

LOOK = 1.0  # seconds between two looks whether forked children that see results are gone, and workers nobody reaps
RETRY = 0.01  # seconds until a descriptor that the system had no room for is sent again
SHORT = 16  # items of a list that are looked at one by one


class WorkerChannel(DescriptorChannel):
    """The descriptor channel of one worker, and the calls with large parts that it was sent.

    `calls` are out-of-band messages by task. One is taken out with the outcome of its task; what the worker was sent
    and did not begin, when it says that it has dropped that. By whoever holds the reader's lock.
    """

    def __init__(self, fd: int, worker_id: int) -> None:
        super().__init__(fd, is_worker=False)
        self.worker_id = worker_id
        self.calls: dict[int, OutOfBand] = {}

    def begun(self, task_id: int) -> None:
        """A task has begun, and so has what goes with it once."""
        call = self.calls.get(task_id)
        if call is not None and call.goes_once:
            call.close_descriptors()

    def alive(self) -> tuple[int, int]:
        """Blocks of the worker's segments that are seen here, or on their way: how many, and their bytes."""
        used = [use_of(memory.kept) for memory in list(self.memories.values()) if memory.kept is not None]
        return sum(blocks for blocks, _ in used), sum(nbytes for _, nbytes in used)


class OwnerTransport:
    """What one pool sends and receives in shared memory."""

    def __init__(self, threshold: int | None, name: str) -> None:
        self.threshold = float("inf") if threshold is None else threshold
        self._found = found_from(self.threshold)
        self.arena = Arena()
        self._name = name
        # Set by the workforce: what wakes the supervisor thread; what it does for a worker; where a warning goes.
        self.wake: Callable[[], None] = lambda: None
        self.send_tracker: Callable[[Memory], None] = lambda _: None
        self.warn: Callable[..., None] = lambda *_: None
        self._has_warned = False
        self._dying: list[tuple[WorkerChannel, int]] = []  # of workers that may still run, with a copy of their link
        self.sent = self.received = 0  # bytes, through shared memory
        self._is_pending = False  # a channel had no room for something

    # ===== out =====

    def pack(  # noqa: C901, PLR0912 -- each function that it would be divided by costs every small call 60 ns
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, int]:
        """Pickle a call, with what is large in blocks. Raises SerializationError."""
        if type(fn) is FunctionType and not kwargs:
            for value in args:
                if (kind := type(value)) not in PLAIN and not (
                    (kind is list or kind is tuple) and len(value) <= SHORT and PLAIN.issuperset(map(type, value))
                ):
                    break
            else:
                try:
                    call: Any = codec.pack_call(fn, args, kwargs)
                    size = len(call[1])
                    if size < self.threshold:
                        return call, len(call[0]) + size
                    if call[0]:  # else the function is in there, and may have large buffers
                        return self._pack_large(call, self._found())
                except SerializationError:  # what goes by value with the function may have to be handed over
                    if not is_loaded():
                        raise
        found = self._found()
        if not kwargs and type(fn) is FunctionType and (plain := stand_ins(args, found, "call")) is not None:
            args = plain
        else:
            found.look(args)
            if kwargs:
                found.look(kwargs.values())
        if not (buffers.memory_in_use or is_loaded()):
            call = codec.pack_call(fn, args, kwargs, found)
        else:
            with found:
                call = codec.pack_call(fn, args, kwargs, found)
        if not (found or found.large or found.memories) and len(call[1]) < self.threshold:
            return call, len(call[0]) + len(call[1])
        return self._pack_large(call, found)

    def _pack_large(self, call: tuple[bytes, Any, Any], found: Found) -> tuple[Any, int]:
        """Put what is large of a pickled call into blocks."""
        fn_bytes, body, manifest = call
        arena = self.arena
        was_idle = arena.trim_at is None
        packed = pack(body, found, arena)
        if was_idle and arena.trim_at is not None:
            self.wake()  # the supervisor thread may sleep for long, and is to give back what will be idle
        if arena.is_short and not self._has_warned:
            self._has_warned = True
            text = "pool %s: there is not enough shared memory; large arguments go through pipes, which is slower"
            self.warn(text, self._name)
        size = len(packed) if isinstance(packed, bytes) else len(packed.body)
        return (fn_bytes, packed, manifest), len(fn_bytes) + size

    def send(self, channel: WorkerChannel, task_id: int, call: OutOfBand, *, may_run_again: bool) -> tuple[bytes, int]:
        """Have a worker see a call; returns what travels on the link, and the flags of the call."""
        flags = FLAG_OUT_OF_BAND
        if may_run_again:
            flags |= FLAG_COPIES
        else:
            call.note_borrower(channel.worker_id)
            # They are let go of when the task begins: the other end may wait for that.
            if call.memories and call.has_descriptors():
                flags |= FLAG_ANNOUNCE
                call.goes_once = True
        channel.calls[task_id] = call
        call.hand_over(channel)
        self.sent += call.nbytes
        if channel.pending:
            self.flush(channel)
        return call.body, flags

    def hand_over(self, channel: WorkerChannel, memories: list[Memory]) -> None:
        """Have a worker know memory, before it is sent what refers to it."""
        channel.tell(memories)
        self.sent += sum(memory.nbytes for memory in memories)
        self.flush(channel)

    def flush(self, channel: WorkerChannel) -> None:
        """Send what a channel has had no room for; the supervisor thread goes on with the rest."""
        if not channel.flush():
            self._is_pending = True
            self.wake()

    # ===== in =====

    def receive(
        self, channel: WorkerChannel, payload: bytes | bytearray
    ) -> tuple[Received, Callable[[Any], Any], list[bool]]:
        """Take a result in; returns it, what loads it, and the gate that is to be opened once it is taken.

        Raises EOFError: it cannot be had.
        """
        gate = [False]
        received = Received(payload, channel, gate=gate)
        self.received += received.nbytes
        return received, load_value, gate

    def wants_tracker(self, channel: WorkerChannel, payload: bytes | bytearray) -> None:
        """A worker asks for this process's resource tracker. Raises EOFError: it sent nonsense."""
        self.send_tracker(channel.take(int.from_bytes(payload, "little")))

    # ===== ends =====

    def died(self, channel: WorkerChannel) -> None:
        """A worker is dead: what it could see is free."""
        channel.calls.clear()
        self.arena.take_back(channel.worker_id)

    def dies(self, channel: WorkerChannel, outcomes_fd: int) -> None:
        """A worker was killed and may still run for a moment."""
        try:
            self._dying.append((channel, os.dup(outcomes_fd)))
        except OSError:  # its blocks are not used again
            return

    def due(self) -> float | None:
        """When `tend` is to be called next; None when there is no need."""
        if self._is_pending:
            return monotonic() + RETRY
        if self._dying or pins:
            return monotonic() + LOOK
        return self.arena.trim_at

    def tend(self, channels: Iterable[WorkerChannel | None]) -> None:
        """Do what is due now and then: send what sockets had no room for, give back what is idle. Under the lock."""
        if self._dying:
            self._look_at_dying()
        unpin()
        if self._is_pending:
            left = [channel for channel in channels if channel is not None and not channel.flush()]
            self._is_pending = bool(left)
        self.arena.trim()

    def _look_at_dying(self) -> None:
        """See who of those is dead by now."""
        left = []
        for channel, fd in self._dying:
            try:
                while os.read(fd, 65536):
                    pass
            except BlockingIOError:
                left.append((channel, fd))
                continue
            except OSError:
                pass
            os.close(fd)
            self.died(channel)
        self._dying = left

    def use(self, workers: Iterable[tuple[WorkerChannel, int]]) -> tuple[int, int, int, int, int]:
        """Bytes sent and received, blocks that somebody sees, bytes of memory in all, bytes of it that are free.

        `workers`: with what each of them says that it has reserved.
        """
        (blocks, alive), reserved = self.arena.alive(), self.arena.reserved
        for channel, theirs in workers:
            found = channel.alive()
            blocks += found[0]
            alive += found[1]
            reserved += max(found[1], theirs)
        return self.sent, self.received, blocks, reserved, max(0, reserved - alive)

    def begin_anew(self) -> None:
        """In a forked child: blocks of the parent's arena may be given to others there."""
        self.arena.close()
        self.arena = Arena()

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        for _, fd in self._dying:
            _os.close_fd(fd)
        self._dying = []
        unpin()  # there may be no other pool that looks
        self.arena.close()


def load_value(received: Received) -> Any:
    """The value of a result that came out of band; exceptions propagate as they are."""
    return codec.load_value(received.pickle, received.buffers())
