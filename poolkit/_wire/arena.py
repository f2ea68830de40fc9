"""Arena: pooled shared memory of one writer, in blocks that it lends to readers in other processes.

    segment   one piece of shared memory without a name: a page of state bytes, then blocks of one size class
    block     what one buffer is written to; its state byte is 1 while somebody may see it, else 0
    lease     the writer's right to a block, until it has passed it on

Nothing is said when a block comes back. The reader stores 0 into the state byte when its last view is gone (`Hold` in
`_wire/holds.py`), and the writer looks at the bytes when it needs a block: the lowest free one, so that the pages
in use are few and warm. The byte is the only record of who may use a block: no lock is shared, no message can be
lost, and it can be stored from a finalizer in any thread. The writer itself stores 0 for a lease that was dropped
without being passed on, and for what was lent to a worker that died.

Guarantees: a block is given to one lease at a time; its memory is reserved before it is written to, so a lack of
memory is an answer (None), never a SIGBUS; it has no more memory than was lent at once in the last seconds, so free
memory that is kept for one size makes way for another, and all of it is given back when idle.
Guarded by: `_lock`: everything but the state bytes. Only `take` waits for it, as a signal handler or a finalizer that
runs in the midst of that may want a lock which the caller of another method has: who finds it held leaves its work to
the next owner (`_dead`), or for later. A second entry by the same thread gets None instead of a torn arena. What only
looks goes without. In a forked child everything is refused and nothing is freed.
"""

from __future__ import annotations

import math
import mmap
import os
from _thread import RLock
from collections import deque
from collections.abc import Callable

from poolkit import _os
from poolkit._clock import monotonic

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

HEADER = max(4096, mmap.PAGESIZE)  # bytes in front of the blocks; the first ones are the state bytes
SIZE_AT = HEADER - 8  # where the header says how large its blocks are, for whoever looks
LEAST_BLOCK = 4096  # bytes
MOST_BLOCKS = 1024  # of a segment; fewer than there is room for state bytes
# Bytes of address space: of a class's first segment; the next ones have twice as much each, but no more than SEGMENT. A
# larger block has one to itself. Memory is taken by block. So many blocks do not need many descriptors, nor few much.
FIRST_SEGMENT = 1 << 20
SEGMENT = 64 << 20
STEPS = 8  # size classes for each doubling
IDLE = 4.0  # seconds that free memory is kept since its segment was last used
SOON = 0.05  # seconds until `trim` is to be called again where it found the lock held
LONGEST_LOOK = 5.0  # seconds between two looks at what is lent for long
MOST_FOR = 3.0  # seconds; what was lent at once is remembered for so long, and up to twice as long


def class_of(nbytes: int) -> int:
    """The size of the blocks that hold so many bytes: at most an eighth larger, apart from whole pages."""
    nbytes = max(nbytes, LEAST_BLOCK)
    step = max(HEADER, (1 << (nbytes - 1).bit_length()) // 2 // STEPS)
    return -(-nbytes // step) * step


class Segment:
    """One piece of shared memory as its writer holds it. Guarded by: the arena's lock."""

    __slots__ = ("block", "borrowers", "count", "fd", "id", "mapping", "pid", "reserved", "used")

    def __init__(self, segment_id: int, block: int, nbytes: int) -> None:
        self.fd = -1
        self.id = segment_id
        self.block = block
        self.count = max(1, min(MOST_BLOCKS, nbytes // block))
        self.pid = os.getpid()
        nbytes = HEADER + self.count * block
        self.fd = _os.shared_memory(nbytes)
        _os.reserve(self.fd, 0, HEADER)
        self.mapping = mmap.mmap(self.fd, nbytes)
        self.mapping[SIZE_AT : SIZE_AT + 8] = block.to_bytes(8, "little")
        self.reserved = bytearray(self.count)  # 1 for each block that has memory
        self.borrowers: dict[int, int] = {}  # by block: the worker that frees it, or whose death does
        self.used = 0.0  # when a block was last taken

    def __del__(self) -> None:
        """Close the descriptor; not before, as a thread that has taken a block may be reserving its memory with it."""
        _os.close_fd(getattr(self, "fd", -1))  # an interrupt may come before there is one

    def lent(self) -> int:
        """How many blocks somebody may see."""
        return self.mapping[: self.count].count(1)

    def at(self, index: int) -> int:
        """Where a block begins."""
        return HEADER + index * self.block


class Lease:
    """The writer's right to one block. Dropped without having been `lend` to anybody, it frees the block."""

    __slots__ = ("index", "is_lent", "nbytes", "segment")

    def __init__(self, segment: Segment, index: int, nbytes: int) -> None:
        self.segment = segment
        self.index = index
        self.nbytes = nbytes
        self.is_lent = True  # until the block is taken

    @property
    def offset(self) -> int:
        """Where the block begins in its segment."""
        return self.segment.at(self.index)

    def write(self, parts: list[Any], sizes: list[int]) -> None:
        """Copy buffers in, one behind the other; `sizes` says how many bytes each has.

        Raises ValueError when one has changed its size meanwhile.
        """
        start = self.offset
        with memoryview(self.segment.mapping) as view:
            for part, size in zip(parts, sizes):  # noqa: B905 -- made together
                with view[start : start + size] as there:
                    there[:] = part
                start += size

    def lend(self, borrower: int) -> None:
        """Leave it to a reader to free the block; or to `Arena.take_back`, should that worker die."""
        self.segment.borrowers[self.index] = borrower
        self.is_lent = True

    def reclaim(self) -> None:
        """The reader never got to see it: the block is the lease's own again."""
        self.segment.borrowers.pop(self.index, None)
        self.is_lent = False

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:
        """Free the block, unless that is somebody else's to do."""
        if not getattr(self, "is_lent", True) and getpid() == self.segment.pid:
            self.segment.mapping[self.index] = 0


class Arena:
    """The shared memory of one writer. Thread-safe; nothing in here blocks for long."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._lock = RLock()
        self._dead: deque[int] = deque()  # borrowers that are dead, for the next owner of the lock
        self._clock = clock
        self._pid = os.getpid()
        self._next_id = 1
        self.segments: dict[int, Segment] = {}  # by id, which anybody may look for
        self._look_after = IDLE / 4  # seconds until the next look at what is lent
        self.reserved = 0  # bytes of memory in all blocks
        self._most = self._most_before = 0  # bytes lent at once, since `_turn_at` was set, and before
        self._turn_at = 0.0  # when the former becomes the latter
        self.idle_at: float | None = None  # when `trim` is to be called next; None: nothing is kept, and nothing lent
        self.is_short = False  # there was no memory, once

    def take(self, nbytes: int) -> Lease | None:
        """A block of at least so many bytes; None when it cannot be had, now or here."""
        if os.getpid() != self._pid or self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            return None
        block = class_of(nbytes)
        lease: Lease | None = None
        try:
            with self._lock:
                lease = self._take(block, nbytes)
            segment, index = lease.segment, lease.index
            if not segment.reserved[index]:  # nobody else looks at it while it is taken; this may take a while
                _os.reserve(segment.fd, lease.offset, block)
                with self._lock:
                    segment.reserved[index] = 1
                    self.reserved += block
        except (OSError, ValueError, OverflowError):  # no memory, no descriptors, no address space; closed meanwhile
            if lease is not None:
                _os.give_back(lease.segment.mapping, lease.offset, block)  # of which there may have been a part
            self.is_short = True
            return None
        return lease

    def _take(self, block: int, nbytes: int) -> Lease:
        if self._pid < 0:
            msg = "the arena is closed"
            raise ValueError(msg)
        self._bury()
        segments = self.segments
        alike = 0
        for segment in segments.values():
            if segment.block == block:
                index = segment.mapping.find(b"\0", 0, segment.count)
                if index >= 0:
                    break
                alike += 1
        else:
            segment = Segment(self._next_id, block, min(SEGMENT, FIRST_SEGMENT << alike))
            self._next_id += 1
            segments[segment.id] = segment
            index = 0
        now = self._clock()
        most = self._most_lent(now, self.lent()[1] + block)
        if not segment.reserved[index]:
            self._give_back(self.reserved + block - most, segment)
        segment.borrowers.pop(index, None)
        segment.used = now
        self._look_after = IDLE / 4
        if self.idle_at is None:
            self.idle_at = segment.used + IDLE
        lease = Lease(segment, index, nbytes)
        # No call stands between these two, so an interrupt comes before both, or finds a lease that frees the block.
        segment.mapping[index], lease.is_lent = 1, False
        return lease

    def take_back(self, borrower: int) -> None:
        """Free whatever was lent to a worker that is dead; if the lock is held, its next owner does."""
        self._dead.append(borrower)
        self.trim()

    def _bury(self) -> None:
        while self._dead:
            borrower = self._dead.popleft()
            for segment in self.segments.values():
                for index in [index for index, who in segment.borrowers.items() if who == borrower]:
                    del segment.borrowers[index]
                    segment.mapping[index] = 0

    # ===== giving back =====

    def _most_lent(self, now: float, lent: int) -> int:
        """Return the most bytes that were lent at once in the last seconds; `lent` are now."""
        if now >= self._turn_at:
            self._most_before = self._most if now < self._turn_at + MOST_FOR else 0
            self._most = 0
            self._turn_at = now + MOST_FOR
        self._most = max(self._most, lent)
        return max(self._most, self._most_before)

    def _give_back(self, surplus: int, spared: Segment | None = None) -> None:
        """Give free memory back, the longest unused first, until it is so many bytes less."""
        if surplus <= 0:
            return
        for segment in sorted(self.segments.values(), key=lambda each: each.used):
            surplus -= self._strip(segment, surplus, spared)
            if surplus <= 0:
                break

    def _strip(self, segment: Segment, wanted: float, spared: Segment | None = None) -> int:
        """Give the memory of free blocks back, up to about `wanted` bytes; returns how many.

        With the last of it, and where that cannot be had by block, the segment goes, unless it is spared.
        """
        freed = 0
        index = segment.count
        while freed < wanted and (index := segment.reserved.rfind(1, 0, index)) >= 0:
            if segment.mapping[index] == 0 and _os.give_back(segment.mapping, segment.at(index), segment.block):
                segment.reserved[index] = 0
                freed += segment.block
        left = segment.reserved.count(1)
        if segment is not spared and not segment.lent() and (freed < wanted or not left):
            self.segments.pop(segment.id, None)
            freed += left * segment.block
        self.reserved -= freed
        return freed

    def trim(self) -> None:
        """Give back what was not used for IDLE seconds; `idle_at` says when to look again, at most once a second."""
        now = self._clock()
        is_due = self.idle_at is not None and now >= self.idle_at
        if os.getpid() != self._pid or not (self._dead or is_due):
            return
        if self._lock._is_owned() or not self._lock.acquire(blocking=False):  # type: ignore[attr-defined]  # noqa: SLF001
            self.idle_at = now + SOON
            return
        try:
            self._bury()
            if is_due:
                self._trim(now)
        finally:
            self._lock.release()

    def _trim(self, now: float) -> None:
        kept: list[float] = []
        for segment in list(self.segments.values()):
            if segment.used + IDLE <= now:
                self._strip(segment, math.inf)
            elif segment.reserved.count(1) > segment.lent():
                kept.append(segment.used + IDLE)
        self._give_back(self.reserved - self._most_lent(now, self.lent()[1]))
        if kept:
            self.idle_at = max(min(kept), now + 1.0)
        elif self.segments:  # the rest is lent; nobody will say when it comes back
            self._look_after = min(LONGEST_LOOK, self._look_after * 2)
            self.idle_at = now + self._look_after
        else:
            self.idle_at = None

    def close(self) -> None:
        """Let go of everything, without the lock. Memory that somebody still sees stays until he does not."""
        self._pid = -1  # it gives nothing more
        self.segments = {}  # who is in the midst of `_take` goes on with the old one
        self.reserved = 0
        self.idle_at = None

    # ===== looking =====

    def lent(self) -> tuple[int, int]:
        """Blocks that somebody may see: how many, and their bytes."""
        lent = [(segment.lent(), segment.block) for segment in list(self.segments.values())]
        return sum(count for count, _ in lent), sum(count * block for count, block in lent)
