"""What a running task may know of itself."""

from __future__ import annotations

from poolkit.context import CURRENT, TaskContext, current_task


def test_the_context_is_there_while_the_task_runs() -> None:
    assert current_task() is None
    outer, inner = TaskContext(1, "outer", 1, None), TaskContext(2, "inner", 1, None)
    first = CURRENT.set(outer)
    second = CURRENT.set(inner)
    assert current_task() is inner
    CURRENT.reset(second)
    assert current_task() is outer
    CURRENT.reset(first)
    assert current_task() is None


def test_time_left_counts_down_to_nothing() -> None:
    now = [10.0]
    context = TaskContext(1, "name", 2, 12.0, lambda: now[0])
    assert context.time_left() == 2.0
    now[0] = 15.0
    assert context.time_left() == 0.0
    assert TaskContext(1, "name", 1, None).time_left() is None
    assert repr(context) == "<poolkit.TaskContext 1 'name' attempt=2>"


def test_a_context_tells_that_it_is_to_stop() -> None:
    context = TaskContext(1, "name", 1, None)
    assert not context.cancelled
    context.request_stop()
    assert context.cancelled
