"""FakePool: a pool that runs in this process and thread, on a virtual clock, by the rules of the real one.

Both are one scheduler: priorities, retries, queue limits, cancellation and errors behave alike.
Thread-safe, as one thread runs it at a time; the others wait meanwhile.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolkit._core import options as checks
from poolkit._core.options import PoolLimits
from poolkit._core.scheduler import Scheduler
from poolkit._given import name_of
from poolkit._kinds.settings import PoolSettings
from poolkit._wire.inherit import pack_initializer
from poolkit.errors import PoolkitError
from poolkit.pool import Pool
from poolkit.testing.calls import Call, Timeline, written
from poolkit.testing.engine import FakeEngine
from poolkit.testing.script import When
from poolkit.testing.workforce import FakeWorkforce

if TYPE_CHECKING:
    from poolkit.task import Task
    from poolkit.testing.command_script import WhenCommand
    from poolkit.testing.programs import CommandCall
    from poolkit.testing.workers import WhenWorker


class FakePool(Pool):
    """A pool for tests: no process, no thread, no waiting.

    Args:
        mode: "eager": each call runs at its submission; "manual": when `run_next`, `run_all` or `advance` say so.
        seed: picks among the orders that a real pool of `max_workers` could show, and the jitter of back-offs.
        check_pickle: send calls and outcomes through the real codec, so that what would not travel fails here too,
            and a task cannot change the caller's objects.
        settings: those of `Pool`, by name and checked alike. `max_workers` is 1 unless it is given. The initializer
            runs here, once for each fake worker. What only real workers can have is of no effect.

    Raises: what `Pool` raises.
    """

    _supervisor: FakeEngine
    _chunksize = 1

    def __init__(self, mode: str = "eager", seed: int = 0, check_pickle: bool = True, **settings: Any) -> None:
        if mode not in {"eager", "manual"}:
            raise ValueError(f"mode must be 'eager' or 'manual', was {mode!r}")
        from poolkit.testing import workers  # noqa: F401, PLC0415 -- from now on `Worker` looks for a fake pool

        self._seed = seed
        self._check_pickle = check_pickle
        if settings.get("max_workers") is None:
            settings["max_workers"] = 1
        super().__init__(**{**settings, "name": settings.get("name") or "fake"})
        self._kind = "fake"
        self._supervisor.eager = mode == "eager"

    def _build(self, settings: PoolSettings, limits: PoolLimits) -> FakeEngine:
        """Make what has neither threads nor processes."""
        if settings.initializer is not None and self._check_pickle and settings.start_method != "fork":
            for fd in pack_initializer(settings.initializer, settings.initargs)[1]:
                os.close(fd)
        timeline, initializer = Timeline(), settings.bound_initializer()
        workforce = FakeWorkforce(timeline, self._seed, initializer, check_pickle=self._check_pickle)
        scheduler = Scheduler(workforce, limits, random.Random(self._seed))
        return FakeEngine(scheduler, workforce, timeline, self.name)

    def __exit__(self, *exc: Any) -> None:  # noqa: PYI036 -- they are passed on
        """Do what a pool does; what hangs is killed, and hides no exception of the body."""
        try:
            super().__exit__(*exc)
        except PoolkitError:
            self.end()
            if exc[0] is None:
                raise
        self._supervisor.end_spawned()

    def end(self) -> None:
        """Stop all that runs, with what was spawned while the pool was in use, and dedicated workers."""
        self.shutdown(cancel_futures=True, kill=True)
        self._supervisor.end_spawned()

    async def __aexit__(self, *exc: Any) -> None:  # noqa: PYI036 -- they are passed on
        """Do the same; it takes no time, so the event loop need not go on meanwhile."""
        self.__exit__(*exc)

    def __del__(self) -> None:
        """Say nothing: there is neither worker nor thread to be shut down."""

    # ===== time =====

    @property
    def now(self) -> float:
        """The virtual time, in seconds since the pool was made."""
        return self._supervisor.clock.now

    def run_next(self) -> bool:
        """Run one task that a real pool could run next; False when none is queued or running.

        One that takes virtual time is only begun, while others could begin beside it; then the clock moves.
        """
        driver = self._supervisor
        with driver.turn:
            return driver.step() or (driver.is_running() and driver.move(math.inf))

    def run_all(self) -> None:
        """Run until nothing is pending but what hangs; the clock moves as far as that takes."""
        self._supervisor.run_all()

    def run_until(self, task: Task[Any]) -> None:
        """Run until `task` is done; the clock moves as far as that takes. PoolkitError when it would never be done."""
        self._supervisor.lead(task, None)

    def advance(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass: what a real pool would do in them is done, in order.

        TypeError or ValueError when they are no number of 0 or more.
        """
        time = checks.wait_seconds("seconds", seconds)
        if time is None:
            raise ValueError(f"seconds must be finite, was {seconds!r}; run_all() runs to the end")
        driver = self._supervisor
        with driver.turn:
            end = driver.clock.now + time
            while driver.step() or driver.move(end):
                pass
            driver.clock.now = max(driver.clock.now, end)
            driver.settle()

    # ===== faults =====

    def when(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> When:
        """Say what happens to the calls of `fn`: to all, or to those with exactly these arguments.

        For example `pool.when(fetch, "a").crashes().then.returns(b"")`. What was said last comes first. The items of a
        `map` are calls, too. `unittest.mock.ANY` stands for any argument.
        """
        if not callable(fn):
            raise TypeError(f"the first argument must be the function that is called, was {fn!r}")
        when = When(fn, args, kwargs)
        self._supervisor.workforce.script.insert(0, when)
        return when

    def when_command(self, *argv: Any) -> WhenCommand:
        """Say what happens to commands with these arguments; `...` at the end stands for any rest, `ANY` for one.

        Or to those for which a function says so, which is given the tuple of them. For example
        `pool.when_command("ffmpeg", ...).prints("frame=1").exits(1, stderr=b"no such codec")`. What was said last comes
        first. A command of which nothing was said is refused. Raises TypeError or ValueError when it makes no sense.
        """
        from poolkit.testing.command_script import WhenCommand  # noqa: PLC0415 -- for those who run programs

        when = WhenCommand(argv)
        self._supervisor.command_script.insert(0, when)
        return when

    def when_worker(self, target: Callable[..., Any], /) -> WhenWorker:
        """Say what happens to dedicated workers with this target, that are made while the pool is in use.

        For example `pool.when_worker(serve).crashes("SIGSEGV", after=3)`.
        """
        from poolkit.testing.workers import WhenWorker  # noqa: PLC0415 -- for those who use them

        if not callable(target):
            raise TypeError(f"the argument must be the target of the worker, was {target!r}")
        when = WhenWorker(target)
        self._supervisor.worker_script.insert(0, when)
        return when

    # ===== what happened =====

    @property
    def pending(self) -> list[Task[Any]]:
        """The tasks that were accepted and are not settled, in the order of submission."""
        driver = self._supervisor
        with driver.turn:
            driver.settle()  # the results of a `map` that were dropped have it cancelled then
            return driver.scheduler.unsettled_tasks()

    @property
    def calls(self) -> list[Call]:
        """The calls that were accepted, in the order of submission."""
        return list(self._supervisor.calls)

    @property
    def commands(self) -> list[CommandCall]:
        """The commands that were accepted, those of `spawn` included, in the order of submission."""
        return list(self._supervisor.commands)

    def assert_ran(self, *argv: Any, times: int | None = None) -> None:
        """Check that commands with these arguments began to run, as `when_command` takes them: any, or so many.

        Without arguments all commands count. The AssertionError shows the commands and the timeline.
        """
        from poolkit.testing.command_script import pattern  # noqa: PLC0415 -- see above

        is_meant = pattern(argv or (...,))
        found = sum(call.has_run and is_meant(call.argv) for call in self._supervisor.commands)
        if found != times if times is not None else not found:
            what = " ".join("..." if word is ... else str(word) for word in argv) or "a command"
            wanted = "did not run" if times is None else f"ran {found} times, not {times} times"
            calls = "\n".join(f"  {call!r}" for call in self._supervisor.commands) or "  none"
            raise AssertionError(f"{what} {wanted}\ncommands:\n{calls}\ntimeline:\n{self.timeline()}")

    def timeline(self) -> str:
        """What happened so far, line by line, with the virtual time; failed assertions show it."""
        return str(self._supervisor.clock)

    def assert_called(self, fn: Callable[..., Any], /, *args: Any, times: int | None = None, **kwargs: Any) -> None:
        """Check that `fn` was called: at all, or `times` times; with exactly these arguments, if there are any.

        An argument that `fn` itself calls `times` is given by its position. The AssertionError shows the calls and the
        timeline.
        """
        found = sum(call.matches(fn, args, kwargs) for call in self._supervisor.calls)
        if found != times if times is not None else not found:
            what = written(fn, args, kwargs) if args or kwargs else name_of(fn)
            wanted = "was not called" if times is None else f"was called {found} times, not {times} times"
            calls = "\n".join(f"  {call!r}" for call in self._supervisor.calls) or "  none"
            raise AssertionError(f"{what} {wanted}\ncalls:\n{calls}\ntimeline:\n{self.timeline()}")

    def assert_not_called(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Check that `fn` was not called, or not with exactly these arguments. Raises AssertionError."""
        self.assert_called(fn, *args, times=0, **kwargs)
