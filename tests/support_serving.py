"""Servers for clusters, as users write them, and clients that count what fails. Worker processes import this, too.

A request is a line, and so is its answer: `<worker> <generation> <pid>`, and "close" where the server wants no more on
this connection. The client's word in the request says what else is to happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import poolkit
from poolkit import ClusterContext
from support import WATCHDOG, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

LOCAL = "127.0.0.1:0"
KEPT_FOR = 5.0  # seconds that an idle connection is kept while its server is to stop


def who(context: ClusterContext) -> bytes:
    return b"%d %d %d\n" % (context.worker_id, context.generation, os.getpid())


def sleep_with_the_gil(seconds: int) -> None:
    """As C code that never lets go."""
    ctypes.PyDLL(None).sleep(seconds)


def hang_with_the_gil() -> None:
    """The same, for ever, whatever signals come: it waits for a lock that it has."""
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


# ===== servers =====


async def keep_alive(context: ClusterContext) -> None:
    """Answer many requests a connection; while it is to stop, the last one of each says so, and only then it closes."""
    busy: set[asyncio.Task[Any]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        busy.add(me)
        try:
            while await reader.readline():
                is_last = bool(context.stopping)
                writer.write(who(context)[:-1] + (b" close\n" if is_last else b"\n"))
                await writer.drain()
                context.count()
                if is_last:
                    break
        except ConnectionError:
            pass
        finally:
            busy.discard(me)
            writer.close()

    server = await asyncio.start_server(talk, sock=context.socket)
    await context.stopping
    server.close()
    if busy:
        await asyncio.wait([*busy], timeout=KEPT_FOR)


async def one_request(context: ClusterContext) -> None:
    """Answer one request a connection, as in the documentation of asyncio."""
    busy: set[asyncio.Task[Any]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        busy.add(me)
        with contextlib.suppress(ConnectionError):
            if await reader.readline():
                writer.write(who(context))
                await writer.drain()
                context.count()
        writer.close()
        busy.discard(me)

    server = await asyncio.start_server(answer, sock=context.socket)
    await context.stopping
    server.close()
    if busy:
        await asyncio.wait([*busy])


def in_turn(context: ClusterContext) -> None:
    """Answer one request a connection, one after the other."""
    for connection, _ in context.connections():
        with connection, connection.makefile("rwb") as stream, contextlib.suppress(ConnectionError):
            if stream.readline():
                stream.write(who(context))
                context.count()


def held(context: ClusterContext) -> None:
    """Say who serves, at once, and keep the connection until the client leaves."""
    threads = []

    def keep(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(who(context))
            connection.recv(1)

    for connection, _ in context.connections():
        threads.append(threading.Thread(target=keep, args=(connection,), daemon=True))
        threads[-1].start()


def stubborn(context: ClusterContext) -> NoReturn:
    """Keep every connection, whoever wants what."""
    kept = []
    assert context.socket is not None
    while True:
        try:
            kept.append(context.socket.accept()[0])
            kept[-1].sendall(who(context))
        except ConnectionAbortedError:
            never_end()


def never_end() -> NoReturn:
    while True:
        time.sleep(0.01)  # noqa: TID251 -- the line that a stack is to show


def first_generation_takes_nothing(context: ClusterContext) -> None:
    context.ready()
    if context.generation == 1:
        context.stopping.wait()
    else:
        in_turn(context)


def hang_when_asked(context: ClusterContext) -> None:
    for connection, _ in context.connections():
        with connection, connection.makefile("rwb") as stream:
            if stream.readline() == b"hang\n":
                hang_with_the_gil()
            stream.write(who(context))


def busy_in_c(context: ClusterContext, seconds: int) -> None:
    context.ready()
    sleep_with_the_gil(seconds)
    in_turn(context)


def slow_to_boot(context: ClusterContext, seconds: int) -> None:
    sleep_with_the_gil(seconds)
    in_turn(context)


def does_not_boot_while(context: ClusterContext, flag: Path) -> None:
    """Serve; but the one in slot 0 cannot be started while there is such a file."""
    if context.worker_id == 0 and flag.exists():
        msg = "it cannot boot"
        raise LookupError(msg)
    in_turn(context)


def no_delay_of_loops(context: ClusterContext) -> None:
    """Say of each connection whether it sends small answers at once, as an event loop has it."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d\n" % _no_delay(writer.get_extra_info("socket")))
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, sock=context.socket)
        await context.stopping
        server.close()

    asyncio.run(main())


def no_delay_of_calls(context: ClusterContext) -> None:
    """The same, of what `accept` gives."""
    assert context.socket is not None
    while True:
        connection, _ = context.socket.accept()
        with connection:
            connection.sendall(b"%d\n" % _no_delay(connection))


def _no_delay(connection: Any) -> bool:
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


async def blocking_beside_a_loop(context: ClusterContext) -> None:
    """The first worker has its listener, and a copy of it, blocking; the others have loops, and answer messages."""
    listener = context.socket
    assert listener is not None
    if context.worker_id == 0:
        listener.setblocking(True)
        copy = listener.dup()
        copy.setblocking(True)
        copy.settimeout(5)
        copy.close()
        listener.settimeout(5)
        await asyncio.to_thread(in_turn, context)
        return
    serving = asyncio.ensure_future(one_request(context))
    while not serving.done():
        receiving = asyncio.ensure_future(context.recv_async())
        await asyncio.wait([serving, receiving], return_when=asyncio.FIRST_COMPLETED)
        if receiving.done():
            await context.send_async(receiving.result())
        else:
            receiving.cancel()


# ===== faults =====

STEPS = ["boot", "ready", "accept", "drain"]
FAULTS = ["kill", "exit", "stop", "raise", "hang", "no descriptors"]


def sabotaged(context: ClusterContext, arms: Path) -> None:
    """Serve, one request a connection, with signs of life; have what is armed happen at a step; see `arm`."""
    _come_to("boot", arms)
    context.ready()
    _come_to("ready", arms)
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.05):
            context.alive()

    def serve() -> None:
        for connection, _ in context.connections():
            with connection, connection.makefile("rwb") as stream, contextlib.suppress(ConnectionError):
                _come_to("accept", arms)
                if stream.readline():
                    stream.write(who(context))
                    context.count()
        _come_to("drain", arms)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    try:
        serve()
    finally:
        over.set()
        thread.join()


def arm(arms: Path, step: str, fault: str) -> None:
    """Have one worker, the next that comes to this step, suffer from this fault."""
    (arms / step).write_text(fault, encoding="ascii")


def _come_to(step: str, arms: Path) -> None:
    try:
        fault = (arms / step).read_text(encoding="ascii")
        (arms / step).rename(arms / f"{step}-{os.getpid()}")  # only one worker does that
    except OSError:
        return
    if fault in {"kill", "stop"}:
        os.kill(os.getpid(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    elif fault == "exit":
        os._exit(7)
    elif fault == "raise":
        raise MemoryError
    elif fault == "hang":
        hang_with_the_gil()
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


# ===== clients =====


def ask(address: Any, word: str = "ask", source: str = "") -> list[int]:
    """Ask once, on a connection of its own: worker, generation, process."""
    with contextlib.closing(socket.socket()) as client:
        client.settimeout(WATCHDOG)
        if source:
            client.bind((source, 0))
        client.connect(address)
        client.sendall(word.encode() + b"\n")
        return _answer(client.makefile("rb").readline())


def _answer(line: bytes) -> list[int]:
    if not line.endswith(b"\n"):
        msg = f"it was cut off after {line!r}"
        raise ConnectionResetError(msg)
    return [int(word) for word in line.split()[:3]]


def connect(address: Any, source: str = "") -> tuple[socket.socket, list[int]]:
    """A connection to what says by itself who it is; and what it said."""
    client = socket.create_connection(address, WATCHDOG, (source, 0) if source else None)
    try:
        return client, _answer(client.makefile("rb").readline())
    except BaseException:
        client.close()
        raise


class Clients:
    """Threads that ask one thing after another, from `begin` to `end`, by kept connections or one for each request."""

    def __init__(self, address: Any, number: int, *, keep: bool = False) -> None:
        self._address, self._keep = address, keep
        self._is_over = threading.Event()
        self.asked: list[list[int]] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask_all, name=f"client-{n}", daemon=True) for n in range(number)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * WATCHDOG)

    def wait_for_more(self, number: int = 50) -> None:
        """Wait until so many more requests have been answered, or have failed."""
        before = len(self.asked) + len(self.failures)
        wait_until(lambda: len(self.asked) + len(self.failures) >= before + number, "answers")

    def _ask_all(self) -> None:
        while not self._is_over.is_set():
            try:
                if self._keep:
                    self._ask_on_one()
                else:
                    self.asked.append(ask(self._address))
            except OSError as exc:
                self.failures.append(repr(exc))

    def _ask_on_one(self) -> None:
        """One connection, until the server says that it is to be closed."""
        with socket.create_connection(self._address, WATCHDOG) as client, client.makefile("rb") as answers:
            while not self._is_over.is_set():
                client.sendall(b"ask\n")
                line = answers.readline()
                self.asked.append(_answer(line))
                if line.endswith(b"close\n"):
                    return


# ===== clusters =====


@contextlib.contextmanager
def serving(target: Callable[..., object], workers: int = 2, **options: Any) -> Iterator[poolkit.Cluster]:
    """A cluster on a free port that serves; it is killed in the end, if it does not stop."""
    cluster = poolkit.Cluster(target, workers, LOCAL, **{"grace": WATCHDOG / 2, **options})
    try:
        cluster.start(WATCHDOG)
        yield cluster
        cluster.stop(WATCHDOG)
    finally:
        cluster.stop(WATCHDOG, kill=True)


def pids_of(cluster: poolkit.Cluster) -> list[int]:
    """The processes that serve now."""
    return [info.pid for info in cluster.workers() if info.state == "ready" and info.pid is not None]


def wait_until_ready(cluster: poolkit.Cluster, number: int = 2) -> None:
    wait_until(lambda: cluster.stats().ready == number, f"{number} workers")


def wait_for_generation(cluster: poolkit.Cluster, number: int) -> None:
    """Wait until nobody of another one is left."""
    wait_until(lambda: {info.generation for info in cluster.workers()} == {number}, f"generation {number} alone")


def shares(found: Sequence[Sequence[int]]) -> list[int]:
    """How many of these answers came from each worker."""
    workers = [each[0] for each in found]
    return [workers.count(worker) for worker in sorted({*workers})]
