"""Slate: a page of memory that a cluster and one of its workers share, in place of messages about what is on it.

Eight aligned bytes a field, each stored in one go and written by one side only. A worker that scribbles on its slate
lies about itself alone.

    the owner    no_more       give the server no connection
                 is_waited_for ring the acceptor's bell at the next accept
    the worker   ready, alive  since when it is served, by its word; when it was last seen to do something
                 served, taken, closed    requests; connections that were accepted, and of these closed

Guarantees: a count is kept in this process by the instruction that adds to it, whatever thread, finalizer or signal
handler does so; the page shows it at the latest with the next one. In a forked child nothing is counted.
Locks: one, re-entrant for finalizers, held for a few instructions; nothing is called under it.
"""

from __future__ import annotations

from itertools import starmap
from os import getpid

from poolkit._locks import RLock
from poolkit._typing import Any

_NO_MORE, _IS_WAITED_FOR, _READY, _ALIVE, _SERVED, _TAKEN, _CLOSED = range(7)
_MANY = 64  # additions to a count that are put together into one


class Slate:
    """One worker's page, over any writable memory of at least `SIZE` bytes."""

    SIZE = 64

    def __init__(self, buffer: Any) -> None:
        """Take the memory; what stands there stays."""
        self._use(buffer)
        self._pid = getpid()
        self._lock = RLock()
        self._counts = {field: [self._words[field]] for field in (_SERVED, _TAKEN, _CLOSED)}  # of each the sum counts
        self._is_folding = False

    def _use(self, buffer: Any) -> None:
        view = memoryview(buffer).cast("B")[: self.SIZE]
        self._words, self._times = view.cast("Q"), view.cast("d")

    # ===== what the owner says =====

    @property
    def no_more(self) -> bool:
        """Whether the worker is to accept no more connections."""
        return self._words[_NO_MORE] != 0

    @no_more.setter
    def no_more(self, value: bool) -> None:
        self._words[_NO_MORE] = value

    @property
    def is_waited_for(self) -> bool:
        """Whether the acceptor waits until this worker has accepted a connection."""
        return self._words[_IS_WAITED_FOR] != 0

    @is_waited_for.setter
    def is_waited_for(self, value: bool) -> None:
        self._words[_IS_WAITED_FOR] = value

    # ===== what the worker says =====

    @property
    def ready(self) -> bool:
        """Whether the worker accepts connections."""
        return self._words[_READY] != 0

    @ready.setter
    def ready(self, value: bool) -> None:
        self._words[_READY] = value

    @property
    def alive(self) -> float:
        """When it was last seen to do something, by the monotonic clock; 0.0: never."""
        return self._times[_ALIVE]

    @alive.setter
    def alive(self, value: float) -> None:
        self._times[_ALIVE] = value

    @property
    def served(self) -> int:
        """How many requests it has counted."""
        return self._words[_SERVED]

    @property
    def taken(self) -> int:
        """How many connections it has accepted."""
        return self._words[_TAKEN]

    @property
    def closed(self) -> int:
        """How many of these it has closed."""
        return self._words[_CLOSED]

    def count(self, n: int = 1) -> None:
        """Count so many requests. Thread-safe."""
        self._add(_SERVED, [n])

    def took(self, once: list[int] | None = None) -> None:
        """Count a connection that was accepted. Thread-safe; for `once` see `closed_one`."""
        self._add(_TAKEN, [1] if once is None else once)

    def closed_one(self, once: list[int] | None = None) -> None:
        """Count a connection that was closed. Thread-safe; also for finalizers and signal handlers.

        A list with a 1 is empty from the instruction on that counts it; an empty one counts nothing.
        """
        self._add(_CLOSED, [1] if once is None else once)

    def _add(self, field: int, amount: list[int]) -> None:
        if getpid() != self._pid or not amount:
            return
        with self._lock:
            parts = self._counts[field]
            try:
                parts += starmap(amount.pop, ((),))  # taken and counted, or neither
            except IndexError:  # another thread was faster
                return
            if len(parts) > _MANY and not self._is_folding:
                self._is_folding = True  # who interrupts this adds, and leaves the rest alone
                try:
                    parts[:_MANY] = [sum(parts[:_MANY])]
                finally:
                    self._is_folding = False
            while self._words[field] != (total := sum(parts)):
                self._words[field] = total  # an older one, where this was interrupted: hence the second look

    def close(self) -> None:
        """Give the memory back to who has mapped it. What comes later is written nowhere. Idempotent."""
        words, times = self._words, self._times
        self._use(bytearray(words.tobytes()))
        words.release()
        times.release()
