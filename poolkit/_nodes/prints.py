"""Prints: what tasks print on nodes, on its way to the standard output and the standard errors of the owner.

    workers ── two pipes ──> Prints, of the agent ── PRINTED ──> Printer, of the owner ──> its descriptor
                                    ^────────────── SHOWN ─────────────┘

Guarantees: lines of two workers never mix, of one node or of two; what was printed before an outcome is written before
the owner has that, unless its stream takes nothing more at the time. Of each node at most MOST bytes are under way, or
a read more. While none of them are shown, tasks wait with what they print, for PATIENCE seconds; from then on it is
dropped and counted until some are.
Guarded by: the lock of a Prints, or of a Printer: all that it has. Nothing but a lock-free `wake` is called under it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections import deque
from collections.abc import Callable

from poolkit import _os
from poolkit._clock import monotonic
from poolkit._select import poll
from poolkit._spawn.key import is_open
from poolkit._spawn.launch import above_streams

MOST = 1 << 20  # bytes under way; also, of a line without an end
PATIENCE = 1.0  # seconds
PAUSE = 0.02  # seconds between two messages for prints alone, and until the rest of a line is looked for
CHUNK = 1 << 16  # bytes; what a pipe holds


class Prints:
    """What the workers of one node print. `wake` is called, on any thread, when there is something to take."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._pipes = [[above_streams(fd) for fd in os.pipe()] for _ in range(2)]
        self.streams = self._pipes[0][1], self._pipes[1][1]  # for the workers
        self._rest = [b"", b""]  # of lines that are being written
        self.kept: list[tuple[int, bytes]] = []  # anybody may look whether it is empty
        self._under_way = 0  # bytes that are kept, or were taken and not shown
        self._full_at = 0.0  # when those became too many
        self._lost = 0  # bytes
        self._lock = threading.Lock()
        self._has_some, self._looker = poll(), poll()
        for fd, _ in self._pipes:
            os.set_blocking(fd, False)
            self._has_some.register(fd, 1)  # POLLIN
            self._looker.register(fd, 1)
        self._is_over, self._wakeup = threading.Event(), _os.Wakeup()
        self._looker.register(self._wakeup.fileno(), 1)
        self._thread = threading.Thread(target=self._look, name="poolkit-prints", daemon=True)
        self._thread.start()

    def take(self) -> list[tuple[int, bytes, int]]:
        """All that is there: of which stream (0 or 1), what, and how many bytes were dropped before."""
        with self._lock:
            if not self._is_over.is_set() and (any(self._rest) or self._has_some.poll(0)):
                self._read()
            taken, self.kept = self.kept, []
            found = [(stream, data, self._lost if not place else 0) for place, (stream, data) in enumerate(taken)]
            self._lost = 0 if found else self._lost
            return found

    def shown(self, nbytes: int) -> None:
        """So much of it is where it was to go."""
        with self._lock:
            self._under_way -= nbytes

    def close(self) -> None:
        """Read no more. The workers are gone."""
        self._is_over.set()
        self._wakeup.set()
        self._thread.join()
        with self._lock:
            for fd in (fd for pipe in self._pipes for fd in pipe):
                os.close(fd)
        self._wakeup.close()

    def _look(self) -> None:
        """Tell of what is there before some outcome takes it along."""
        while True:
            self._looker.poll(PAUSE * 1000 if any(self._rest) else None)
            if self._is_over.is_set():
                return
            with self._lock:
                count, has_some = self._read(), bool(self.kept)
            if has_some:
                self._wake()
            if count < CHUNK:
                self._is_over.wait(PAUSE)

    def _read(self) -> int:
        """Read what is there, whole lines; return how many bytes. Under the lock."""
        is_full = self._under_way >= MOST
        if is_full and monotonic() < self._full_at + PATIENCE:
            return 0
        count = 0
        for stream, (fd, _) in enumerate(self._pipes):
            data, self._rest[stream] = _lines(fd, self._rest[stream])
            count += len(data)
            if is_full:
                self._lost += len(data)
            elif data:
                self.kept.append((stream, data))
        if not is_full:
            self._under_way += count
            self._full_at = monotonic()
        return count


def _lines(fd: int, data: bytes) -> tuple[bytes, bytes]:
    """What is in a pipe behind this, as far as the lines are whole; and the rest.

    Workers hold a lock on the pipe while they write a line (`_child/output.py`): while we have it, all is whole.
    """
    is_whole = False
    with contextlib.suppress(OSError):
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        is_whole = True
    try:
        while len(data) < MOST:
            data += os.read(fd, CHUNK)
        is_whole = True  # it is too long
    except BlockingIOError:
        pass  # there is no more
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(fd, fcntl.LOCK_UN)
    end = len(data) if is_whole else 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))
    return data[:end], data[end:]


class Printer:
    """Writes to a file of this process; what that does not take at once, on a thread of its own."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, bytes, Callable[[int], object]]] = deque()
        self._thread: threading.Thread | None = None  # it lives while there is something in the queue
        self._lock = threading.Lock()

    def write(self, fd: int, data: bytes, shown: Callable[[int], object]) -> None:
        """Write this to a descriptor of it, without blocking, behind what was to be written before.

        `shown` is told of how many bytes are written, on any thread.
        """
        with self._lock:
            done = 0 if self._queue else _write_some(fd, data)
            if done < len(data):
                self._queue.append((fd, data[done:], shown))
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._run, name="poolkit-printer", daemon=True)
                    with contextlib.suppress(RuntimeError):  # the interpreter ends
                        self._thread.start()
        if done:
            shown(done)

    def close(self, seconds: float) -> None:
        """Wait until all is written, for at most so many seconds."""
        if (thread := self._thread) is not None and thread.is_alive():
            thread.join(seconds)

    def _run(self) -> None:
        is_left = True
        while is_left:
            fd, data, shown = self._queue[0]
            done = len(data)
            try:
                done = os.write(fd, data) if is_open(fd) else done
            except BlockingIOError:  # somebody has made it so: wait for room
                room, done = poll(), 0
                room.register(fd, 4)  # POLLOUT
                room.poll(PATIENCE * 1000)
            except OSError:  # nobody reads it, or the stream is closed: dropped
                pass
            with self._lock:
                if done < len(data):
                    self._queue[0] = fd, data[done:], shown
                else:
                    self._queue.popleft()
                is_left = bool(self._queue)
            shown(done)


def standard_printers() -> tuple[Printer, Printer]:
    """What writes to the standard output and errors: one and the same where those are one file, as lines may mix."""
    output = Printer()
    with contextlib.suppress(OSError):  # one is closed
        if os.path.sameopenfile(1, 2):
            return output, output
    return output, Printer()


def _write_some(fd: int, data: bytes) -> int:
    """Write as much of it as this takes without blocking, if that can be done; how many bytes that is."""
    if not is_open(fd):
        return len(data)
    with contextlib.suppress(OSError):  # as BlockingIOError is; what is wrong, the thread will find
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return os.write(fd, data)
        if _os.LINUX and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
            # The same file, opened once more: others that have the descriptor go on to block.
            copy = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                return os.write(copy, data)
            finally:
                os.close(copy)
    return 0
