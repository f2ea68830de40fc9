"""Tasks without a pool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from poolkit.outcome import Outcome
from poolkit.task import Task


class Owner:
    """Stands for the pool."""

    def __init__(self, *, begun: bool = False) -> None:
        self.begun = begun
        self.cancels: list[Task[Any]] = []

    def cancel(self, task: Task[Any]) -> bool:
        self.cancels.append(task)
        return True

    def has_begun(self, _task: Task[Any]) -> bool:
        return self.begun

    def lead(self, task: Task[Any], timeout: float | None) -> None:
        """Nobody reads here."""

    def watch(self, _task: object) -> None:
        return

    def end_lease(self) -> None:
        """Nobody leads."""


def new_task(owner: Owner | None = None) -> Task[Any]:
    task: Task[Any] = Task(owner or Owner(), "name", None, None)
    task.id = 1
    return task


def value(payload: object) -> Outcome:
    return Outcome(payload, ok=True)


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `work` in a thread; its value or exception comes into the list."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as exc:
            found.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found
