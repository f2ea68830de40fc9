"""Local provider: nodes that are processes of this machine, on pairs of sockets: for tests, without Dask.

Owner: each end's one thread has the sockets; see `Channel`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from poolkit import _os
from poolkit._nodes.interfaces import AgentSettings, Channel, Message, NodeFacts
from poolkit._spawn.launch import FORKING

_COUNT = struct.Struct("<II")  # bytes of the head, parts
_SIZE = struct.Struct("<Q")
_CODE = "import sys; from poolkit._nodes.provider_local import serve; serve(int(sys.argv[1]))"
END_GRACE = 10.0  # seconds that a node gets to end


class LocalChannel:
    """One end of a pair of sockets; see `Channel`."""

    take: Callable[[], Message | None]
    on_message: Callable[[bytes, list[Any]], object]
    on_end: Callable[[str], object]

    def __init__(self, hub: Hub, sock: socket.socket) -> None:
        self.sock = sock
        self.hub = hub
        self.has_ended = False
        self._writing: deque[memoryview] = deque()
        self._reading: list[Any] = []  # sizes, then buffers that are filled
        self._wanted = memoryview(bytearray(_COUNT.size))
        self._filled = 0
        self._stage = 0  # counts, sizes, content
        self._sizes: list[int] = []

    def start(self) -> None:
        """Have the hub's thread look after it."""
        self.hub.do(self._register)

    def wake(self) -> None:
        """Have it write."""
        self.hub.do(self.write)

    def abort(self) -> None:
        """End it."""
        self.hub.do(self.end)

    def _register(self) -> None:
        self.sock.setblocking(False)
        with contextlib.suppress(KeyError):  # it was, for what came first
            self.hub.selector.register(self.sock, selectors.EVENT_READ, self)
        self.write()

    def end(self) -> None:
        """Close it, once."""
        if self.has_ended:
            return
        self.has_ended = True
        with contextlib.suppress(KeyError, ValueError):
            self.hub.selector.unregister(self.sock)
        self.sock.close()
        if hasattr(self, "on_end"):
            self.on_end("closed")

    def write(self) -> None:
        """Write what there is, as far as the socket takes it."""
        if self.has_ended or not hasattr(self, "take"):
            return
        try:
            while True:
                while self._writing:
                    sent = self.sock.send(self._writing[0])
                    rest = self._writing[0][sent:]
                    if rest.nbytes:
                        self._writing[0] = rest
                    else:
                        self._writing.popleft()
                message = self.take()
                if message is None:
                    break
                head, parts = message
                views = [memoryview(part).cast("B") for part in parts]
                sizes = b"".join(_SIZE.pack(view.nbytes) for view in views)
                self._writing.append(memoryview(_COUNT.pack(len(head), len(parts)) + sizes + head))
                self._writing.extend(view for view in views if view.nbytes)
            events = selectors.EVENT_READ
        except BlockingIOError:
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
        except OSError:
            self.end()
            return
        with contextlib.suppress(KeyError, ValueError):
            self.hub.selector.modify(self.sock, events, self)

    def read(self) -> None:
        """Read what is there."""
        try:
            while not self.has_ended:
                if self._wanted.nbytes > self._filled:
                    count = self.sock.recv_into(self._wanted[self._filled :])
                    if not count:
                        self.end()
                        return
                    self._filled += count
                    continue
                self._next_stage()
        except BlockingIOError:
            return
        except OSError:
            self.end()

    def _next_stage(self) -> None:
        filled, self._filled = self._wanted.obj, 0
        if self._stage == 0:
            nbytes, parts = _COUNT.unpack(filled)
            self._sizes = [nbytes]
            self._stage, size = 1, parts * _SIZE.size
        elif self._stage == 1:
            self._sizes += [size for (size,) in _SIZE.iter_unpack(filled)]
            self._stage, size = 2, self._sizes[0]
        else:
            self._reading.append(filled)
            if len(self._reading) < len(self._sizes):
                size = self._sizes[len(self._reading)]
            else:
                head, *parts = self._reading
                self._reading, self._stage, size = [], 0, _COUNT.size
                self._wanted = memoryview(bytearray(size))
                self.on_message(bytes(head), parts)
                return
        self._wanted = memoryview(bytearray(size))


class Hub:
    """The thread that has the sockets of one process."""

    def __init__(self, name: str) -> None:
        self.selector = selectors.DefaultSelector()
        self._wakeup = _os.Wakeup()
        self.selector.register(self._wakeup.fileno(), selectors.EVENT_READ, None)
        self._todo: deque[Callable[[], object]] = deque()
        self._is_over = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def do(self, what: Callable[[], object]) -> None:
        """Have this called soon, on the thread."""
        self._todo.append(what)
        self._wakeup.set()

    def close(self) -> None:
        """End the thread."""
        self._is_over = True
        self._wakeup.set()
        self.thread.join()
        self.selector.close()
        self._wakeup.close()

    def _run(self) -> None:
        while not self._is_over or self._todo:
            for key, events in self.selector.select(None if not self._todo else 0):
                channel = key.data
                if channel is None:
                    self._wakeup.clear()
                    continue
                if events & selectors.EVENT_WRITE:
                    channel.write()
                if events & selectors.EVENT_READ:
                    channel.read()
            while self._todo:
                self._todo.popleft()()


class LocalProvider:
    """Nodes that are processes of this machine; see `NodeProvider`."""

    def __init__(self, nodes: int = 1, workers: int = 1) -> None:
        self._count = nodes
        self._workers = workers
        self.processes: dict[str, subprocess.Popen[bytes]] = {}  # by the number of their node
        self.held: set[str] = set()
        self._hub: Hub | None = None
        self._is_closed = False
        self._channels: list[LocalChannel] = []
        self._all: list[subprocess.Popen[bytes]] = []

    def begin(
        self,
        settings: AgentSettings,
        joined: Callable[[NodeFacts, Channel], object],
        refused: Callable[[str, str, dict[str, str] | None], object],
        leaving: Callable[[str, str], object],
    ) -> None:
        """Start the processes; they join as they come up."""
        del refused, leaving  # they run this very code, and stay
        self._settings, self._joined = settings, joined
        self._hub = Hub(f"poolkit-nodes-{settings.name}")
        self.want(self._count)

    def want(self, nodes: int, *, fewer: bool = True) -> None:  # noqa: ARG002 -- they stay
        """Start processes, up to so many."""
        while len(self._channels) < nodes:
            self.add()

    def add(self) -> None:
        """Start one more."""
        assert self._hub is not None  # noqa: S101 -- it has begun
        with FORKING:
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-c", _CODE, str(theirs.fileno())]
                path = os.pathsep.join(each for each in sys.path if each)
                env = {**os.environ, "PYTHONPATH": path}
                process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)
        channel = LocalChannel(self._hub, ours)
        self._channels.append(channel)
        self._all.append(process)

        def came(head: bytes, _parts: list[Any]) -> None:
            facts = NodeFacts(**pickle.loads(head))
            self.processes[facts.number] = process
            if self._is_closed:
                channel.end()
            else:
                self._joined(facts, channel)

        channel.take = _once(pickle.dumps((self._settings, self._workers)))
        channel.on_message = came
        channel.on_end = lambda _reason: None
        channel.start()

    def hold(self, number: str, wanted: bool) -> None:
        """Note it."""
        (self.held.add if wanted else self.held.discard)(number)

    def close(self) -> None:
        """End the connections, and wait for the processes."""
        self._is_closed = True
        if self._hub is None:
            return
        for channel in self._channels:
            self._hub.do(channel.write)
            self._hub.do(channel.end)
        self._hub.close()
        for process in self._all:
            process.wait(END_GRACE)


def _once(head: bytes) -> Callable[[], Message | None]:
    """What is taken once: one message."""
    left: list[Message] = [(head, ())]
    return lambda: left.pop() if left else None


def serve(fd: int) -> None:
    """Be a node until the owner has ended the connection, or is gone. In a process of its own."""
    from poolkit._nodes.agent import Agent  # noqa: PLC0415 -- for nodes

    hub = Hub("poolkit-node")
    channel = LocalChannel(hub, socket.socket(fileno=fd))
    first: deque[bytes] = deque()
    came = threading.Event()
    over = threading.Event()

    def take_in(head: bytes, _parts: list[Any]) -> None:
        first.append(head)
        came.set()

    def end(_reason: str) -> None:
        over.set()
        came.set()

    channel.on_message, channel.on_end, channel.take = take_in, end, lambda: None
    channel.start()
    came.wait()
    if first:
        settings, workers = pickle.loads(first[0])
        agent = Agent(
            settings, address=f"local:{os.getpid()}", host=socket.gethostname(), workers=workers, ended=over.set
        )
        facts = pickle.dumps(vars(agent.facts))

        def greet() -> None:
            channel.take = _once(facts)
            channel.write()
            agent.attach(channel)

        hub.do(greet)
        over.wait()
        agent.close()
    os._exit(0)
