"""TaskOwner: what a task asks of the pool that accepted it; Target: what may be waited for instead of a task."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


class TaskOwner(Protocol):
    """What a task asks of the pool that accepted it."""

    def cancel(self, task: Any) -> bool:
        """Cancel `task`; False when it was settled already."""

    def has_begun(self, task: Any) -> bool:
        """Tell whether a worker has begun to run `task`."""

    def note_progress(self, task: Any) -> None:
        """Set `reported` to what the running `task` has reported last, if there is something."""

    def lead(self, task: Any, timeout: float | None) -> None:
        """Read results, for at most `timeout` seconds, until `task` has its own. May return at any moment. Blocks."""

    def send(self, task: Any, message: object) -> bool:
        """Send `task` a message; False when it is done."""

    def deliver(self, exchange: Any, entry: Any) -> None:
        """Have the callback for messages called."""

    def say_if_stuck(self, task: Any) -> None:
        """Log, once, if `task` waits until something that it has sent is taken: nobody does, but waits for it."""

    def end_lease(self) -> None:
        """See to it that outcomes are published without anybody leading."""

    def watch(self, task: Any) -> tuple[int, Callable[[], bool]] | None:
        """What an event loop may watch and call to read results; see `poolkit/awaiting.py`."""


class Target(Protocol[T_co]):
    """What can be waited for."""

    def done(self) -> bool:
        """Whether there is nothing to wait for."""

    def exception(self) -> BaseException | None:
        """What `result` raises, once it is done. May raise it instead."""

    def result(self) -> T_co:
        """What the wait returns, once it is done."""

    def cancel(self) -> object:
        """The wait was cancelled. Does not block."""

    def add_waker(self, waker: Callable[[Any], object], /) -> TaskOwner | None:
        """Have `waker(self)` called once it is done, at once if it is, in any thread; maybe more than once.

        Returns the pool that is to be read from meanwhile, if any.
        """


class Arrivals(SimpleQueue[None]):
    """Rung when a chunk is done; for `TaskOwner.lead`, what is done when any of them is. One thread waits for it.

    Or one coroutine, as if for a task (`waiting.py`); cancelling that wait changes nothing.
    """

    owner: TaskOwner | None = None  # of the chunks
    _waker: Callable[[Any], object] | None = None

    def ring(self, _task: object = None) -> None:
        """Take a note, and wake who waits."""
        self.put(None)
        waker = self._waker
        if waker is not None:
            waker(self)

    def add_waker(self, waker: Callable[[Any], object]) -> TaskOwner | None:
        """Have `waker` called when it is rung, at once if it was; for the rest see `LazyFuture`."""
        self._waker = waker
        if not self.done():  # since then: who rings sees the one or the other
            return self.owner
        waker(self)
        return None

    def remove_done_callback(self, _waker: object) -> None:
        """Have nobody called any more."""
        self._waker = None

    def done(self) -> bool:
        """Return True if it was rung since it was last cleared."""
        return not self.empty()

    def exception(self) -> None:
        """Return None: ringing is all that is waited for."""

    result = exception

    def cancel(self) -> None:
        """Have nobody called any more."""
        self._waker = None

    def clear(self) -> None:
        """Forget what was noted. For the one who waits."""
        while not self.empty():
            self.get()
