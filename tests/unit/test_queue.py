"""TaskQueue: order, and what removing costs."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest

from poolkit._core.options import CallOptions
from poolkit._core.queue import MOST_LOOKED_THROUGH, TaskQueue
from poolkit.task import Task

AnyTask = Task[Any]


def make(seq: int, priority: int = 0) -> AnyTask:
    task: AnyTask = Task(None, f"task{seq}", None, CallOptions(priority=priority))
    task.id = seq
    return task


def filled(*priorities: int) -> tuple[TaskQueue, list[AnyTask]]:
    queue = TaskQueue()
    tasks = [make(seq, priority) for seq, priority in enumerate(priorities, 1)]
    for task in tasks:
        queue.push(task)
    return queue, tasks


def popped(queue: TaskQueue) -> list[int]:
    return [queue.pop().id for _ in range(len(queue))]


def test_the_most_urgent_comes_first_and_equals_in_order() -> None:
    """Larger priority first, then first in, first out."""
    queue, _ = filled(0, 5, -1, 5, 0)
    assert popped(queue) == [2, 4, 1, 5, 3]


def test_what_is_put_back_takes_its_old_place() -> None:
    """Tasks that come back stand before the younger ones, in whatever order they come back."""
    queue, _ = filled(0, 0, 0, 0, 0, 0)
    taken = [queue.pop() for _ in range(4)]
    queue.put_back([taken[3], taken[1]])
    queue.put_back([taken[2]])
    queue.put_back([taken[0]])
    assert [task.id for task in queue] == [1, 2, 3, 4, 5, 6]
    assert popped(queue) == [1, 2, 3, 4, 5, 6]


def test_what_is_put_back_and_removed_does_not_come_again() -> None:
    """A task that came back leaves like any other, and may come back once more."""
    queue, tasks = filled(0, 0, 0)
    for _ in range(3):
        queue.pop()
    queue.put_back(tasks)
    queue.remove(tasks[0])
    assert queue.peek() is tasks[1]
    queue.put_back([tasks[0]])
    queue.remove(tasks[1])
    assert popped(queue) == [1, 3]
    queue.put_back([tasks[2]])
    assert popped(queue) == [3]


def test_a_task_that_came_back_stands_between_older_and_younger_ones() -> None:
    """What came back is no more urgent than what is older."""
    queue, tasks = filled(0, 0, 0)
    queue.remove(tasks[1])
    queue.put_back([tasks[1]])
    assert popped(queue) == [1, 2, 3]


def test_peek_and_pop_agree_and_peek_takes_nothing() -> None:
    """What is looked at is what comes out."""
    queue, tasks = filled(0, 1)
    assert queue.peek() is tasks[1]
    assert len(queue) == 2
    assert queue.pop() is tasks[1]


def test_an_empty_queue_gives_nothing() -> None:
    """Neither one that never held anything nor one that was emptied."""
    emptied, tasks = filled(0)
    emptied.remove(tasks[0])
    for queue in (TaskQueue(), emptied):
        with pytest.raises(IndexError):
            queue.peek()
        with pytest.raises(IndexError):
            queue.pop()


def test_what_is_removed_is_not_there_and_may_come_back() -> None:
    """From the middle, too."""
    queue, tasks = filled(0, 0, 0)
    queue.remove(tasks[1])
    assert len(queue) == 2
    assert list(queue) == [tasks[0], tasks[2]]
    queue.put_back([tasks[1]])
    assert list(queue) == tasks
    assert popped(queue) == [1, 2, 3]


def test_an_emptied_priority_is_used_again() -> None:
    """A priority may come and go while others stay."""
    queue, tasks = filled(1, 0)
    queue.remove(tasks[0])
    again = make(3, priority=1)
    queue.push(again)
    assert popped(queue) == [3, 2]


def test_urgency_is_never_less_than_that_of_the_first_task() -> None:
    """It may be too large after a removal, and is minus infinity only when nothing is there."""
    queue, tasks = filled(3, 1)
    assert queue.urgency() == 3
    queue.remove(tasks[0])
    assert queue.urgency() >= 1
    assert queue.peek() is tasks[1]
    assert queue.urgency() == 1
    assert TaskQueue().urgency() == -math.inf


def test_clear_gives_everything_in_order() -> None:
    """Afterwards nothing is left."""
    queue, tasks = filled(0, 1, 0)
    first = queue.pop()
    queue.put_back([first])
    assert queue.clear() == [tasks[1], tasks[0], tasks[2]]
    assert len(queue) == 0
    assert list(queue) == []


def test_a_task_that_is_removed_from_few_is_not_kept() -> None:
    queue, tasks = filled(0, 0, 0)
    watched = weakref.ref(tasks[1])
    queue.remove(tasks[1])
    del tasks
    gc.collect()
    assert watched() is None


def test_removed_tasks_are_not_kept_once_they_are_the_most() -> None:
    """Wherever they stood."""
    count = 3 * MOST_LOOKED_THROUGH
    queue, tasks = filled(*[0] * count)
    watched = [weakref.ref(task) for task in tasks[1:]]
    for task in tasks[1:]:
        queue.remove(task)
    del tasks, task
    gc.collect()
    assert sum(each() is not None for each in watched) <= MOST_LOOKED_THROUGH
    assert popped(queue) == [1]


def test_numbers_of_removed_tasks_do_not_pile_up() -> None:
    """Coming back and being cancelled, over and over, leaves nothing behind."""
    queue, (task,) = filled(0)
    queue.pop()
    for _ in range(100):
        queue.put_back([task])
        queue.remove(task)
    queue.put_back([task])
    assert len(queue._levels[0].numbers) == 1
