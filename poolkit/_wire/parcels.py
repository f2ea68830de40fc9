"""Parcels: a pickle whose large parts lie in shared memory: how one is packed by its writer and opened by its reader.

What travels on the link in place of the pickle:

    HEAD      how many parts and regions
    BLOCK     for the pickle and then each buffer: the block in which it lies, or none: it is small, or memory was short
    NUMBER    of each region
    the contents that have no block

Opened, the buffers are views of the blocks: nothing is copied. Of what stands in the pickle, unpickling makes copies.
A task that may run again gets copies of the buffers too, and frees no block: each run is to see the same input.
"""

from __future__ import annotations

import pickle
import struct

from poolkit._wire.arena import Arena, Lease
from poolkit._wire.buffers import Found, Parts
from poolkit._wire.holds import Hold, watch
from poolkit._wire.passage import Passage
from poolkit._wire.regions import ONCE, Region

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_HEAD = struct.Struct("<II")  # parts, regions
_BLOCK = struct.Struct("<QQQQ")  # segment (0: no block), index, offset, bytes
_NUMBER = struct.Struct("<Q")


class Parcel:
    """A packed value as its writer holds it. Dropped before it was sent, it frees its blocks."""

    __slots__ = ("body", "goes_once", "leases", "nbytes", "regions")

    def __init__(self, leases: list[Lease], regions: tuple[Region, ...], body: bytes) -> None:
        self.leases = leases
        self.regions = regions
        self.body = body  # what travels on the link
        self.goes_once = False  # has descriptors that are needed no more once its task has begun
        self.nbytes = sum(lease.nbytes for lease in leases)  # what lies in shared memory

    def hand_over(self, passage: Passage, arena: Arena) -> None:
        """Have the other side know the memory, before it is sent what refers to it."""
        passage.tell([lease.segment for lease in self.leases], self.regions, arena)

    def lend(self, borrower: int) -> None:
        """From now on the blocks are the reader's to free."""
        for lease in self.leases:
            lease.lend(borrower)

    def has_descriptors(self) -> bool:
        """Whether it has such that are the reader's alone once it has them."""
        return any(region.number & ONCE for region in self.regions)

    def part_with_descriptors(self) -> None:
        """The reader has them, and will not need them again."""
        self.regions = tuple(region for region in self.regions if not region.number & ONCE)

    def reclaim(self) -> None:
        """The reader never got to see it."""
        for lease in self.leases:
            lease.reclaim()


def pack(body: bytes | Parts, found: Found, arena: Arena) -> bytes | Parcel:
    """Put what is large into blocks, as far as there is memory; a body with nothing large is returned as it is."""
    parts = body if type(body) is Parts else None
    if parts is None and not found and not found.regions and len(body) < found.threshold:
        return body  # type: ignore[return-value]
    leases: list[Lease] = []
    table: list[bytes] = []
    behind: list[Any] = []
    pickled: list[Any] = [body] if parts is None else parts
    for pieces in [pickled, *([buffer.raw()] for buffer in found)]:
        sizes = [len(piece) for piece in pieces]
        total = sum(sizes)
        lease = arena.take(total) if total >= found.threshold else None
        if lease is None:
            table.append(_BLOCK.pack(0, 0, 0, total))
            behind += pieces
        else:
            lease.write(pieces, sizes)
            table.append(_BLOCK.pack(lease.segment.id, lease.index, lease.offset, total))
            leases.append(lease)
    if not leases and not found and not found.regions:
        return b"".join(pickled)
    numbers = [_NUMBER.pack(region.number) for region in found.regions]
    return Parcel(leases, found.regions, b"".join([_HEAD.pack(len(table), len(numbers)), *table, *numbers, *behind]))


class Arrived:
    """A parcel as its reader holds it: it, and every view of it that is still seen, keep its blocks."""

    __slots__ = ("__weakref__", "_copies", "_parts", "nbytes", "regions")

    def __init__(self, data: bytes | bytearray | memoryview, passage: Passage, *, copies: bool) -> None:
        """Take a parcel in; with `copies`, its blocks stay the writer's.

        Raises:
            EOFError: the other side is gone, or has sent nonsense.
            OSError: what it sent could not be received.
        """
        try:
            parts, regions = _HEAD.unpack_from(data)
            at = _HEAD.size
            self._copies = copies
            self._parts: list[Hold | memoryview] = []  # the pickle, and the buffers
            table = list(_BLOCK.iter_unpack(data[at : at + parts * _BLOCK.size]))
            at += parts * _BLOCK.size
            numbers = [number for (number,) in _NUMBER.iter_unpack(data[at : at + regions * _NUMBER.size])]
            at += regions * _NUMBER.size
            self.regions: list[Region] = []
            passage.settle()
            view = memoryview(data)
            try:
                for number, index, offset, nbytes in table:
                    if number:
                        self._parts.append(Hold(passage.mapping(number), index, offset, nbytes, frees=not copies))
                    else:
                        self._parts.append(view[at : at + nbytes])
                        at += nbytes
                for number in numbers:
                    self.regions.append(passage.region(number))
            except OSError:
                lost = [] if copies else [entry[:2] for entry in table[len(self._parts) :] if entry[0]]
                passage.renounce(lost, numbers[len(self.regions) :])
                raise
            self.nbytes = sum(entry[3] for entry in table if entry[0])
        except (struct.error, ValueError) as exc:
            raise EOFError from exc
        if not self._parts:
            raise EOFError
        if self.nbytes and not copies:
            watch(self, [part for part in self._parts if isinstance(part, Hold)])

    def load(self, load: Callable[[Any, list[Any]], Any]) -> Any:
        """Unpickle: `load` gets the pickle and its buffers. May be repeated; whatever it raises propagates."""
        pickled, *parts = self._parts
        buffers: list[Any] = []
        for part in parts:
            if not isinstance(part, Hold):
                buffers.append(bytearray(part))
            elif self._copies:
                buffers.append(part.copy())
            else:
                buffers.append(pickle.PickleBuffer(part.view()))
        if not isinstance(pickled, Hold):
            return load(pickled, buffers)
        return load(pickled.copy() if self._copies else pickled.view(), buffers)
