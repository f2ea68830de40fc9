"""No step of a scheduler takes longer where there are more workers: counted in instructions, so no clock has a say."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import poolkit
from engine.brain import MESSAGE, MIXED, NODE, PLAIN, Brain
from poolkit._core.options import CallOptions
from poolkit._core.workforce import KillReason, Ready

FEW, MANY = 2 * NODE, 16 * NODE
CORE = str(Path(poolkit.__file__).parent / "_core")


def instructions(step: Callable[[], object]) -> int:
    """How many instructions of Python are executed in the core while something is done."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if event == "call":
            if not frame.f_code.co_filename.startswith(CORE):
                return None
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event == "opcode":
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    finally:
        sys.settrace(before)
    return count


def busy(slots: int, mix: Sequence[CallOptions] = MIXED, **limits: Any) -> Brain:
    """All are up and have something to do, and as much is queued: of the last kind."""
    brain = Brain(slots, **limits)
    brain.warm_up()
    brain.ready()
    brain.submit(brain.tasks(2 * slots, mix[-1:]))
    brain.run(brain.tasks(4 * MESSAGE, mix))
    return brain


def idle(slots: int, **limits: Any) -> Brain:
    """All are up and have nothing to do."""
    brain = busy(slots, **limits)
    while brain.force.running:
        brain.finish(len(brain.force.running))
    return brain


def run_some(slots: int, mix: Sequence[CallOptions]) -> int:
    brain = busy(slots, mix)
    tasks = brain.tasks(8 * MESSAGE, mix)
    return instructions(lambda: brain.run(tasks))


def get_ready(slots: int) -> int:
    """Of a node, while another worker is leaving."""
    brain = busy(slots)
    brain.hand_in(brain.node(busy=True))
    roster = brain.scheduler.roster
    roster.kill(next(iter(roster)), KillReason(None, "shrunk"), want_stack=False)
    return instructions(lambda: brain.hand_in([Ready(brain.force.started.popleft(), None) for _ in range(NODE)]))


def wait(slots: int) -> int:
    """Time passes, and nothing comes."""
    brain = busy(slots)

    def look() -> None:
        for _ in range(100):
            brain.now += 0.01
            brain.scheduler.tick(brain.now)

    return instructions(look)


def lose_node(slots: int, *, is_busy: bool) -> int:
    brain = busy(slots) if is_busy else idle(slots)
    deaths = brain.node(busy=is_busy)
    return instructions(lambda: brain.hand_in(deaths))


def get_node(slots: int) -> int:
    """There is room for one node more."""
    brain = busy(slots)
    return instructions(lambda: brain.scheduler.resize(slots + NODE, brain.now))


def leave_idle(slots: int) -> int:
    """A node was idle for too long, the others not yet."""
    brain = idle(slots, idle_timeout=1.0)
    brain.now += 0.5
    tasks = brain.tasks(slots - NODE)
    brain.submit(tasks)
    brain.finish(len(tasks))
    brain.now = 0.5 + brain.now
    count = instructions(lambda: brain.scheduler.tick(brain.now))
    assert len(brain.force.killed) == NODE
    return count


STEPS: dict[str, Callable[[int], int]] = {
    "tasks": lambda slots: run_some(slots, [PLAIN]),
    "tasks-of-several-priorities": lambda slots: run_some(slots, MIXED),
    "tasks-with-a-memory-limit": lambda slots: run_some(slots, [CallOptions(memory_limit=10**9)]),
    "ready": get_ready,
    "waiting": wait,
    "64-busy-ones-die": lambda slots: lose_node(slots, is_busy=True),
    "64-idle-ones-die": lambda slots: lose_node(slots, is_busy=False),
    "64-more": get_node,
    "64-leave": leave_idle,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_no_more_work_with_eight_times_the_workers(step: str) -> None:
    """Nobody walks over all of them: a loop takes three instructions for each or more."""
    STEPS[step](FEW)  # CPython 3.12 does not count the first time
    few, many = STEPS[step](FEW), STEPS[step](MANY)
    print(few, many)
    assert few > 0
    assert many < few + MANY - FEW
