"""Context: what the target of a cluster can be called with in a test: a `ClusterContext` without a network or owner.

    client = ctx.connect() ── a pair of sockets ──> ctx.socket.accept(), as of any listening socket

It is the real context (`_child/serving.py`), with the test in the owner's place.
Owner: the test; what a context does is thread-safe.
"""

from __future__ import annotations

import array
import socket
from types import TracebackType
from typing import TYPE_CHECKING, Any

from poolkit import _os
from poolkit._child.local_channel import local_pair
from poolkit._child.port import ChannelEnd, Port, countdown
from poolkit._child.serving import ClusterContext, Handed, Setup
from poolkit._child.stopping import Stopping
from poolkit._memory.memory import Memory
from poolkit._wire.slate import Slate

if TYPE_CHECKING:
    from typing_extensions import Self
else:
    Self = Any  # for those who look at the annotations; not in CPython 3.10

_KIND = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


class FakeContext(ClusterContext):
    """A context whose connections come from the test. Use it in a `with` block, or `close()` it.

    The target runs in the test: in a thread, or, if it is a coroutine, in a task beside the test.
    """

    def __init__(
        self,
        *,
        worker_id: int = 0,
        workers: int = 1,
        generation: int = 1,
        name: str = "fake",
        schedule: str = "round_robin",
        grace: float = 30.0,
    ) -> None:
        """Make one; the arguments are what its attributes say."""
        self._owner_channel, theirs = local_pair()
        self._owner_bell = _os.Wakeup()
        self._hand, hand = socket.socketpair(socket.AF_UNIX, _KIND)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # bound to nothing
        for each in (self._hand, hand, listener):
            each.setblocking(False)
        bell = Handed(self._owner_bell.writing_end())
        setup = Setup(
            name=name,
            worker_id=worker_id,
            workers=workers,
            generation=generation,
            schedule=schedule,
            grace=grace,
            page=Memory.create(Slate.SIZE),
            bell=bell,
            listeners=[Handed(listener.fileno())],
            hands=[Handed(hand.fileno())],
            acceptor_bell=None,
            most_served=None,
            stopping=Stopping(),
        )
        try:
            super().__init__(Port(theirs), setup)
        finally:
            hand.close()
            listener.close()
        self._sent: list[Any] = []

    def connect(self) -> socket.socket:
        """Return the client's end of a new connection, a blocking socket, which `ctx.socket` accepts the other end of.

        Raises:
            ConnectionRefusedError: it is to stop.
        """
        if self.stopping:
            msg = "this worker is to stop: it accepts no more connections"
            raise ConnectionRefusedError(msg)
        client, served = socket.socketpair()
        with served:
            rights = array.array("i", (served.fileno(),))
            self._hand.sendmsg([b"\1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return client

    def stop(self) -> None:
        """Tell the target to stop: no more connections, then `stopping`. Idempotent; does not block."""
        self._slate.no_more = True
        self.stopping.set()

    def deliver(self, message: object) -> None:
        """Have `ctx.recv` give this message, as `Cluster.send` does."""
        self._owner_channel.send(message, countdown(None))

    @property
    def sent(self) -> list[Any]:
        """What the target has sent so far."""
        try:
            while True:
                self._sent.append(self._owner_channel.receive(countdown(0), []))
        except (TimeoutError, ChannelEnd):
            return self._sent

    @property
    def is_ready(self) -> bool:
        """Whether the target has said that it serves."""
        return self._slate.ready

    @property
    def served(self) -> int:
        """How many requests the target has counted."""
        return self._slate.served

    def close(self) -> None:
        """Close its sockets. Idempotent."""
        super().close()
        self._hand.close()
        self.stopping.close()
        self._owner_channel.shut()
        self._owner_bell.close()

    def __enter__(self) -> Self:
        """Use the context in a block."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Stop it, and close its sockets."""
        self.stop()
        self.close()
