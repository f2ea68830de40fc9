"""The channel of threads, both ends of it in this one."""

from __future__ import annotations

import pytest

from poolkit._child.local_channel import local_pair


def test_only_the_last_who_asked_is_called_and_once() -> None:
    ours, theirs = local_pair()
    said: list[int] = []
    for number in range(100):
        ours.call_when_ready(lambda number=number: said.append(number))  # type: ignore[misc]
    assert len(ours._in.wakers) == 1
    theirs.try_send("a")
    theirs.try_send("b")
    assert said == [99]
    ours.call_when_ready(lambda: said.append(100))
    assert said == [99, 100]
    assert not ours._in.wakers


def test_who_waits_is_woken_whatever_interrupts_who_sends() -> None:
    ours, theirs = local_pair()
    woken: list[bool] = []
    ours._in.wakers.append(lambda: woken.append(True))

    class Messages(list[object]):
        def append(self, message: object) -> None:
            super().append(message)
            raise KeyboardInterrupt  # as a signal handler might, just behind

    theirs._out.messages = Messages()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        theirs.try_send("a")
    assert woken == [True]
