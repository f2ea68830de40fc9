"""Out-of-band messages: pickles whose large parts lie in shared memory: how one is packed, and opened by its reader.

What travels on the link in place of the pickle:

    HEAD      how many parts and memories
    BLOCK     for the pickle and then each buffer: the block in which it lies, or none: it is small, or memory was short
    ID        of each memory that the value refers to
    the contents that have no block

Opened, the buffers are views of the blocks: nothing is copied. Of what stands in the pickle, unpickling makes copies.
A task that may run again gets copies of the buffers too: each run is to see the same input.
"""

from __future__ import annotations

import pickle
import struct

from poolkit._memory.arena import Arena, Lease
from poolkit._memory.channel import DescriptorChannel
from poolkit._memory.holds import see
from poolkit._memory.memory import ONCE, Memory
from poolkit._wire.buffers import Found, Parts

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_HEAD = struct.Struct("<II")  # parts, memories
_BLOCK = struct.Struct("<QQQQ")  # segment (0: no block), index, offset, bytes
_ID = struct.Struct("<Q")


class OutOfBand:
    """A packed value as its writer has it. While it is there, nobody else is given its blocks."""

    __slots__ = ("body", "leases", "memories", "nbytes")

    def __init__(self, leases: list[Lease], memories: tuple[Memory, ...], body: bytes) -> None:
        self.leases = leases
        self.memories = memories  # that the value refers to
        self.body = body  # what travels on the link
        self.nbytes = sum([lease.nbytes for lease in leases])  # what lies in shared memory

    def hand_over(self, channel: DescriptorChannel) -> None:
        """Have the other side know the memory, before it is sent what refers to it. Raises as `tell`."""
        channel.tell([*[lease.segment for lease in self.leases], *self.memories])

    def lend(self, worker_id: int) -> None:
        """See `Lease.lend`."""
        for lease in self.leases:
            lease.lend(worker_id)

    def transfer(self) -> None:
        """See `Lease.transfer`."""
        for lease in self.leases:
            lease.transfer()

    def has_descriptors(self) -> bool:
        """Whether it has such that are the reader's alone once it has them."""
        return any(memory.id & ONCE for memory in self.memories)

    def close_descriptors(self) -> None:
        """The reader has them, and will not need them again."""
        self.memories = tuple(memory for memory in self.memories if not memory.id & ONCE)


def pack(body: bytes | Parts, found: Found, arena: Arena) -> bytes | OutOfBand:
    """Put what is large into blocks, as far as there is memory; a body with nothing large is returned as it is."""
    parts = body if type(body) is Parts else None
    if parts is None and not found and not found.memories and len(body) < found.threshold:
        return body  # type: ignore[return-value]
    leases: list[Lease] = []
    table: list[bytes] = []
    behind: list[Any] = []
    pickled: list[Any] = [body] if parts is None else parts
    for pieces in [pickled, *[[buffer.raw()] for buffer in found]]:
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
    if not leases and not found and not found.memories:
        return b"".join(pickled)
    ids = [_ID.pack(memory.id) for memory in found.memories]
    return OutOfBand(leases, found.memories, b"".join([_HEAD.pack(len(table), len(ids)), *table, *ids, *behind]))


class Received:
    """Such a message as its reader has it: it, and every view of it that is still seen, keep its blocks."""

    __slots__ = ("_buffers", "_pickle", "memories", "nbytes")

    def __init__(self, data: bytes | bytearray | memoryview, channel: DescriptorChannel, *, copies: bool) -> None:
        """Take one in; with `copies`, its blocks are not seen any longer.

        Raises:
            EOFError: the other side is gone, or has sent nonsense, or there is no room for what it sent.
        """
        try:
            parts, count = _HEAD.unpack_from(data)
            at = _HEAD.size + parts * _BLOCK.size
            start = at + count * _ID.size
            found: list[Any] = []
            nbytes = 0
            view = memoryview(data).toreadonly()
            for number, index, offset, size in _BLOCK.iter_unpack(view[_HEAD.size : at]):
                if not number:
                    found.append(view[start : start + size])
                    start += size
                    continue
                nbytes += size
                whole = channel.memory(number).view()
                if copies:
                    found.append(bytearray(whole[offset : offset + size]))
                else:
                    found.append(see(whole, index, offset, size))
            self.nbytes = nbytes
            take = channel.memory if copies else channel.take  # what is loaded again is kept for that
            self.memories = [take(number) for (number,) in _ID.iter_unpack(view[at : at + count * _ID.size])]
            self._pickle, *self._buffers = found
        except (struct.error, ValueError) as exc:
            raise EOFError from exc
        except OSError as exc:
            channel.is_broken = True
            msg = f"it has no room for shared memory: {exc}"
            raise EOFError(msg) from exc

    def load(self, load: Callable[[Any, list[Any]], Any]) -> Any:
        """Unpickle: `load` gets the pickle and its buffers. May be repeated; whatever it raises propagates."""
        buffers: list[Any] = []
        for part in self._buffers:
            if type(part) is bytearray:
                buffers.append(part)
            else:
                buffers.append(bytearray(part) if part.readonly else pickle.PickleBuffer(part))
        return load(self._pickle, buffers)
