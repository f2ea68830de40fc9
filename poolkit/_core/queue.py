"""TaskQueue: the tasks accepted and not yet sent, most urgent first.

Guarantees: larger priority first, FIFO (by `task.seq`) inside one priority; a task that is put back takes its old
place. Removing a task keeps nothing of it. Needs only the standard library.
Guarded by: the pool's one lock.
Cost: push, pop and remove are O(1) inside a priority plus O(log p) for p priorities in use.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from poolkit.task import Task

AnyTask = Task[Any]


class TaskQueue:
    """Queue of tasks by priority. Not thread-safe: the pool's lock guards it."""

    __slots__ = ("_levels", "_order", "_size")

    def __init__(self) -> None:
        # An OrderedDict, not a deque: a cancelled task leaves at once, from anywhere, and is not kept alive.
        self._levels: dict[int, OrderedDict[AnyTask, None]] = {}
        self._order: list[int] = []  # heap of the negated priorities that have a level
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[AnyTask]:
        """The tasks in the order in which `pop` would give them; for looking, not for popping while iterating."""
        for negated in sorted(self._order):
            yield from self._levels[-negated]

    def __contains__(self, task: AnyTask) -> bool:
        level = self._levels.get(task.options.priority)
        return level is not None and task in level

    def push(self, task: AnyTask) -> None:
        """Add `task` behind the others of its priority; its `seq` must be the largest yet."""
        self._level(task.options.priority)[task] = None
        self._size += 1

    def put_back(self, tasks: Iterable[AnyTask]) -> None:
        """Put tasks that were taken out back in their old places, by `seq`."""
        for task in sorted(tasks, key=lambda task: task.seq, reverse=True):
            level = self._level(task.options.priority)
            level[task] = None
            self._size += 1
            first = next(iter(level))
            if first is task or first.seq > task.seq:
                level.move_to_end(task, last=False)
            else:  # something older waits: a task that came back before this one
                self._insert_sorted(task, level)

    @staticmethod
    def _insert_sorted(task: AnyTask, level: OrderedDict[AnyTask, None]) -> None:
        """Move `task`, just appended, in front of the younger ones. Only the older ones are walked over."""
        older = []
        for other in level:
            if other.seq > task.seq:
                break
            if other is not task:
                older.append(other)
        level.move_to_end(task, last=False)
        for other in reversed(older):
            level.move_to_end(other, last=False)

    def pop(self) -> AnyTask:
        """Take the most urgent task out. Raises IndexError when empty."""
        priority = -self._order[0]
        level = self._levels[priority]
        task, _ = level.popitem(last=False)
        self._size -= 1
        if not level:
            del self._levels[priority]
            heapq.heappop(self._order)
        return task

    def peek(self) -> AnyTask | None:
        """The task that `pop` would give; None when empty."""
        if not self._size:
            return None
        return next(iter(self._levels[-self._order[0]]))

    def remove(self, task: AnyTask) -> bool:
        """Take `task` out from anywhere; False when it is not queued."""
        priority = task.options.priority
        level = self._levels.get(priority)
        if level is None or task not in level:
            return False
        del level[task]
        self._size -= 1
        if not level:
            del self._levels[priority]
            self._order.remove(-priority)
            heapq.heapify(self._order)
        return True

    def clear(self) -> list[AnyTask]:
        """Take everything out, most urgent first."""
        tasks = list(self)
        self._levels.clear()
        self._order.clear()
        self._size = 0
        return tasks

    def _level(self, priority: int) -> OrderedDict[AnyTask, None]:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = OrderedDict()
            heapq.heappush(self._order, -priority)
        return level
