"""Board: one small page of shared memory per worker, on which it stamps the task that it begins, and when.

From it the owner knows, without a message, since when a run-time limit counts, and whether a task has ended.
One page a worker, so that a worker that scribbles on its memory lies about itself alone.
Owner: the worker's main thread writes, the owner only reads. Every field is eight aligned bytes, stored in one go.
A reader that sees the old task with the new time thinks a limit began later than it did; it looks again anyway.
"""

from __future__ import annotations

import mmap

NBYTES = mmap.PAGESIZE
_BEGUN, _SINCE, _DONE, _MEMORY = 0, 1, 2, 3


class Board:
    """One worker's page, mapped."""

    __slots__ = ("_ids", "_map", "_times")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, NBYTES)
        self._ids = memoryview(self._map).cast("Q")
        self._times = memoryview(self._map).cast("d")

    def begin(self, task_id: int, now: float) -> None:
        """Stamp that a task begins; the time first, so that the id never stands beside an older time.

        What was done last may be an earlier run of this very task, so it is taken back.
        """
        self._times[_SINCE] = now
        self._ids[_DONE] = 0
        self._ids[_BEGUN] = task_id

    def done(self, task_id: int) -> None:
        """Stamp that a task's outcome was sent."""
        self._ids[_DONE] = task_id

    def stamp_memory(self, nbytes: int) -> None:
        """Stamp how much shared memory the worker holds for its results."""
        self._ids[_MEMORY] = nbytes

    def memory(self) -> int:
        """How much shared memory the worker holds for its results, in its own word."""
        return self._ids[_MEMORY]

    def read(self) -> tuple[int, float, int]:
        """The task begun last, since when, and that task again once its outcome was sent; 0 for none."""
        while True:
            begun = self._ids[_BEGUN]
            since, done = self._times[_SINCE], self._ids[_DONE]
            if begun == self._ids[_BEGUN]:
                return begun, since, done

    def close(self) -> None:
        """Unmap it. Idempotent."""
        self._ids.release()
        self._times.release()
        self._map.close()
