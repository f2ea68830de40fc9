"""Targets of clusters, and clients of them. Worker processes import this module too.

`talk` answers lines: what it is to do is the first word, see `Talk`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from poolkit import Cluster, ClusterContext
from support import WATCHDOG, wait_until
from support_gates import Gate, Journal

if TYPE_CHECKING:
    from typing_extensions import Self

LOCAL = "127.0.0.1:0"
MakeCluster = Callable[..., Cluster]

# ===== targets =====


class Talk:
    """Answers lines on an event loop, and finishes what it was asked before it was to stop."""

    def __init__(self, context: ClusterContext) -> None:
        self.context = context
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.busy: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        servers = [await asyncio.start_server(self.talk, sock=each) for each in self.context.sockets]
        stopping = asyncio.ensure_future(_stopped(self.context))
        await asyncio.wait([stopping, self.ended], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for server in servers:
            server.close()
        if self.ended.done():
            return self.ended.result()
        while self.busy:  # noqa: ASYNC110 -- not the tasks: a client may keep its connection
            await asyncio.sleep(0.005)
        return None

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while line := await reader.readline():
                self.busy.add(me)
                try:
                    word, *rest = line.decode().split()
                    writer.write(f"{await getattr(self, 'on_' + word)(*rest)}\n".encode())
                    await writer.drain()
                    self.context.count()
                finally:
                    self.busy.discard(me)
        writer.close()

    async def on_who(self) -> str:
        context = self.context
        return f"{context.worker_id} {context.generation} {os.getpid()}"

    async def on_kill(self, number: str) -> None:
        os.kill(os.getpid(), int(number))

    async def on_exit(self, code: str) -> NoReturn:
        os._exit(int(code))

    async def on_raise(self) -> str:
        self.ended.set_exception(LookupError("it was asked to"))
        return "raised"

    async def on_return(self) -> str:
        self.ended.set_result(None)
        return "returned"

    async def on_block(self) -> None:
        block_the_loop()

    async def on_gate(self, arrived: str, release: str) -> str:
        Gate(arrived).signal()
        await asyncio.to_thread(Gate(release).wait)
        return f"done {self.context.worker_id}"

    async def on_grow(self, nbytes: str) -> str:
        self.held = bytearray(b"x") * int(nbytes)
        return "grown"

    async def on_say(self, text: str) -> str:
        await self.context.send_async(text)
        return "said"

    async def on_hear(self) -> str:
        return str(await self.context.recv_async())


async def _stopped(context: ClusterContext) -> None:
    await context.stopping


def block_the_loop() -> NoReturn:
    while True:
        time.sleep(0.01)  # noqa: TID251 -- the line that a stack is to show


async def talk(context: ClusterContext) -> None:
    await Talk(context).run()


async def talk_and_be_alive(context: ClusterContext) -> None:
    """Give signs of life as long as the loop turns."""
    talking = asyncio.ensure_future(Talk(context).run())
    while not talking.done():
        context.alive()
        await asyncio.wait([talking], timeout=0.05)
    talking.result()


def until_told(context: ClusterContext) -> None:
    """Serve nothing."""
    context.ready()
    context.stopping.wait()


def ready_by(context: ClusterContext, how: str, gate: Gate) -> None:
    """Be ready in one of several ways, once the gate is open."""
    gate.wait()
    listener = context.socket
    assert listener is not None
    if how == "ready":
        context.ready()
    elif how == "listen":
        listener.listen()
    elif how == "connections":
        for connection, _ in context.connections():
            connection.close()
        return
    else:
        listener.accept()[0].close()  # ends by the error that says that it is to stop
    context.stopping.wait()


def accept_for_ever(context: ClusterContext) -> NoReturn:
    assert context.socket is not None
    while True:
        connection, _ = context.socket.accept()
        with connection:
            connection.sendall(b"%d\n" % context.worker_id)


def in_a_loop(context: ClusterContext) -> None:
    for connection, _ in context.connections():
        with connection:
            assert connection.getblocking()
            connection.sendall(b"%d\n" % context.worker_id)


async def in_an_async_loop(context: ClusterContext) -> None:
    async for connection, _ in context.connections():
        with connection:
            assert not connection.getblocking()
            connection.sendall(b"%d\n" % context.worker_id)


def in_a_trio_loop(context: ClusterContext) -> None:
    import trio

    trio.run(in_an_async_loop, context)


def raise_at_once(context: ClusterContext) -> NoReturn:
    msg = f"no database for {context.name}"
    raise LookupError(msg)


def die_at_once(context: ClusterContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def never_ready(context: ClusterContext) -> None:
    context.stopping.wait()
    stay_asleep()


def stay_asleep() -> NoReturn:
    while True:
        time.sleep(0.01)  # noqa: TID251 -- as above


def leave(context: ClusterContext, how: type[BaseException]) -> NoReturn:
    """End by an exception when it is to stop."""
    context.ready()
    context.stopping.wait()
    raise how


def deaf(context: ClusterContext) -> None:
    """Be ready, and do not heed that it is to stop."""
    context.ready()
    stay_asleep()


def deaf_and_tell(context: ClusterContext) -> None:
    """Be ready, and say that it is to stop, and do not heed it; the first slot alone says so."""
    context.ready()
    context.stopping.wait()
    if not context.worker_id:
        context.send("it is to stop")
    stay_asleep()


def fail_in_generation(context: ClusterContext, number: int, how: str) -> None:
    """Serve, but for one generation."""
    if context.generation == number:
        if how == "raise":
            raise_at_once(context)
        if how == "die" and context.worker_id == 1:
            die_at_once(context)
        if how == "hang":
            never_ready(context)
    asyncio.run(talk(context))


def fail_while_there_is(context: ClusterContext, path: str) -> None:
    """Serve, unless there is such a file."""
    if os.path.exists(path):  # noqa: PTH110 -- nothing more to import
        die_at_once(context)
    asyncio.run(talk(context))


def note(context: ClusterContext, journal: Journal) -> None:
    """Write what it is given."""
    context.ready()
    context.stopping.add_callback(lambda: journal.write(f"stopping {context.worker_id}"))
    while True:
        journal.write(f"{context.worker_id} {context.recv()}")


# ===== clients =====


class Who(NamedTuple):
    worker_id: int
    generation: int
    pid: int


class Client:
    """A connection that asks in lines."""

    def __init__(self, address: Any, source: str | None = None) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.socket.settimeout(WATCHDOG)
        try:
            if source is not None:
                self.socket.bind((source, 0))
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise
        self._file = self.socket.makefile("rb")

    def say(self, line: str) -> None:
        self.socket.sendall(line.encode() + b"\n")

    def hear(self) -> str:
        """The next line. Raises ConnectionError: there is none."""
        line = self._file.readline()
        if not line.endswith(b"\n"):
            msg = f"it was cut off after {line!r}"
            raise ConnectionResetError(msg)
        return line.decode().rstrip("\n")

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()

    def who(self) -> Who:
        return Who(*map(int, self.ask("who").split()))

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def ask(address: Any, line: str, source: str | None = None) -> str:
    """Ask one thing on a connection of its own."""
    with Client(address, source) as client:
        return client.ask(line)


def who(address: Any, source: str | None = None) -> Who:
    with Client(address, source) as client:
        return client.who()


def tell(address: Any, line: str) -> None:
    """Say what is not answered, as the worker ends."""
    with contextlib.suppress(ConnectionError):
        ask(address, line)


def answer_of(address: Any) -> str:
    """What is said to whoever comes."""
    with Client(address) as client:
        return client.hear()


def is_refused(address: Any) -> bool:
    try:
        Client(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def shares(clients: Sequence[Client]) -> list[int]:
    """How many of these are served by each worker."""
    found: dict[int, int] = {}
    for client in clients:
        worker_id = client.who().worker_id
        found[worker_id] = found.get(worker_id, 0) + 1
    return [found[worker_id] for worker_id in sorted(found)]


def burst(address: Any, number: int, each: Callable[[list[Client]], Any]) -> Any:
    """What `each` makes of so many connections at once."""
    with contextlib.ExitStack() as stack:
        return each([stack.enter_context(Client(address)) for _ in range(number)])


class Load:
    """Clients that ask all the time, each on new connections; `failures` is what they did not get."""

    def __init__(self, address: Any, number: int = 3) -> None:
        self.failures: list[BaseException] = []
        self.asked = 0
        self._address = address
        self._is_over = False
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]

    def _run(self) -> None:
        while not self._is_over:
            try:
                who(self._address)
                self.asked += 1
            except OSError as exc:
                self.failures.append(exc)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.asked > 10)
        return self

    def __exit__(self, *_exc: object) -> None:
        asked = self.asked
        wait_until(lambda: self.asked > asked + 10 or self.failures)
        self._is_over = True
        for thread in self._threads:
            thread.join(WATCHDOG)


def pids(cluster: Cluster) -> list[int | None]:
    """Of those that serve, in the order of their slots."""
    return [info.pid for info in cluster.workers() if info.state == "ready"]
