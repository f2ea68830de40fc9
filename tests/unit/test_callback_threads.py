"""The thread that calls: it may end and begin anew at any moment, and no two of it call at once."""

from __future__ import annotations

import threading

from poolkit._engine.callbacks import Caller
from support import WATCHDOG


def test_words_to_one_that_ends_are_not_for_the_next() -> None:
    for _ in range(200):
        called = threading.Semaphore(0)
        caller = Caller("caller", called.release)
        for _ in range(3):
            assert caller.start()
            assert called.acquire(timeout=WATCHDOG)
            caller.end()
            caller.end()
        assert caller.start()
        assert called.acquire(timeout=WATCHDOG)
        assert caller.close(WATCHDOG)


def test_the_next_one_waits_for_the_last_calls_of_the_one_before() -> None:
    said: list[str] = []
    is_last, others = threading.Event(), threading.Event()

    def call() -> None:
        if not said:
            said.append("first")
        elif len(said) == 1:
            said.append("last begins")
            is_last.set()
            others.wait(0.05)  # for nobody
            said.append("last ends")
        else:
            said.append("next")
            others.set()

    caller = Caller("caller", call)
    assert caller.start()
    caller.end()
    assert is_last.wait(WATCHDOG)
    assert caller.start()
    assert others.wait(WATCHDOG)
    assert said[:4] == ["first", "last begins", "last ends", "next"]
    assert caller.close(WATCHDOG)
