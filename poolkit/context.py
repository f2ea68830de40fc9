"""Context: what a running task may know of itself, by `poolkit.current_task()`.

Owner: the thread or process that runs the task; `request_stop` comes from the workforce.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable

from poolkit._clock import monotonic
from poolkit._typing import Any

WORKER: Any = None  # in a worker process its `Loop`, which the contexts of its tasks refer to; set as it boots

_NUMBERS = frozenset((int, float))
_NUMBERS_OR_NONE = _NUMBERS | {type(None)}
UNKNOWN = float("inf")  # the total of a run that has not told any


class Cell:
    """What a run has reported last: `values` are done and total; in a worker process, on the board."""

    __slots__ = ("__weakref__", "values")

    def __init__(self, done: float, total: float) -> None:
        self.values = values = memoryview(bytearray(16)).cast("d")
        values[0], values[1] = done, total


class TaskContext:
    """What a running task may know of itself; `poolkit.current_task()` returns it. Thread-safe, but for `receive`.

    Attributes:
        id: the task's number in its pool.
        name: the task's name.
        attempt: 1 for the first run.
    """

    __slots__ = (
        *("_cell", "_clock", "_deadline", "_started", "_stop"),
        *("attempt", "end", "id", "is_dedicated", "name", "worker_id"),
    )

    def __init__(  # noqa: PLR0913, PLR0917 -- what it tells
        self,
        task_id: int,
        name: str,
        attempt: int,
        deadline: float | None,
        clock: Callable[[], float] = monotonic,
        worker_id: int = 0,
        end: Any = None,
    ) -> None:
        self.id = task_id
        self.name = name
        self.attempt = attempt
        self.worker_id = worker_id  # 0 in a process worker, which does not know
        self._deadline = deadline  # on `clock`
        self._clock = clock
        self._stop = False
        self.end = end  # the worker's end of what is sent and told while the task runs
        self._cell: Cell | None = None  # once it has reported its progress
        self._started = 0.0  # in a worker process
        self.is_dedicated = False  # the target of a dedicated worker, for which no task of a pool waits

    @property
    def cancelled(self) -> bool:
        """Whether the task was asked to stop: on a thread, as a stream that was closed, or as a coroutine.

        Whatever else runs in a process is killed.
        """
        return self._stop or (self.end is not None and self.end.is_told_to_end(self.id))

    def time_left(self) -> float | None:
        """Seconds until the run-time limit, at least 0.0; None without a limit. Does not block."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def send(self, message: object) -> None:
        """Send a message to whoever has the task: see `Task.messages` and `Task.on_message`.

        Packed and written before this returns. Thread-safe. Blocks while too many are not taken.

        Raises:
            SerializationError: it cannot be pickled.
        """
        if self.end is None:
            msg = "send() needs a worker: this task runs in a process that a task has forked"
            raise RuntimeError(msg)
        self.end.mail().send(self.id, message)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message that `Task.send` has left. Blocks for at most `timeout` seconds; 0 looks only.

        In the task's own thread. The time counts as run time.

        Raises:
            TypeError, ValueError: the timeout makes no sense.
            TimeoutError: there was none after `timeout` seconds.
        """
        if timeout is not None and not timeout >= 0:
            msg = f"timeout must be at least 0 seconds (None means for ever), was {timeout!r}"
            raise ValueError(msg)
        return self.end.mail().receive(self.id, timeout)

    async def receive_async(self) -> Any:
        """Return the next message, without blocking the event loop; in `async def` tasks, in their thread."""
        return await self.end.mail().receive_async(self.id)

    def progress(self, done: float, total: float | None = None) -> None:
        """Tell how far the task is, for `Task.progress`: `done` of `total`, in any unit. Costs next to nothing.

        From any thread of the task's process, while the task runs; a forked child tells nobody. Does not block.

        Raises:
            TypeError: a value is no number.
            ValueError: a value is NaN, or too large for a float.
        """
        # Numbers that differ from themselves are NaN.
        if type(done) not in _NUMBERS or type(total) not in _NUMBERS_OR_NONE or done != done or total != total:  # noqa: PLR0124
            done, total = _number("done", done), None if total is None else _number("total", total)
        cell = self._cell
        if cell is None:
            cell = self._cell = self._first_cell(done, UNKNOWN if total is None else total)
        values = cell.values
        values[1] = UNKNOWN if total is None else total
        values[0] = done

    def _first_cell(self, done: float, total: float) -> Cell:
        return self.end.cell(self._started, done, total) if self._started else Cell(done, total)

    def reported(self) -> tuple[float, float] | None:
        """What `progress` was told last, a total that was not told as `UNKNOWN`. Called by the workforce."""
        return None if self._cell is None else tuple(self._cell.values)  # type: ignore[return-value]

    def request_stop(self) -> None:
        """Set `cancelled`. Called by the workforce."""
        self._stop = True

    def __repr__(self) -> str:
        """Show id, name and attempt."""
        return f"<poolkit.TaskContext {self.id} {self.name!r} attempt={self.attempt}>"


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        msg = f"{name} must be a number, was {value!r}"
        raise TypeError(msg)
    number = float(value)
    if number != number:  # noqa: PLR0124 -- as above
        msg = f"{name} must be a number, was {value!r}"
        raise ValueError(msg)
    return number


# Set by the worker half around a call: what a context is made of, until somebody asks for it.
CURRENT: contextvars.ContextVar[TaskContext | tuple[int, bytes, int, float | None, float] | None] = (
    contextvars.ContextVar("poolkit_task", default=None)
)


def current_task() -> TaskContext | None:
    """The context of the task that runs in this thread; None outside a task. Does not block."""
    found = CURRENT.get()
    if type(found) is tuple:
        task_id, name, attempt, deadline, started = found
        found = TaskContext(task_id, name.decode("utf-8", "surrogatepass"), attempt, deadline, end=WORKER)
        found._started = started  # noqa: SLF001 -- of this file
        CURRENT.set(found)
    return found  # type: ignore[return-value]
