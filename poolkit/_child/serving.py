"""Serving: what a worker of a cluster runs, and the context that its target gets.

    Setup           what the owner sends: which worker it is, and its descriptors
    ClusterContext  the target's side: sockets, signs of life, messages, and when to stop

SIGTERM sets `stopping`, unless the target's server has a handler of its own. What the target lets out of a socket that
takes no more connections is no error then, nor is `sys.exit`.
Owner: the worker's main thread; what a context does is thread-safe.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import select
import signal

from poolkit._child.listener import Gate, Listener, Passed
from poolkit._child.port import Port
from poolkit._child.stopping import Stopping, any_readable
from poolkit._clock import monotonic
from poolkit._memory.memory import Memory
from poolkit._os import close_fd
from poolkit._select import poll
from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire import buffers, handover
from poolkit._wire.slate import Slate

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator


class Handed:
    """A descriptor on its way to a worker: a copy, whoever closes this one."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        buffers.memory_in_use = True  # so that who packs the call has descriptors go along

    def take(self) -> int:
        """Return a descriptor that is the caller's. In a worker that is a thread."""
        return os.dup(self._fd)

    def __reduce__(self) -> Any:
        """A descriptor that goes along."""
        assert handover.send_along is not None  # noqa: S101 -- `_memory` is imported
        return _Arrived, (handover.send_along(self._fd, is_loaded_once=True),)


class _Arrived:
    """The same in a worker that is a process."""

    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def take(self) -> int:
        return self._descriptor.detach()  # type: ignore[no-any-return]


class _Bell:
    """Wakes a thread of the owner."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def set(self) -> None:
        """Ring it; once is enough for many. Does not block."""
        with contextlib.suppress(OSError):  # it is full, or the owner is gone
            os.write(self._fd, b"\1\0\0\0\0\0\0\0")

    def __del__(self) -> None:
        """Close it."""
        close_fd(self._fd)


class Setup:
    """What a worker is made from. Frozen; of a thread it is the owner's object itself."""

    def __init__(  # noqa: PLR0913 -- what there is to know
        self,
        *,
        name: str,
        worker_id: int,
        workers: int,
        generation: int,
        schedule: str,
        grace: float,
        liveness: float | None,
        page: Memory,
        bell: Any,
        listeners: list[Any],
        hands: list[Any],
        acceptor_bell: Any,
        most_served: int | None,
        stopping: Stopping | None,
    ) -> None:
        self.name, self.worker_id, self.workers, self.generation = name, worker_id, workers, generation
        self.schedule, self.grace, self.page, self.bell = schedule, grace, page, bell
        self.listeners, self.hands, self.acceptor_bell = listeners, hands, acceptor_bell
        self.liveness = liveness
        self.most_served = most_served  # requests, after which it is to be replaced
        self.stopping = stopping  # of a thread, which gets no signals


class ClusterContext:
    """What a worker of a cluster serves with. Thread-safe.

    Attributes:
        socket: the first of `sockets`; None for a cluster that is bound to nothing.
        sockets: listening sockets, as far as any server library can tell.
        worker_id: the number of its place, from 0.
        workers: how many the cluster had when this one was started.
        generation: how often the code was loaded: 1, and one more after each reload.
        name: the cluster's.
        schedule: "kernel", or how the owner passes connections on.
        grace: seconds that it has to finish when it is to stop.
        stopping: set when it is to stop: true then; to be waited for, or awaited, or called back by.
    """

    def __init__(self, port: Port | None, setup: Setup) -> None:
        """Take over what was sent; contexts are made by the cluster."""
        self.name, self.worker_id, self.workers = setup.name, setup.worker_id, setup.workers
        self.generation, self.schedule, self.grace = setup.generation, setup.schedule, setup.grace
        self.stopping = Stopping() if setup.stopping is None else setup.stopping
        self._port, self._page = port, setup.page  # which is there as long as the slate is
        self._slate = Slate(setup.page.mapping())
        self._most_served = setup.most_served
        self._bell = _Bell(setup.bell.take())
        acceptor_bell = None if setup.acceptor_bell is None else _Bell(setup.acceptor_bell.take())
        self._gate = Gate(self._slate, self.stopping, self._bell.set, acceptor_bell)
        self._gate.alive_every = None if setup.liveness is None else setup.liveness / 4
        self.sockets: list[socket.socket] = []
        for place, listener in enumerate(setup.listeners):
            if setup.hands:
                self.sockets.append(Passed(setup.hands[place].take(), listener.take(), self._gate))
            else:
                self.sockets.append(Listener(listener.take(), self._gate))
        self.socket: socket.socket | None = self.sockets[0] if self.sockets else None

    def ready(self) -> None:
        """Say that it serves, where nothing is accepted or listened for, which says so. Idempotent; does not block."""
        self._gate.ready()

    def alive(self) -> None:
        """Give a sign of life, for a cluster with `liveness`. Does not block; costs a microsecond."""
        self._slate.alive = monotonic()

    def count(self, n: int = 1) -> None:
        """Count `n` requests as served, for `max_requests` and the statistics; a sign of life. Does not block."""
        self._slate.count(n)
        self._slate.alive = monotonic()
        if self._most_served is not None and self._slate.served >= self._most_served:
            self._most_served = None
            self._bell.set()

    def connections(self) -> _Connections:
        """Return the connections that come, as pairs of a socket and the client's address; for `for` and `async for`.

        It ends when the worker is to stop. In `for` they are blocking sockets, in `async for` non-blocking ones.
        """
        return _Connections(self)

    def send(self, message: object, timeout: float | None = None) -> None:
        """Send a message to the owner, for `Cluster.on_message`; as `Port.send`: blocks while there is no room."""
        self._its_port().send(message, timeout)

    async def send_async(self, message: object) -> None:
        """Do the same without blocking the event loop."""
        await self._its_port().send_async(message)

    def recv(self, timeout: float | None = None) -> Any:
        """Return the next message of `Cluster.send`; as `Port.recv`: blocks until there is one."""
        return self._its_port().recv(timeout)

    async def recv_async(self) -> Any:
        """Do the same without blocking the event loop."""
        return await self._its_port().recv_async()

    def serve_by(self, port: Port) -> None:
        """Have messages go through this."""
        self._port = port

    def _its_port(self) -> Port:
        assert self._port is not None  # noqa: S101 -- a cluster has given one
        return self._port

    def close(self) -> None:
        """Close its copies of the sockets. Idempotent; does not block."""
        for each in self.sockets:
            each.close()

    def __repr__(self) -> str:
        """Show which worker it is of."""
        return f"<poolkit.ClusterContext {self.name!r} worker={self.worker_id} generation={self.generation}>"


class _Connections:
    """The connections that come to one worker; see `ClusterContext.connections`."""

    def __init__(self, context: ClusterContext) -> None:
        self._context = context
        self._stopping = context.stopping
        self._sockets: list[Any] = context.sockets
        context.ready()

    def _taken(self) -> tuple[socket.socket, Any] | None:
        for each in self._sockets:
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                return each.take()  # type: ignore[no-any-return]
        return None

    def _waits_for(self) -> list[int]:
        own = [] if self._context._slate.no_more else [each.fileno() for each in self._sockets]  # noqa: SLF001
        return [*self._stopping.fds(), *own]

    def __iter__(self) -> Iterator[tuple[socket.socket, Any]]:
        """Take one after the other. Blocks."""
        while not self._stopping:
            found = self._taken()
            if found is not None:
                found[0].setblocking(True)
                yield found
                continue
            poller = poll()
            for fd in self._waits_for():
                poller.register(fd, select.POLLIN)
            seconds = self._context._gate.patience()  # noqa: SLF001 -- its own half
            with self._stopping.heeding():
                poller.poll(None if seconds is None else seconds * 1000)

    async def __aiter__(self) -> AsyncIterator[tuple[socket.socket, Any]]:
        """Take one after the other, without blocking the event loop."""
        while not self._stopping:
            found = self._taken()
            if found is not None:
                found[0].setblocking(False)
                yield found
                continue
            with self._stopping.heeding():
                await any_readable(self._waits_for(), self._context._gate.patience())  # noqa: SLF001 -- its own half


def serve(port: Port, setup: Setup | ClusterContext, target: Callable[[ClusterContext], object]) -> bool:
    """Be a worker: call the target, and return whether it was to stop when it returned."""
    context = setup if isinstance(setup, ClusterContext) else ClusterContext(port, setup)
    context.serve_by(port)
    stopping = context.stopping
    if context is not setup:
        stopping.heed_signals()
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        for ignored in (signal.SIGINT, signal.SIGHUP):  # by a handler: what the target starts would inherit SIG_IGN
            signal.signal(ignored, lambda *_: None)
    try:
        result: Any = target(context)
        if inspect.iscoroutine(result):
            import asyncio  # noqa: PLC0415 -- where the target is one

            asyncio.run(result)
    except (ConnectionAbortedError, SystemExit):
        if not stopping:
            raise
    finally:
        context.close()
    return bool(stopping)
