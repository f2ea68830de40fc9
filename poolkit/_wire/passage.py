"""Passage: the socket beside each link, through which two processes hand each other shared memory.

    record    what happened (here, gone), how many, the numbers of segments and regions; with their descriptors

Memory without a name is handed over by its descriptor, before the first frame that refers to it. The reader maps it
once, closes the descriptor, and keeps the mapping until its writer says that the segment is gone, which comes along
with the next descriptor: by then its memory was given back. A region is kept by a worker until a frame on the link says
that it is gone; an owner takes one out for each parcel that refers to it.

Sending never blocks, as the other side reads only when it meets a number that it does not know. What has no room is
kept by the owner for `flush`, and an error for a worker, which has a task to tell. A reader without room for
descriptors leaves the record where it is: whatever needs it fails until there is room.
Owner: on the worker's side its main thread. On the owner's side `tell`, `forget` and `flush` are guarded by the pool's
lock, `mapping`, `region` and `renounce` by the reader's.
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
from poolkit._wire.regions import ONCE, REGION, Region, known_region, new_number

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD = struct.Struct("<BxxxI")  # kind, how many numbers
_HERE, _GONE = 1, 2  # with descriptors; without
_MOST = 200  # numbers in a record; the system takes 253 descriptors at once
_ROOM = socket.CMSG_SPACE(4 * _MOST)
# A record is looked at before it is taken, where descriptors can be looked at; elsewhere a lack of them ends the link.
_PEEK = socket.MSG_PEEK if _os.LINUX else 0
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class Passage:
    """One end of the socket through which a worker and its owner hand each other memory."""

    __slots__ = (
        "_maps",
        "_owed",
        "_parted",
        "_pending",
        "_regions",
        "_socket",
        "_stale",
        "_told",
        "_waits",
        "is_broken",
    )

    def __init__(self, fd: int, *, waits: bool) -> None:
        self._socket = socket.socket(fileno=fd)
        self.is_broken = False  # nothing will arrive any more
        self._socket.setblocking(waits)
        self._waits = waits  # whether this is a worker's end: receiving blocks, and sending fails rather than wait
        self._maps: dict[int, mmap.mmap | Unmapped] = {}  # the other side's segments
        self._regions: dict[int, Region] = {}  # that came from the other side
        self._parted: set[int] = set()  # descriptors of calls that were loaded, which the owner has not let go of yet
        self._owed: dict[int, list[int]] = {}  # by segment that has not come: blocks to be freed; by region: to drop it
        self._told: set[int] = set()  # what the other side was told of
        self._stale: list[int] = []  # what it was told of in vain
        self._pending: deque[tuple[bytes, list[int]]] = deque()  # not sent yet, with descriptors that belong to it

    # ----- out -----

    def tell(self, segments: Iterable[Segment], regions: Iterable[Region], arena: Arena) -> None:
        """Hand over memory, unless that was done before, and say which segments are gone since.

        A worker keeps a region that it was told of; an owner takes one for each parcel, so it is told each time.
        Raises OSError on a worker's side: there was no room, and nothing may refer to it.
        """
        told = self._told
        news = {segment.id: segment.fd for segment in segments if segment.id not in told}
        news.update((region.number, region.fd) for region in regions if region.number not in told)
        if not news:
            return
        gone = self._stale + [number for number in told if not number & REGION and number not in arena.segments]
        told.difference_update(gone)
        try:
            self._post(_GONE, gone, [])
            self._stale = []
            self._post(_HERE, list(news), list(news.values()))
        except OSError:
            self._stale += news
            raise
        told.update(number for number in news if not (self._waits and number & REGION))

    def hand(self, fd: int) -> int:
        """Hand over a descriptor of any kind; returns its number. On a worker's side. Raises OSError: no room."""
        number = new_number(once=True)
        self._post(_HERE, [number], [fd])
        return number

    def forget(self, number: int) -> bool:
        """A region is gone here; whether the other side was told of it, and is to let go of it."""
        was_told = number in self._told
        self._told.discard(number)
        return was_told

    def _post(self, kind: int, numbers: list[int], fds: list[int]) -> None:
        """Send records, or keep them for `flush`; on a worker's side, raise OSError."""
        for start in range(0, len(numbers), _MOST):
            some, theirs = numbers[start : start + _MOST], fds[start : start + _MOST]
            data = _HEAD.pack(kind, len(some)) + struct.pack(f"<{len(some)}Q", *some)
            if self._waits:
                self._send(data, theirs)
            elif self._pending or not self._try_to_send(data, theirs):
                own: list[int] = []
                try:
                    own.extend(os.dup(fd) for fd in theirs)
                except OSError:  # the other side would wait for ever
                    for fd in own:
                        os.close(fd)
                    self.close()
                    return
                self._pending.append((data, own))

    def flush(self) -> bool:
        """Send what is pending, as far as it goes. True when nothing is left."""
        while self._pending:
            data, fds = self._pending[0]
            if not self._try_to_send(data, fds):
                return False
            self._pending.popleft()
            for fd in fds:
                _os.close_fd(fd)
        return True

    def _try_to_send(self, data: bytes, fds: list[int]) -> bool:
        try:
            self._send(data, fds)
        except OSError as exc:  # a closed one is the death of its worker, which is reported elsewhere
            return exc.errno not in {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}
        return True

    def _send(self, data: bytes, fds: list[int]) -> None:
        """Send a record, which is so small that it goes as a whole or not at all."""
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.sendmsg([data], attached, _NO_SIGNAL | socket.MSG_DONTWAIT)

    # ----- in -----

    def mapping(self, number: int) -> mmap.mmap | Unmapped:
        """The mapping of a segment that the other side has told of, or is about to.

        Raises:
            EOFError: the other side is gone, or never told.
            OSError: it could not be received, for want of descriptors or address space.
        """
        while (found := self._maps.get(number)) is None:
            self._receive()
        return found

    def region(self, number: int) -> Region:
        """A region that the other side has told of, or is about to; an owner takes it out. Raises as `mapping`."""
        while (found := self._regions.get(number)) is None:
            self._receive()
        if not self._waits:
            del self._regions[number]
        return found

    def renounce(self, blocks: Iterable[tuple[int, int]], regions: Iterable[int]) -> None:
        """Nobody will see these blocks and regions: free them as soon as they are here."""
        for number, index in blocks:
            if number in self._maps:
                self._maps[number][index] = 0
            else:
                self._owed.setdefault(number, []).append(index)
        for number in () if self._waits else regions:  # a worker keeps them
            if self._regions.pop(number, None) is None:
                self._owed.setdefault(number, []).append(0)

    def settle(self) -> None:
        """Free what was renounced, as far as it has come by now."""
        try:
            while self._owed:
                self._receive(socket.MSG_DONTWAIT)
        except (EOFError, OSError):
            return

    def part_with(self, regions: Iterable[Region]) -> None:
        """A call was loaded that does not come again: its descriptors belong to what was made of it."""
        for region in regions:
            if region.number & ONCE and self._regions.pop(region.number, None) is not None:
                self._parted.add(region.number)

    def let_go(self, number: int) -> None:
        """Let go of a region that is gone on the other side, which told of it before. Blocks until it has come."""
        if number in self._parted:
            self._parted.remove(number)
            return
        try:
            self.region(number).kept = None
            del self._regions[number]
        except OSError:  # no room for it, or for what comes before it
            self._owed.setdefault(number, []).append(0)

    def _receive(self, flags: int = 0) -> None:
        """Take in one record; raises OSError, and leaves it there, while there is no room for its descriptors."""
        fds = array.array("i")
        try:
            self._take(fds, flags)
        except struct.error as exc:  # its end, or nonsense
            self.is_broken = True
            raise EOFError from exc
        finally:  # of a record that could not be taken, or the next one's, which were seen too
            for fd in fds:
                os.close(fd)

    def _take(self, fds: array.array[int], flags: int) -> None:
        most = _HEAD.size + 8 * _MOST if _PEEK else _HEAD.size
        try:
            data, ancillary, _, _ = self._socket.recvmsg(most, _ROOM, flags | _PEEK | _CLOEXEC)
        except OSError as exc:  # a BlockingIOError too: it was to be here before the frame
            self.is_broken = not flags & socket.MSG_DONTWAIT
            raise EOFError from exc
        for level, what, content in ancillary:
            if (level, what) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        kind, count = _HEAD.unpack_from(data)
        if not _PEEK:
            data += self._socket.recv(8 * count)
        numbers = list(struct.unpack_from(f"<{count}Q", data, _HEAD.size))
        if kind == _HERE and len(fds) < count:
            raise OSError(errno.EMFILE, "shared memory could not be received") if _PEEK else EOFError
        if _PEEK:
            self._socket.recv(_HEAD.size + 8 * count)
        for number in numbers:
            if kind == _HERE:
                self._keep(number, fds.pop(0))
            else:
                self._maps.pop(number, None)
                self._regions.pop(number, None)
                self._owed.pop(number, None)

    def _keep(self, number: int, fd: int) -> None:
        if not _CLOEXEC:
            os.set_inheritable(fd, False)
        owed = self._owed.pop(number, [])
        if number & REGION:
            region = known_region(number)
            if region is None:
                region, fd = Region(fd, number, os.fstat(fd).st_size), -1
            self._regions[number] = region
            if owed:  # for each time that it is sent, once
                del self._regions[number]
                if owed[1:]:
                    self._owed[number] = owed[1:]
        else:
            mapping: mmap.mmap | Unmapped
            try:
                mapping = mmap.mmap(fd, 0, **_os.UNTRACKED)
            except (OSError, ValueError):  # no address space
                mapping, fd = Unmapped(fd), -1
            self._maps[number] = mapping
            for index in owed:
                mapping[index] = 0
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
            for fd in self._pending.popleft()[1]:
                _os.close_fd(fd)
        self._maps.clear()
        self._regions.clear()
