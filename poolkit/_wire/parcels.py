"""Parcels: a pickle whose large parts lie in shared memory: how one is packed by its writer and opened by its reader.

What travels on the link in place of the pickle:

    HEAD      how many blocks and regions, and whether the first block holds the pickle itself
    BLOCK     for each: where it lies, or that its content stands behind the pickle, as there was no memory for it
    NUMBER    of each region
    the pickle, then the contents that have no block

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
from poolkit._wire.regions import Region

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_HEAD = struct.Struct("<II?")  # blocks, regions, whether the first block is the pickle
_BLOCK = struct.Struct("<QQQQ")  # segment (0: no block), index, offset, bytes
_NUMBER = struct.Struct("<Q")


class Parcel:
    """A packed value as its writer holds it. Dropped before it was sent, it frees its blocks. Frozen after __init__."""

    __slots__ = ("body", "leases", "nbytes", "regions")

    def __init__(self, leases: list[Lease], regions: tuple[Region, ...], body: bytes) -> None:
        self.leases = leases
        self.regions = regions
        self.body = body  # what travels on the link
        self.nbytes = sum(lease.nbytes for lease in leases)  # what lies in shared memory

    def hand_over(self, passage: Passage, arena: Arena) -> None:
        """Have the other side know the memory, before it is sent what refers to it."""
        passage.tell([lease.segment for lease in self.leases], self.regions, arena)

    def lend(self, borrower: int) -> None:
        """From now on the blocks are the reader's to free."""
        for lease in self.leases:
            lease.lend(borrower)

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
    pickled: list[Any] = [body] if parts is None else parts
    sizes = [len(part) for part in pickled]
    total = sum(sizes)
    lease = _put(pickled, sizes, arena) if total >= found.threshold else None
    if lease is not None:
        table.append(_entry(lease))
        leases.append(lease)
        pickled = []
    elif parts is not None:
        pickled = [b"".join(parts)]
    in_block = lease is not None
    behind: list[bytes] = []
    for buffer in found:
        with buffer.raw() as view:
            lease = _put([view], [view.nbytes], arena)
            if lease is None:
                table.append(_BLOCK.pack(0, 0, 0, view.nbytes))
                behind.append(view.tobytes())
            else:
                table.append(_entry(lease))
                leases.append(lease)
    if not table and not found.regions:
        return b"".join(pickled)
    head = _HEAD.pack(len(table), len(found.regions), in_block)
    numbers = [_NUMBER.pack(region.number) for region in found.regions]
    return Parcel(leases, found.regions, b"".join([head, *table, *numbers, *pickled, *behind]))


def _put(parts: list[Any], sizes: list[int], arena: Arena) -> Lease | None:
    lease = arena.take(sum(sizes))
    if lease is not None:
        lease.write(parts, sizes)
    return lease


def _entry(lease: Lease) -> bytes:
    return _BLOCK.pack(lease.segment.id, lease.index, lease.offset, lease.nbytes)


class Arrived:
    """A parcel as its reader holds it: it, and every view of it that is still seen, keep its blocks."""

    __slots__ = ("__weakref__", "_behind", "_buffers", "_copies", "_pickle", "_regions", "nbytes")

    def __init__(self, data: bytes | bytearray | memoryview, passage: Passage, *, copies: bool) -> None:
        """Take a parcel in; with `copies`, its blocks stay the writer's.

        Raises:
            EOFError: the other side is gone, or has sent nonsense.
            OSError: what it sent could not be received.
        """
        try:
            blocks, regions, in_block = _HEAD.unpack_from(data)
            at = _HEAD.size
            self._copies = copies
            self._buffers: list[Hold | int] = []  # a size, where the content stands behind the pickle
            table = list(_BLOCK.iter_unpack(data[at : at + blocks * _BLOCK.size]))
            at += blocks * _BLOCK.size
            numbers = [number for (number,) in _NUMBER.iter_unpack(data[at : at + regions * _NUMBER.size])]
            at += regions * _NUMBER.size
            self._regions: list[Region] = []
            passage.settle()
            try:
                for number, index, offset, nbytes in table:
                    self._buffers.append(
                        Hold(passage.mapping(number), index, offset, nbytes, frees=not copies) if number else nbytes
                    )
                for number in numbers:
                    self._regions.append(passage.region(number))
            except OSError:
                lost = [] if copies else [entry[:2] for entry in table[len(self._buffers) :] if entry[0]]
                passage.renounce(lost, numbers[len(self._regions) :])
                raise
            self.nbytes = sum(entry[3] for entry in table if entry[0])
            behind = sum(entry[3] for entry in table if not entry[0])
            view = memoryview(data)
            self._pickle: memoryview | Hold = view[at : len(view) - behind]
            self._behind = view[len(view) - behind :]
            if in_block:
                first = self._buffers.pop(0)
                if isinstance(first, int):
                    raise EOFError
                self._pickle = first
        except (struct.error, ValueError, IndexError) as exc:
            raise EOFError from exc
        if table and not copies:
            watch(self, [hold for hold in [*self._buffers, self._pickle] if isinstance(hold, Hold)])

    def load(self, load: Callable[[Any, list[Any]], Any]) -> Any:
        """Unpickle: `load` gets the pickle and its buffers. May be repeated; whatever it raises propagates."""
        buffers: list[Any] = []
        start = 0
        for each in self._buffers:
            if isinstance(each, int):
                buffers.append(bytearray(self._behind[start : start + each]))
                start += each
            elif self._copies:
                buffers.append(each.copy())
            else:
                buffers.append(pickle.PickleBuffer(each.view()))
        data = self._pickle
        if isinstance(data, Hold):
            data = memoryview(data.copy()) if self._copies else data.view()
        return load(data, buffers)
