"""FakePool: a pool that runs in this process and thread, on a virtual clock, by the rules of the real one.

Both are one scheduler: priorities, retries, queue limits, cancellation and errors behave alike.
Owner: the one thread that made it. Not thread-safe, unlike a real pool.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolkit._core import options as checks
from poolkit._core.options import CallOptions
from poolkit._workforce.settings import check_initializer, check_limits
from poolkit.pool import Pool
from poolkit.testing.calls import Call, Timeline, name_of, written
from poolkit.testing.driver import FakeSupervisor
from poolkit.testing.script import When
from poolkit.testing.workforce import FakeWorkforce, VirtualClock

if TYPE_CHECKING:
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
        self._timeline = Timeline(VirtualClock())
        self._workforce = FakeWorkforce(
            self._timeline.clock,
            random.Random(seed),
            check_pickle=check_pickle,
            initializer=None if call is None else lambda: call(*initargs),
            note=self._timeline.note,
        )
        self._supervisor = FakeSupervisor(
            self._workforce, limits, name=self.name, timeline=self._timeline, eager=mode == "eager", seed=seed
        )

    def __del__(self) -> None:
        """Say nothing: there is neither worker nor thread to be shut down."""

    # ===== time =====

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the pool was made."""
        return self._timeline.clock.now

    def run_next(self) -> bool:
        """Run one task that a real pool could run next; False when none is queued or running.

        One that takes virtual time is only begun, while others could begin beside it; then the clock moves.
        """
        return self._supervisor.run_next()

    def run_all(self) -> None:
        """Run until nothing is pending but what hangs; the clock moves as far as that takes."""
        self._supervisor.run_all()

    def run_until(self, task: Task[Any]) -> None:
        """Run until `task` is done; the clock moves as far as that takes.

        Raises:
            PoolkitError: it would never be done.
        """
        self._supervisor.lead(task, None)

    def advance(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass: what a real pool would do in them is done, in order.

        Raises:
            TypeError, ValueError: not a number of 0 or more seconds.
        """
        time = checks.wait_seconds("seconds", seconds)
        if time is None:
            msg = f"seconds must be finite, was {seconds!r}; run_all() runs to the end"
            raise ValueError(msg)
        self._supervisor.advance(time)

    # ===== faults =====

    def when(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> When:
        """Say what happens to the calls of `fn`: to all, or to those with exactly these arguments.

        For example `pool.when(fetch, "a").crashes().then.returns(b"")`. What was said last comes first. The items of a
        `map` are calls, too. `unittest.mock.ANY` stands for any argument.
        """
        if not callable(fn):
            msg = f"the first argument must be the function that is called, was {fn!r}"
            raise TypeError(msg)
        return self._workforce.script.add(fn, args, kwargs)

    # ===== what happened =====

    @property
    def pending(self) -> list[Task[Any]]:
        """The tasks that were accepted and are not settled, in the order of submission."""
        return self._supervisor.pending()

    @property
    def calls(self) -> list[Call]:
        """The calls that were accepted, in the order of submission."""
        return list(self._supervisor.calls)

    def timeline(self) -> str:
        """What happened so far, line by line, with the virtual time; failed assertions show it."""
        return str(self._timeline)

    def assert_called(self, fn: Callable[..., Any], *args: Any, times: int | None = None, **kwargs: Any) -> None:
        """Check that `fn` was called: at all, or `times` times; with exactly these arguments, if there are any.

        Raises:
            AssertionError: it was not; the message shows the calls and the timeline.
        """
        found = sum(call.matches(fn, args, kwargs) for call in self._supervisor.calls)
        if found != times if times is not None else not found:
            what = written(fn, args, kwargs) if args or kwargs else name_of(fn)
            wanted = "was not called" if times is None else f"was called {found} times, not {times} times"
            calls = "\n".join(f"  {call!r}" for call in self._supervisor.calls) or "  none"
            msg = f"{what} {wanted}\ncalls:\n{calls}\ntimeline:\n{self.timeline()}"
            raise AssertionError(msg)

    def assert_not_called(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Check that `fn` was not called, or not with exactly these arguments. Raises AssertionError."""
        self.assert_called(fn, *args, times=0, **kwargs)
