"""Targets of dedicated workers. Their processes import this module too."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import poolkit
from poolkit import Port
from support_gates import Gate


def echo(port: Port) -> str:
    for message in port:
        port.send(message)
    return "done"


async def echo_later(port: Port) -> str:
    async for message in port:
        await port.send_async(message)
    return "done"


def say(port: Port, *messages: Any) -> str:
    for message in messages:
        port.send(message)
    return "said"


def count(port: Port, number: int) -> None:
    for each in range(number):
        port.send(each)


def in_preloaded(port: Port, name: str, *args: Any) -> Any:
    """Be a target of the module with pools, which is preloaded."""
    return getattr(sys.modules["support_taken_over"], name)(port, *args)


def say_and_raise(port: Port, *messages: Any) -> NoReturn:
    say(port, *messages)
    msg = "no more"
    raise LookupError(msg)


def count_and_die(port: Port, number: int, code: int = 3) -> NoReturn:
    count(port, number)
    os._exit(code)


def die_while_sending(port: Port, message: Any, steps: int) -> None:
    """Be killed after so many instructions of the second `send`."""
    port.send(message)

    def trace(frame: Any, event: str, _arg: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps -= 1
            if not steps:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    port.send(message)
    sys.settrace(None)
    port.send("done")


def close_descriptor(port: Port, arrived: Gate, release: Gate) -> None:
    os.close(port.fileno())
    arrived.signal()
    release.wait()
    msg = "it is closed"
    raise LookupError(msg)


async def flood(port: Port, number: int) -> int:
    """Send and receive so many at once."""

    async def send() -> None:
        for each in range(number):
            await port.send_async(each)

    async def receive() -> int:
        return sum([await port.recv_async() for _ in range(number)])

    return (await asyncio.gather(send(), receive()))[1]


def say_and_wait(port: Port, gate: Gate, *messages: Any) -> str:
    say(port, *messages)
    gate.wait()
    return "said"


def say_and_arrive(port: Port, arrived: Gate, release: Gate, *messages: Any) -> None:
    say(port, *messages)
    arrived.signal()
    release.wait()


def total(port: Port) -> int:
    return sum(port)


def totals_in_threads(port: Port, number: int) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in range(number)]

    def run(mine: list[Any]) -> None:
        for message in port:
            mine.append(message)
            port.send(message)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def set_first(port: Port) -> None:
    for array in port:
        array[0] = 7
        port.send((bool(array.flags.writeable), int(array[0])))


def stubborn(port: Port, gate: Gate) -> None:
    port.send("up")
    while True:
        try:
            gate.wait()
        except BaseException:  # noqa: S112 -- whatever is to stop it
            continue
        return


def sleep(port: Port) -> None:
    port.send(os.getpid())
    time.sleep(3600)  # noqa: TID251 -- it is to be stopped


def grow(port: Port, nbytes: int) -> None:
    port.send("up")
    held = bytearray(b"x") * nbytes
    time.sleep(3600)  # noqa: TID251 -- see above
    del held


def is_current(port: Port) -> tuple[bool, bool]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(poolkit.current_port()))
    thread.start()
    thread.join()
    return poolkit.current_port() is port, found[0] is port


def wait_for_close(port: Port) -> str:
    port.send(port.closed)
    try:
        port.recv()
    except poolkit.ChannelClosed:
        return f"closed {port.closed}"
    return "not closed"


class Unloadable:
    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> NoReturn:
    msg = "it cannot be loaded"
    raise ArithmeticError(msg)


def receive_all(port: Port) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found.append(port.recv())
        except ArithmeticError as exc:
            found.append(str(exc))
        except poolkit.ChannelClosed:
            return found


def unloadable_between(port: Port) -> None:
    say(port, 1, Unloadable(), 2)


def fork_and_use(port: Port) -> str:
    pid = os.fork()
    if not pid:
        try:
            port.send("from the child")
        except poolkit.PoolClosed:
            os._exit(7)
        os._exit(0)
    return f"exit {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


def wait_and_count(port: Port, arrived: Gate, release: Gate, number: int) -> None:
    arrived.signal()
    release.wait()
    count(port, number)


def wait_and_total(port: Port, arrived: Gate, release: Gate) -> tuple[int, int]:
    arrived.signal()
    release.wait()
    found = [*port]
    return len(found), sum(found)


# ===== objects that are hosted =====


class Counter:
    """Counts, and does what else a call can do."""

    def __init__(self, start: int = 0) -> None:
        self.number = start
        self._journal: list[int] = []

    def add(self, number: int = 1, *, times: int = 1) -> int:
        self.number += number * times
        return self.number

    async def add_later(self, number: int) -> int:
        await asyncio.sleep(0)
        return self.add(number)

    def fail(self, why: str) -> NoReturn:
        raise LookupError(why)

    def wait(self, arrived: Gate, release: Gate) -> int:
        arrived.signal()
        release.wait()
        return self.add()

    def die(self) -> NoReturn:
        os._exit(3)

    def give(self, what: Any) -> Any:
        return what

    def lock(self) -> Any:
        return threading.Lock()

    def _private(self) -> None:
        """Not to be called."""


def not_made() -> NoReturn:
    msg = "it cannot be made"
    raise LookupError(msg)


def own_imports(port: Port) -> None:
    """What this process has imported of poolkit, and its template has not."""
    from support_imports import imported  # preloaded; the owner is not to have it

    port.send([name for name, pid in imported.items() if pid == os.getpid() and name.startswith("poolkit")])
