"""Runs: the workers of a fake pool in the books, and what runs there.

Owner: the thread whose turn it is.
"""

from __future__ import annotations

import contextvars
import math
from collections import deque

from poolkit._child.coroutines import Coroutines
from poolkit._core.workforce import (
    AnyTask,
    Status,
)
from poolkit.context import TaskContext
from poolkit.testing.calls import Whole, each_call
from poolkit.testing.script import CRASHES, HANGS, RAISES, Step, When, next_step
from poolkit.testing.streams import FakeStream


class FakeWorker:
    """One worker in the books, and the run of a task that is at work there."""

    def __init__(self, worker_id: int) -> None:
        self.id = worker_id
        self.claims: deque[tuple[AnyTask, bool]] = deque()  # sent, not claimed
        self.run: Run | None = None
        self.task: TaskContext | None = None  # of the call that is being run
        self.status = Status()
        self.context = contextvars.Context()  # the caller's variables are not seen in a worker, nor the other way round
        self.coroutines = Coroutines()
        self.context.run(self.coroutines.keep)


class Run:
    """One run of a task on a fake worker."""

    def __init__(self, task: AnyTask, now: float, script: list[When]) -> None:
        self.task = task
        self.ends_at = now
        self.stream: FakeStream | None = None
        self.actor = task.call.actor  # of a dedicated worker
        self.steps: list[Step] = []  # what each call in it does, up to the first that ends it
        self.call: Whole | None = None
        try:
            self.call = task.call.load()
        except Exception as exc:  # noqa: BLE001 -- unpickling runs the user's code
            self.failure = exc
            return
        for args, kwargs in each_call(*self.call) if script else ():
            step = next_step(script, task.call.fn, args, kwargs)
            self.steps.append(step)
            self.ends_at += math.inf if step.what == HANGS and step.items is None else step.seconds
            if step.what in {HANGS, CRASHES, RAISES}:
                break

    def stack(self) -> str:
        """Where a call that hangs would be stuck, in the form in which real stacks come."""
        code = getattr(self.call and self.call[0], "__code__", None)
        return "" if code is None else f'  File "{code.co_filename}", line {code.co_firstlineno} in {code.co_name}'
