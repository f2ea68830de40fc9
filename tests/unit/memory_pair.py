"""Two ends of a descriptor channel in one process, with an arena at the one: what a writer and a reader are made of."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from poolkit._memory.arena import Arena
from poolkit._memory.channel import DescriptorChannel
from poolkit._memory.out_of_band import OutOfBand, Received, pack
from poolkit._memory.owner import load_value
from poolkit._wire import codec
from poolkit._wire.buffers import found_from

MIB = 1 << 20


class Pair:
    """A writer that sends values, and a reader that gets them."""

    def __init__(self, threshold: float = 65_536) -> None:
        ours, theirs = socket.socketpair()
        self.threshold = threshold
        self.arena = Arena()
        self.out = DescriptorChannel(ours.detach(), is_worker=False)
        self.into = DescriptorChannel(theirs.detach(), is_worker=True)

    def pack(self, value: Any) -> bytes | OutOfBand:
        found = found_from(self.threshold)()
        found.look((value,))
        with found:
            body = codec.pack_value(value, found)
        return pack(body, found, self.arena)

    def send(self, message: OutOfBand, *, copies: bool = False) -> Received:
        message.hand_over(self.out)
        if not copies:
            message.note_borrower(1)
        return Received(message.body, self.into, copies=copies)

    def leased(self) -> int:
        """How many blocks somebody has."""
        return self.arena.alive()[0]

    def trip(self, value: Any, *, copies: bool = False) -> Any:
        packed = self.pack(value)
        if isinstance(packed, bytes):
            return codec.load_value(packed)
        return load_value(self.send(packed, copies=copies))

    def close(self) -> None:
        self.out.close()
        self.into.close()
        self.arena.close()


@contextmanager
def pair(threshold: float = 65_536) -> Iterator[Pair]:
    made = Pair(threshold)
    try:
        yield made
    finally:
        made.close()
