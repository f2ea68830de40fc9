"""The Workforce protocol: what the scheduler orders, what comes back as reports, and what a worker can be.

Orders are carried out at once and must not block, log, or call user code: they are given under the pool's lock.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from poolkit._core.records import record
from poolkit.outcome import Outcome
from poolkit.task import Progress, Task

AnyTask = Task[Any]

# What takes down what happens, at once and without a lock, while somebody traces the pool. In seconds of its clock.
#   (worker, task, name, attempt, submitted, began, ended, how)   a run ended: None for a value, else the class of its
#       error, or that error as a worker packed it
#   (time, worker, what, more)                                    a worker has started, or is gone
#   (time, unsettled, busy)                                       how many tasks and workers those are from now on
Recorder = Callable[[tuple[Any, ...]], object]


class Workforce(Protocol):
    """All workers of one kind. Workers are named by numbers that the scheduler gives and never gives twice."""

    max_batch: int  # the most tasks of one message; 1 where sending ahead gains nothing
    programs: Workforce | None = None  # what runs its commands, each as a worker of its own; once there was one
    ends_coroutines: bool  # whether a run of a coroutine function can be told to end
    runs_only_calls: bool = False  # no streams
    keeps_limits: bool = False  # it sees to limits on time and memory itself, and what it was sent counts as begun

    def start(self, worker_id: int) -> None:
        """Start a worker, unless that was ordered before; `Ready`, `BootFailed` or `Died` will be reported."""

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        """Send tasks, to be claimed and run in this order. With `announce` each beginning is reported as `Begun`.

        Something is added to `written` by the same instruction after which the worker has them all. Where an exception
        came later, a call without tasks goes on with what may be left to do.
        """

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        """Take back all tasks that the worker has not claimed, and add something to `taken` for each.

        Those are the last ones that were sent. If there are any, the worker is told, which is noted in `told`, and
        reports `Drained` when it has dropped them; nothing may be sent to it before. Called again with the same lists,
        it goes on where an exception interrupted it.
        """

    def status(self, worker_id: int) -> Status:
        """What the worker says of itself on the board, without a message."""

    def progress(self, worker_id: int, task: AnyTask) -> Progress | None:
        """What `task` has reported last in the run that is awaited; None if that is not, or no more, to be seen."""

    def memory(self, worker_id: int) -> int | None:
        """Bytes of memory that the worker has for itself, as the system says; None when that cannot be known."""

    def forget(self, worker_id: int) -> None:
        """Let go of what was kept for a worker that died, after its last tasks were reclaimed. Idempotent."""

    def stop(self, worker_id: int) -> None:
        """Ask a worker that has nothing to do to leave; `Died` will be reported."""

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        """Tell a worker how many items of the stream that it runs were taken, in all."""

    def mail(self, worker_id: int, task_id: int, mail: deque[Any]) -> None:
        """Send a worker what is for the task that it runs, and empty `mail`."""

    def end(self, worker_id: int, task: AnyTask) -> None:
        """Tell a worker that the task that it runs is to end by itself; `Finished` will be reported, or nothing."""

    def finish(self, worker_id: int, grace: float) -> None:
        """End a program, by SIGKILL after `grace` seconds; what it did is its result. Not for workers."""

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """End a worker by force, with every program that its tasks started; `Died` will be reported.

        With `want_stack` it is asked for its Python stack first, for a few milliseconds at most. Idempotent.
        """


class Status:
    """What a worker's board says: its own word, and a worker that runs hostile code may write there what it likes.

    Attributes:
        begun: id of the task that it began last; 0 for none.
        since: when it began it.
        done: id of the task that it began last, once its outcome was sent; while it runs one, anything else. So a
            worker that begins a task for the second time takes back the first `done`.
        made: since when a stream makes its next item, or has ended; inf while it waits for room. While a coroutine
            runs that can be told to end, less than zero; else earlier than `since`.
    """

    __slots__ = ("begun", "done", "made", "since")

    def __init__(self, begun: int = 0, since: float = 0.0, done: int = 0, made: float = 0.0) -> None:
        self.begun = begun
        self.since = since
        self.done = done
        self.made = made

    def is_done(self, task: AnyTask) -> bool:
        """Whether the outcome of `task` was sent: of the run that is awaited, not of one that failed before."""
        return self.done == task.id and self.since != task.started_at

    def running_since(self, task_id: int, now: float) -> float | None:
        """When the worker began this task, if it runs it; never after `now`, and always a number."""
        if self.begun != task_id or self.done == task_id:
            return None
        return min(now, self.since)  # in this order: of a NaN and a number, `min` takes the first

    def limited_since(self, task_id: int, now: float) -> float | None:
        """Since when the run-time limit of this task counts: of a stream, for one item, and not while it waits."""
        since = self.running_since(task_id, now)
        return None if since is None else min(now, max(since, self.made))

    def ends_by_itself(self, task_id: int) -> bool:
        """Whether the worker runs this task, a coroutine, which can be told to end."""
        return self.made < 0.0 and self.begun == task_id and self.done != task_id

    def is_stalled(self, task_id: int) -> bool:
        """Whether the worker runs this task, a stream, which waits for room for its items."""
        return self.made == math.inf and self.begun == task_id and self.done != task_id


class WorkerState(enum.IntEnum):
    """What the scheduler may do with a worker.

    STARTING -> IDLE      it reported that it is ready and initialised
    IDLE     -> BUSY      tasks were sent              BUSY -> IDLE   nothing that was sent is unfinished or undropped
    IDLE     -> STOPPING  asked to leave               any  -> DYING  killed, for its kill_reason
    BUSY     -> STALLED   its stream waits for its reader, and another task for its place    STALLED -> BUSY, IDLE
    IDLE     -> LENT      a program has its place                                            LENT    -> IDLE
    any      -> removed   it died, was stopped or was abandoned

    Only the roster moves a worker from one to the next.
    """

    STARTING = 0
    IDLE = 1
    BUSY = 2
    STOPPING = 3
    DYING = 4
    STALLED = 5
    LENT = 6


NAMES = 1024  # functions that are remembered of one worker

STARTING, IDLE, BUSY, STOPPING, DYING, STALLED, LENT = WorkerState  # see `poolkit/task.py`


@record(frozen=True)
class KillReason:
    """Why a worker is killed, and for which task: that one alone gets the outcome of it, or a retry in its place."""

    task: AnyTask | None
    # One of "timeout", "deadline", "memory", "cancelled", "shrunk", "shutdown", "unresponsive".
    reason: str
    used: int = 0  # for "memory": what the worker had, in bytes


class Worker:
    """The scheduler's record of one worker, or of a program, which is a worker for one task.

    Guarded by: the pool's one lock.
    """

    def __init__(self, worker_id: int, limit: int | None, now: float, workforce: Workforce) -> None:
        self.id = worker_id
        self.workforce = workforce  # that it is of
        self.is_program = False
        self.is_spare = False  # see `Ready`
        self.lender: Worker | None = None  # whose place a program has
        self.state = STARTING
        self.sent: deque[AnyTask] = deque()  # sent, no outcome yet; those it has claimed first
        self.sent_count = 0  # tasks sent and not taken back, over its life
        self.tasks_done = 0
        self.limit = limit  # recycle after so many tasks
        self.leave: str | None = None  # why it is to leave when it has nothing to do: "recycled", "shrunk", "idle"
        self.replaced = False  # its replacement is up, or it needs none: it takes nothing more
        self.counted = True  # whether it counts towards the pool's size
        # What it is being sent, with a list that is empty until it has that; what is being taken back, see `reclaim`.
        self.sending: tuple[list[AnyTask], list[Any]] | None = None
        self.reclaiming: tuple[list[Any], list[Any], int] | None = None
        self.draining = False  # tasks were reclaimed, and it has not yet reported that it dropped them
        self.has_run: set[Any] = set()  # functions whose run time it may tell
        self.kill_reason: KillReason | None = None
        self.check_at: float | None = (
            None  # a timer is set for then, to look at its first task's limits on time and memory
        )
        self.gave_way = False  # it has given its place away, to another task
        self.unbegun = 0  # the task that it was found not to have begun
        self.pid: int | None = None
        self.rss_before = 0  # bytes of memory, when it was sent its last task with a limit on that
        self.since = now
        self.ready_at = 0.0  # once it is
        self.idle_since = now  # or since it starts

    def runs_first(self, function: Any) -> None:
        """Take down that it ran a function: the first run may have had to import, and says little about the next."""
        if len(self.has_run) >= NAMES:
            self.has_run.clear()
        self.has_run.add(function)


# ===== reports: what the workers have to say; the scheduler's events =====


@record(frozen=True)
class Ready:
    """A worker is up and initialised."""

    worker_id: int
    pid: int | None
    is_spare: bool = False  # it is to be given something only where no other is idle


class BootFailed:
    """The initializer, or a module to preload, raised. `text` describes it, now: its `__str__` is the user's code."""

    def __init__(self, worker_id: int, error: BaseException) -> None:
        self.worker_id = worker_id
        self.error = error
        try:
            self.text = f"{type(self.error).__name__}: {self.error}"
        except Exception:  # noqa: BLE001 -- it is the user's class
            self.text = f"{type(self.error).__name__} (its str() raises too)"


@record(frozen=True)
class Begun:
    """A worker began a task; sent only where it was asked for."""

    worker_id: int
    task_id: int


@record(frozen=True)
class Asked:
    """A task that runs asks for what was sent to it."""

    worker_id: int
    task_id: int


class Finished(Outcome):
    """A worker finished a task: the outcome, and of which run."""

    __slots__ = ("ended", "rss", "started", "task_id", "worker_id")

    def __init__(  # noqa: PLR0913, PLR0917 -- a report
        self,
        worker_id: int,
        task_id: int,
        started: float,
        ended: float,
        rss: int,
        payload: Any,
        ok: bool,
        load: Callable[[Any], Any] | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.task_id = task_id
        self.started = started
        self.ended = ended
        self.rss = rss  # bytes, 0 when not measured
        self.payload = payload
        self.ok = ok
        self.load = load
        self.cancelled = False


@record(frozen=True)
class Progressed:
    """What a task has reported last; comes before its outcome."""

    worker_id: int
    task_id: int
    progress: Progress


@record(frozen=True)
class Logged:
    """A worker logged something, in a task or in none (0). Not for the scheduler, which never sees it."""

    worker_id: int
    task_id: int
    payload: bytes | bytearray


@record(frozen=True)
class Drained:
    """A worker dropped all that was reclaimed from it, and is idle."""

    worker_id: int


@record(frozen=True)
class Returned:
    """A worker has begun nothing of the one task that it was sent, and gives it back."""

    worker_id: int
    task_id: int


@record(frozen=True)
class Died:
    """A worker is gone: it crashed, was killed, left, or (a thread that would not stop) was abandoned."""

    worker_id: int
    exitcode: int | None = None
    signal: str | None = None
    pid: int | None = None
    peak_rss: int | None = None
    stack: str = ""
    hint: str = ""
    abandoned: bool = False
    output: str = ""
    completed: Any = None  # of a program that was ended: what it did
    # What to tell of the task that it ran, a WorkerCrashed if that is to be retried as one; None: what the rest says.
    error: BaseException | None = None
    cause: str | None = None  # "timeout", "memory": the limit for which its workforce has killed it by itself


Report = Ready | BootFailed | Begun | Asked | Finished | Progressed | Logged | Drained | Returned | Died


# ===== events: what users may listen to =====


@record(frozen=True)
class WorkerStarted:
    """A worker is up and initialised."""

    worker_id: int
    pid: int | None


@record(frozen=True)
class WorkerExited:
    """A worker is gone; `cause` is "crashed", "stopped", "recycled", "shrunk", "idle" or a kill_reason's reason."""

    worker_id: int
    pid: int | None
    exitcode: int | None
    signal: str | None
    cause: str


@record(frozen=True)
class TaskStarted:
    """A worker began the task."""

    task: AnyTask
    worker_id: int


@record(frozen=True)
class TaskDone:
    """The task has its outcome."""

    task: AnyTask


@record(frozen=True)
class TaskRetried:
    """The task failed with `error` and will run again after `delay` seconds."""

    task: AnyTask
    error: BaseException
    delay: float


PoolEvent = WorkerStarted | WorkerExited | TaskStarted | TaskDone | TaskRetried

EVENT_NAMES: dict[str, type] = {
    "worker_started": WorkerStarted,
    "worker_exited": WorkerExited,
    "task_started": TaskStarted,
    "task_done": TaskDone,
    "task_retried": TaskRetried,
}
