"""Link: frames over one private pipe pair between the owner and one worker.

Guarantees: a frame arrives whole or not at all; one cut short by a death is dropped with its link. Sizes are 64 bits.
One process writes to a pipe and one reads, so nobody holds a lock that a killed process could keep.
Owner: on the owner's side a reader belongs to whoever holds the pool's reader lock, a writer to the pool's one lock; on
the worker's side the reader belongs to its main thread, and the outbox to any thread.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque

from poolkit._locks import RLock
from poolkit._typing import Any

Frame = tuple[tuple[Any, ...], "bytes | bytearray"]
CHUNK = 64 * 1024  # bytes; the usual size of a pipe
JOIN_UP_TO = CHUNK  # parts up to this are joined into one write; larger ones are not copied


class FrameReader:
    """Takes bytes from a descriptor, blocking or not, and gives whole frames.

    `fill` reads; what it read stays until it is taken: `data` from `pos` on, or a large payload alone, in `large`. A
    signal handler that raises comes between no read and the note of it, as both are made in C.
    """

    __slots__ = ("_fd", "_filled", "_header", "data", "fields", "large", "pos", "read", "received")

    def __init__(self, fd: int, header: struct.Struct) -> None:
        self._fd = fd
        self._header = header  # its last field is the size of the payload
        self.read: list[bytes] = []  # at most one: read, and not in `data` yet, as an exception came; `fill` goes on
        self.data = b""
        self.pos = 0
        self.large: bytearray | None = None  # a payload that is larger than a chunk, being filled in place
        self.fields: tuple[Any, ...] = ()  # its header
        self._filled: list[int] = []  # what each read has added to it
        self.received = 0  # bytes in all

    @property
    def is_complete(self) -> bool:
        """Whether all of a large payload is there."""
        return self.large is not None and sum(self._filled) == len(self.large)

    def fill(self) -> bool:
        """Read once. False while a large payload is not complete.

        Raises:
            EOFError: the other side has closed.
            BlockingIOError: nothing is there (non-blocking descriptors only).
        """
        if self.large is not None:
            return self._fill_large(self.large)
        read = self.read
        if not read:
            read += map(os.read, (self._fd,), (CHUNK,))
        received, data = self.received + len(read[0]), self.data[self.pos :] + read[0]
        is_closed = not read[0]
        # Stores alone, between which no exception comes.
        self.data = data
        self.pos = 0
        self.received = received
        self.read = []
        if is_closed:
            raise EOFError
        return True

    def _fill_large(self, large: bytearray) -> bool:
        filled = sum(self._filled)
        if filled < len(large):
            self._filled = [filled]
            with memoryview(large) as view, view[filled:] as space:
                self._filled += map(os.readv, (self._fd,), ((space,),))
            count = self._filled[-1]
            if not count:
                raise EOFError
            self.received += count
        return self.is_complete

    def begin_large(self, fields: tuple[Any, ...], start: int) -> None:
        """Fill the payload that begins at `start` in place, if it is so large that this is worth it."""
        size = fields[-1]
        if size > CHUNK:
            large, rest = bytearray(size), self.data[start:]
            large[: len(rest)] = rest
            filled = [len(rest)]
            self.fields = fields
            self._filled = filled
            self.large = large
            self.data = b""
            self.pos = 0

    def receive(self) -> list[Frame]:
        """Read once and return the frames that are complete now, perhaps none. Raises as `fill`."""
        if not self.fill():
            return []
        frames: list[Frame] = []
        if self.large is not None:
            frames, self.large = [(self.fields, self.large)], None
        header, data, pos, end = self._header, self.data, self.pos, len(self.data)
        while end - pos >= header.size:
            fields = header.unpack_from(data, pos)
            start = pos + header.size
            if end - start < fields[-1]:
                self.pos = pos
                self.begin_large(fields, start)
                return frames
            pos = start + fields[-1]
            frames.append((fields, data[start:pos]))
        self.pos = pos
        return frames


class FrameWriter:
    """Writes parts to a non-blocking descriptor; keeps what does not fit until `flush`.

    Where an exception interrupts it, what was written is known all the same, and the next call goes on.
    """

    __slots__ = ("fd", "pending", "sent")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # What is to be written, and how much each write has taken of it.
        self.pending: deque[tuple[bytes, list[int]]] = deque()
        self.sent = 0  # bytes handed in, in all

    def send(self, parts: list[bytes]) -> bool:
        """Write parts, in order, as far as they go. False when some are left for `flush`.

        Never blocks. What is written to a closed link is dropped: the death of its worker is reported elsewhere.
        """
        self.pending.extend(self.frames(parts))
        return self.flush()

    def frames(self, parts: list[bytes]) -> list[tuple[bytes, list[int]]]:
        """Return parts as `pending` has them: small ones are joined, large ones are not copied."""
        nbytes = sum(map(len, parts))
        self.sent += nbytes
        if nbytes <= JOIN_UP_TO:
            return [(b"".join(parts), [])]
        joined: list[bytes] = []
        small: list[bytes] = []
        for part in parts:
            if len(part) > JOIN_UP_TO:
                joined += b"".join(small), part
                small = []
            else:
                small.append(part)
        joined.append(b"".join(small))
        return [(data, []) for data in joined if data]

    def flush(self) -> bool:
        """Write what is pending, as far as it goes. True when nothing is left. Never blocks."""
        pending = self.pending
        try:
            while pending:
                write_on(self.fd, *pending[0])
                pending.popleft()
        except BlockingIOError:
            return False
        except OSError:
            pending.clear()
        return True


def write_on(fd: int, data: bytes, taken: list[int]) -> None:
    """Write data from where earlier writes have ended; raises what `os.write` raises.

    No exception of a signal handler comes between a write and the note of it, as both are made in C.
    """
    while (pos := sum(taken)) < len(data):
        taken[:] = [pos]  # or what is written in many pieces would be added up anew for each
        taken += map(os.write, (fd,), (memoryview(data)[pos:],))


class Outbox:
    """Writes frames to a blocking descriptor: the main thread's, and what other code of the process has to say.

    That code may be anywhere: other threads, a finalizer or signal handler in the midst of a write, whoever holds a
    lock that such a one waits for. So it leaves its frame, and writes it if nobody else is writing, who would look
    again afterwards. A handler may also raise in the midst, and the task go on: what was written of a frame is known
    at any moment, and the rest follows.
    Guarded by: `_lock`: `_writing`, and what is taken from `_frames`. The lock is re-entrant as a handler that raises
    may keep the main thread from releasing it, which then must not wait for itself.
    """

    __slots__ = ("_fd", "_frames", "_lock", "_writing")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._frames: deque[tuple[bytes, list[int]]] = deque()  # what to write, and how much each write has taken of it
        self._lock = RLock()
        self._writing = False

    def send(self, header: bytes, payload: bytes) -> None:
        """Write a frame behind those that were left. In the main thread, and not from a handler. Blocks.

        What it raises, and what a handler raises in it, ends the worker: the lock is not released then.

        Raises:
            OSError: the other side has closed.
        """
        self._lock.acquire()
        self._writing = True
        if self._frames or len(payload) > JOIN_UP_TO:
            self._frames.extend(((header, []), (payload, [])))
            self._write()
        else:
            data = header + payload
            count = os.write(self._fd, data)
            if count < len(data):
                self._frames.appendleft((data[count:], []))
                self._write()
        self._writing = False
        self._lock.release()
        if self._frames:
            self._flush()

    def leave(self, frame: bytes) -> None:
        """Have a frame written, by this thread or by the one that is writing. Drops it where nobody reads any more."""
        self._frames.append((frame, []))
        try:
            self._flush()
        except OSError as exc:
            if exc.errno not in {errno.EPIPE, errno.EBADF}:  # a handler raised it
                raise
            self._frames.clear()

    def wait(self) -> None:
        """Wait until what was left is written, by whoever writes just now. Not in a signal handler. Blocks."""
        with self._lock:
            if not self._writing:
                self._write()

    def _flush(self) -> None:
        while self._frames and self._lock.acquire(blocking=False):
            try:
                if self._writing:  # further up in this thread, which looks again
                    return
                self._write()
            finally:
                self._lock.release()

    def _write(self) -> None:
        """Write what was left, under the lock."""
        try:
            self._writing = True
            self._write_frames()
        finally:
            self._writing = False

    def _write_frames(self) -> None:
        while self._frames:
            write_on(self._fd, *self._frames[0])
            self._frames.popleft()
