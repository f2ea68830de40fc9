"""Outcome: how a task ended, from the scheduler that decides it to the task that publishes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast


class Outcome:
    """The value or exception of a task, or that it was cancelled; decided once by the scheduler.

    `load`, when given, turns `payload` (bytes from a worker) into the value or exception when it is first read.
    """

    __slots__ = ("cancelled", "load", "ok", "payload")

    def __init__(
        self, payload: Any, *, ok: bool, load: Callable[[Any], Any] | None = None, cancelled: bool = False
    ) -> None:
        self.payload = payload
        self.ok = ok
        self.load = load
        self.cancelled = cancelled

    @classmethod
    def failure(cls, error: BaseException) -> Outcome:
        """An exception that is at hand."""
        return cls(error, ok=False)

    def error(self) -> BaseException | None:
        """The exception of a failure, unpickled if need be; None for a value or a cancellation."""
        if self.ok or self.cancelled:
            return None
        if self.load is not None:
            self.payload = self.load(self.payload)
            self.load = None
        return cast("BaseException", self.payload)


CANCELLED = Outcome(None, ok=False, cancelled=True)
