"""TaskQueue: the tasks accepted and not yet sent, most urgent first.

Guarantees: larger priority first, FIFO (by `task.id`) inside one priority; a task that is put back takes its old
place. A task that is removed from many is kept until it would be the first, or those removed are the most.
Guarded by: the pool's one lock.

A level holds the tasks of one priority, in two parts, each in order by itself: those that came in (their numbers only
grow) and those that came back (few, so a heap of their numbers will do). The older of the two heads is the next.
Cost: push, pop and remove are O(1), put_back is O(log n) a task; with p priorities in use, O(log p) on top.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

from poolkit.task import Task

AnyTask = Task[Any]

MOST_LOOKED_THROUGH = 100  # tasks, when one is to be removed

_by_id = attrgetter("id")


class _Level:
    """The queued tasks of one priority."""

    __slots__ = ("came_back", "came_in", "numbers", "removed")

    def __init__(self) -> None:
        self.came_in: deque[AnyTask] = deque()
        self.removed: set[AnyTask] = set()  # those of `came_in` that are not queued any more
        self.came_back: dict[int, AnyTask] = {}  # by id
        self.numbers: list[int] = []  # heap: every key of `came_back`, and some of tasks that were removed since

    def __bool__(self) -> bool:
        return len(self.came_in) > len(self.removed) or bool(self.came_back)

    def __iter__(self) -> Iterator[AnyTask]:
        came_in = [task for task in self.came_in if task not in self.removed] if self.removed else self.came_in
        back = sorted(self.came_back.values(), key=_by_id)
        return heapq.merge(back, came_in, key=_by_id) if back else iter(came_in)

    def put_back(self, task: AnyTask) -> None:
        if not self.came_back:
            self.numbers.clear()
        self.came_back[task.id] = task
        heapq.heappush(self.numbers, task.id)

    def first(self) -> AnyTask:
        came_in, removed = self.came_in, self.removed
        while removed and came_in and came_in[0] in removed:
            removed.discard(came_in.popleft())
        if self.came_back:
            numbers = self.numbers
            while numbers[0] not in self.came_back:
                heapq.heappop(numbers)
            back = self.came_back[numbers[0]]
            if not came_in or back.id < came_in[0].id:
                return back
        return came_in[0]

    def remove(self, task: AnyTask) -> None:
        if self.came_back.get(task.id) is task:
            del self.came_back[task.id]
            return
        if len(self.came_in) <= MOST_LOOKED_THROUGH and not self.removed:
            self.came_in.remove(task)
            return
        self.removed.add(task)
        if len(self.removed) > MOST_LOOKED_THROUGH and 2 * len(self.removed) > len(self.came_in):
            self.came_in = deque(each for each in self.came_in if each not in self.removed)
            self.removed.clear()


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
        """Add `task` behind the others of its priority."""
        self._level(task.options.priority).came_in.append(task)
        self.size += 1

    def push_many(self, tasks: list[AnyTask]) -> None:
        """Add `tasks` behind the others of their priorities, in this order."""
        level = self._level(priority := 0)
        for task in tasks:
            if task.options.priority != priority:
                level = self._level(priority := task.options.priority)
            level.came_in.append(task)
        self.size += len(tasks)

    def put_back(self, tasks: Iterable[AnyTask]) -> None:
        """Put tasks that were taken out back in their old places, by their ids."""
        for task in tasks:
            self._level(task.options.priority).put_back(task)
            self.size += 1

    def pop(self) -> AnyTask:
        """Take the most urgent task out. Raises IndexError when empty."""
        level = self._levels[-self._order[0]]
        if level.came_in and not level.came_back and not level.removed:  # nearly always
            self.size -= 1
            return level.came_in.popleft()
        level = self._first_level()
        self.size -= 1
        task = level.first()
        if level.came_back.pop(task.id, None) is None:
            level.came_in.popleft()
        return task

    def peek(self) -> AnyTask:
        """The task that `pop` would give. Raises IndexError when empty."""
        level = self._levels[-self._order[0]]
        if level.came_in and not level.came_back and not level.removed:  # nearly always
            return level.came_in[0]
        return self._first_level().first()

    def urgency(self) -> float:
        """No task in the queue is more urgent than this; cheaper than to look at the first one."""
        return -self._order[0] if self._order else -math.inf

    def remove(self, task: AnyTask) -> None:
        """Take a task that is queued out from anywhere."""
        self._levels[task.options.priority].remove(task)
        self.size -= 1

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
