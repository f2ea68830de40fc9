"""What the workers of these tests do, and those of other pools in the same situations."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, NoReturn


def add_one(number: int) -> int:
    return number + 1


def environment(name: str) -> str | None:
    return os.environ.get(name)


def sleep(seconds: float) -> None:
    time.sleep(seconds)  # noqa: TID251 -- this is what it does


def kill_itself() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def write_line(path: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("ran\n")


def spin_into(path: str) -> NoReturn:
    """Run for ever in Python, having told its number in a file."""
    Path(path).write_text(str(os.getpid()), encoding="ascii")
    while True:
        pass


def hold_the_gil_into(path: str) -> NoReturn:
    """Sleep in C without letting go of the interpreter's lock, having told its number in a file."""
    import ctypes

    Path(path).write_text(str(os.getpid()), encoding="ascii")
    ctypes.PyDLL(None).sleep(3600)
    raise AssertionError


def run_command(path: str) -> bytes:
    """Run a shell that waits for a child of its own, which holds the pipe too; writes the child's number to a file."""
    script = 'sleep 99 & echo $! >"$0"; wait'
    return subprocess.run(["/bin/sh", "-c", script, path], stdout=subprocess.PIPE, check=True).stdout


LOCK = threading.Lock()


def take_lock() -> None:
    with LOCK:
        pass


class UnbuildableError(Exception):
    """Pickles, and cannot be unpickled by its own recipe."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def raise_unbuildable() -> NoReturn:
    raise UnbuildableError("this", "that")


def raise_from() -> NoReturn:
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        error = RuntimeError("the effect")
        if hasattr(error, "add_note"):
            error.add_note("a note")
        raise error from cause


def make_lock() -> Any:
    return threading.Lock()


def open_pool(library: str) -> list[int]:
    """A pool inside a task."""
    from pains.peers import PEERS, Peer

    peer = PEERS.get(library, Peer)(library, 1)
    return [peer.value(peer.submit(add_one, 1))]


def grow_and_die(nbytes: int) -> NoReturn:
    """Use so much memory, then be killed as the kernel kills."""
    ballast = bytearray(nbytes)
    ballast[::4096] = b"x" * len(range(0, nbytes, 4096))  # memory counts when it is touched
    kill_itself()


def same_and_peak(value: Any) -> tuple[Any, int]:
    """The value itself, and the most resident memory that this process ever used, in bytes."""
    import resource

    return value, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
