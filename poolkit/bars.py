"""Bars: how far a map or some tasks are, shown while somebody waits for them. Named so as `progress` is a function.

Guarantees: drawn in the owner alone, by who iterates, ten times a second while that one waits; workers see nothing of
it, so no lock of it can be held by one that is killed. Closed at the end, on any error and interrupt, and with the
results. What a bar raises ends the bar and not the results. Without a bar nothing of this is imported.
Owner: who iterates. What tells that a task is done is called on any thread, and only appends to a deque.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty
from typing import Any, TypeVar

from poolkit._clock import monotonic
from poolkit._kinds.loggers import log
from poolkit._owner import Arrivals
from poolkit._waits import get
from poolkit.results import Chunks
from poolkit.task import SENT, Task

T = TypeVar("T")
MakeBar = Callable[..., Any]

EVERY = 0.1  # seconds between two looks of a bar


class Bar:
    """One bar: shows what `measure` says, which never seems to become less."""

    def __init__(self, make: MakeBar, total: float | None, desc: str | None, measure: Callable[[], float]) -> None:
        self._measure = measure
        self._shown: float = 0
        self._due = -math.inf  # when it is to be drawn next
        self._pid = os.getpid()
        self._bar: Any = make(total=total, desc=desc)  # None: it is closed

    def pause(self) -> float:
        """Draw it if that is due; return for how many seconds it may then be left alone."""
        now = monotonic()
        if now >= self._due:
            self._due = now + EVERY
            self._draw()
        return self._due - now

    def close(self) -> None:
        """Draw it for the last time, and close it. Idempotent; does nothing in a forked child."""
        if os.getpid() == self._pid:
            self._draw()
            bar, self._bar = self._bar, None
            if bar is not None:
                self._attempt(bar.close)

    def _draw(self) -> None:
        step = self._measure() - self._shown
        if step > 0 and self._bar is not None:
            self._shown += step
            self._attempt(self._bar.update, step)

    def _attempt(self, call: Callable[..., object], *args: float) -> None:
        try:
            call(*args)
        except Exception:
            self._bar = None
            log.exception("a progress bar raised, and is shown no more")


# ===== which bar =====


def maker(wanted: object, *, is_fake: bool) -> MakeBar | None:
    """Return what makes the bar that was asked for; None if nothing is to be shown.

    Raises:
        ModuleNotFoundError: it needs what is not installed.
        TypeError: nothing of the kind can be asked for.
    """
    if callable(wanted):
        return wanted
    if not isinstance(wanted, (bool, str)):
        msg = f"progress must be True, False, a description or what makes a bar, was {wanted!r}"
        raise TypeError(msg)
    if wanted is False or is_fake:
        return None
    if importlib.util.find_spec("tqdm") is None:
        msg = "progress bars need tqdm: pip install 'poolkit[progress]', or give what makes a bar of another kind"
        raise ModuleNotFoundError(msg, name="tqdm")
    ipython = sys.modules.get("IPython")
    if ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None:  # in a notebook
        notebook = importlib.import_module("tqdm.notebook")
        return _tqdm("tqdm.std" if notebook.IProgress is None else "tqdm.notebook")  # a widget where there are any
    try:
        return _tqdm("tqdm.std") if sys.stderr.isatty() else None
    except (AttributeError, ValueError):  # it is None, or closed
        return None


@functools.cache
def _tqdm(module: str) -> MakeBar:
    """Make tqdm's class one that no thread of its own draws, too, and whose lock is of this process alone.

    tqdm's own lock is shared with forks of this process, which may be killed while they hold it.
    """
    base: Any = importlib.import_module(module).tqdm

    class Drawn(base):  # type: ignore[misc]
        monitor_interval = 0

        def __init__(self, total: float | None, desc: str | None) -> None:
            super().__init__(total=total, desc=desc, mininterval=0.0, miniters=0, dynamic_ncols=True)

        @property
        def format_dict(self) -> dict[str, Any]:
            found: dict[str, Any] = super().format_dict
            count = round(found["n"], 2)
            return {**found, "n": int(count) if count == int(count) else count}

    Drawn.set_lock(importlib.import_module("tqdm.std").TqdmDefaultWriteLock.th_lock)
    return Drawn


# ===== map =====


def drawn_chunks(wanted: object, sized: list[Any], clock: Callable[[], float]) -> Callable[..., Chunks[Any]] | None:
    """Return what makes the chunks of a map with a bar, whose input has these lengths; None if none is shown."""
    make_bar = maker(wanted, is_fake=clock is not monotonic)
    if make_bar is None:
        return None
    try:
        total = min(map(len, sized), default=None)
    except Exception:  # noqa: BLE001 -- it is the user's code, and has a length only by name
        total = None
    return functools.partial(DrawnChunks, make_bar, total, wanted if isinstance(wanted, str) else None)


class DrawnChunks(Chunks[T]):
    """The chunks of a `map` with a bar, for which each chunk that is done counts, whatever its place."""

    def __init__(self, make_bar: MakeBar, total: int | None, desc: str | None, *args: Any, **options: Any) -> None:
        """Take what `Chunks` takes, too."""
        super().__init__(*args, **options)
        self._counts: deque[int] = deque()  # of chunks that are done, not added up yet; appended to by any thread
        self._counted = self._collected = 0
        self._is_fake = self._clock is not monotonic
        self._bar = Bar(make_bar, total, desc, self._measure)

    def _measure(self) -> int:
        while self._counts:
            self._counted += self._counts.popleft()
        return max(self._counted, self._collected)  # who publishes a chunk may not have told yet

    def wait(self) -> bool:
        """Wait until something is at hand; false at the end."""
        try:
            is_more = super().wait()
            self._bar.pause()
        except BaseException:
            self._bar.close()
            raise
        if not is_more:
            self._bar.close()
        return is_more

    async def wait_async(self) -> None:
        """Wait until something is at hand, without blocking the event loop. Raises StopAsyncIteration at the end."""
        try:
            await super().wait_async()
            self._bar.pause()
        except BaseException:
            self._bar.close()
            raise

    def close(self) -> None:
        """Cancel what has not been yielded, and take no more items. Idempotent; does not block."""
        super().close()
        self._bar.close()

    def drop(self) -> None:
        """Nobody will read any more."""
        super().drop()
        self._bar.close()

    def _add(self, task: Task[list[T]], chunk: list[Any]) -> None:
        super()._add(task, chunk)
        count = len(chunk)

        def tell(task: Task[list[T]]) -> None:
            if not (task.has_failed() or task.cancelled()):  # what is done of it is counted when it is collected
                self._counts.append(count)
            self._arrivals.ring(task)

        self._arrivals.owner = task.add_waker(tell) or self._arrivals.owner

    def _wait_for_one(self) -> None:
        self._wait_for_any()  # by what each chunk rings, also in order

    def _pause(self) -> float | None:
        pause, left = self._bar.pause(), self._left()
        if self._is_fake:  # where nothing happens but while somebody waits, as long as that takes
            return left
        return pause if left is None else min(left, pause)

    def _collect(self, *, wait: bool = True) -> None:
        super()._collect(wait=wait)
        self._collected += len(self._ready)  # there was nothing before

    def _stop(self, error: BaseException | None) -> None:
        self._collected += len(self._ready)  # now, as this closes the bar
        super()._stop(error)


# ===== tasks =====


def progress(
    tasks: Task[T] | Iterable[Task[T]],
    *,
    total: float | None = None,
    desc: str | None = None,
    bar: MakeBar | None = None,
) -> Iterator[Task[T]]:
    """Yield tasks as each is done, and show how many are; those that report their progress count by their fraction.

    Blocks in `next()`; for one thread. The tasks may be of several pools, and what they raise stays with them. Closing
    the iterator early, or dropping it, closes the bar and leaves the tasks alone.

    Args:
        tasks: one or many; an iterable is exhausted now. One that is there twice is yielded once.
        total: what to show as the whole; None: their number.
        desc: what to write before the bar.
        bar: makes the bar that is shown, called with `total` and `desc`; None: tqdm, on a terminal or in a notebook.

    Raises:
        TypeError: what is given is no task.
        ModuleNotFoundError: tqdm is not installed.
    """
    several: Iterable[Any] = (tasks,) if isinstance(tasks, Task) or not isinstance(tasks, Iterable) else tasks
    given = dict.fromkeys(several)
    for task in given:
        if not isinstance(task, Task):
            msg = f"progress() shows tasks, was given {task!r}"
            raise TypeError(msg)
    make = maker(True if bar is None else bar, is_fake=any(task.is_fake for task in given))
    return _each(given, make, len(given) if total is None else total, desc)


def _each(pending: dict[Task[T], None], make: MakeBar | None, total: float, desc: str | None) -> Iterator[Task[T]]:
    count = 0
    finished: deque[Task[T]] = deque()  # and not yielded
    arrivals: Any = Arrivals()  # all that an owner asks is whether it is done

    def ring(task: Any) -> None:
        finished.append(task)
        arrivals.ring(task)

    def measure() -> float:
        running = [task for task in pending if task.phase is SENT]  # there may be many others
        told = [task.progress for task in running if not task.done()]
        return count + sum(each.fraction or 0 for each in told if each is not None)

    bar = None if make is None else Bar(make, total, desc, measure)
    try:
        owners = {task.add_waker(ring) for task in pending}
        while pending:
            arrivals.clear()  # before the look: each rings when it is done
            while finished:
                task = finished.popleft()
                del pending[task]
                count += 1
                if bar is not None:
                    bar.pause()
                yield task
                del task
            if pending:
                _wait_for_any(next(iter(pending)), owners, arrivals, bar)
    finally:
        for task in pending:
            task.remove_done_callback(ring)
        pending.clear()  # where this is a finalizer, it must not look at them, which takes a lock
        if bar is not None:
            bar.close()


def _wait_for_any(pending: Task[Any], owners: set[Any], arrivals: Any, bar: Bar | None) -> None:
    """Wait until `arrivals` are rung, or it is time to draw the bar."""
    owner, pause = pending._owner, None if bar is None else bar.pause()  # noqa: SLF001 -- who waits may lead
    if pending.is_fake or len(owners - {None}) == 1:
        if owner is not None:
            owner.lead(arrivals, None if pending.is_fake else pause)
    else:
        for each in owners - {None}:
            each.end_lease()
    try:
        get(arrivals, None if bar is None else bar.pause())
    except Empty:
        return
