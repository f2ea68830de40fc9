"""Program: what is to be started, and one run of it, as its thread (`programs.py`) and those who signal it have it.

Guarded by: a program's `_lock`: whether its number may be signalled, as it may until it is to be buried. Owner of all
else: the programs thread.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import marshal
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from poolkit import _os
from poolkit._child import starter as protocol
from poolkit._locks import RLock
from poolkit._spawn import launch
from poolkit._spawn.entrance import Entrance
from poolkit._spawn.key import is_open
from poolkit._spawn.output import Output
from poolkit._spawn.starters import Starter

_numbers = itertools.count(1)


class Recipe:
    """What is to be started. A stream is "null", "inherit", a path, a descriptor, or what takes its output."""

    def __init__(self, argv: list[bytes], env: dict[bytes, bytes], directory: bytes, mask: int | None) -> None:
        self.argv, self.env, self.directory, self._mask = argv, env, directory, mask
        self.stdin: Any = "null"  # also "pipe", or bytes
        self.stdout: Any = "null"
        self.stderr: Any = "null"  # also "stdout"
        self.stop_signal = signal.SIGTERM
        self.grace = 2.0  # seconds
        self.entrance: Entrance | None = None  # what gets the writing end of a pipe to its input
        self.early: deque[int] = deque()  # signals from before it was started
        self._fds: list[int] = []  # our own

    def pack(self) -> bytes:
        """What a starter gets. It opens paths itself: one may be of a pipe that nobody reads, or on a dead drive."""
        paths = [stream if isinstance(stream, bytes) else None for stream in (self.stdout, self.stderr)]
        return marshal.dumps((self.argv, self.env, self.directory, self._mask, paths, self.is_joined()))

    def is_joined(self) -> bool:
        """Whether its errors go where its output goes."""
        return isinstance(self.stderr, str) and self.stderr == "stdout"

    def keep(self, fd: int) -> int:
        """Return a copy of this descriptor that lives as long as this."""
        self._fds.append(os.dup(fd))
        return self._fds[-1]

    def __del__(self) -> None:
        for fd in self.__dict__.get("_fds", ()):
            _os.close_fd(fd)

    def outputs(self) -> Iterator[Output]:
        """Those of its streams that are read."""
        return (each for each in (self.stdout, self.stderr) if isinstance(each, Output))


class Program:
    """One run of a program. `tell` is called by the thread: with "begun", "unread", and at last "over"."""

    def __init__(self, recipe: Recipe, tell: Callable[[Program, str], object]) -> None:
        self.recipe = recipe
        self.number = next(_numbers)
        self.claims = deque((None,))  # whoever takes it has the program started, or takes it back
        self.pid: int | None = None
        self.started_at = self.ended_at = 0.0
        self.returncode: int | None = None
        self.cpu_time = 0.0  # seconds
        self.peak_rss = 0  # bytes
        self.error: Exception | None = None  # why it could not be started
        self.is_lost = False  # its starter has died
        self.is_too_long = False  # it has written more than is kept
        self.cut_off = False
        self.is_over = False
        self.starter: Starter | None = None
        self.pipes: dict[int, Output] = {}
        self.paused: set[int] = set()
        self.tell = tell
        self._lock = RLock()
        self.is_to_be_buried = False  # its number is its starter's alone
        self.send_by_starter: Callable[[int], object] = lambda _number: None  # then; once it has one

    def send(self, number: int, *, group: bool) -> bool:
        """Send it a signal, once it is started; False where it has ended. By anybody."""
        with self._lock:
            if self.is_over or self.returncode is not None:
                return False
            if self.pid is None:
                self.recipe.early.append(number)
            elif self.is_to_be_buried:  # it has closed its output, and runs on
                self.send_by_starter(number)
            else:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    (os.killpg if group else os.kill)(self.pid, number)
            return True

    def begin(self, pid: int, at: float) -> None:
        """It is started, at that moment."""
        with self._lock:
            self.started_at, self.pid = at, pid
        self.send_early()

    def send_early(self) -> bool:
        """Once it is started, send it what was left before that; False where it has ended. By anybody."""
        with self._lock:
            early = self.recipe.early
            while self.pid is not None and early:
                self._send_to_group(early.popleft())
            return not self.is_over and self.returncode is None

    def kill_group(self) -> None:
        """Kill all of its group."""
        with self._lock:
            if self.pid is not None and not self.is_to_be_buried:
                self._send_to_group(signal.SIGKILL)

    def _send_to_group(self, number: int) -> None:
        assert self.pid is not None  # noqa: S101 -- it is started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def let_go(self) -> bool:
        """Its number may be somebody else's from now on; false where that was so before."""
        with self._lock:
            before, self.is_to_be_buried = self.is_to_be_buried, True
            return not before

    def close(self) -> None:
        """Close the pipes."""
        while self.pipes:
            fd, output = self.pipes.popitem()
            _os.close_fd(fd)
            output.end_run()
        if self.recipe.entrance is not None:
            self.recipe.entrance.end()

    def leave_parent(self) -> None:
        """Close the copies that a forked child has, and tell nobody."""
        while self.pipes:
            _os.close_fd(self.pipes.popitem()[0])
        if self.recipe.entrance is not None:
            self.recipe.entrance.leave_parent()


def _pipe() -> tuple[int, int]:
    """Both ends, under numbers above those of the standard streams."""
    read, write = os.pipe()
    try:
        return launch.above_streams(read), launch.above_streams(write)
    except BaseException:
        _os.close_fd(write)
        raise


def open_all(recipe: Recipe, theirs: list[int], ours: list[int]) -> None:
    """Add a program's streams to `theirs`, and our ends of the pipes among them to `ours`."""
    if recipe.entrance is not None:
        read, write = _pipe()
        theirs.append(read)
        ours.append(write)
    else:
        theirs.append(open_stream(recipe.stdin, 0))
    for place, stream in ((1, recipe.stdout), (2, recipe.stderr)):
        if isinstance(stream, Output):
            read, write = _pipe()
            os.set_blocking(read, False)
            ours.append(read)
            theirs.append(write)
        else:
            theirs.append(open_stream(stream, place))


def open_stream(stream: Any, place: int) -> int:
    """A descriptor of our own for a stream of a program that is no pipe."""
    if type(stream) is int:
        return os.dup(stream)
    if isinstance(stream, bytes) and not place:
        return _input(stream)
    if isinstance(stream, str) and stream == "inherit" and is_open(place):
        return os.dup(place)
    return launch.above_streams(os.open(os.devnull, os.O_RDWR))


def _input(data: bytes) -> int:
    """A file in memory with this in it, to be read from its beginning."""
    fd = launch.above_streams(_os.shared_page(0))
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def why_not(recipe: Recipe, number: int, step: int) -> OSError:
    """What a program failed with that could not be started, at that step (`_child/starter.py`)."""
    if step == protocol.DIRECTORY:
        return OSError(number, f"{os.strerror(number)} (the working directory)", os.fsdecode(recipe.directory))
    if step in {protocol.OUTPUT, protocol.ERRORS}:
        path = recipe.stdout if step == protocol.OUTPUT else recipe.stderr
        return OSError(number, f"{os.strerror(number)} (for what it writes)", os.fsdecode(path))
    why = os.strerror(number)
    if number in {errno.ENOENT, errno.EACCES} and b"/" not in recipe.argv[0]:
        path = os.fsdecode(recipe.env.get(b"PATH", os.fsencode(os.defpath)))
        why += f" (the program; searched in PATH={path})"
    return OSError(number, why, os.fsdecode(recipe.argv[0]))
