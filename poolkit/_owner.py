"""TaskOwner: what a task asks of the pool that accepted it; Arrivals: what may be waited for instead of one task."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol


class TaskOwner(Protocol):
    """What a task asks of the pool that accepted it."""

    def cancel(self, task: Any) -> bool:
        """Cancel `task`; False when it was settled already."""

    def has_begun(self, task: Any) -> bool:
        """Tell whether a worker has begun to run `task`."""

    def lead(self, task: Any, timeout: float | None) -> None:
        """Read results, for at most `timeout` seconds, until `task` has its own. May return at any moment. Blocks."""

    def end_lease(self) -> None:
        """See to it that outcomes are published without anybody leading."""

    def watch(self, task: Any) -> tuple[int, Callable[[], bool]] | None:
        """What an event loop may watch and call to read results; see `poolkit/awaiting.py`."""


class Arrivals(SimpleQueue[None]):
    """Rung when a chunk is done; for `TaskOwner.lead`, what is done when any of them is. One thread waits for it."""

    _waker: Callable[[], object] | None = None

    def ring(self, _task: object) -> None:
        """Take a note, and wake who waits."""
        self.put(None)
        waker = self._waker
        if waker is not None:
            waker()

    def add_waker(self, waker: Callable[[], object]) -> object:
        """Have `waker` called when it is rung; return None where it was."""
        self._waker = waker
        return None if self.done() else self

    def remove_done_callback(self, _waker: object) -> None:
        """Have nobody called any more."""
        self._waker = None

    def done(self) -> bool:
        """Return True if it was rung since it was last cleared."""
        return not self.empty()

    def clear(self) -> None:
        """Forget what was noted. For the one who waits."""
        while not self.empty():
            self.get()
