"""Two ends of a passage in one process, with an arena at the one: what a writer and a reader are made of."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from poolkit._wire import codec
from poolkit._wire.arena import Arena
from poolkit._wire.buffers import found_from
from poolkit._wire.parcels import Arrived, Parcel, pack
from poolkit._wire.passage import Passage

MIB = 1 << 20


class Pair:
    """A writer that sends values, and a reader that gets them."""

    def __init__(self, threshold: float = 65_536) -> None:
        ours, theirs = socket.socketpair()
        self.threshold = threshold
        self.arena = Arena()
        self.out = Passage(ours.detach(), waits=False)
        self.into = Passage(theirs.detach(), waits=True)

    def pack(self, value: Any) -> bytes | Parcel:
        found = found_from(self.threshold)()
        found.look((value,))
        with found:
            body = codec.pack_value(value, found)
        return pack(body, found, self.arena)

    def send(self, parcel: Parcel, *, copies: bool = False) -> Arrived:
        parcel.hand_over(self.out, self.arena)
        if not copies:
            parcel.lend(1)
        return Arrived(parcel.body, self.into, copies=copies)

    def trip(self, value: Any, *, copies: bool = False) -> Any:
        packed = self.pack(value)
        if isinstance(packed, bytes):
            return codec.load_value(packed)
        return self.send(packed, copies=copies).load(codec.load_value)

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
