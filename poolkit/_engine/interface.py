"""PoolEngine: what a pool, its views and the results of `map` ask of what runs the tasks.

The `Supervisor` answers it for real workers, the driver in `poolkit.testing` for fakes. All of it is thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from poolkit._owner import TaskOwner

if TYPE_CHECKING:
    from poolkit._core.stats import PoolStats, WorkerInfo
    from poolkit._core.workforce import AnyTask
    from poolkit._engine.listeners import Listener
    from poolkit._engine.maps import Maps
    from poolkit._engine.waiters import Waiter


class Packer(Protocol):
    """What is asked of the workers; see `DrivenWorkforce`."""

    by_reference: bool
    why_memory_unknown: str | None

    def pack(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> tuple[Any, int]:
        """Turn a call into what the workers are sent, and its size in bytes. May raise SerializationError."""


class PoolEngine(TaskOwner, Protocol):
    """See the file's header, and `TaskOwner` for what tasks ask."""

    pid: int  # of the process that made the pool
    bounded: bool  # whether its queue is, so that `submit_waiting` is to be called
    maps: Maps

    @property
    def clock(self) -> Callable[[], float]:
        """What limits and waits go by."""

    @property
    def workforce(self) -> Packer:
        """Who the workers are."""

    def submit(self, task: AnyTask, error: BaseException | None = None, waiter: Waiter | None = None) -> bool:
        """Accept a task; with `error` it fails at once. False: there is no room, and `waiter` is woken when there is.

        Raises:
            PoolClosed, InitializerFailed, QueueFull: it was not accepted.
        """

    def submit_waiting(self, task: AnyTask, error: BaseException | None) -> object:
        """Do the same as `submit`, but wait while the queue is full, if the task's options say so."""

    def stop_waiting(self, waiter: Waiter) -> None:
        """Have a waiter woken no more."""

    def cancel_soon(self, task: AnyTask) -> None:
        """Have a task cancelled a little later. For finalizers, so without a lock."""

    def cancel_all(self) -> None:
        """Cancel all that is queued and running."""

    def resize(self, size: int) -> None:
        """Change the number of workers."""

    def warm_up(self, timeout: float | None) -> None:
        """Start all workers and wait until they are up; see `Pool.warm_up`."""

    def stats(self) -> PoolStats:
        """A snapshot of the counts."""

    def workers(self) -> list[WorkerInfo]:
        """A snapshot of the workers."""

    def listen(self, name: str, listener: Listener) -> None:
        """Call `listener` with each event of that name."""

    def unlisten(self, name: str, listener: Listener) -> None:
        """Undo one `listen`. Raises ValueError when it was not listening."""

    def is_open(self) -> bool:
        """Whether tasks are accepted."""

    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None:
        """Accept nothing more, and end; see `Pool.shutdown`."""

    def drop(self) -> None:
        """The pool object is gone: finish what was accepted, then end. From a finalizer, so without the lock."""
