"""PoolEngine: what a pool, its views and the results of `map` ask of what runs the tasks.

`Supervisor` answers it for real workers, and says there what each method does; `poolkit.testing` for fakes.
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

    def pack(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> tuple[Any, int]: ...


class PoolEngine(TaskOwner, Protocol):
    """See the file's header; what tasks ask is in `TaskOwner`. Thread-safe."""

    pid: int  # of the process that made the pool
    bounded: bool  # whether to call `submit_waiting` instead of `submit`
    maps: Maps

    @property
    def clock(self) -> Callable[[], float]: ...
    @property
    def workforce(self) -> Packer: ...

    def submit(self, task: AnyTask, error: BaseException | None = None, waiter: Waiter | None = None) -> bool: ...
    def submit_waiting(self, task: AnyTask, error: BaseException | None) -> object: ...
    def stop_waiting(self, waiter: Waiter) -> None: ...
    def cancel_soon(self, task: AnyTask) -> None: ...
    def cancel_all(self) -> None: ...

    def resize(self, size: int) -> None: ...
    def warm_up(self, timeout: float | None) -> None: ...
    def stats(self) -> PoolStats: ...
    def workers(self) -> list[WorkerInfo]: ...
    def listen(self, name: str, listener: Listener) -> None: ...
    def unlisten(self, name: str, listener: Listener) -> None: ...

    def is_open(self) -> bool: ...
    def shutdown(self, *, wait: bool, cancel_queued: bool, kill: bool, timeout: float | None) -> None: ...
    def drop(self) -> None: ...
