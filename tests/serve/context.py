"""A worker's context without its cluster, and a server that runs on it in a thread of this process."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import support
from poolkit._child.listener import Gate, Listener
from poolkit._child.stopping import Stopping
from poolkit._servers.application import application
from poolkit._wire.slate import Slate
from serve import apps

TESTS = Path(__file__).parent.parent


class Context:
    """What an adapter sees of a `ClusterContext`."""

    def __init__(
        self, count: int = 1, path: Path | None = None, schedule: str = "kernel", of: socket.socket | None = None
    ) -> None:
        self.worker_id, self.workers, self.generation, self.schedule = 0, 1, 1, schedule
        self.grace = 30.0
        self.stopping = Stopping()
        self.slate = Slate(bytearray(Slate.SIZE))
        self.seen = threading.Event()  # ready, or ended
        self.signs = 0  # of life
        gate = Gate(self.slate, self.stopping, self.seen.set)
        self.ready = gate.ready
        self.sockets = []
        for _ in range(count):
            listening = of.dup() if of else _unix(path) if path else socket.create_server(("127.0.0.1", 0))
            listening.setblocking(False)
            self.sockets.append(Listener(listening.detach(), gate))
        self.socket = self.sockets[0]
        self.addresses = [each.getsockname() for each in self.sockets]
        self.address: Any = self.addresses[0]

    def alive(self) -> None:
        self.signs += 1

    def count(self, n: int = 1) -> None:
        self.slate.count(n)

    def stop(self) -> None:
        """As the cluster does: no more connections, then stop."""
        self.slate.no_more = True
        self.stopping.set()

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        self.stopping.close()

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=support.WATCHDOG)


def _unix(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


class Running:
    """A target that serves in a thread."""

    def __init__(self, target: Any, ctx: Context) -> None:
        self.ctx = ctx
        self.errors: list[BaseException] = []
        self._target = target
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert ctx.seen.wait(support.WATCHDOG)
        if not ctx.slate.ready:
            self.thread.join()
            raise self.errors[0]

    def _run(self) -> None:
        try:
            self._target(self.ctx)
        except BaseException as exc:
            self.errors.append(exc)
        finally:
            self.ctx.seen.set()

    def end(self) -> None:
        self.ctx.stop()
        self.thread.join(support.WATCHDOG)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def running(server: str, ctx: Context | None = None, app: str = "", **options: Any) -> Iterator[Running]:
    """Have a server serve one of `apps`; what it raised is raised at the end."""
    ctx = ctx or Context()
    apps.entered.clear()
    apps.released.clear()
    apps.events.clear()
    name = app or ("asgi" if server == "uvicorn" else "wsgi")
    try:
        it = Running(application(f"serve.apps:{name}", server, app_dir=TESTS, **options), ctx)
        try:
            yield it
        finally:
            apps.released.set()
            it.end()
        if it.errors:
            raise it.errors[0]
    finally:
        ctx.close()
