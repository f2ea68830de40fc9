"""Task: the handle of one accepted call, a Future that can be awaited, under asyncio and under trio.

Fields in the task, and who may touch them:
  the handle      id, name, options, call ...   frozen after __init__, but for what the scheduler drops when it settles
  the scheduler's phase, worker_id, attempts ... guarded by: the pool's one lock
  the future's    see `poolkit/future.py`
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from poolkit import waiting
from poolkit._owner import TaskOwner
from poolkit.context import UNKNOWN
from poolkit.future import CANCELLED, FINISHED, PENDING, LazyFuture, WaitTimeout
from poolkit.outcome import Outcome

if TYPE_CHECKING:
    from poolkit.exchange import Messages
else:
    Messages = Any  # for those who look at the annotations: most tasks say nothing

T = TypeVar("T")

SILENT_FOR = 1.0  # seconds that may be waited for a result without a word on what it waits for


class TaskPhase(enum.IntEnum):
    """Where the scheduler holds a task; every task is in exactly one place.

    QUEUED  -> SENT     dispatched to a worker           SENT -> QUEUED   reclaimed before it began
    SENT    -> WAITING  it failed and is to be retried   WAITING -> QUEUED   its back-off is over
    any     -> SETTLED  an outcome was decided; for ever
    """

    QUEUED = 0
    WAITING = 1
    SENT = 2
    SETTLED = 3


QUEUED, WAITING, SENT, SETTLED = TaskPhase  # to look a member up in its class takes ten times as long


class Progress(NamedTuple):
    """How far a task says that it is: `done` of `total`, in its own unit; None for a total that it has not told."""

    done: float
    total: float | None = None

    @property
    def fraction(self) -> float | None:
        """How much of it is done, from 0.0 to 1.0; None while the total is not known."""
        if self.total is None:
            return None
        if self.total <= 0:
            return 1.0
        return min(1.0, max(0.0, self.done / self.total))

    @classmethod
    def reported(cls, done: float, total: float) -> Progress:
        """Make it of what a worker has reported; see `poolkit/context.py`."""
        return cls(float(done), None if total == UNKNOWN else float(total))


class Task(LazyFuture[T]):
    """One accepted call: a `concurrent.futures.Future` that can also be awaited, under asyncio, trio and anyio.

    Thread-safe. Attributes set by the pool:
        id: number of the task in its pool, from 1.
        name: the function's qualified name, or the `name` option.
        attempts: how many runs of it began.
        worker_id: the worker that runs or ran it last, or None.
        node: the address of the node that runs or ran it last; None where there are none.
    """

    is_fake = False  # one of a fake pool, which nobody runs but who waits for it
    # These are no slots, as few tasks have another value.
    program: Any = None  # of a command: its last run, once there is one
    late = False  # the rest of a `map`, accepted also where a graceful shutdown has begun
    node: str | None = None  # the address of the node that runs or ran it last, of a pool on several machines
    told = False  # that it waits for who waits for it
    reported: Progress | None = None  # what it was last known to have reported; guarded by: the pool's one lock

    __slots__ = (
        "attempt",
        "attempts",
        "code",
        "deaths",
        "ended_at",
        "exchange",
        "id",
        "incoming",
        "name",
        "nbytes",
        "options",
        "phase",
        "started_at",
        "submitted_at",
        "worker_id",
    )

    def __init__(
        self, owner: TaskOwner | None, name: str, call: Any, options: Any, nbytes: int = 0, code: Any = None
    ) -> None:
        # No super().__init__(): it would build the Condition that this class exists to avoid.
        self._state = PENDING
        self._cond = None
        self._waiting = None
        self._callbacks = None
        self._wakers = None
        self._result = None
        self._exception = None
        self._load = None  # what unpickles the outcome; while a thread does that, its number
        self._ok = False
        self._owner = owner
        self.id = 0
        self.name = name
        self.call = call
        self.nbytes = nbytes
        self.code = code  # of the function
        self.options = options
        self.phase = QUEUED
        self.attempts = 0
        self.attempt = 1  # the number of the run that it was sent for
        self.incoming: Any = None  # the items of a stream, see `incoming.py`
        self.exchange: Any = None  # messages, once there are any: see `exchange.py`
        self.deaths = 0  # workers that died before they began it, and had nothing else to die of
        self.worker_id: int | None = None
        self.submitted_at = 0.0
        self.started_at: float | None = None
        self.ended_at: float | None = None

    # ===== what users ask =====

    def cancel(self) -> bool:
        """Cancel a queued task, or stop a running one. Thread-safe; does not block.

        Returns:
            True if the task will not deliver a result, False if it was already done.
        """
        owner = self._owner
        if owner is None:
            return self._state == CANCELLED
        return owner.cancel(self) or self._state == CANCELLED

    def messages(self) -> Messages:
        """Return what the task sends by `current_task().send`: an iterator and async iterator that ends with the task.

        The same object each time. Until somebody asks for them, 10,000 messages or 16 MiB are kept; then the task waits
        when there are more. Thread-safe; does not block.
        """
        return self.open_exchange().read(self)  # type: ignore[no-any-return]

    def on_message(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(message)` for each message, on the pool's callback thread, earlier ones first.

        Every call has returned when `result()` returns, unless the task was just ending when this was called. What it
        raises is logged. Thread-safe; does not block.
        """
        if not callable(callback):
            msg = f"callback must be something to call, was {callback!r}"
            raise TypeError(msg)
        exchange, owner = self.open_exchange(), self._owner
        exchange.listen(callback, _call_here if owner is None else owner.deliver)

    def send(self, message: object) -> bool:
        """Send the task a message, for `current_task().receive()`; False when it is done. Thread-safe; does not block.

        Packed on this thread, and kept until the task asks.

        Raises:
            QueueFull: 1,000 messages are kept.
            SerializationError: it cannot be pickled.
        """
        owner = self._owner
        return owner is not None and owner.send(self, message)

    def open_exchange(self) -> Any:
        """Return what keeps the messages, which is made when it is first asked for."""
        from poolkit.exchange import exchange_of  # noqa: PLC0415 -- most tasks say nothing

        return exchange_of(self)

    def running(self) -> bool:
        """Tell whether a worker runs the task now. Thread-safe; does not block."""
        return self.state == "running"

    @property
    def state(self) -> str:
        """One of "queued", "running", "succeeded", "failed", "cancelled"."""
        if self._state is PENDING:
            owner = self._owner
            return "running" if owner is not None and owner.has_begun(self) else "queued"
        if self._state == CANCELLED:
            return "cancelled"
        return "failed" if self.exception() is not None else "succeeded"

    @property
    def progress(self) -> Progress | None:
        """How far it is, by `current_task().progress()`; of a task that ended, the last. Does not block.

        None for a task that has reported nothing in this run of it.
        """
        owner = self._owner
        if owner is not None and self._state is PENDING:
            owner.note_progress(self)
        return self.reported

    @property
    def wait_time(self) -> float | None:
        """Seconds from `submit` until the last run began; None when the task is not known to have begun."""
        return None if self.started_at is None else max(0.0, self.started_at - self.submitted_at)

    @property
    def run_time(self) -> float | None:
        """Seconds the last run took; None until it ended."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0.0, self.ended_at - self.started_at)

    def _get_snapshot(self) -> tuple[bool, bool, T | None, BaseException | None]:
        """Whether it is done, or cancelled, result and exception: what asyncio copies from CPython 3.15 on."""
        if self._state is PENDING:
            return False, False, None, None
        if self._state == CANCELLED:
            return True, True, None, None
        error = self.exception()
        return True, False, None if error is not None else self.result(), error

    __await__ = waiting.begin  # one call less than by a method

    def leave_parent(self) -> None:
        """Be a copy in a forked child."""
        super().leave_parent()
        for each in filter(None, (self.incoming, self.exchange)):
            each.leave_parent()

    def _wait_aloud(self, timeout: float | None) -> float | None:
        """Wait for a second; if the task waits for something to be taken meanwhile, and nobody does, that is logged.

        Returns for how many seconds to wait on.
        """
        owner = self._owner
        if owner is None or self.is_fake or self.told or (timeout is not None and timeout <= SILENT_FOR):
            return timeout
        before = self._taken()
        try:
            self._wait(SILENT_FOR)
        except WaitTimeout:
            if before == self._taken():
                owner.say_if_stuck(self)
        return None if timeout is None else max(0.0, timeout - SILENT_FOR)

    def is_taken(self) -> bool:
        """Tell whether some of what it has given was taken, so that it cannot run again."""
        return self.incoming is not None and bool(self.incoming.come)

    def _taken(self) -> tuple[int, int]:
        """How many items, and messages, were taken."""
        items, messages = self.incoming, self.exchange
        return items.handed_out() if items is not None else 0, messages.gone if messages is not None else 0

    def has_failed(self) -> bool:
        """Tell whether it ended with an error, without unpickling what it gave."""
        return self._state == FINISHED and not self._ok

    def forget_result(self) -> None:
        """Drop a result that was read, for a reader who has the only handle."""
        self._result = None

    def __repr__(self) -> str:
        """Show id, name and state."""
        if self._state is PENDING:
            state = self.state
        elif self._state == CANCELLED:
            state = "cancelled"
        else:
            state = "succeeded" if self._ok else "failed"
        return f"<poolkit.Task {self.id} {self.name!r} {state}>"

    def __reduce__(self) -> NoReturn:
        """Refuse: a task belongs to the process that submitted it."""
        msg = f"{self!r} cannot be pickled: pass its result, or submit the follow-up from the process that owns it"
        raise TypeError(msg)

    @property
    def function(self) -> int:
        """What its run time says something about.

        By code and name: decorators make functions of one code, and lambdas have one name.
        """
        return id(self.code) ^ hash(self.name)

    def _why_cancelled(self) -> str:
        how = "before it began" if self.attempts == 0 else f"in attempt {self.attempts}"
        return f"task {self.id} ({self.name}) was cancelled {how}"


def _call_here(exchange: Any, entry: Any) -> None:
    """Call a callback of a task that is done, on the thread that adds it."""
    try:
        exchange.call_back(entry)
    except Exception:
        import logging  # noqa: PLC0415 -- only when something is wrong

        logging.getLogger("poolkit").exception("a callback for messages of a task raised")


def settled_task(name: str, outcome: Outcome) -> Task[Any]:
    """Make a task that is done already and belongs to no pool."""
    task: Task[Any] = Task(None, name, None, None)
    task.phase = SETTLED
    task.publish(outcome)
    return task
