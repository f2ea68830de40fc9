"""What tasks on nodes do in these tests, and the journal in which they say when they begin and end."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import defaultdict
from pathlib import Path


def write(path: str, *words: object) -> None:
    """Add one line to a file that many processes write to; whole, whatever happens to the writer."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def journalled(path: str, number: int, seconds: float = 0.0) -> int:
    """Write when it begins, lives on and ends."""
    until = time.monotonic() + seconds
    write(path, "begin", number, time.monotonic(), os.getpid())
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.02))  # noqa: TID251 -- what the task takes
        write(path, "alive", number, time.monotonic(), os.getpid())
    write(path, "end", number, time.monotonic(), os.getpid())
    return number


def name_of_process() -> int:
    """The process that runs this."""
    return os.getpid()


def die() -> None:
    """End this process by a signal."""
    os.kill(os.getpid(), signal.SIGSEGV)


def hold_the_gil(seconds: float) -> None:
    """Sleep in C without letting go of the interpreter's lock."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def eat(nbytes: int) -> None:
    """Use that much memory, bit by bit, and hold it."""
    held = []
    while sum(map(len, held)) < nbytes:
        held.append(b"x" * (8 << 20))
        time.sleep(0.005)  # noqa: TID251 -- so that limits are looked at on the way
    time.sleep(60)  # noqa: TID251 -- what the task takes


def raise_in_initializer() -> None:
    """An initializer that fails."""
    msg = "no such thing here"
    raise LookupError(msg)


class Journal:
    """What tasks have written to a file."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def lines(self) -> list[list[str]]:
        """All lines, in words."""
        try:
            return [line.split() for line in Path(self.path).read_text().splitlines()]
        except FileNotFoundError:
            return []

    def begun(self) -> dict[int, int]:
        """How often each task has begun."""
        counts: dict[int, int] = defaultdict(int)
        for kind, number, *_ in self.lines():
            counts[int(number)] += kind == "begin"
        return counts

    def runs(self, number: int) -> list[tuple[float, float]]:
        """When each run of a task began, and when it gave its last sign of life."""
        return self.all_runs().get(number, [])

    def all_runs(self) -> dict[int, list[tuple[float, float]]]:
        """The runs of each task, in the order in which they began."""
        found: dict[int, list[tuple[float, float]]] = defaultdict(list)
        latest: dict[tuple[str, str], int] = {}  # run of a task in a process
        for kind, number, at, pid in self.lines():
            runs = found[int(number)]
            if kind == "begin":
                latest[number, pid] = len(runs)
                runs.append((float(at), float(at)))
            else:
                which = latest[number, pid]
                runs[which] = runs[which][0], float(at)
        return dict(found)
