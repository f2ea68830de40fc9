"""What makes order between a test and its tasks, and what they leave for it: gates and journals.

Worker processes import this module too, so it imports the standard library and `support` alone.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import time
from pathlib import Path

from support import STEP, WATCHDOG, WatchdogExpired, explain_hang


class GateClosed(Exception):
    """The test that made the gate is over."""


class _Descriptor(io.FileIO):
    """A descriptor that is closed when nobody holds it: the thread that opened it may be stopped at any moment.

    By its repr the warning that it was not closed by hand is told from others, and ignored. Not by a `__del__`: a
    thread that is stopped in there would go on.
    """

    def __repr__(self) -> str:
        return "<descriptor of a test>"


def _open(path: str, flags: int) -> _Descriptor:
    # In one call into C: a thread that is stopped between opening and owning would leave the descriptor open.
    (file,) = map(_Descriptor, map(os.open, [path], [flags | os.O_CLOEXEC], [0o600]))
    return file


class Gate:
    """A counting signal between a test and its tasks, in whatever thread or process they run.

    `signal(n)` adds n, `wait(n)` takes n and blocks until they are there; each one goes to exactly one waiter. It is a
    FIFO, so it pickles as its path, and a process that is killed while it waits or signals harms nobody: it opens the
    FIFO for the moment only, and takes or adds single bytes. Waiting ends with GateClosed when the test closes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd = -1  # the test's own end keeps the FIFO open; -1 in workers

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Gate:
        """Make the FIFO. In the test."""
        os.mkfifo(path)
        gate = cls(path)
        gate._fd = os.open(gate.path, os.O_RDWR | os.O_NONBLOCK)  # Linux lets one end be both
        return gate

    def signal(self, count: int = 1) -> None:
        """Add `count`."""
        with self._open(os.O_WRONLY) as end:
            os.write(end.fileno(), b"." * count)

    def wait(self, count: int = 1) -> None:
        """Take `count`, waiting for them. Blocks for at most WATCHDOG seconds."""
        give_up = time.monotonic() + WATCHDOG
        with self._open(os.O_RDONLY) as end:
            while count:
                if time.monotonic() > give_up:
                    if self._fd >= 0:
                        explain_hang()
                    msg = f"nobody came to {self!r} within {WATCHDOG:g} s; {count} are missing"
                    raise WatchdogExpired(msg)
                # Short steps, because a blocking call would keep a thread from seeing that it is to stop.
                if not select.select([end], [], [], STEP)[0]:
                    continue
                try:
                    taken = os.read(end.fileno(), 1)
                except BlockingIOError:  # another waiter was faster
                    continue
                if not taken:
                    raise GateClosed(repr(self))
                count -= 1

    def count(self) -> int:
        """How many signals wait to be taken; takes none. In the test, while nobody signals."""
        taken = b""
        with contextlib.suppress(BlockingIOError):
            taken = os.read(self._fd, 65536)
        if taken:
            os.write(self._fd, taken)
        return len(taken)

    def close(self) -> None:
        """End every wait. In the test; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(FileNotFoundError):
                Path(self.path).unlink()

    def _open(self, flags: int) -> _Descriptor:
        try:
            return _open(self.path, flags | os.O_NONBLOCK)
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.ENXIO}:
                raise GateClosed(repr(self)) from None
            raise

    def __reduce__(self) -> tuple[type[Gate], tuple[str]]:
        """Travel as the path."""
        return Gate, (self.path,)

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Gate {Path(self.path).name}>"


class Journal:
    """Lines that tasks write, whole and in order, wherever they run; picklable."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)

    def write(self, line: object) -> None:
        """Append one line, in one system call."""
        with _open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            os.write(file.fileno(), f"{line}\n".encode())

    def lines(self) -> list[str]:
        """What was written so far."""
        try:
            return Path(self.path).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
