"""TaskQueue against a plain sorted list."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolkit._core.options import CallOptions
from poolkit._core.queue import TaskQueue
from poolkit.task import Task

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(-2, 2)),
        st.tuples(st.sampled_from(["pop", "remove", "put back"]), st.integers(0, 30)),
    ),
    max_size=80,
)


@given(STEPS)
def test_it_behaves_as_a_list_sorted_by_priority_and_number(steps: list[tuple[str, int]]) -> None:
    """Whatever is pushed, taken out, removed and put back, the order is that of a sorted list."""
    queue = TaskQueue()
    inside: list[Task[Any]] = []
    outside: list[Task[Any]] = []
    for seq, (what, number) in enumerate(steps, 1):
        if what == "push":
            task: Task[Any] = Task(None, "", None, CallOptions(priority=number))
            task.id = seq
            queue.push(task)
            inside.append(task)
        elif what == "pop" and inside:
            task = queue.pop()
            assert task is inside.pop(0)
            outside.append(task)
        elif what == "remove" and inside:
            task = inside.pop(number % len(inside))
            queue.remove(task)
            outside.append(task)
        elif what == "put back" and outside:
            task = outside.pop(number % len(outside))
            queue.put_back([task])
            inside.append(task)
        inside.sort(key=lambda task: (-task.options.priority, task.id))
        assert list(queue) == inside
        assert len(queue) == len(inside)
        if inside:
            assert queue.peek() is inside[0]
            assert queue.urgency() >= inside[0].options.priority
        assert all(task in queue for task in inside)
        assert not any(task in queue for task in outside)
