"""In place: calls that run where they are made, inside a worker: waiting for other workers could wait for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from poolkit._child.chunk import run_chunk
from poolkit._child.coroutines import Ended
from poolkit._child.loop import run_here
from poolkit._engine.feed import Attempt
from poolkit.outcome import Outcome
from poolkit.task import Task, settled_task

T = TypeVar("T")


def run_in_place(name: str, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task[T]:
    """Run a call at once, and return a task that is done."""
    ok, value = run_here(fn, args, kwargs)
    if type(value) is Ended:
        raise value  # the task that this is a part of is to end
    return settled_task(name, Outcome(value, ok=ok))


class Here:
    """Runs the chunks of a `map` in place; the rest of one that nobody reads, when it is dropped."""

    def __init__(self, name: str) -> None:
        self._name = name

    def submit_chunk(
        self, fn: Callable[..., Any], items: list[Any], *, starred: bool, block: bool | None, late: bool
    ) -> Task[list[Any]]:
        """Run `fn` for each item."""
        del block, late
        return run_in_place(self._name, run_chunk, (fn, items), {"starred": starred})

    async def submit_chunk_async(
        self, fn: Callable[..., Any], items: list[Any], attempt: Attempt, *, starred: bool, late: bool
    ) -> None:
        """Run `fn` for each item."""
        attempt(self.submit_chunk(fn, items, starred=starred, block=None, late=late), lambda: True)

    def cancel_soon(self, task: Task[Any]) -> None:
        """Nothing is pending."""
