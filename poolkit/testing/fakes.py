"""FakePool: a pool that runs in this process and thread, on a virtual clock, by the rules of the real one.

Both are one scheduler: priorities, retries, queue limits, cancellation and errors behave alike.
Owner: the one thread that uses it. Not thread-safe, unlike a real pool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._workforce.fake import build_fake
from poolkit._workforce.settings import check_initializer, check_limits
from poolkit.pool import Pool

if TYPE_CHECKING:
    from poolkit._workforce.fake import FakeSupervisor
    from poolkit.task import Task


class FakePool(Pool):
    """A pool for tests: no process, no thread, no waiting.

    Args:
        mode: "eager": each call runs at its submission; "manual": when `run_next`, `run_all` or `advance` say so.
        seed: picks among the orders that a real pool of `max_workers` could show, and the jitter of back-offs.
        check_pickle: send calls and outcomes through the real codec, so that what would not travel fails here too,
            and a task cannot change the caller's objects.
        max_workers, name, initializer, initargs, timeout, retries, max_queue, max_tasks_per_child, min_workers,
            idle_timeout: as for `Pool`. The initializer runs here, once for each fake worker.
    """

    _supervisor: FakeSupervisor

    def __init__(  # noqa: PLR0913 -- the contract, and the pool's own
        self,
        mode: str = "eager",
        *,
        seed: int = 0,
        check_pickle: bool = True,
        max_workers: int = 1,
        name: str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        timeout: float | None = None,
        retries: int = 0,
        max_queue: int | None = None,
        max_tasks_per_child: int | None = None,
        min_workers: int | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        # No super().__init__(): it would build a real workforce.
        if mode not in {"eager", "manual"}:
            msg = f"mode must be 'eager' or 'manual', was {mode!r}"
            raise ValueError(msg)
        size = checks.whole("max_workers", max_workers)
        limits = check_limits(
            size,
            max_queue=max_queue,
            max_tasks_per_child=max_tasks_per_child,
            min_workers=min_workers,
            idle_timeout=idle_timeout,
        )
        check_initializer(initializer)
        call = initializer
        self._options = CallOptions().changed(timeout=timeout, retries=retries)
        self._max_workers = size
        self._kind = "fake"
        self.name = checks.text_or_none("name", name) or "fake"
        self._supervisor = build_fake(
            limits,
            name=self.name,
            eager=mode == "eager",
            seed=seed,
            check_pickle=check_pickle,
            initializer=None if call is None else lambda: call(*initargs),
        )

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the pool was made."""
        return self._supervisor.clock.now

    @property
    def pending(self) -> list[Task[Any]]:
        """The tasks that were accepted and are not settled, in the order of submission."""
        return self._supervisor.pending()

    def run_next(self) -> bool:
        """Run one task; False when there is none to run."""
        return self._supervisor.run_next()

    def run_all(self) -> None:
        """Run until nothing is pending; where a retry waits for its back-off, the clock is moved."""
        self._supervisor.run_all()

    def advance(self, seconds: float) -> None:
        """Move the virtual clock by `seconds`, and do what falls due on the way, in order.

        Raises:
            ValueError: time cannot go back.
        """
        self._supervisor.advance(checks.wait_seconds("seconds", seconds) or 0.0)
