"""A signal handler or finalizer that submits while `submit` is importing what it needs."""

from __future__ import annotations

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

PROGRAM = """
import gc, signal, sys
import poolkit

def make(add):
    class Adder:  # has no name to go by: for this cloudpickle is needed
        def of(self, x):
            return x + add
    return Adder()

def work(x):
    return make(1).of(x)

tasks, seen, armed = [], [], False
SUBMIT = lambda *_: tasks.append(pool.submit(work, len(tasks)))

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        if armed:  # a collection may come later than it was asked for
            SUBMIT()

def interrupt():
    if HOW == "signal":
        signal.raise_signal(signal.SIGUSR1)
    else:
        Cycle()
        gc.collect()

def audit(event, args):
    if event == "import" and args[0].startswith("cloudpickle") and armed and args[0] not in seen:
        seen.append(args[0])
        interrupt()

def profile(frame, event, _):
    # in the midst of the module's own code: a few hundred places
    if event == "call" and frame.f_globals.get("__name__") == "cloudpickle.cloudpickle" and armed and len(tasks) < 20:
        interrupt()

HOW, WHERE = sys.argv[1:]
with poolkit.Pool(1) as pool:
    signal.signal(signal.SIGUSR1, SUBMIT)
    if WHERE == "audit":
        sys.addaudithook(audit)
    else:
        sys.setprofile(profile)
    armed = True
    outer = pool.submit(make(1).of, 99)
    armed = False
    sys.setprofile(None)
    assert outer.result() == 100, outer
    assert tasks
    assert all(0 < task.result() <= len(tasks) for task in tasks), tasks
    import cloudpickle
    assert pool.submit(cloudpickle.loads, cloudpickle.dumps(work)).exception() is None
    assert cloudpickle.Pickler is sys.modules["cloudpickle.cloudpickle"].Pickler
    print("done")
"""


@pytest.mark.parametrize("where", ["audit", "profile"])
@pytest.mark.parametrize("how", ["signal", "finalizer"])
def test_both_submits_come_to_their_end(how: str, where: str) -> None:
    assert run(PROGRAM, how, where) == ["done"]
