"""Board: a little shared memory per worker, on which it stamps the task that it begins, and when, and what it prints.

From it the owner knows, without a message, since when a run-time limit counts, and whether a task has ended.
One a worker, so that a worker that scribbles on its memory lies about itself alone.
Owner: the worker's main thread writes, the owner only reads. Every field is eight aligned bytes, stored in one go.

A run that reports its progress has one of the `CELLS`, see `_child/cells.py`. The owner reads a cell only where it
bears the time at which the last run began, before and after, and only if that run is still the last one, and of the
task that was asked for. As no two runs of a worker begin at one time, no run is taken for another.
Done and total are two stores: total may for a moment be that of the report after.

Behind the page of fields is a ring with the last that was printed, which the owner reads when the worker is dead:
    _FROM <= _WRITTEN <= _CLAIMED    count bytes; since the task of `_OUTPUT_OF` began, to its end, and what may be torn
Guarded by the lock in `_child/output.py`. Behind that is what the worker said last when it was asked where it is:
    _ANSWERS    how many answers it has given, twice; odd while it writes one
and then room for what faulthandler writes to the descriptor. A worker that answers can have that filled anew
(_REWOUND counts how often), as it is not about to die.
"""

from __future__ import annotations

import mmap
import os

from poolkit import _os

RING = 4096  # bytes
_ANSWER, ANSWER_NBYTES = mmap.PAGESIZE + RING, 16 << 10
_EVIDENCE = _ANSWER + ANSWER_NBYTES  # where it begins; a multiple of 4 KiB
NBYTES = _EVIDENCE + (64 << 10)  # a stack has at most 100 frames; what does not fit here is written and not seen
_BEGUN, _SINCE, _DONE, _MEMORY, _OUTPUT_OF, _FROM, _WRITTEN, _CLAIMED, _MADE_SINCE = range(9)
CELLS = range(9, 9 + 3 * 32, 3)  # where runs report their progress: when the run began, done, total
_ANSWERS, _ANSWER_SIZE, _REWOUND = range(CELLS.stop, CELLS.stop + 3)


def page() -> int:
    """Return a descriptor of a new board, for both sides. Raises OSError."""
    fd = _os.shared_page(NBYTES)
    os.lseek(fd, _EVIDENCE, os.SEEK_SET)
    return fd


class Board:
    """One worker's board, mapped."""

    __slots__ = ("_evidence_seen", "_ids", "_map", "_rewound", "_ring", "_times")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, NBYTES, **_os.UNTRACKED)
        self._ids = memoryview(self._map).cast("Q")
        self._times = memoryview(self._map).cast("d")
        self._ring = memoryview(self._map)[mmap.PAGESIZE : _ANSWER]
        self._evidence_seen = _EVIDENCE  # up to where the owner has read that
        self._rewound = 0

    def begin(self, task_id: int, now: float) -> None:
        """Stamp that a task begins; the time first, so that the id never stands beside an older time."""
        self._times[_SINCE] = now
        self._ids[_DONE] = 0  # which may be an earlier run of this very task
        self._ids[_BEGUN] = task_id

    def done(self, task_id: int) -> None:
        """Stamp that a task's outcome was sent."""
        self._ids[_DONE] = task_id

    def stamp_memory(self, nbytes: int) -> None:
        """Stamp how much shared memory the worker holds for its results."""
        self._ids[_MEMORY] = nbytes

    def stamp_made(self, when: float) -> None:
        """Stamp since when a stream makes its next item; see `Status.made`."""
        self._times[_MADE_SINCE] = when

    def memory(self) -> int:
        """Return how much shared memory the worker holds for its results, in its own word."""
        return self._ids[_MEMORY]

    def read(self) -> tuple[int, float, int, float]:
        """Return the task begun last, since when, that task again once its outcome was sent (0: none), and `made`."""
        while True:
            begun = self._ids[_BEGUN]
            since, done, made = self._times[_SINCE], self._ids[_DONE], self._times[_MADE_SINCE]
            if begun == self._ids[_BEGUN]:
                return begun, since, done, made

    def give_cell(self, at: int, since: float, done: float, total: float) -> memoryview[float]:
        """Give a cell to the run that began then, and return its done and total."""
        times = self._times
        times[at] = 0.0  # first: nobody reads it meanwhile
        times[at + 1], times[at + 2] = done, total
        times[at] = since
        return times[at + 1 : at + 3]

    def progress(self, task_id: int) -> tuple[float, float, float] | None:
        """Return since when this task runs, done and total; None if it does not run, or has not reported any."""
        times = self._times
        since = times[_SINCE]
        for at in CELLS:
            if times[at] == since:
                found = since, times[at + 1], times[at + 2]
                is_same = times[at] == since and self._ids[_BEGUN] == task_id and times[_SINCE] == since
                return found if is_same else None
        return None

    def keep_output(self, data: memoryview) -> None:
        """Add what was printed to the ring. A kill at any instruction costs what is being added, no more."""
        ids, since = self._ids, self._times[_SINCE]
        written = ids[_WRITTEN]
        if self._times[_OUTPUT_OF] != since:  # the first that this task prints; one that prints nothing pays nothing
            ids[_FROM] = written
            self._times[_OUTPUT_OF] = since
        end = ids[_CLAIMED] = written + len(data)
        data = data[-RING:]
        at = (end - len(data)) % RING
        first, rest = data[: RING - at], data[RING - at :]
        self._ring[at : at + len(first)] = first
        self._ring[: len(rest)] = rest
        ids[_WRITTEN] = end

    def output(self) -> str:
        """Return the last lines printed since the last task began; what a living worker overwrites is left out."""
        ids = self._ids
        written, ring = ids[_WRITTEN], bytes(self._ring)
        start, claimed = ids[_FROM], ids[_CLAIMED]  # read last: beyond them nothing was touched
        kept = max(start, claimed - RING)
        if self._times[_OUTPUT_OF] != self._times[_SINCE] or not kept < written <= claimed:
            return ""
        at = kept % RING
        data = (ring * 2)[at : at + written - kept]
        if kept > start:  # the first line is cut, perhaps within a character
            data = data.partition(b"\n")[2] or data.lstrip(bytes(range(0x80, 0xC0)))
        return data.decode("utf-8", "replace")

    def evidence(self) -> str:
        """Return what faulthandler has written since this was asked last."""
        if self._rewound != self._ids[_REWOUND]:
            self._rewound, self._evidence_seen = self._ids[_REWOUND], _EVIDENCE
        start, self._evidence_seen = self._evidence_seen, self.written_to(self._evidence_seen)
        return self._map[start : self._evidence_seen].decode("utf-8", "replace")

    def written_to(self, start: int = _EVIDENCE) -> int:
        """Return where that ends which faulthandler has written, from `start` on or later."""
        end = self._map.find(b"\0", start)
        return end if end >= 0 else NBYTES

    def written_since(self, start: int) -> str:
        """Return what faulthandler has written from there on."""
        return self._map[start : self.written_to(start)].decode("utf-8", "replace")

    def answer(self, text: bytes, page: int) -> None:
        """Say where this worker is. `page` is what faulthandler writes to."""
        ids, kept = self._ids, self._map
        ids[_ANSWERS] |= 1
        text = text[:ANSWER_NBYTES]
        kept[_ANSWER : _ANSWER + len(text)] = text
        ids[_ANSWER_SIZE] = len(text)
        if kept[_EVIDENCE]:
            end = self.written_to()
            os.lseek(page, _EVIDENCE, os.SEEK_SET)
            kept[_EVIDENCE:end] = bytes(end - _EVIDENCE)
            ids[_REWOUND] += 1
        ids[_ANSWERS] += 1  # last: who finds no evidence of what it has just asked for finds this

    def answers(self) -> int:
        """Return how many answers the worker has given, or begun to give; for `answered`."""
        return self._ids[_ANSWERS]

    def answered(self, since: int) -> str | None:
        """Return what it has said since then; None while there is nothing."""
        number = self._ids[_ANSWERS]
        text = self._map[_ANSWER : _ANSWER + min(self._ids[_ANSWER_SIZE], ANSWER_NBYTES)]
        if number == since or number % 2 or number != self._ids[_ANSWERS]:
            return None
        return text.decode("utf-8", "replace")

    def close(self) -> None:
        """Unmap it. Idempotent."""
        self._ids.release()
        self._ring.release()
        self._times.release()
        self._map.close()
