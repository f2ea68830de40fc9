"""Where a test has frozen time, waits and limits go by the real clock, as the standard library's futures do."""

from __future__ import annotations

import importlib.util

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

FREEZE = """
import sys, time
from unittest import mock

class Frozen:
    # As freezegun does it: in every module, each attribute that is one of the real functions; and `time.sleep`.
    def __enter__(self):
        names = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep")
        fakes = {id(getattr(time, name)): (lambda *args: 1000) for name in names}
        self.undo = []
        for module in list(sys.modules.values()):
            for name, value in list(vars(module).items()):
                if id(value) in fakes:
                    self.undo.append((module, name, value))
                    setattr(module, name, fakes[id(value)])
    def __exit__(self, *exc):
        for module, name, value in self.undo:
            setattr(module, name, value)

def freeze(how):
    if how == "freezegun":
        from freezegun import freeze_time
        return freeze_time("2030-01-01")
    if how == "mock":
        from unittest import mock
        return mock.patch.multiple("time", monotonic=lambda: 1000.0, sleep=lambda seconds: None, time=lambda: 1000.0)
    return Frozen()
"""

BODY = """
import threading

def forever(how=None):
    if how is not None:
        freeze(how).__enter__()
    while True:
        pass

def nap(seconds):
    threading.Event().wait(seconds)

def nap_frozen(seconds, how):
    with freeze(how):
        nap(seconds)

def refused(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except (TimeoutError, poolkit.PoolkitError) as error:
        return type(error).__name__.replace("WaitTimeout", "TimeoutError")  # two classes on CPython 3.10

def check(how, kind):
    with poolkit.Pool(1, kind=kind) as pool:
        pool.warm_up(30)
        slow = pool.submit(forever)
        print(refused(slow.result, 0.1), refused(slow.exception, 0.1))
        late = pool.options(queue_timeout=0.1).submit(abs, -1)
        print(refused(late.result))
        print(refused(list, pool.map(abs, range(3), timeout=0.1)))
        slow.cancel()
        print(refused(pool.options(timeout=0.2).submit(forever).result))
        print(refused(pool.options(deadline=0.2).submit(forever).result))
        print(refused(pool.options(timeout=0.2).submit(forever, how if kind == "process" else None).result))
        task = pool.submit(nap_frozen, 0.3, how) if kind == "process" else pool.submit(nap, 0.3)
        task.result()
        print(0.25 < task.run_time < 10, 0 <= task.wait_time < 10)
        pool.submit(forever)
        began = REAL()
        pool.shutdown(timeout=0.2)
        print(REAL() - began < 10)
"""

FOUND = ["TimeoutError TimeoutError", "QueueTimeout", "TimeoutError", "TaskTimeout", "DeadlineExceeded", "TaskTimeout"]
FOUND += ["True True", "True"]

HOWS = ["frozen", "mock", "freezegun"]


def skip_without(how: str) -> None:
    if how == "freezegun" and importlib.util.find_spec("freezegun") is None:
        pytest.skip("needs freezegun")


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("imported", ["before", "while"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.every_nth(9)
def test_waits_and_limits_go_by_the_real_clock(how: str, imported: str, kind: str) -> None:
    skip_without(how)
    source = FREEZE + "import functools\nREAL = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)\n"
    source += "" if imported == "while" else "import poolkit\npoolkit.Pool(1).shutdown()\n"
    source += BODY + f"\nwith freeze({how!r}):\n    import poolkit\n    check({how!r}, {kind!r})\n"
    assert run(source) == FOUND


@pytest.mark.parametrize("how", HOWS)
def test_a_fake_pool_keeps_its_virtual_clock(how: str) -> None:
    skip_without(how)
    source = """
with freeze(HOW):
    from poolkit.testing import FakePool, leaks
    with leaks(), FakePool("manual") as pool:
        pool.when(abs).takes(5)
        task = pool.options(timeout=2).submit(abs, -1)
        pool.run_all()
        print(type(task.exception()).__name__)
    try:
        with leaks(grace=0.2):
            file = open("/dev/null")
    except AssertionError as error:
        print("left behind" in str(error))
    file.close()
""".replace("HOW", repr(how))
    assert run(FREEZE + source) == ["TaskTimeout", "True"]
