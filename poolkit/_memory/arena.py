"""Arena: pooled shared memory of one writer, in blocks that readers in other processes see.

    segment   one piece of shared memory: a page of state bytes, then blocks of one size class
    block     what one buffer is written to
    lease     the writer's right to a block; while it is there, nobody else is given the block

A block is free when it has no lease and its state byte is 0. The reader stores 1 when it begins to see the block, and 0
when its last view is gone (`holds.py`): no lock is shared, no message can be lost, and a finalizer may store it in any
thread. A call keeps its leases until its task is settled and its worker has done with it; a result is `transfer`red,
which stores the 1 before it is sent. What a worker saw that is dead is freed by the writer.

Guarantees: a block is given to one lease at a time; its memory is reserved before it is written to, so a lack of
memory is an answer (None), never a SIGBUS; the arena holds no more memory than was alive at once in the last seconds,
so free memory that is kept for one size makes way for another, and all of it is given back when idle.
Guarded by: `_lock`: everything but the state bytes, `held` and `borrowers`. Only `take` waits for it, as a signal
handler or a finalizer that runs in the midst of that may want a lock which the caller of `trim` has. A second entry by
the same thread gets None instead of an inconsistent arena.
"""

from __future__ import annotations

import math
import mmap
import os
from _thread import get_ident
from collections.abc import Callable, Sequence

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._locks import RLock
from poolkit._memory.memory import Memory, new_id

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
IDLE = 10.0  # seconds without a `take` until all that is free is given back
MOST_FOR = 4.0  # seconds; what was alive at once is remembered for two turns of it, each up to a second longer
LOOK = 0.001  # seconds between two looks at what is alive


def class_of(nbytes: int) -> int:
    """The size of the blocks that hold so many bytes: at most an eighth larger, apart from whole pages."""
    known = _classes.get(nbytes)
    if known is not None:
        return known
    if len(_classes) >= 256:  # noqa: PLR2004 -- any number
        _classes.clear()
    size, nbytes = nbytes, max(nbytes, LEAST_BLOCK)
    step = max(HEADER, (1 << (nbytes - 1).bit_length()) // 2 // STEPS)
    _classes[size] = block = -(-nbytes // step) * step
    return block


_classes: dict[int, int] = {}  # one atomic operation at a time, from any thread


_writing_aside: set[int] = set()  # threads


def write_aside(fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn`; it writes without the interpreter's lock, which takes longer, as an event loop has work meanwhile."""
    thread = get_ident()
    _writing_aside.add(thread)
    try:
        return fn(*args)
    finally:
        _writing_aside.discard(thread)


class Segment(Memory):
    """One piece of shared memory as its writer has it. Guarded by: the arena's lock."""

    __slots__ = ("block", "borrowers", "bytes", "count", "find_state", "held", "high", "reserved", "used")

    is_segment = True

    def __init__(self, block: int, nbytes: int) -> None:
        self.block = block
        self.count = max(1, min(MOST_BLOCKS, nbytes // block))
        nbytes = HEADER + self.count * block
        super().__init__(_os.shared_memory(nbytes), new_id(), nbytes)
        _os.reserve(self.fd, 0, HEADER)
        self.bytes = self.view()
        self.find_state = self.mapping().find
        self.bytes[SIZE_AT:HEADER] = block.to_bytes(8, "little")
        self.held = bytearray(self.count)  # 1 for each block that has a lease
        self.reserved = bytearray(self.count)  # 1 for each block that has memory
        self.borrowers: dict[int, int] = {}  # by block: the worker that it was last sent to; guarded by its users
        self.used = 0.0  # when a block was last taken
        self.high = -1  # the highest block that was taken lately: as many were alive, and one more

    def free(self) -> int:
        """The lowest block that is free; -1 if none is."""
        find, index = self.find_state, 0
        while (index := self.held.find(0, index)) >= 0:
            seen = index
            if (index := find(b"\0", index, self.count)) in (seen, -1):
                break
        return index

    def alive(self) -> int:
        """How many blocks are not free."""
        states = int.from_bytes(self.bytes[: self.count], "little")
        return (states | int.from_bytes(self.held, "little")).bit_count()

    def at(self, index: int) -> int:
        """Where a block begins."""
        return HEADER + index * self.block


def use_of(view: memoryview) -> tuple[int, int]:
    """Blocks of a segment that a reader sees, and their bytes. `view` shows all of the segment."""
    count = bytes(view[:SIZE_AT]).count(1)
    return count, count * int.from_bytes(view[SIZE_AT:HEADER], "little")


class Lease:
    """The writer's right to one block."""

    __slots__ = ("index", "is_held", "segment")

    def __init__(self, segment: Segment, index: int) -> None:
        self.segment = segment
        self.index = index
        self.is_held = False  # until the block is taken

    def write(self, pieces: Sequence[Any], nbytes: int) -> int:
        """Copy buffers in, one behind the other, `nbytes` in all; returns where the block begins.

        Raises ValueError when one has changed its size meanwhile.
        """
        segment = self.segment
        offset = HEADER + self.index * segment.block
        start, end = offset, offset + nbytes
        aside = get_ident() in _writing_aside
        for piece in pieces:
            size = len(piece)
            if aside and start + size <= end:
                _put(segment.fd, piece, start)
            else:
                segment.bytes[start : min(start + size, end)] = piece
            start += size
        if start != end:
            msg = "what is written has changed its size"
            raise ValueError(msg)
        return offset

    def __del__(self) -> None:
        """End it."""
        if self.is_held:
            self.segment.held[self.index] = 0


def _put(fd: int, piece: Any, at: int) -> None:
    with memoryview(piece) as view:
        done = 0
        while done < view.nbytes:
            done += os.pwrite(fd, view[done:], at + done)


def _first_free(alike: list[Segment]) -> tuple[Segment | None, int]:
    for segment in alike:
        index = segment.free()
        if index >= 0:
            return segment, index
    return None, 0


class Arena:
    """The shared memory of one writer. Thread-safe; nothing in here blocks for long."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._lock = RLock()
        self._is_entered = False
        self._clock = clock
        self._pid = os.getpid()
        self.segments: dict[int, list[Segment]] = {}  # by the size of their blocks
        self.reserved = 0  # bytes of memory in all blocks
        self._most = self._most_before = 0  # bytes alive at once, since `_turn_at` was set, and before
        self._turn_at = 0.0  # when the former becomes the latter
        self._look_at = 0.0  # when what is alive is looked at again
        self._used = 0.0  # when a block was last taken
        self.trim_at: float | None = None  # when `trim` is to be called next; None: nothing is kept
        self.is_short = False  # there was no memory, once

    def take(self, nbytes: int) -> Lease | None:
        """A block of at least so many bytes; None when it cannot be had, now or here."""
        if os.getpid() != self._pid:
            return None
        block = class_of(nbytes)
        lease: Lease | None = None
        try:
            with self._lock:
                if self._is_entered:
                    return None
                try:
                    self._is_entered = True
                    alike = self.segments.setdefault(block, [])
                    segment, index = _first_free(alike)
                    if segment is None:
                        segment, index = Segment(block, min(SEGMENT, FIRST_SEGMENT << len(alike))), 0
                        alike.append(segment)
                    self._used = segment.used = now = self._clock()
                    if not segment.reserved[index]:
                        self._give_back(self.reserved + block - self._most_alive(now, block), segment)
                    elif index > segment.high or now >= self._look_at:
                        self._most_alive(now, block)
                    segment.high = max(segment.high, index)
                    if self.trim_at is None:
                        self.trim_at = now + 1.0
                    lease = Lease(segment, index)
                    # No call stands between these two, so an interrupt comes before both, or finds a lease that ends.
                    segment.held[index], lease.is_held = 1, True
                finally:
                    self._is_entered = False
            if not segment.reserved[index]:  # nobody else looks at it while it is held; this may take a while
                _os.reserve(segment.fd, segment.at(index), block)
                with self._lock:
                    segment.reserved[index] = 1
                    self.reserved += block
        except (OSError, ValueError, OverflowError):  # no memory, no descriptors, no address space
            if lease is not None:
                # There may have been a part of it.
                _os.give_back(lease.segment.mapping(), lease.segment.at(lease.index), block)
            self.is_short = True
            return None
        return lease

    def take_back(self, worker_id: int) -> None:
        """Free whatever a worker saw that is dead. By who guards `Segment.borrowers`; needs no lock of ours."""
        for segment in self._all():
            for index, who in segment.borrowers.items():
                if who == worker_id:
                    segment.bytes[index] = 0

    def _all(self) -> list[Segment]:
        return [segment for alike in list(self.segments.values()) for segment in alike]

    # ===== giving back =====

    def _most_alive(self, now: float, more: int = 0) -> int:
        """Return the most bytes that were alive at once in the last seconds; now, there are so many more."""
        self._look_at = now + LOOK
        if now >= self._turn_at:
            self._most_before = self._most if now < self._turn_at + MOST_FOR else 0
            self._most = 0
            self._turn_at = now + MOST_FOR
            for segment in self._all():
                segment.high = -1
        self._most = max(self._most, self.alive()[1] + more)
        return max(self._most, self._most_before)

    def _give_back(self, surplus: float, kept: Segment | None = None) -> None:
        """Give free memory back, the longest unused first, until it is so many bytes less.

        With the last of it, and where that cannot be had by block, a segment goes, unless it is `kept`.
        """
        for segment in sorted(self._all(), key=lambda each: each.used):
            if surplus <= 0:
                break
            freed, index, states = 0, segment.count, segment.bytes
            while freed < surplus and (index := segment.reserved.rfind(1, 0, index)) >= 0:
                if not (states[index] or segment.held[index]) and _os.give_back(
                    segment.mapping(), segment.at(index), segment.block
                ):
                    segment.reserved[index] = 0
                    freed += segment.block
            left = segment.reserved.count(1)
            if segment is not kept and not segment.alive() and (freed < surplus or not left):
                alike = self.segments.get(segment.block, [])
                if segment in alike:  # else the arena was closed meanwhile
                    alike.remove(segment)
                freed += left * segment.block
            self.reserved -= freed
            surplus -= freed

    def trim(self) -> None:
        """Give back what was not needed lately; `trim_at` says when to look again."""
        now = self._clock()
        if self.trim_at is None or now < self.trim_at or os.getpid() != self._pid:
            return
        self.trim_at = now + 1.0
        held: list[bool] = []
        try:
            held += map(self._lock.acquire, (False,))  # in one call, so that no interrupt comes between the two
            if held[0] and not self._is_entered:
                try:
                    self._is_entered = True
                    is_idle = now >= self._used + IDLE
                    self._give_back(math.inf if is_idle else self.reserved - self._most_alive(now))
                    if is_idle:  # nobody will say when the rest comes back
                        self.trim_at = now + IDLE if self._all() else None
                finally:
                    self._is_entered = False
        finally:
            if held and held[0]:
                self._lock.release()

    def close(self) -> None:
        """Let go of everything, without the lock. Memory that somebody still sees stays until he does not."""
        self._pid = -1  # it gives nothing more
        self.segments = {}  # who is in the midst of `_take` goes on with the old one
        self.reserved = 0
        self.trim_at = None

    # ===== looking =====

    def alive(self) -> tuple[int, int]:
        """Blocks that somebody has or may see: how many, and their bytes."""
        alive = [(segment.alive(), segment.block) for segment in self._all()]
        return sum(count for count, _ in alive), sum(count * block for count, block in alive)
