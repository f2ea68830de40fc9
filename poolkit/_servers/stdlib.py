"""The standard library: `wsgiref` with a thread for each connection. For development: it has no limit on threads.

It answers one request on a connection. Once the worker is to stop, the requests that came are finished.
Owner: the thread that calls `serve` accepts; each connection is its thread's.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from wsgiref import simple_server

from poolkit._select import poll
from poolkit._servers.application import Served
from poolkit._servers.wsgi import watched

if TYPE_CHECKING:
    from poolkit._child.serving import ClusterContext

TURN = 1.0  # seconds; so often a worker with nothing to do gives a sign of life
LATE = 0.2  # a request that is on its way when the worker is to stop is waited for so long

REFUSED: dict[str, str] = {}
log = logging.getLogger("poolkit.serve")


def check(options: Mapping[str, Any]) -> None:
    """See that there are no settings: it has none.

    Raises:
        ValueError: there are some.
    """
    if options:
        msg = f"wsgiref of the standard library has no settings, was given {', '.join(options)}"
        raise ValueError(msg)


class Handler(simple_server.WSGIRequestHandler):
    """Answers the request of one connection."""

    def handle(self) -> None:
        """Wait for the request; when the worker is to stop, no longer than for one that is on its way."""
        stopping = self.server.stopping  # type: ignore[attr-defined]
        waiting = poll()
        waiting.register(self.connection, select.POLLIN)
        waiting.register(stopping.fileno(), select.POLLIN)
        if self.connection.fileno() not in dict(waiting.poll()):
            waiting.unregister(stopping.fileno())
            if not waiting.poll(LATE * 1000):
                return
        with contextlib.suppress(ConnectionError):  # the client has gone
            super().handle()

    def log_message(self, *_: Any) -> None:
        """Log nothing: `watched` does."""


class Server(simple_server.WSGIServer):
    """A server for one listener, which somebody else polls."""

    def __init__(self, listener: socket.socket, served: Served, ctx: ClusterContext) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.stopping = listener, ctx.stopping
        self.threads: list[threading.Thread] = []
        listener.setblocking(False)
        name = listener.getsockname()
        self.server_name, self.server_port = name[:2] if isinstance(name, tuple) else ("localhost", 0)
        self.setup_environ()
        self.set_app(watched(served, ctx))

    def accept(self) -> None:
        """Accept a connection, if there is one, and have a thread answer it."""
        try:
            connection, address = self.socket.accept()
        except OSError:  # another worker took it, or the client has gone
            return
        connection.setblocking(True)
        self.threads = [each for each in self.threads if each.is_alive()]
        thread = threading.Thread(
            target=self._answer, args=(connection, address if isinstance(address, tuple) else ("", 0))
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads
            log.exception("a connection of %s is closed unanswered", address)
            connection.close()
            return
        self.threads.append(thread)

    def _answer(self, connection: socket.socket, address: Any) -> None:
        try:
            self.finish_request(connection, address)
        except Exception:
            log.exception("a connection of %s failed", address)
        finally:
            self.shutdown_request(connection)


def serve(served: Served, ctx: ClusterContext) -> None:
    """Serve until the worker is to stop, and then until what runs is finished."""
    if ctx.worker_id == 0:
        log.warning("served by wsgiref of the standard library, which is for development; `pip install waitress`")
    servers = {listener.fileno(): Server(listener, served, ctx) for listener in ctx.sockets}
    waiting = poll()
    for fd in (*servers, ctx.stopping.fileno()):
        waiting.register(fd, select.POLLIN)
    ctx.ready()
    while not ctx.stopping:
        ctx.alive()
        for fd, _ in waiting.poll(TURN * 1000):
            if fd in servers:
                servers[fd].accept()
    for server in servers.values():
        server.server_close()
    for thread in [each for server in servers.values() for each in server.threads]:
        while thread.is_alive():
            ctx.alive()
            thread.join(TURN)
