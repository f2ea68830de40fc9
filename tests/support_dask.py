"""Real Dask clusters for tests, and an agent that echoes.

`Scheduler` and `Node` are programs on ports of the system's choice, `dask scheduler` and `dask worker`. `EchoAgent`
stands for the agent of a pool: it sends back each message as it came.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import support
from poolkit._nodes.interfaces import WIRE, AgentSettings, Channel, NodeFacts

ECHO = "support_dask:EchoAgent"
FAILING = "support_dask:no_agent"
HERE = Path(__file__).parent
LEAVE = b"leave:"  # head of what an EchoAgent says before its node goes


class EchoAgent:
    """Sends back what it gets, in the same parts; b"quit" ends its work."""

    def __init__(
        self, settings: AgentSettings, *, address: str, host: str, workers: int, ended: Callable[[], None]
    ) -> None:
        self._ended = ended
        self._outbox: deque[tuple[bytes, list[Any]]] = deque()
        self._channel: Channel | None = None
        self.facts = NodeFacts(
            number=uuid.uuid4().hex,
            address=address,
            host=host,
            pid=os.getpid(),
            workers=workers,
            versions={"pool": settings.pool},
        )

    def attach(self, channel: Channel) -> None:
        self._channel = channel
        channel.take = lambda: self._outbox.popleft() if self._outbox else None
        channel.on_message = self._on_message
        channel.on_end = lambda reason: None
        channel.start()

    def leave(self, reason: str) -> None:
        self._outbox.append((LEAVE + reason.encode(), []))
        if self._channel is not None:
            self._channel.wake()

    def close(self) -> None:
        if self._channel is not None:
            self._channel.abort()

    def _on_message(self, head: bytes, parts: list[Any]) -> None:
        if head == b"quit":
            self._ended()
            return
        for part in parts:
            if len(part):
                part[:1] = b"e"  # they are writable
        self._outbox.append((head, parts))
        assert self._channel is not None
        self._channel.wake()


class ImpatientAgent(EchoAgent):
    """Made where nodes wait for half a second for an owner."""

    def __init__(self, *args: Any, **what: Any) -> None:
        from poolkit._nodes import dask_node

        dask_node.ALONE = 0.5
        super().__init__(*args, **what)


def no_agent(settings: AgentSettings, **_what: Any) -> None:
    raise RuntimeError("no agent here")


class Owner:
    """The owner's end: what a provider has told, and what came from the nodes."""

    def __init__(self, provider: Any, *, python: str | None = None, wire: int = WIRE) -> None:
        self.provider = provider
        self.nodes: dict[str, Connected] = {}
        self.refused: list[tuple[str, str, dict[str, str] | None]] = []
        self.leaving: list[tuple[str, str]] = []
        self.settings = AgentSettings(
            pool=uuid.uuid4().hex,
            name="crunch",
            workers=None,
            lease=30.0,
            wire=wire,
            python=python or f"{sys.version_info[0]}.{sys.version_info[1]}",
            content=b"pool",
        )

    def begin(self) -> Owner:
        self.provider.begin(
            self.settings,
            self._joined,
            lambda *what: self.refused.append(what),
            lambda *what: self.leaving.append(what),
        )
        return self

    def _joined(self, facts: NodeFacts, channel: Channel) -> None:
        self.nodes[facts.number] = Connected(facts, channel)

    def wait_for_nodes(self, count: int) -> list[Connected]:
        """Those that are there, once so many are."""
        support.wait_until(lambda: len(self.living()) == count, f"{count} nodes")
        return self.living()

    def living(self) -> list[Connected]:
        return [node for node in list(self.nodes.values()) if not node.ended]


class Connected:
    """A node, seen from the owner."""

    def __init__(self, facts: NodeFacts, channel: Channel) -> None:
        self.facts, self.channel = facts, channel
        self.ended: list[str] = []
        self.came: list[tuple[bytes, list[Any]]] = []
        self._outbox: deque[tuple[bytes, Sequence[Any]]] = deque()
        self._arrived = threading.Condition()
        channel.take = lambda: self._outbox.popleft() if self._outbox else None
        channel.on_message = self._on_message
        channel.on_end = self._on_end
        channel.start()

    def _on_end(self, reason: str) -> None:
        with self._arrived:
            self.ended.append(reason)
            self._arrived.notify()

    def _on_message(self, head: bytes, parts: list[Any]) -> None:
        with self._arrived:
            self.came.append((head, parts))
            self._arrived.notify()

    def send(self, head: bytes, *parts: Any) -> None:
        self._outbox.append((head, parts))
        self.channel.wake()

    def receive(self) -> tuple[bytes, list[Any]]:
        """The next message that came."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: self.came or self.ended, support.WATCHDOG / 2), "nothing came"
            return self.came.pop(0)


# ===== programs =====


def environment() -> dict[str, str]:
    """Of programs that import the library, and this."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}


ENDS_WITHIN = 5.0  # seconds


class Host(NamedTuple):
    """Where a program runs: its address, and what its command begins with, to be there."""

    address: str = "127.0.0.1"
    command: tuple[str, ...] = ()


LOOPBACK = Host()


class Program:
    """A `dask` program; ended with the test, with what it started."""

    def __init__(self, *args: str, python: str = sys.executable, on: Host = LOOPBACK) -> None:
        self.host = on
        self._process = subprocess.Popen(
            [*on.command, python, "-m", *args],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._log.append(line)

    def wait_for_line(self, text: str) -> str:
        """The first line of its log with that in it."""
        found = support.retry_until(lambda: [line for line in self._log if text in line], bool, f"{text!r} in the log")
        return found[0]

    @property
    def log(self) -> str:
        return "".join(self._log)

    def wait(self) -> None:
        """Until it has ended by itself."""
        self._process.wait(support.WATCHDOG)

    def has_ended(self) -> bool:
        """Whether it has ended by itself, or was killed."""
        return self._process.poll() is not None

    def end(self) -> None:
        """End it; by a kill if it does not by itself, after which a nanny's semaphores stay."""
        if self._process.returncode is None:
            os.kill(self.pid, 15)
            support.wait_for_one_exit(self.pid, ENDS_WITHIN)
        self.kill()

    def signal(self, number: int) -> None:
        """Send it, and nothing that it started, a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, with what it started; but not what has got its number since it was seen to have ended."""
        if self._process.returncode is None:
            os.killpg(self.pid, 9)
            self._process.wait()
        self._reader.join()


class Scheduler(Program):
    def __init__(self, port: int = 0, *, on: Host = LOOPBACK) -> None:
        where = "--host", on.address, "--port", str(port)
        super().__init__("distributed.cli.dask_scheduler", *where, "--no-dashboard", "--no-show", on=on)
        self.address = self.wait_for_line("Scheduler at:").split()[-1]


class Node(Program):
    def __init__(
        self, address: str, *options: str, nanny: bool = False, python: str = sys.executable, on: Host = LOOPBACK
    ) -> None:
        super().__init__(
            "distributed.cli.dask_worker",
            address,
            *("--host", on.address, "--nthreads", "2", "--memory-limit", "0", "--no-dashboard"),
            "--nanny" if nanny else "--no-nanny",
            *options,
            python=python,
            on=on,
        )


OTHER_WIRE = "--preload", "from poolkit._nodes import dask_node; dask_node.WIRE = 0"  # options of a Node
WITHOUT_POOLKIT = "--preload", "import sys; sys.modules['poolkit'] = None"


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[tuple[Scheduler, list[Node]]]:
    """A scheduler and some nodes."""
    programs: list[Program] = []
    try:
        scheduler = Scheduler()
        programs.append(scheduler)
        workers = [Node(scheduler.address) for _ in range(nodes)]
        programs.extend(workers)
        yield scheduler, workers
    finally:
        for program in reversed(programs):
            program.end()
