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
from poolkit._memory.holds import TAKEN, see
from poolkit._memory.memory import ONCE, Memory
from poolkit._wire.buffers import Found, Parts

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

_HEAD = struct.Struct("<II")  # parts, memories
BLOCK = struct.Struct("<QQQQ")  # segment (0: no block), index, offset, bytes
_ID = struct.Struct("<Q")


class OutOfBand:
    """A packed value as its writer has it. While it is there, nobody else is given its blocks."""

    __slots__ = ("_ids", "body", "goes_once", "leases", "memories", "nbytes")

    def __init__(
        self, leases: list[Lease], memories: tuple[Memory, ...], body: bytes, ids: list[int], nbytes: int
    ) -> None:
        self.leases = leases
        self.memories = memories  # that the value refers to
        self.body = body  # what travels on the link
        self.goes_once = False  # has descriptors that are needed no more once its task has begun
        self.nbytes = nbytes  # what lies in shared memory
        self._ids = ids  # of all memory that the other side has to know

    def hand_over(self, channel: DescriptorChannel) -> None:
        """Have the other side know the memory, before it is sent what refers to it. Raises as `tell`."""
        if not channel.told.issuperset(self._ids):
            channel.tell([*[lease.segment for lease in self.leases], *self.memories])

    def note_borrower(self, worker_id: int) -> None:
        """Have `Arena.take_back` free what this worker saw of the blocks, should it die."""
        for lease in self.leases:
            lease.segment.borrowers[lease.index] = worker_id

    def transfer(self) -> None:
        """From now on, the reader alone says when the blocks are free, even if it has not seen them yet."""
        for lease in self.leases:
            lease.segment.bytes[lease.index] = 1

    def has_descriptors(self) -> bool:
        """Whether it has such that are the reader's alone once it has them."""
        return any(memory.id & ONCE for memory in self.memories)

    def close_descriptors(self) -> None:
        """The reader has them, and will not need them again."""
        self.memories = tuple(memory for memory in self.memories if not memory.id & ONCE)


def pack(body: bytes | Parts, found: Found, arena: Arena) -> bytes | OutOfBand:
    """Put what is large into blocks, as far as there is memory; a body with nothing large is returned as it is.

    Raises ValueError when something has changed its size meanwhile.
    """
    threshold, memories = found.threshold, found.memories
    pickled: list[Any] = body if type(body) is Parts else [body]
    nbytes = sum(map(len, pickled))
    if nbytes < threshold and not found and not memories:
        return b"".join(pickled)
    leases: list[Lease] = []
    ids = [memory.id for memory in memories]
    large = 0
    table = [_HEAD.pack(1 + len(found), len(memories))]
    behind: list[Any] = []
    for pieces in [pickled, *[[buffer.raw()] for buffer in found]]:
        if pieces is not pickled:
            nbytes = len(pieces[0])
        lease = arena.take(nbytes) if nbytes >= threshold else None
        if lease is None:
            table.append(BLOCK.pack(0, 0, 0, nbytes))
            behind += pieces
        else:
            leases.append(lease)
            number, large = lease.segment.id, large + nbytes
            ids.append(number)
            table.append(BLOCK.pack(number, lease.index, lease.write(pieces, nbytes), nbytes))
    if not leases and not found and not memories:
        return b"".join(pickled)
    if memories:
        table += [_ID.pack(memory.id) for memory in memories]
    return OutOfBand(leases, memories, b"".join(table + behind), ids, large)


class Received:
    """Such a message as its reader has it: it, and every view of it that is still seen, keep its blocks."""

    __slots__ = ("_parts", "memories", "nbytes", "pickle")

    def __init__(
        self,
        data: bytes | bytearray | memoryview,
        channel: Any,
        *,
        copies: bool = False,
        gate: list[bool] = TAKEN,
    ) -> None:
        """Take one in; with `copies`, its blocks are not seen any longer. See `see` for `gate`.

        Raises:
            EOFError: the other side is gone, or has sent nonsense, or there is no room for what it sent.
        """
        try:
            parts, count = _HEAD.unpack_from(data)
            at = _HEAD.size + parts * BLOCK.size
            start = at + count * _ID.size
            found: list[Any] = []
            nbytes = 0
            view = data if type(data) is bytes else memoryview(data).toreadonly()
            for number, index, offset, size in BLOCK.iter_unpack(view[_HEAD.size : at]):
                if not number:
                    found.append(view[start : start + size])
                    start += size
                    continue
                nbytes += size
                memory = channel.memories.get(number)
                whole = memory.kept if memory is not None else None
                if whole is None:
                    whole = channel.memory(number).view()
                if copies:
                    found.append(bytearray(whole[offset : offset + size]))
                else:
                    found.append(see(whole, index, offset, size, gate))
            self.nbytes = nbytes
            take = channel.memory if copies else channel.take  # what is loaded again is kept for that
            ids = _ID.iter_unpack(view[at : at + count * _ID.size]) if count else ()
            self.memories = [take(number) for (number,) in ids]
            self.pickle, *self._parts = found
        except (struct.error, ValueError) as exc:
            raise EOFError from exc
        except OSError as exc:
            channel.is_broken = True
            msg = f"{channel.who} has no room for shared memory: {exc}"
            raise EOFError(msg) from exc

    def buffers(self) -> list[Any]:
        """What the pickle is loaded with; it may be loaded again."""
        return [
            pickle.PickleBuffer(part)
            if type(part) is memoryview and not part.readonly
            else part
            if type(part) is bytearray
            else bytearray(part)  # in the message
            for part in self._parts
        ]
