"""What the workers run. Importable, so that every contender can send it by name."""

from __future__ import annotations

import os
import signal
import struct
import tempfile
import time
from pathlib import Path

MARK = struct.Struct("d")


def noop(_item: object = None) -> None:
    """Do nothing: what is left is the cost of the call."""


def nap(seconds: float) -> None:
    """Take that long, without a CPU."""
    time.sleep(seconds)


def hold(fifo: str) -> None:
    """Keep a worker until somebody writes a byte."""
    fd = os.open(fifo, os.O_RDONLY)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)


def die(fifo: str) -> None:
    """Say when, then die as after an out-of-memory kill."""
    mark(fifo)
    os.kill(os.getpid(), signal.SIGKILL)


def run_away(fifo: str) -> None:
    """Say when, then never end."""
    mark(fifo)
    while True:
        pass


def mark(fifo: str) -> None:
    """Write the instant into a fifo. On Linux the clock is the same in every process."""
    fd = os.open(fifo, os.O_WRONLY)
    try:
        os.write(fd, MARK.pack(time.perf_counter()))
    finally:
        os.close(fd)


class Fifo:
    """The owner's end of a fifo that workers open by its path. It lies in the folder of its trial."""

    def __init__(self, name: str) -> None:
        self.path = str(Path(tempfile.gettempdir(), name))
        os.mkfifo(self.path, 0o600)
        self._fd = os.open(self.path, os.O_RDWR)  # both ways: nobody's open waits for the other side

    def release(self, count: int) -> None:
        """Let `count` holders go."""
        os.write(self._fd, b"x" * count)

    def instant(self) -> float:
        """The next instant that was marked; waits for it."""
        return float(MARK.unpack(os.read(self._fd, MARK.size))[0])

    def close(self) -> None:
        """Close and remove it."""
        os.close(self._fd)
        Path(self.path).unlink()
