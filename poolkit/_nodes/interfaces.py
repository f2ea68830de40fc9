"""Interfaces: what stands between the owner, its nodes, and whatever places, connects and scales those.

    NodeProvider   in the owner: nodes join, leave, are held and asked for
    Channel        the connection between the owner and one node, at either end
    AgentSettings  what a node's half is made from

Nothing here knows Dask, nor any other engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from poolkit._core.records import record

WIRE = 2  # number of what owner and nodes say to each other; another one is refused

Message = tuple[bytes, Sequence[Any]]  # a head, and buffers of any size beside it


class Channel(Protocol):
    """One end of a connection: ordered, two ways; it ends once. Who uses it sets the callbacks, then calls `start`.

    All callbacks are called on one thread of the provider, one at a time.

    Attributes:
        take: returns the next message to be written, None when there is none; called after `wake` until it says so.
            Each message is written before the next is taken, so a slow network makes larger messages.
        on_message: gets each message that came, in order; its buffers are writable, each one's own.
        on_end: called once, with "closed", "retired" or "scheduler"; or with "silent" where this end gave up, and the
            other one may know nothing of it. Nothing is called after it.
    """

    take: Callable[[], Message | None]
    on_message: Callable[[bytes, list[Any]], object]
    on_end: Callable[[str], object]

    def start(self) -> None:
        """Have the callbacks called from now on."""

    def wake(self) -> None:
        """There is something to take. From any thread, under locks too: cheap, never blocks, raises nothing."""

    def abort(self) -> None:
        """End it at once; `on_end` is called soon. From any thread. Idempotent."""


@record(frozen=True)
class NodeFacts:
    """What a node says of itself when it is up. `number` is of this life of it."""

    number: str
    address: str
    host: str
    pid: int
    workers: int
    versions: dict[str, str]


@record(frozen=True)
class AgentSettings:
    """What a node's half is made from; made by the owner, the same for all nodes. Seconds."""

    pool: str  # a name that no other pool has, anywhere
    name: str  # that the user gave it
    workers: int | None  # None: as many as the provider says
    lease: float
    wire: int
    python: str  # "3.11"
    content: bytes  # of the node's pool; opaque to providers


class NodeProvider(Protocol):
    """What nodes come from. Callbacks are called on its thread."""

    def begin(
        self,
        settings: AgentSettings,
        joined: Callable[[NodeFacts, Channel], object],
        refused: Callable[[str, str, dict[str, str] | None], object],
        leaving: Callable[[str, str], object],
    ) -> None:
        """Have agents on all nodes, now and later.

        Args:
            settings: what they are made from.
            joined: called with each that is up, and the connection to it.
            refused: called with the address of each that cannot be used, and why, or the versions that it has instead.
            leaving: called with the number of one that is to be sent nothing more, and why; it goes when its connection
                has ended, which the owner sees to once nothing runs there.
        """

    def hold(self, number: str, wanted: bool) -> None:
        """This node is in use and not to be taken away; or it may be again. From any thread."""

    def want(self, nodes: int, *, fewer: bool = True) -> None:
        """Have so many nodes, where that can be done; where there are more, only if `fewer`. From any thread."""

    def close(self) -> None:
        """End all connections, agents, and what was made for that. Blocks for a moment."""
