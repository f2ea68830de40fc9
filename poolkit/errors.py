"""The errors poolkit raises, drawn as one tree.

    PoolkitError
    ├── TaskTimeout          (TimeoutError)        a begun task passed its run-time limit
    ├── QueueTimeout         (TimeoutError)        a task waited in the queue longer than allowed
    ├── DeadlineExceeded     (TimeoutError)        a task's deadline passed, queued or running
    ├── MemoryLimitExceeded  (MemoryError)         a task grew beyond its memory limit
    ├── WorkerCrashed        (BrokenProcessPool)   the worker died while it ran the task
    │   └── NodeLost                               the node that ran the task is gone
    ├── InitializerFailed    (BrokenProcessPool)   the pool's initializer raised; the cause is chained
    ├── TaskCancelled        (CancelledError)      the task was cancelled
    ├── RemoteError                                stands in for an exception that cannot be rebuilt here
    ├── SerializationError   (PicklingError)       an argument or a result cannot be pickled
    ├── CommandFailed        (CalledProcessError)  a program exited with a code that was not asked for, or was killed
    │   └── OutputLimitExceeded                    it wrote more than was to be kept, and was stopped
    ├── QueueFull                                  the bounded queue has no room and blocking was not wanted
    ├── ChannelClosed        (EOFError)            the channel of a dedicated worker has come to its end
    ├── NoNodes              (TimeoutError)        no node was there while work was queued
    ├── VersionMismatch                            a node has other versions, and is not used
    └── PoolClosed           (RuntimeError)        used after shutdown, or in a forked child of the owner

Every error is picklable: the message is its one positional argument, its facts are attributes.
Those that are also errors of the standard library's futures, or of `subprocess`, are made at their first use (PEP 562),
in `_cancelled.py`, `_broken.py` and `_failed.py`: importing `concurrent.futures` would cost each template process
10 ms, and `concurrent.futures.process`, which nobody needs before something breaks, everybody 30 ms.
So nothing of poolkit imports the two that are `BrokenProcessPool` by name at its top: it says `errors.WorkerCrashed`
where it makes or catches one.
"""

from __future__ import annotations

import pickle

from poolkit._root_error import PoolkitError

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

    from poolkit._broken import InitializerFailed, NodeLost, WorkerCrashed
    from poolkit._cancelled import TaskCancelled
    from poolkit._failed import CommandFailed, OutputLimitExceeded

__all__ = [
    "ChannelClosed",
    "CommandFailed",
    "DeadlineExceeded",
    "InitializerFailed",
    "MemoryLimitExceeded",
    "NoNodes",
    "NodeLost",
    "OutputLimitExceeded",
    "PoolClosed",
    "PoolkitError",
    "QueueFull",
    "QueueTimeout",
    "RemoteError",
    "SerializationError",
    "TaskCancelled",
    "TaskTimeout",
    "VersionMismatch",
    "WorkerCrashed",
]


class TaskTimeout(PoolkitError, TimeoutError):
    """A task ran longer than its `timeout`, and was stopped.

    Attributes:
        timeout: the limit, in seconds.
        stack: the Python stack of where the task was stuck, innermost frame first; "" when none could be taken.
        completed: of a command: what it did until then, a `poolkit.CompletedCommand`; else None.
        hint: why it may not have been stopped; else "".
    """

    completed = None
    hint = ""

    def __init__(self, message: str = "", *, timeout: float | None = None, stack: str = "") -> None:
        super().__init__(message)
        self.timeout = timeout
        self.stack = stack


class QueueTimeout(PoolkitError, TimeoutError):
    """A task waited in the queue longer than its `queue_timeout`; it never began."""


class DeadlineExceeded(PoolkitError, TimeoutError):
    """A task's `deadline`, counted from `submit`, passed while it was queued or running.

    Attributes:
        completed, hint: as of TaskTimeout.
    """

    completed = None
    hint = ""


class MemoryLimitExceeded(PoolkitError, MemoryError):
    """A task was stopped at its `memory_limit`.

    Attributes:
        limit: the limit, in bytes of resident memory.
        used: what the worker used when it was stopped, in bytes.
        completed, hint: as of TaskTimeout.
    """

    completed = None
    hint = ""

    def __init__(self, message: str = "", *, limit: int | None = None, used: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.used = used


class RemoteError(PoolkitError):
    """Stands in for an exception that could not be rebuilt in this process.

    Attributes:
        type_name: qualified name of the original exception type.
        message: `str()` of the original exception.
        traceback_text: its traceback, formatted where it was raised.
    """

    def __init__(self, text: str = "", *, type_name: str = "", message: str = "", traceback_text: str = "") -> None:
        super().__init__(text)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text


class SerializationError(PoolkitError, pickle.PicklingError):
    """An argument or a result cannot be pickled; the message names the offending part."""


class QueueFull(PoolkitError):
    """The pool's bounded queue has no room, and `block=False` asked not to wait for it."""


class ChannelClosed(PoolkitError, EOFError):
    """The channel of a dedicated worker has come to its end: nothing more is sent, or received."""


class ClusterFailed(PoolkitError, RuntimeError):
    """A cluster could not be started, or its workers died again and again; it is stopped. Its cause is chained.

    Attributes:
        worker_id: the slot of the worker that it was last tried with, or None.
        generation: of the code that it ran.
    """

    def __init__(self, message: str = "", *, worker_id: int | None = None, generation: int | None = None) -> None:
        super().__init__(message)
        self.worker_id = worker_id
        self.generation = generation


class ReloadFailed(ClusterFailed):
    """The workers of a new generation did not come up: the old ones serve on."""


class NoNodes(PoolkitError, TimeoutError):
    """Work was queued for `node_timeout` and no node was there, or too few came up. What was refused is chained."""


class VersionMismatch(PoolkitError):
    """A node has another minor version of Python than its owner, or another wire number of poolkit, and is not used.

    Attributes:
        node: the address of the node.
        here, there: the versions, as text.
    """

    def __init__(self, message: str = "", *, node: str = "", here: str = "", there: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.here = here
        self.there = there


class PoolClosed(PoolkitError, RuntimeError):
    """The pool was used after its shutdown, or in a forked child of the process that owns it."""


_MADE_LATER = {
    "CommandFailed": "poolkit._failed",
    "InitializerFailed": "poolkit._broken",
    "NodeLost": "poolkit._broken",
    "OutputLimitExceeded": "poolkit._failed",
    "TaskCancelled": "poolkit._cancelled",
    "WorkerCrashed": "poolkit._broken",
}


def __getattr__(name: str) -> Any:
    """Make those that are errors of the standard library's futures when they are first used (PEP 562)."""
    if name not in _MADE_LATER:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib  # noqa: PLC0415 -- see above

    value = getattr(importlib.import_module(_MADE_LATER[name]), name)
    globals()[name] = value
    return value
