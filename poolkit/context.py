"""Context: what a running task may know of itself, by `poolkit.current_task()`.

Owner: the thread or process that runs the task; `request_stop` comes from the workforce.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable

from poolkit._clock import monotonic


class TaskContext:
    """What a running task may know of itself; `poolkit.current_task()` returns it.

    Attributes:
        id: the task's number in its pool.
        name: the task's name.
        attempt: 1 for the first run.
    """

    __slots__ = ("_clock", "_deadline", "_stop", "attempt", "id", "name", "worker_id")

    def __init__(
        self,
        task_id: int,
        name: str,
        attempt: int,
        deadline: float | None,
        clock: Callable[[], float] = monotonic,
        worker_id: int = 0,
    ) -> None:
        self.id = task_id
        self.name = name
        self.attempt = attempt
        self.worker_id = worker_id  # 0 in a process worker, which does not know
        self._deadline = deadline  # on `clock`
        self._clock = clock
        self._stop = False

    @property
    def cancelled(self) -> bool:
        """Whether the task was asked to stop. Thread kind only: a process is stopped without asking."""
        return self._stop

    def time_left(self) -> float | None:
        """Seconds until the run-time limit, at least 0.0; None without a limit."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def request_stop(self) -> None:
        """Set `cancelled`. Called by the workforce."""
        self._stop = True

    def __repr__(self) -> str:
        """Show id, name and attempt."""
        return f"<poolkit.TaskContext {self.id} {self.name!r} attempt={self.attempt}>"


# Set by the worker half around a call: what a context is made of, until somebody asks for it.
CURRENT: contextvars.ContextVar[TaskContext | tuple[int, bytes, int, float | None] | None] = contextvars.ContextVar(
    "poolkit_task", default=None
)


def current_task() -> TaskContext | None:
    """The context of the task that runs here; None outside a task. Does not block."""
    found = CURRENT.get()
    if type(found) is tuple:
        task_id, name, attempt, deadline = found
        found = TaskContext(task_id, name.decode("utf-8", "surrogatepass"), attempt, deadline)
        CURRENT.set(found)
    return found  # type: ignore[return-value]
