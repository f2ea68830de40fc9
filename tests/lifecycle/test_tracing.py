"""A profiler, a debugger, a measure of coverage: they trace a program whose threads' tasks are stopped."""

from __future__ import annotations

import pytest

from support_scripts import run_script

SCRIPT = """
import sys, threading, time
import poolkit

def f():
    return 1

def spin():
    while True:
        pass

def swallow():
    try:
        spin()
    except BaseException:
        pass

def leave():
    time.sleep(0.3)

def check():
    while True:
        _ = poolkit.current_task().cancelled

def traced():
    {trace}(lambda *args: None)
    for _ in range(1_000):
        f()
    {trace}(None)

with poolkit.Pool(2, kind="thread") as pool:
    for fn in (spin, swallow, leave, check) * 3:
        task = pool.options(timeout=0.05).submit(fn)
        while not task.done():
            traced()
        assert isinstance(task.exception(30), poolkit.TaskTimeout), task
        traced()
traced()
print("traced")
"""


@pytest.mark.long
@pytest.mark.parametrize("trace", ["sys.setprofile", "sys.settrace"])
def test_a_traced_thread_goes_on_when_the_task_of_another_is_stopped(trace: str) -> None:
    """CPython 3.11 would not, as long as it believes that an exception waits for a thread."""
    assert run_script(SCRIPT.format(trace=trace)).splitlines() == ["traced"]
