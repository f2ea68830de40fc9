"""Alarms whose handler raises, at any moment of everything that a program does with a pool.

By default a slice of it; POOLKIT_CHAOS_SCALE=10 makes it 3,000 alarms for each kind.
"""

from __future__ import annotations

import os

import pytest

from lifecycle.scripts import run

pytestmark = pytest.mark.slow

ALARMS = round(300 * float(os.environ.get("POOLKIT_CHAOS_SCALE", "1")))

SOURCE = """
    import faulthandler, random, signal, sys
    import poolkit

    class Alarm(BaseException):
        pass

    def ring(number, frame):
        raise Alarm

    def submit():
        tasks.append((pool.submit(abs, -len(tasks)), len(tasks)))

    def burst():
        for _ in range(30):
            submit()

    def result():
        submit()
        task, value = tasks[-1]
        assert task.result() == value

    def wait():
        burst()
        for task, value in tasks[-20:]:
            assert task.cancelled() or task.result() == value

    def cancel():
        burst()
        for task, _ in tasks[-20::3]:
            task.cancel()

    def map():
        assert list(pool.map(abs, range(-50, 0))) == list(range(50, 0, -1))

    def call_back():
        submit()
        task, value = tasks[-1]
        task.add_done_callback(lambda task: called.append(value))
        certain.append(value)

    tasks, called, certain = [], [], []
    sys.unraisablehook = lambda args: None if args.exc_type is Alarm else sys.__unraisablehook__(args)  # of a finalizer
    rng = random.Random(int(sys.argv[1]))
    signal.signal(signal.SIGALRM, ring)
    rings = 0
    faulthandler.dump_traceback_later(WATCHDOG, exit=True)
    with poolkit.Pool(2, kind=sys.argv[2]) as pool:
        pool.warm_up()
        while rings < ALARMS:
            deed = rng.choice([submit, burst, result, wait, cancel, map, call_back])
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.00001, 0.002))
                deed()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                rings += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        for task, value in tasks:
            assert task.cancelled() or task.result() == value, task
        assert [pool.submit(abs, -number).result() for number in range(10)] == list(range(10))
    assert set(certain) <= set(called), set(certain) - set(called)
    stats = pool.stats()
    assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled, stats
    assert not stats.queued and not stats.running and not stats.crashed and not stats.failed, stats
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("whole")
    """


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_alarms_at_any_moment_leave_a_pool_whole(kind: str) -> None:
    """Every task has its outcome, every callback is called, the counters add up, and the pool serves."""
    source = SOURCE.replace("ALARMS", str(ALARMS)).replace("WATCHDOG", str(25 + ALARMS // 10))
    assert run(source, "1", kind) == ["whole"]
