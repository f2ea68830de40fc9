"""What the other tests lean on."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import support_gates
import support_leaks


class Stop(BaseException):
    pass


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_switches")
def test_a_thread_that_is_stopped_anywhere_in_a_gate_or_journal_leaves_no_descriptor(
    new_gate: Callable[[], support_gates.Gate], journal: support_gates.Journal
) -> None:
    gate = new_gate()
    before = set(support_leaks.snapshot().fds)

    def use_them(begun: threading.Event) -> None:
        try:
            begun.set()
            while True:
                gate.signal()
                gate.wait()
                journal.write("line")
        except Stop:
            pass

    rng = random.Random(1)
    for _ in range(200):
        begun = threading.Event()
        thread = threading.Thread(target=use_them, args=[begun])
        thread.start()
        begun.wait()
        for _ in range(rng.randrange(300)):
            pass
        stopped = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop))
        assert stopped == 1
        thread.join()
    journal.write("last")
    assert {fd for fd in support_leaks.snapshot().fds if "gate" in fd[1]} <= before
    assert not any("journal" in target for _, target in support_leaks.snapshot().fds)
