"""Passage: the socket beside each link, through which two processes hand each other shared memory.

Memory without a name is handed over by its descriptor, before the first frame that refers to it. The reader maps it
once, closes the descriptor, and keeps the mapping until its writer says that the segment is gone, which comes along
with the next descriptor: by then its memory was given back. A region is kept by a worker until the owner says that it
is gone, with a frame that has it look; an owner takes one out for each parcel that refers to it.
Owner: on the worker's side its main thread. On the owner's side `tell`, `share`, `forget` and `flush` are guarded by
the pool's lock, `mapping` and `region` by the reader's.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import socket
import struct
from collections import deque

from poolkit import _os
from poolkit._wire.arena import HEADER, SIZE_AT, Arena, Segment
from poolkit._wire.holds import Unmapped
from poolkit._wire.regions import REGION, Region, known_region

_RECORD = struct.Struct("<BxxxxxxxQ")  # kind, segment or region
_HERE, _GONE = 1, 2  # with its descriptor; without
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class Passage:
    """One end of the socket through which a worker and its owner hand each other memory."""

    __slots__ = ("_lost", "_maps", "_pending", "_regions", "_socket", "_told", "_waits")

    def __init__(self, fd: int, *, waits: bool) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(waits)
        self._waits = waits  # whether sending and receiving may block
        self._maps: dict[int, mmap.mmap | Unmapped] = {}  # the other side's segments
        self._regions: dict[int, Region] = {}  # that came from the other side
        self._lost: set[int] = set()  # came without a descriptor, as this process had no room for one
        self._told: set[int] = set()  # what the other side was told of
        self._pending: deque[tuple[bytes, int]] = deque()  # not sent yet, with descriptors that belong to it

    # ----- out -----

    def tell(self, segment: Segment, arena: Arena) -> None:
        """Hand over a segment, unless that was done before, and say which are gone since."""
        if segment.id in self._told:
            return
        for gone in [number for number in self._told if not number & REGION and number not in arena.ids]:
            self._told.discard(gone)
            self._post(_GONE, gone, -1)
        self._post(_HERE, segment.id, segment.fd)
        self._told.add(segment.id)

    def share(self, region: Region) -> None:
        """Hand over a region, unless the other side keeps it: a worker does, an owner takes one for each parcel."""
        if region.number not in self._told:
            self._post(_HERE, region.number, region.fd)
            if not self._waits:
                self._told.add(region.number)

    def forget(self, number: int) -> bool:
        """Say that a region is gone here; whether the other side was told of it before."""
        if number not in self._told:
            return False
        self._told.discard(number)
        self._post(_GONE, number, -1)
        return True

    def _post(self, kind: int, number: int, fd: int) -> None:
        """Send a record, or keep it for `flush`. Raises OSError where sending blocks and fails."""
        data = _RECORD.pack(kind, number)
        if self._waits:
            self._send(data, fd)
        elif self._pending or not self._try_to_send(data, fd):
            try:
                self._pending.append((data, fd if fd < 0 else os.dup(fd)))
            except OSError:  # the other side would wait for ever
                self.close()

    def flush(self) -> bool:
        """Send what is pending, as far as it goes. True when nothing is left. Never blocks."""
        while self._pending:
            data, fd = self._pending[0]
            if not self._try_to_send(data, fd):
                return False
            self._pending.popleft()
            _os.close_fd(fd)
        return True

    def _try_to_send(self, data: bytes, fd: int) -> bool:
        try:
            self._send(data, fd)
        except OSError as exc:  # a closed one is the death of its worker, which is reported elsewhere
            return exc.errno not in {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
        return True

    def _send(self, data: bytes, fd: int) -> None:
        attached = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._socket.sendmsg([data], attached, _NO_SIGNAL)

    # ----- in -----

    def mapping(self, number: int) -> mmap.mmap | Unmapped:
        """The mapping of a segment that the other side has told of, or is about to.

        Raises:
            EOFError: the other side is gone, or never told.
            OSError: it could not be received, for want of descriptors or address space.
        """
        while (found := self._maps.get(number)) is None:
            self._await(number)
        return found

    def region(self, number: int, *, keep: bool) -> Region:
        """A region that the other side has told of, or is about to: to be kept, or taken once. Raises as `mapping`."""
        while (found := self._regions.get(number)) is None:
            self._await(number)
        found.is_kept = keep
        if not keep:
            del self._regions[number]
        return found

    def take_in(self, number: int) -> None:
        """Let go of a region of which the other side says that it is gone. Blocks until that has come."""
        while self._receive() != (_GONE, number):
            pass

    def _await(self, number: int) -> None:
        if number in self._lost:
            if number & REGION:
                self._lost.discard(number)  # it will be sent again
            raise OSError(errno.EMFILE, "shared memory could not be received")
        self._receive()

    def _receive(self) -> tuple[int, int]:
        """Take in one record."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_RECORD.size, socket.CMSG_SPACE(4), _CLOEXEC)
        except OSError as exc:  # a BlockingIOError too: it was to be here before the frame
            raise EOFError from exc
        if len(data) < _RECORD.size:
            raise EOFError
        kind, number = _RECORD.unpack(data)
        if kind == _GONE:
            self._maps.pop(number, None)
            region = self._regions.pop(number, None)
            if region is not None:
                region.is_kept, region.kept = False, None
            return kind, number
        fds = array.array("i")
        for level, what, content in ancillary:
            if (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if fds:
            self._keep(number, fds[0])
        else:
            self._lost.add(number)
        return kind, number

    def _keep(self, number: int, fd: int) -> None:
        try:
            if not _CLOEXEC:
                os.set_inheritable(fd, False)
            if not number & REGION:
                try:
                    self._maps[number] = mmap.mmap(fd, 0)
                except (OSError, ValueError):  # no address space
                    self._maps[number], fd = Unmapped(fd), -1
            else:
                region = known_region(number)
                if region is None:
                    region, fd = Region(fd, number, os.fstat(fd).st_size), -1
                self._regions[number] = region
            self._lost.discard(number)
        except (OSError, ValueError):
            self._lost.add(number)
        finally:
            _os.close_fd(fd)

    def lent(self) -> tuple[int, int]:
        """Blocks of the other side's segments that are seen here, or on their way: how many, and their bytes."""
        blocks = nbytes = 0
        for mapping in list(self._maps.values()):
            if isinstance(mapping, Unmapped):  # what is read is freed at once
                continue
            count = mapping[:SIZE_AT].count(1)
            blocks += count
            nbytes += count * int.from_bytes(mapping[SIZE_AT:HEADER], "little")
        return blocks, nbytes

    def close(self) -> None:
        """Close it. Idempotent. Mappings stay for as long as something of them is seen."""
        self._socket.close()
        while self._pending:
            _os.close_fd(self._pending.popleft()[1])
        self._maps.clear()
        self._regions.clear()
