"""Tasks for what multiprocessing knows how to hand on: connections, sockets, and what users register.

Worker processes import this module too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import reduction, shared_memory
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import poolkit
from support_gates import Gate


class Holder:
    """Something with whatever in an attribute."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Registered:
    """Something with a descriptor, for which users register a reducer."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


def reduce_registered(value: Registered) -> Any:
    return rebuild_registered, (reduction.DupFd(value.fd),)


def rebuild_registered(descriptor: Any) -> Registered:
    return Registered(descriptor.detach())


class Reducing(Registered):
    """One that asks for a duplicate by itself."""

    def __reduce__(self) -> Any:
        return rebuild_reducing, (reduction.DupFd(self.fd),)


def rebuild_reducing(descriptor: Any) -> Reducing:
    return Reducing(descriptor.detach())


class OwnConnection(Connection):
    """A connection with something of its own."""

    note = ""


class OwnerConnection(OwnConnection):
    """One below that."""


class OwnSocket(socket.socket):
    """A socket with something of its own."""

    note = ""


class Stubborn(Connection):
    """One that says itself how it is pickled."""

    def __reduce__(self) -> Any:
        return str, ("its own",)


def open_descriptors() -> list[str]:
    """What the descriptors of this process are."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one of the listing
            found.append(os.fspath(path.readlink()))
    return sorted(found)


def sockets() -> int:
    """How many sockets this process has open."""
    return sum(name.startswith("socket:") for name in open_descriptors())


def parts(value: Any) -> list[Any]:
    """The connections and sockets in a value."""
    if isinstance(value, (Connection, socket.socket)):
        return [value]
    if isinstance(value, Registered):
        return [value]
    if isinstance(value, Holder):
        return parts(value.held)
    if isinstance(value, dict):
        value = list(value.values())
    return [part for each in value for part in parts(each)] if isinstance(value, (list, tuple)) else []


def tell(value: Any, *more: Any, **named: Any) -> int:
    """Write through whatever is in a value; how many there were."""
    found = parts([value, more, named])
    for part in found:
        if isinstance(part, Connection):
            part.send("hello")
        elif isinstance(part, socket.socket):
            part.sendall(b"hello")
        else:
            os.write(part.fd, b"hello")
            os.close(part.fd)
    return len(found)


def tell_after(gate: Gate, entered: Gate, value: Any) -> int:
    """The same, when the gate opens."""
    entered.signal()
    gate.wait()
    return tell(value)


def close_and_wait(connection: Connection, gate: Gate) -> str:
    """Close a connection, and go on for long."""
    connection.close()
    gate.wait()
    return "done"


def tell_at_last(connection: Connection, path: str, times: int) -> int:
    """Fail, but for the last time."""
    file = Path(path)
    tries = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(tries))
    if tries < times:
        connection.close()
        raise ConnectionError(tries)
    return tell(connection)


def die_at_first(connection: Connection, path: str) -> int:
    """End the worker, the first time."""
    file = Path(path)
    if not file.exists():
        file.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return tell(connection)


def make_connection(message: str) -> Connection:
    """One end of a pipe with a message in it."""
    ours, theirs = multiprocessing.Pipe()
    theirs.send(message)
    return ours


def make_many(count: int) -> dict[str, list[Any]]:
    """Ends with a message in each."""
    return {"ends": [Holder(make_connection(str(number))) for number in range(count)]}


def make_socket(message: bytes) -> socket.socket:
    """A socket with a message in it."""
    ours, theirs = socket.socketpair()
    theirs.sendall(message)
    theirs.close()
    return ours


def fail_with(connection: Connection) -> None:
    """Raise an exception that has a connection."""
    error = ValueError("what it is")
    error.connection = connection  # type: ignore[attr-defined]
    error.number = 5  # type: ignore[attr-defined]
    raise error


class KillsItsWorker:
    """Ends the worker that loads it, the first time."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _kill_at_first, (self.path,)


def _kill_at_first(path: str) -> str:
    file = Path(path)
    if not file.exists():
        file.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return path


class CannotBeLoaded:
    """Raises where it is loaded."""

    def __reduce__(self) -> Any:
        return _cannot_be_loaded, ()


def _cannot_be_loaded() -> None:
    raise LookupError("not here")


kept: list[Any] = []


def keep(value: Any) -> None:
    """As an initializer: keep a value for the tasks."""
    kept[:] = [value]


def tell_kept() -> int:
    """Write through what the initializer kept."""
    return tell(kept)


def twice(value: Any) -> Any:
    """The value, and a worker that has seen it."""
    return value, os.getpid()


# ===== shared memory =====


def count_up(block: shared_memory.SharedMemory) -> int:
    """Change a block."""
    block.buf[0] += 1
    return block.buf[0]


def make_block(nbytes: int) -> shared_memory.SharedMemory:
    """A new block."""
    block = shared_memory.SharedMemory(create=True, size=nbytes)
    block.buf[0] = 7
    return block


def make_block_and_die(nbytes: int, path: str) -> None:
    """A new block, told of in a file; then the worker is killed."""
    Path(path).write_text(make_block(nbytes).name)
    os.kill(os.getpid(), signal.SIGKILL)


def change_list(values: Any) -> Any:
    """Change a ShareableList, and return it."""
    values[0] += 1
    return values


def children() -> list[str]:
    """The command lines of this process's children."""
    text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in text.split()]


def make_blocks_in_threads(count: int) -> list[str]:
    """New blocks, each made in a thread of its own, all at once; their names."""
    with ThreadPoolExecutor(count) as threads:
        together = threading.Barrier(count)

        def make() -> str:
            together.wait()
            return make_block(10).name

        made = [threads.submit(make) for _ in range(count)]
        return [each.result() for each in made]


def count_up_within(block: shared_memory.SharedMemory) -> tuple[int, list[str]]:
    """Change a block in a worker of a worker; and what that has started."""
    with poolkit.Pool(1) as pool:
        return pool.submit(count_up, block).result(), pool.submit(children).result()


def count_up_in_a_process(block: shared_memory.SharedMemory) -> None:
    """Change a block in a new interpreter."""
    process = multiprocessing.get_context("spawn").Process(target=count_up, args=(block,))
    process.start()
    process.join()


def keep_block(nbytes: int) -> None:
    """As an initializer: make a block."""
    kept[:] = [make_block(nbytes)]


def name_of_kept() -> str:
    """The name of that."""
    name: str = kept[0].name
    return name
