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
PARTS = 64  # buffers in one writev; the least that POSIX lets a system allow is 16, every one in use has 1024


class FrameReader:
    """Takes bytes from a descriptor, blocking or not, and gives whole frames."""

    __slots__ = ("_big", "_big_fields", "_fd", "_filled", "_header", "_rest", "received")

    def __init__(self, fd: int, header: struct.Struct) -> None:
        self._fd = fd
        self._header = header  # its last field is the size of the payload
        self._rest = b""
        self._big: bytearray | None = None  # a payload that is larger than a chunk, being filled in place
        self._big_fields: tuple[Any, ...] = ()
        self._filled = 0
        self.received = 0  # bytes in all

    def receive(self) -> list[Frame]:
        """Read once and return the frames that are complete now, perhaps none.

        Raises:
            EOFError: the other side has closed.
            BlockingIOError: nothing is there (non-blocking descriptors only).
        """
        if self._big is not None:
            return self._fill()
        chunk = os.read(self._fd, CHUNK)
        if not chunk:
            raise EOFError
        self.received += len(chunk)
        data = self._rest + chunk if self._rest else chunk
        frames: list[Frame] = []
        header, end, pos = self._header, len(data), 0
        while end - pos >= header.size:
            fields = header.unpack_from(data, pos)
            size = fields[-1]
            start = pos + header.size
            if end - start < size:
                if size > CHUNK:
                    self._big = bytearray(size)
                    self._big[: end - start] = data[start:]
                    self._big_fields, self._filled = fields, end - start
                    pos = end
                break
            pos = start + size
            frames.append((fields, data[start:pos]))
        self._rest = data[pos:]
        return frames

    def _fill(self) -> list[Frame]:
        big = self._big
        assert big is not None  # noqa: S101 -- the only caller looked
        with memoryview(big) as view, view[self._filled :] as space:
            count = os.readv(self._fd, [space])
        if not count:
            raise EOFError
        self.received += count
        self._filled += count
        if self._filled < len(big):
            return []
        self._big = None
        return [(self._big_fields, big)]


class FrameWriter:
    """Writes parts to a non-blocking descriptor; keeps what does not fit until `flush`."""

    __slots__ = ("_fd", "_pending", "sent")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending: deque[memoryview] = deque()
        self.sent = 0  # bytes handed in, in all

    def send(self, parts: list[bytes], nbytes: int | None = None) -> bool:
        """Write parts, `nbytes` in all, in order, as far as they go. False when some are left for `flush`.

        Never blocks. What is written to a closed link is dropped: the death of its worker is reported elsewhere.
        """
        total = sum(map(len, parts)) if nbytes is None else nbytes
        self.sent += total
        if total <= JOIN_UP_TO:
            data = b"".join(parts)
            if not self._pending:
                try:
                    count = os.write(self._fd, data)
                except BlockingIOError:
                    count = 0
                except OSError:
                    return True
                if count == total:
                    return True
                data = data[count:]
            self._pending.append(memoryview(data))
            return False
        self._pending.extend(memoryview(part) for part in parts if part)
        return self.flush()

    def flush(self) -> bool:
        """Write what is pending, as far as it goes. True when nothing is left. Never blocks."""
        pending = self._pending
        while pending:
            try:
                count = os.writev(self._fd, [pending[index] for index in range(min(PARTS, len(pending)))])
            except BlockingIOError:
                return False
            except OSError:
                pending.clear()
                return True
            while count:
                first = pending[0]
                if count >= len(first):
                    count -= len(first)
                    pending.popleft()
                else:
                    pending[0] = first[count:]
                    count = 0
        return True


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
        frames = self._frames
        while frames:
            frame, taken = frames[0]
            while (pos := sum(taken)) < len(frame):
                # No handler comes between the write and the note of it, as both are made in C.
                taken.extend(map(os.write, (self._fd,), (memoryview(frame)[pos:],)))
            frames.popleft()
