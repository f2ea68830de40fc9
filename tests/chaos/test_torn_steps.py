"""Exceptions of the interpreter's own in the midst of a pool: RecursionError at any depth, MemoryError at any line.

Whatever they tear, no worker and no task is lost: every task that was accepted ends, the pool serves at full size, its
counters add up, and it ends.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import poolkit
import support
from chaos import faults
from support_gates import Gate

# Finalizers, too, are torn, and their exceptions are nobody's.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

KINDS = ["process", "thread"]
SIZE = 2
HOME = str(Path(poolkit.__file__).parent)


class Stage:
    """A pool, all the tasks that it accepted, and what is done with it."""

    def __init__(self, pool: poolkit.Pool) -> None:
        self.pool = pool
        self.tasks: list[poolkit.Task[Any]] = []
        self.refused = 0

    def submit(self) -> None:
        self.tasks.append(self.pool.submit(abs, -len(self.tasks)))

    def burst(self) -> None:
        for _ in range(5):
            self.submit()

    def cancel(self) -> None:
        self.submit()
        self.tasks[-1].cancel()

    def end_a_coroutine(self) -> None:
        """Cancel the last task, which `prepare` has left running."""
        self.tasks[-1].cancel()

    def result(self) -> None:
        self.submit()
        with contextlib.suppress(poolkit.SerializationError, poolkit.WorkerCrashed):
            assert self.tasks[-1].result() == len(self.tasks) - 1

    def look(self) -> None:
        self.pool.stats()
        if self.tasks:
            assert self.tasks[-1].state in {"queued", "running", "succeeded", "failed", "cancelled"}

    def rest(self) -> None:
        """Wait until the workers are idle."""
        support.wait_until(lambda: all(task.done() for task in self.tasks), "all tasks")

    def prepare(self, deed: str) -> None:
        self.rest()
        if deed == "end_a_coroutine":
            task = self.pool.submit(wait_for_its_end, len(self.tasks))
            self.tasks.append(task)
            support.wait_until(lambda: task.state == "running", "it to run")

    def check(self, new_gate: Callable[[], Gate]) -> None:
        """Every task has its own outcome; whose worker was lost in the midst says so."""
        for number, task in enumerate(self.tasks):
            if not task.cancelled():
                error = task.exception()
                # It was lost with its worker in the midst, or was torn when it was pickled.
                assert error is None or isinstance(error, (poolkit.WorkerCrashed, poolkit.SerializationError)), error
                assert error is not None or task.result() == number
        if self.pool.kind == "process":
            faults.check_serves(self.pool, new_gate)
        else:
            meeting = threading.Barrier(SIZE)
            for task in [self.pool.submit(meeting.wait) for _ in range(SIZE)]:
                task.result()
        stats = support.retry_until(self.pool.stats, lambda stats: not (stats.running or stats.queued))
        assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled


DEEDS = ["submit", "burst", "cancel", "end_a_coroutine", "result", "look"]


async def wait_for_its_end(number: int) -> int:
    await asyncio.sleep(0.1)  # where it is not cancelled
    return number


@pytest.fixture(params=KINDS)
def stage(request: pytest.FixtureRequest, new_gate: Callable[[], Gate]) -> Iterator[Stage]:
    pool = poolkit.Pool(SIZE, kind=request.param)
    with support.watchdog(), faults.closed_by_force(pool):
        pool.warm_up()
        stage = Stage(pool)
        stage.burst()
        yield stage
        stage.check(new_gate)
        pool.shutdown()


# ===== RecursionError =====


def descend(frames: int, deed: Callable[[], None]) -> None:
    if frames:
        descend(frames - 1, deed)
    else:
        deed()


def deepest() -> int:
    """How many calls of `descend` there may be."""
    low, high = 0, sys.getrecursionlimit()
    while high - low > 1:
        middle = (low + high) // 2
        try:
            descend(middle, int)  # type: ignore[arg-type]
            low = middle
        except RecursionError:
            high = middle
    return low


@pytest.mark.parametrize("name", DEEDS)
def test_a_recursion_that_ends_anywhere_in_a_pool_loses_nothing(stage: Stage, name: str) -> None:
    torn = 0
    for frames in range(deepest(), deepest() - 60, -1):
        stage.prepare(name)
        try:
            descend(frames, getattr(stage, name))
        except RecursionError:
            torn += 1
    assert torn > 2


# ===== MemoryError =====


@functools.cache
def undone(path: str) -> frozenset[int]:
    """The lines on which locks are let go of: nothing is allocated there, and nobody could do it in their place."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Try):
            lines.add(node.lineno)
            for statement in node.finalbody:
                lines.update(range(statement.lineno, (statement.end_lineno or 0) + 1))
            for handler in node.handlers:
                lines.update(range(handler.lineno, (handler.end_lineno or 0) + 1))
        if isinstance(node, ast.With):
            lines.update(range(node.lineno, node.body[0].lineno))
    return frozenset(lines)


class Injector:
    """Raises once, at the n-th line of poolkit that this thread runs."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self.left = at
        self._error = error
        self.place = ""

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(HOME):
            return None
        if event == "line" and frame.f_lineno not in undone(path):
            self.left -= 1
            if self.left == 0:
                self.place = f"{path}:{frame.f_lineno}"
                raise self._error
        return self

    def run(self, deed: Callable[[], None]) -> None:
        sys.settrace(self)
        try:
            deed()
        except self._error:
            return
        finally:
            sys.settrace(None)


STRIDE = max(1, round(16 / faults.SCALE))  # of so many lines, one is tried; with POOLKIT_CHAOS_SCALE=16, each


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
@pytest.mark.parametrize("name", DEEDS)
def test_an_error_at_any_line_of_a_pool_loses_nothing(stage: Stage, name: str, error: type[BaseException]) -> None:
    at = 1 if error is MemoryError else 1 + STRIDE // 2
    while True:
        stage.prepare(name)
        injector = Injector(error, at)
        injector.run(getattr(stage, name))
        if injector.left > 0:
            break
        at += STRIDE
    assert at > 50
