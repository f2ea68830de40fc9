"""Streams of a fake pool: a generator that is suspended between two steps of the pool.

Owner: the thread whose turn it is.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import Any

from poolkit._child.coroutines import Ended
from poolkit._child.stream import close_generator, iterate
from poolkit._child.window import Window
from poolkit._core.workforce import AnyTask
from poolkit._wire import codec
from poolkit._wire.buffers import Found
from poolkit.context import TaskContext
from poolkit.errors import SerializationError
from poolkit.incoming import Packed
from poolkit.outcome import CANCELLED, Outcome
from poolkit.testing.mail import FakeMail
from poolkit.testing.script import CRASHES, HANGS, RUNS, Step


class FakeStream(Window, FakeMail):
    """The run of one stream."""

    def __init__(
        self,
        task: AnyTask,
        call: tuple[Any, ...],
        step: Step,
        timeline: object,
        run: Callable[[Any], Any],
        *,
        by_reference: bool,
    ) -> None:
        *whole, window = call  # the arguments of `run_stream`
        Window.__init__(self, *window)
        FakeMail.__init__(self, task, timeline, by_reference=by_reference)
        self.every = step.every
        self._run = run  # a coroutine
        self.outcome: Outcome | None = None
        self.context: TaskContext | None = None  # the same for all items
        self.variables: contextvars.Context | None = None  # that it runs in
        self.is_over = False  # it has an outcome, or its worker is to die
        self._call: Any = whole
        self._step = step
        self._items: Any = None
        self._number = 0

    def is_full(self) -> bool:
        """Whether no more may be made; also of one that hangs."""
        return self.every == math.inf or super().is_full()

    def next(self) -> None:
        """Make one more item, or note how it ends."""
        try:
            if self.is_to_end:
                close_generator(self._items)
                raise Ended
            if self._items is None:
                self._items = self._begin()
            self._number += 1
            self._send(next(self._items))
        except StopIteration as end:
            self._finish(end.value)
        except Ended:
            self._over(CANCELLED)
        except BaseException as exc:  # noqa: BLE001 -- SystemExit and KeyboardInterrupt are the task's exceptions too
            close_generator(self._items)
            self._over(self._failure(exc))

    def _begin(self) -> Any:
        if self._step.items is not None:
            return iter(self._step.items)
        return iterate(self._call[0], self._step.perform(*self._call), self._run)

    def _send(self, item: Any) -> None:
        incoming, nbytes = self._task.incoming, 0
        if self._by_reference:
            incoming.by_reference = True
            entry: Any = item
        else:
            try:
                with Found() as found:
                    packed = codec.pack_value(item, found)
            except SerializationError as exc:
                exc.args = (f"item {self._number} of the stream: {exc}",)
                raise
            nbytes = len(packed) + sum(len(buffer.raw()) for buffer in found)
            entry = Packed((packed, found.memories), lambda both: codec.load_value(both[0]), nbytes)
            incoming.plain, incoming.sizable = False, incoming.sizable or nbytes > incoming.small
        incoming.come += 1
        self.received[0] += 1
        incoming.items.append(entry)
        self.note(nbytes)
        incoming.ring()

    def _finish(self, value: Any) -> None:
        what = self._step.what
        if self._step.items is None or what == RUNS:
            self._over(self._value(value))
        elif what == CRASHES:
            self.is_over = True
        elif what == HANGS:
            self.every = math.inf
        else:
            try:
                self._over(self._value(self._step.perform(*self._call)))
            except BaseException as exc:  # noqa: BLE001 -- as the script says
                self._over(self._failure(exc))

    def _over(self, outcome: Outcome) -> None:
        self.outcome, self.is_over = outcome, True

    def _value(self, value: Any) -> Outcome:
        if self._by_reference:
            return Outcome(value, ok=True)
        return Outcome(codec.pack_value(value), ok=True, load=codec.load_value)

    def _failure(self, exc: BaseException) -> Outcome:
        if self._by_reference:
            return Outcome.failure(exc)
        return Outcome(codec.pack_error(exc), ok=False, load=codec.load_error)

    def is_told_to_end(self, _task_id: int) -> bool:
        """Whether the task that runs was told to end."""
        return self.is_to_end
