"""Output: what a program has written to one of its streams: what of it is kept, and what is there to be taken.

The programs thread feeds it and never waits. Readers take lines or chunks, each of which goes to one of them. Where
nothing is kept, whoever reads gives the pace.
Guarded by: `_lock`, held for a few instructions, inside which no other is taken: the chunks and their counts. By
`_taking`, which readers hold: the splitter. `Kept` and `Splitter` are pure.
"""

from __future__ import annotations

import codecs
import io
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from poolkit._locks import RLock

UNTAKEN = 256 * 1024  # bytes that may be untaken before the program waits
AT_END = 1024 * 1024  # so many more are taken in once it has ended, and cannot wait any more
LONGEST = 1024 * 1024  # bytes, or characters, of a line; a longer one comes in pieces of that
_SMALL = 64 * 1024  # smaller chunks are kept together


class Splitter:
    """Makes lines of chunks, without their ends: of bytes at line feeds, of text at whatever its decoder makes one."""

    def __init__(self, decoder: io.IncrementalNewlineDecoder | None = None) -> None:
        self._decoder = decoder
        self._end: Any = b"\n" if decoder is None else "\n"
        self._rest: list[Any] = []  # of a line that has no end yet
        self._size = 0  # of that

    def split(self, data: bytes, *, final: bool = False) -> list[Any]:
        """The lines that end in `data`; with `final`, the last needs no end."""
        text: Any = data if self._decoder is None else self._decoder.decode(data, final)
        is_long = self._size + len(text) > LONGEST
        lines: list[Any]
        *lines, rest = text.split(self._end)
        if lines and self._rest:
            lines[0] = self._joined(lines[0])
        if rest:
            self._rest.append(rest)
            self._size += len(rest)
        if self._size > LONGEST or (final and self._rest):
            *pieces, last = _pieces(self._joined(text[:0]))
            lines += pieces
            if final:
                lines.append(last)
            else:
                self._rest.append(last)
                self._size = len(last)
        if is_long:
            return [piece for line in lines for piece in _pieces(line)]
        return lines

    def _joined(self, end: Any) -> Any:
        self._rest.append(end)
        whole = self._end[:0].join(self._rest)
        self._rest.clear()
        self._size = 0
        return whole


def _pieces(line: Any) -> list[Any]:
    return [line[at : at + LONGEST] for at in range(0, len(line), LONGEST)] or [line]


def text_decoder(encoding: str, errors: str) -> io.IncrementalNewlineDecoder:
    """What makes text of bytes, with a line feed at the end of each line."""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)


class Kept:
    """What is kept of a stream, up to so many bytes: its beginning, or its beginning and its end."""

    def __init__(self, most: int, *, both_ends: bool) -> None:
        self._head_room = most // 2 if both_ends else most
        self._most_tail = most - self._head_room
        self._head: list[bytes] = []
        self._small = bytearray()  # what is to be added to the head
        self._tail: deque[bytes] = deque()
        self._in_tail = 0
        self.dropped = 0  # bytes

    def add(self, data: bytes) -> None:
        """Keep this, as far as there is room."""
        count = min(len(data), self._head_room)
        self._head_room -= count
        if count >= _SMALL:
            self._head += bytes(self._small), data[:count]
            self._small.clear()
        elif count:
            self._small += data[:count]
            if len(self._small) >= _SMALL:
                self._head.append(bytes(self._small))
                self._small.clear()
        data = data[count:]
        if not data:
            return
        if self._tail and len(self._tail[-1]) + len(data) <= _SMALL:
            self._tail[-1] += data
        else:
            self._tail.append(data)
        self._in_tail += len(data)
        while self._in_tail > self._most_tail:
            over = self._in_tail - self._most_tail
            gone = min(over, len(self._tail[0]))
            self._tail[0] = self._tail[0][gone:]
            if not self._tail[0]:
                self._tail.popleft()
            self._in_tail -= gone
            self.dropped += gone

    def value(self) -> bytes:
        """What is kept, with a mark where something is missing in the middle."""
        mark = b"\n[... %d bytes are left out here ...]\n" % self.dropped if self.dropped and self._tail else b""
        return b"".join((*self._head, self._small, mark, *self._tail))

    def last(self, nbytes: int) -> bytes:
        """The last of it; at most so many bytes."""
        end = b""
        for part in (*reversed(self._tail), self._small, *self._head[-1:]):
            if len(end) >= nbytes:
                break
            end = bytes(part) + end
        return end[-nbytes:]


class Output:
    """One stream of a program, and of its next run where it is run again."""

    def __init__(self, name: str, most: int | None, decoder: Callable[[], io.IncrementalNewlineDecoder | None]) -> None:
        """Take the stream's name, how many bytes to keep (None: none), and what makes a decoder."""
        self.name = name
        self._most = math.inf if most is None else most
        self._decoder = decoder
        self._lock, self._taking = RLock(), RLock()  # re-entrant for signal handlers
        self.is_asked_for = False  # somebody reads it, or has a callback for it
        self.waiters: list[Callable[[], object]] = []  # called when there is something to take
        self.has_ended = False  # the command has, and nothing more comes
        self.kept: Kept | None = None
        self.reset()

    def reset(self) -> None:
        """A run begins; nothing was taken of one before."""
        if self._most < math.inf:
            self.kept = Kept(int(self._most), both_ends=self.name == "stderr")
        self._chunks: deque[bytes] = deque()
        self._splitter = Splitter(self._decoder())
        self._error: Exception | None = None  # what could not be decoded
        self._is_to_flush = False  # the run has ended: its last line needs no end
        self._resume: Callable[[], object] | None = None  # has it be read on, where it waits for its readers
        self.fed = self.taken = 0  # bytes, of what may be taken

    # ===== the programs thread =====

    def feed(self, data: bytes) -> bool:
        """Take in what has come; False where the program is to wait for readers."""
        with self._lock:
            is_readable = self.kept is None or self.is_asked_for
            if self.kept is not None:
                self.kept.add(data)
                # Beyond the bound: a diagnosis loses what nobody takes in time, and data are not wanted any more.
                is_full = self.kept.dropped if self.name == "stdout" else self.fed - self.taken >= self._most
                is_readable = is_readable and not is_full
            if is_readable:
                self._chunks.append(data)
                self.fed += len(data)
        self._ring()
        return self.kept is not None or self.fed - self.taken <= UNTAKEN

    def end_run(self) -> None:
        """A run has ended; another one may come."""
        self._is_to_flush = True
        self._ring()

    def wait_for_room(self, resume: Callable[[], object]) -> None:
        """Have this called once half of what may be untaken is left, which may be now."""
        with self._lock:
            if self.fed - self.taken > UNTAKEN // 2:
                self._resume = resume
                return
        resume()

    def is_over_full(self) -> bool:
        """Whether more is untaken than may be once its program has ended."""
        return self.kept is None and self.fed - self.taken > UNTAKEN + AT_END

    def _ring(self) -> None:
        for waiter in [*self.waiters]:
            waiter()

    # ===== readers =====

    def end(self) -> None:
        """The command has ended."""
        if not self.has_ended:
            self.has_ended = True
            self._ring()

    def ask(self) -> None:
        """Somebody wants to read it: from now on it is there to be taken, what was kept first."""
        with self._lock:
            kept = b"" if self.kept is None or self.is_asked_for else self.kept.value()
            self._chunks.extend(kept[at : at + UNTAKEN] for at in range(0, len(kept), UNTAKEN))
            self.fed += len(kept)
            self.is_asked_for = True

    def run_is_over(self) -> bool:
        """Whether a run has ended, and not all of it was taken."""
        return self._is_to_flush

    def has_some(self) -> bool:
        """Whether there is something to take."""
        return bool(self._chunks) or self._is_to_flush

    def take(self, *, lines: bool) -> list[Any] | None:
        """Take some of what is there, as lines or as chunks; None at the end. Does not block for the program.

        Raises:
            UnicodeDecodeError: it is no text; each time.
        """
        with self._taking:
            if self._error is not None and lines:
                raise self._error
            chunks, is_last, has_ended = self._take_chunks()
            if not lines:
                found: list[Any] = chunks
            elif chunks or is_last:
                found = self._split(b"".join(chunks), final=is_last)
            else:
                found = []
            return None if has_ended and not found else found

    def _take_chunks(self) -> tuple[list[bytes], bool, bool]:
        """Some chunks, whether they are the last of the run, and whether nothing is left of the command."""
        has_ended = self.has_ended  # before the look at the others, as these come before that
        is_to_flush = self._is_to_flush
        chunks: list[bytes] = []
        size, resume = 0, None
        with self._lock:
            while self._chunks and size < UNTAKEN:
                size += len(self._chunks[0])
                chunks.append(self._chunks.popleft())
            self.taken += size
            is_last = (is_to_flush or has_ended) and not self._chunks
            if is_last:
                self._is_to_flush = False
            if self._resume is not None and self.fed - self.taken <= UNTAKEN // 2:
                resume, self._resume = self._resume, None
        if resume is not None:
            resume()
        return chunks, is_last, has_ended and not self._chunks

    def _split(self, data: bytes, *, final: bool) -> list[Any]:
        try:
            found = self._splitter.split(data, final=final)
            if final:
                self._splitter = Splitter(self._decoder())
        except Exception as exc:
            self._error = exc
            raise
        return found

    def leave_parent(self) -> None:
        """Be a copy in a forked child, which has none of it."""
        self._lock, self._taking = RLock(), RLock()
        self._chunks.clear()
        self.has_ended = True
        self.waiters.clear()
