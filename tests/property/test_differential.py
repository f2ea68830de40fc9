"""Fake and real pools go by the same rules: random programs have the same outcomes on both.

A program holds the workers, hands in calls of every sort, cancels some, changes the size, lets go, and shuts down in
one of the ways there are. What can be told from outside is compared: each task's state, value or error, attempts, the
order in which one worker ran them, and the pool's counts.
POOLKIT_PROGRAMS says how many; the default is a slice that fits a build.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import poolkit
import support_functions as work
from chaos import faults
from poolkit.testing import FakePool
from support_gates import Gate, Journal

pytestmark = pytest.mark.slow

PROGRAMS = int(os.environ.get("POOLKIT_PROGRAMS", "60"))
LIMIT = 0.03  # seconds; what has a limit hangs, so no ordinary task meets it


def hang(journal: Journal, number: int) -> None:
    work.write_line(journal, number)
    faults.sleep_forever()


def crash(journal: Journal, number: int) -> None:
    work.write_line(journal, number)
    work.die()


def leave(journal: Journal, number: int) -> None:
    work.write_line(journal, number)
    os._exit(3)


def fail(journal: Journal, number: int) -> None:
    work.write_line(journal, number)
    raise LookupError(number)


def return_what_cannot_travel(journal: Journal, number: int) -> object:
    work.write_line(journal, number)
    return (number for _ in ())


SORTS: dict[str, Callable[..., object]] = {
    "value": work.write_line,
    "crash": crash,
    "leave": leave,
    "fail": fail,
    "hang": hang,
    "unpicklable result": return_what_cannot_travel,
    "unpicklable argument": work.write_line,
}
CALLS = st.fixed_dictionaries(
    {"sort": st.sampled_from(["value", "value", "value", *SORTS]), "priority": st.integers(-1, 1)},
    optional={
        "retries": st.integers(0, 1),
        "retry_on": st.sampled_from([(LookupError,), (poolkit.TaskTimeout,), (poolkit.WorkerCrashed,)]),
    },
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), CALLS),
        st.tuples(st.just("submit"), CALLS),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("resize"), st.integers(1, 3)),
        st.tuples(st.just("cancel_all"), st.none()),
    ),
    min_size=1,
    max_size=10,
)
ENDS = st.sampled_from(["wait", "wait", "wait", "cancel_futures", "kill", "cancel held"])


class Real:
    """A pool of processes, its workers held until it is let go."""

    def __init__(self, size: int, max_queue: int | None, gates: Callable[[], Gate]) -> None:
        self.pool: poolkit.Pool = faults.new_pool(size, max_queue=max_queue)
        arrived, self._release = gates(), gates()
        self._count = size
        self.held = [self.pool.submit(work.arrive_and_wait, arrived, self._release) for _ in range(size)]
        arrived.wait(size)

    def let_go(self) -> None:
        self._release.signal(self._count)


class Fake:
    """The same in the books; what would end a process is scripted."""

    def __init__(self, size: int, max_queue: int | None, seed: int) -> None:
        self.pool = FakePool("manual", max_workers=size, max_queue=max_queue, seed=seed)
        self.pool.when(hold).takes(0.001)
        self.held = [self.pool.submit(hold) for _ in range(size)]
        for _ in range(size):
            self.pool.run_next()

    def let_go(self) -> None:
        self.pool.advance(0.001)


def hold() -> None:
    """Stands for a task that is held; told apart by its name in the script."""


def describe(task: poolkit.Task[Any]) -> tuple[Any, ...]:
    """What can be told of a settled task."""
    if task.cancelled():
        return ("cancelled", task.attempts)
    error = task.exception()
    if error is None:
        return ("succeeded", task.result(), task.attempts)
    facts: tuple[object, ...] = ()
    if isinstance(error, poolkit.WorkerCrashed):
        facts = (error.signal, error.exitcode)
    elif isinstance(error, LookupError):
        facts = error.args
    elif isinstance(error, poolkit.TaskTimeout):
        facts = (error.timeout, bool(error.stack))
    return (type(error).__name__, *facts, task.attempts)


def run(side: Real | Fake, steps: list[tuple[str, Any]], end: str, journal: Journal) -> dict[str, Any]:
    """Run a program; returns what was seen."""
    pool = side.pool
    if isinstance(side, Fake):
        for sort, how in (("crash", {"signal": "SIGKILL"}), ("leave", {"signal": None, "exitcode": 3})):
            pool.when(SORTS[sort]).crashes(**how)  # type: ignore[attr-defined]
        pool.when(hang).hangs()  # type: ignore[attr-defined]
    tasks: list[poolkit.Task[Any] | None] = []
    answers: list[object] = []
    for what, given in steps:
        if what == "submit":
            options = dict(given)
            sort = options.pop("sort")
            if sort == "hang":
                options["timeout"] = LIMIT
            argument = (None for _ in ()) if sort == "unpicklable argument" else len(tasks)
            try:
                task = pool.options(block=False, **options).submit(SORTS[sort], journal, argument)
            except poolkit.QueueFull:
                task = None
            tasks.append(task)
        elif what == "cancel":
            victims = [*side.held, *tasks]
            victim = victims[given % len(victims)]
            answers.append(victim is not None and victim.cancel())
        elif what == "resize":
            pool.resize(given)
        else:
            pool.cancel_all()
    if end == "cancel held":
        answers += [task.cancel() for task in side.held]
    side.let_go()
    if end not in {"wait", "cancel held"}:
        # Only what was held can be running: nothing else has begun before this.
        pool.shutdown(cancel_futures=True, kill=end == "kill")
    pool.shutdown()
    stats = pool.stats()
    return {
        "answers": answers,
        "tasks": [None if task is None else describe(task) for task in tasks],
        "counts": {name: getattr(stats, name) for name in ("submitted", "succeeded", "failed", "cancelled", "timed_out")},
        "runs": {name: getattr(stats, name) for name in ("crashed", "retried")},
    }
