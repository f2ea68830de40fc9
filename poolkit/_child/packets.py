"""Packets: how a message of a dedicated worker is laid out, as its sender and its receiver have it.

    HEAD      what it is, how it is packed, how many ids and how many of them are of segments, the manifest that it
              needs (`_wire/plans.py`)
    id        of each piece of shared memory, or other descriptor, that it refers to; the descriptors go with it
    the pickle; or, where something is large, an out-of-band message (`_memory/out_of_band.py`); where that is large
    itself, the block in which it lies
    as many bytes as are the share of the blocks in the room in the socket: so what bounds the one bounds the other

A block is its reader's from the moment when the packet is made, and its sender's again where that is not sent.
Owner: whoever sends it, or has taken it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct

from poolkit import _os
from poolkit._memory.arena import Arena, Lease
from poolkit._memory.holds import see
from poolkit._memory.memory import Memory, known_memory
from poolkit._memory.out_of_band import BLOCK, OutOfBand, Received, pack
from poolkit._typing import Any
from poolkit._wire.buffers import Found
from poolkit.errors import SerializationError

HEAD = struct.Struct("<BBHHxxQ")
# The second is packed as the one argument of a call, so that it may need more; the last is what a call has raised.
MESSAGE, ARGUMENT, DEFINE, FAILURE = 1, 2, 3, 4
_OUT_OF_BAND, _IN_BLOCK = 1, 2  # how it is packed
PLAIN_HEAD = HEAD.pack(MESSAGE, 0, 0, 0, 0)  # nothing comes with it

SMALL = 60 * 1024  # bytes that go in a packet
_MOST_IDS = 200  # the system takes 253 descriptors at once
_SHARE = 320  # bytes of blocks that count as one in the socket
_MOST_IN_ALL = 200_000  # bytes of the largest packet with its share: what a socket takes at once is little more
_MOST_SEEN = 32  # segments that a receiver keeps mapped
ROOM = 64 * 1024  # bytes, of the largest packet without its share
ROOM_FOR_FDS = socket.CMSG_LEN((_MOST_IDS + 1) * 4)


class Packet:
    """A message on its way out. `sent` is filled by the instruction that sends it."""

    __slots__ = ("_leases", "_pid", "data", "memories", "sent")

    def __init__(self, kind: int, manifest: int, body: Any, found: Found, arena: Arena) -> None:
        """Pack it. Raises SerializationError, or OSError where there is no memory."""
        self.sent: list[int] = []
        self._pid = os.getpid()
        self._leases: list[Lease] = []
        self.memories: list[Memory] = []
        flags = nbytes = segments = 0
        if found or type(body) is not bytes or len(body) > SMALL:
            try:
                body = pack(body, found, arena)
            except ValueError as exc:
                msg = f"the message could not be put into shared memory: {exc}"
                raise SerializationError(msg) from exc
        elif found.memories:
            body = pack(body, found, arena)
        if type(body) is OutOfBand:
            flags, nbytes, self._leases = _OUT_OF_BAND, body.nbytes, body.leases
            self.memories += body.memories
            body = body.body
        if len(body) > SMALL:
            lease = arena.take(len(body))
            if lease is None:
                raise OSError(errno.ENOMEM, f"there is no shared memory for a message of {len(body)} bytes")
            self._leases.append(lease)
            flags, nbytes = flags | _IN_BLOCK, nbytes + len(body)
            body = BLOCK.pack(lease.segment.id, lease.index, lease.write([body], len(body)), len(body))
        if self._leases:
            own = {lease.segment.id: lease.segment for lease in self._leases}
            self.memories, segments = [*own.values(), *self.memories], len(own)
            body += bytes(min(nbytes // _SHARE, _MOST_IN_ALL - len(body)))
            for lease in self._leases:
                lease.segment.bytes[lease.index] = 1
        if len(self.memories) > _MOST_IDS:
            msg = f"the message refers to {len(self.memories)} pieces of shared memory; {_MOST_IDS} can be sent"
            raise SerializationError(msg)
        ids = struct.pack(f"<{len(self.memories)}Q", *[each.id for each in self.memories]) if self.memories else b""
        self.data = HEAD.pack(kind, flags, len(self.memories), segments, manifest) + ids + body

    def attached(self) -> list[Any]:
        """What goes along."""
        fds = array.array("i", [memory.fd for memory in self.memories])
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]

    def __del__(self) -> None:
        """Take its blocks back, unless it was sent."""
        leases = getattr(self, "_leases", ())  # an interrupt may have come before there were such
        if leases and not self.sent and self._pid == os.getpid():  # a forked child's is a copy
            for lease in leases:
                lease.segment.bytes[lease.index] = 0


class Come:
    """A packet that has come. While it is there, and then while a view of them is, its blocks are."""

    is_broken = False  # as `Received` has it of a channel
    who = "this process"

    def __init__(self, received: Any) -> None:
        """Take what was received, and nothing more: it is for `open`, which may be interrupted."""
        self._data, self._attached, self._flags, _ = received
        self._fds: list[int] | None = None
        self.kind = self._data[0]
        self.memories: dict[int, Memory] = {}
        self._gate = [False]
        self._body: Any = None

    def open(self, seen: dict[int, Memory]) -> Come:
        """Take in what came with it; `seen` are the segments that are mapped. Where it was interrupted, go on.

        Raises OSError: there was no room for that.
        """
        if self._gate[0]:
            return self
        _, flags, count, segments, self.manifest = HEAD.unpack_from(self._data)
        numbers = struct.unpack_from(f"<{count}Q", self._data, HEAD.size)
        if self._fds is None:
            self._fds = _os.fds_of(self._attached)
        if self._flags & socket.MSG_CTRUNC or len(self._fds) + len(self.memories) < len(set(numbers)):
            self._lose()
        for number in numbers[len(numbers) - len(self._fds) :]:
            fd = self._fds.pop(0)  # at once: an interrupt loses a descriptor, but closes nobody else's
            memory = known_memory(number)
            if memory is None:
                memory = Memory(fd, number, os.fstat(fd).st_size)
            else:
                os.close(fd)
            self.memories[number] = memory
        for number in numbers[:segments]:
            seen.pop(number, None)
            seen[number] = self.memories[number]
        with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread does the same
            while len(seen) > _MOST_SEEN:
                del seen[next(iter(seen))]
        body: Any = memoryview(self._data)[HEAD.size + 8 * count :]
        try:
            if flags & _IN_BLOCK:
                number, index, offset, nbytes = BLOCK.unpack_from(body)
                body = see(self.memory(number).view(), index, offset, nbytes, self._gate)
            self._body = Received(body, self, gate=self._gate) if flags & _OUT_OF_BAND else body
        except EOFError as exc:
            raise OSError(errno.ENOMEM, f"a message was lost: {exc}") from exc
        self._gate[0] = True
        return self

    def _lose(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
        msg = "a message was lost: this process has no room for the descriptors that came with it"
        raise OSError(errno.EMFILE, msg)

    def __del__(self) -> None:
        """Close what was not taken in."""
        for fd in self._fds or ():
            os.close(fd)

    def memory(self, number: int) -> Memory:
        """One of those that came with it; for `Received`."""
        return self.memories[number]

    take = memory

    def parts(self) -> tuple[Any, list[Any]]:
        """Return the pickle and its buffers."""
        if type(self._body) is Received:
            return self._body.pickle, self._body.buffers()
        return self._body, []
