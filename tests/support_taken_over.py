"""Pools that are made while this is imported, and not used there: to be preloaded. No test imports it by itself."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import poolkit
from poolkit import Port
from support_gates import Gate, Journal

pool = poolkit.Pool(2)
view = pool.options(timeout=60)
threads = poolkit.Pool(1, kind="thread")
default = poolkit.Pool(1, name="of a module")
poolkit.set_default_pool(default)
over = poolkit.Pool(1)
over.shutdown()
reading, writing = multiprocessing.Pipe(duplex=False)
numbers = pool.broadcast([*range(1000)])
seen: list[Any] = []
pool.on("task_done", seen.append)
_kept: list[Connection[Any, Any]] = []


def keep(connection: Connection[Any, Any]) -> None:
    _kept.append(connection)


begun = poolkit.Pool(1, initializer=keep, initargs=(writing,))


def say(text: str) -> None:
    _kept[0].send(text)


def arrive(arrived: Gate, release: Gate) -> int:
    arrived.signal()
    release.wait()
    return os.getpid()


def hold(arrived: Gate, release: Gate) -> list[int]:
    """Have both workers of the pool wait; the processes: this one, and theirs."""
    tasks = [pool.submit(arrive, arrived, release) for _ in range(2)]
    return [os.getpid(), *(task.result() for task in tasks)]


def hold_in_target(port: Port, arrived: Gate, release: Gate) -> None:
    port.send(hold(arrived, release))


def pids() -> list[int]:
    return [os.getpid(), pool.submit(os.getpid).result()]


def is_elsewhere() -> bool:
    return pool.submit(os.getpid).result() != os.getpid()


def is_in_a_thread() -> bool:
    return threads.submit(os.getpid).result() == os.getpid()


def is_default() -> bool:
    return poolkit.default_pool() is default and default.submit(os.getpid).result() != os.getpid()


def maps() -> list[int]:
    return list(view.map(abs, range(-3, 0)))


def adds_up() -> int:
    """An object that was broadcast while this was imported, and an argument in shared memory."""
    return pool.submit(sum, numbers).result() + pool.submit(len, bytes(1 << 20)).result()


def tells() -> bool:
    """The listener of a task is told of it in the process that ran it."""
    before = len(seen)
    pool.submit(abs, -1).result()
    pool.shutdown()
    return len(seen) > before


def speaks() -> Any:
    """The arguments of an initializer have a descriptor."""
    begun.submit(say, "hello").result()
    return reading.recv()


def survives() -> tuple[str, int]:
    crash = pool.submit(os._exit, 3).exception()
    return type(crash).__name__, pool.submit(abs, -1).result()


def is_refused(which: str) -> str:
    """What becomes of a call in a child that a task forks."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            globals()[which].submit(abs, -1)
            os.write(write, b"accepted")
        except poolkit.PoolClosed as exc:
            os.write(write, str(exc).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    said = os.read(read, 1000)
    os.close(read)
    return said.decode()


def refuses() -> str:
    try:
        over.submit(abs, -1)
    except poolkit.PoolClosed as exc:
        return str(exc)
    return "accepted"


def write_late(journal: Journal) -> None:
    journal.write("written")


def leave_work(_port: Port, journal: Journal) -> None:
    """Return before the work is done."""
    for _ in range(5):
        pool.submit(write_late, journal)


# ===== offloaded =====


@poolkit.offload(pool=pool)
def offloaded_pid() -> int:
    return os.getpid()


@poolkit.offload(pool=pool)
def nested() -> bool:
    """Whether a call in a task of the pool runs in place."""
    return offloaded_pid().result() == os.getpid()


@poolkit.offload(pool=threads)
def nested_in_a_thread() -> bool:
    """The same, of a pool with one worker, on a thread of this process."""
    return nested_in_a_thread_too().result() and offloaded_pid().result() == os.getpid()


@poolkit.offload(pool=threads)
def nested_in_a_thread_too() -> bool:
    return True


@poolkit.offload(pool=pool)
def count(number: int) -> Any:
    yield from range(number)


async def offload_in_target(port: Port) -> list[Any]:
    """Of a dedicated worker, which no task of a pool waits for."""
    me = os.getpid()
    elsewhere = [pid != me for pid in await asyncio.gather(offloaded_pid(), asyncio.create_task(_awaited()))]
    in_place = [await nested(), await nested_in_a_thread()]
    await port.send_async("offloaded")
    items = [item async for item in count(3)]
    return [elsewhere, in_place, items, [pid != me for pid in offloaded_pid.map()]]


async def _awaited() -> int:
    return await offloaded_pid()


def offload_in_task() -> bool:
    """Of another pool: here it runs in place."""
    return offloaded_pid().result() == os.getpid()
