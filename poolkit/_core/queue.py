"""TaskQueue: the tasks accepted and not yet sent, most urgent first.

Guarantees: larger priority first, FIFO (by `task.seq`) inside one priority; a task that is put back takes its old
place. Removing a task keeps nothing of it but its number. Needs only the standard library.
Guarded by: the pool's one lock.

A level holds the tasks of one priority, in two parts, each in order by itself: those that came in (their numbers only
grow) and those that came back (few, so a heap of their numbers will do). The older of the two heads is the next.
Cost: push and pop are O(1), put_back is O(log n) a task, remove is O(1); with p priorities in use, O(log p) on top.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

from poolkit.task import Task

AnyTask = Task[Any]

_by_seq = attrgetter("seq")


class _Level:
    """The queued tasks of one priority."""

    __slots__ = ("came_back", "came_in", "numbers")

    def __init__(self) -> None:
        # An OrderedDict, not a deque: a cancelled task leaves at once, from anywhere, and is not kept alive.
        self.came_in: OrderedDict[AnyTask, None] = OrderedDict()
        self.came_back: dict[int, AnyTask] = {}  # by seq
        self.numbers: list[int] = []  # heap: every key of `came_back`, and some of tasks that were removed since

    def __bool__(self) -> bool:
        return bool(self.came_in or self.came_back)

    def __iter__(self) -> Iterator[AnyTask]:
        back = sorted(self.came_back.values(), key=_by_seq)
        return heapq.merge(back, self.came_in, key=_by_seq) if back else iter(self.came_in)

    def put_back(self, task: AnyTask) -> None:
        if not self.came_back:
            self.numbers.clear()
        self.came_back[task.seq] = task
        heapq.heappush(self.numbers, task.seq)

    def first(self) -> AnyTask:
        if self.came_back:
            numbers = self.numbers
            while numbers[0] not in self.came_back:
                heapq.heappop(numbers)
            back = self.came_back[numbers[0]]
            if not self.came_in or back.seq < next(iter(self.came_in)).seq:
                return back
        return next(iter(self.came_in))

    def remove(self, task: AnyTask) -> bool:
        if task in self.came_in:
            del self.came_in[task]
        elif self.came_back.get(task.seq) is task:
            del self.came_back[task.seq]
        else:
            return False
        return True


class TaskQueue:
    """Queue of tasks by priority. Not thread-safe: the pool's lock guards it."""

    __slots__ = ("_levels", "_order", "size")

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}  # by priority; an empty one goes when it would be the first
        self._order: list[int] = []  # heap of the negated keys of `_levels`
        self.size = 0  # how many tasks; to be read by anybody

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[AnyTask]:
        """The tasks in the order in which `pop` would give them; for looking, not for popping while iterating."""
        for priority in sorted(self._levels, reverse=True):
            yield from self._levels[priority]

    def push(self, task: AnyTask) -> None:
        """Add `task` behind the others of its priority; its `seq` must be the largest yet."""
        self._level(task.options.priority).came_in[task] = None
        self.size += 1

    def push_many(self, tasks: list[AnyTask]) -> None:
        """Add `tasks` behind the others of their priorities, in this order."""
        level = self._level(priority := 0)
        for task in tasks:
            if task.options.priority != priority:
                level = self._level(priority := task.options.priority)
            level.came_in[task] = None
        self.size += len(tasks)

    def put_back(self, tasks: Iterable[AnyTask]) -> None:
        """Put tasks that were taken out back in their old places, by `seq`."""
        for task in tasks:
            self._level(task.options.priority).put_back(task)
            self.size += 1

    def pop(self) -> AnyTask:
        """Take the most urgent task out. Raises IndexError when empty."""
        level = self._levels[-self._order[0]]
        if level.came_in and not level.came_back:  # nearly always
            self.size -= 1
            return level.came_in.popitem(last=False)[0]
        level = self._first_level()
        self.size -= 1
        task = level.first()
        level.remove(task)
        return task

    def peek(self) -> AnyTask:
        """The task that `pop` would give. Raises IndexError when empty."""
        return self._first_level().first()

    def urgency(self) -> float:
        """No task in the queue is more urgent than this; cheaper than to look at the first one."""
        return -self._order[0] if self._order else -math.inf

    def remove(self, task: AnyTask) -> bool:
        """Take `task` out from anywhere; False when it is not queued."""
        level = self._levels.get(task.options.priority)
        if level is None or not level.remove(task):
            return False
        self.size -= 1
        return True

    def clear(self) -> list[AnyTask]:
        """Take everything out, most urgent first."""
        tasks = list(self)
        self._levels.clear()
        self._order.clear()
        self.size = 0
        return tasks

    def _level(self, priority: int) -> _Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
            heapq.heappush(self._order, -priority)
        return level

    def _first_level(self) -> _Level:
        while True:
            level = self._levels[-self._order[0]]
            if level:
                return level
            del self._levels[-heapq.heappop(self._order)]
