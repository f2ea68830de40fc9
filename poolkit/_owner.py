"""TaskOwner: what a task asks of the pool that accepted it."""

from __future__ import annotations

from collections.abc import Callable
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
