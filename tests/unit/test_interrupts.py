"""Ctrl-C is put off while the main thread decides, comes right afterwards, and is never lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from poolkit._engine import interrupts
from poolkit._engine.interrupts import deciding, defer_signals, restore_signals


@pytest.fixture(autouse=True)
def handler() -> Iterator[object]:
    """Python's own handler of SIGINT, whatever the test does to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@deciding
def decide(work: Callable[[], object]) -> None:
    before = defer_signals()
    try:
        work()
    finally:
        restore_signals(before)


def test_an_interrupt_comes_after_the_decision_and_not_within(handler: object) -> None:
    steps = []

    def work() -> None:
        steps.append("begun")
        press()
        steps.append("done")

    with pytest.raises(KeyboardInterrupt):
        decide(work)
    assert steps == ["begun", "done"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_without_an_interrupt_nothing_changes(handler: object) -> None:
    decide(lambda: None)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        press()


def test_two_interrupts_within_one_decision_are_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        decide(lambda: (press(), press()))
    decide(lambda: None)


def test_a_decision_within_a_decision_leaves_it_to_the_outer_one() -> None:
    """A callback of the user may submit."""
    steps = []

    def work() -> None:
        decide(press)
        steps.append("inner is over")

    with pytest.raises(KeyboardInterrupt):
        decide(work)
    assert steps == ["inner is over"]


def test_an_error_of_the_decision_is_not_lost(handler: object) -> None:
    with pytest.raises(ZeroDivisionError):
        decide(lambda: 1 / 0)
    with pytest.raises(KeyboardInterrupt) as caught:
        decide(lambda: (press(), 1 / 0))
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_programs_own_handler_is_called_as_ever() -> None:
    calls = []
    signal.signal(signal.SIGINT, lambda number, frame: calls.append((number, frame is not None)))
    decide(press)
    assert calls == [(signal.SIGINT, True)]


def test_a_handler_set_meanwhile_stays() -> None:
    def own(_number: int, _frame: FrameType | None) -> None:
        return

    decide(lambda: signal.signal(signal.SIGINT, own))
    assert signal.getsignal(signal.SIGINT) is own


def test_where_interrupts_are_ignored_they_stay_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    decide(press)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_are_not_concerned(handler: object) -> None:
    seen = []
    thread = threading.Thread(target=lambda: decide(lambda: seen.append(signal.getsignal(signal.SIGINT))))
    thread.start()
    thread.join()
    assert seen == [handler]


def test_a_note_taker_that_was_forgotten_puts_the_handler_back(handler: object) -> None:
    """As when another signal's handler raised between `defer_signals` and the `try` behind it."""
    defer_signals()
    assert signal.getsignal(signal.SIGINT) is interrupts._note
    with pytest.raises(KeyboardInterrupt):
        press()
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_signals_are_put_off_too_and_each_goes_to_its_own_handler(handler: object) -> None:
    calls: list[object] = []

    class Late(Exception):
        pass

    def late(number: int, _frame: FrameType | None) -> None:
        calls.append(number)
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(Late):
            decide(lambda: (signal.raise_signal(signal.SIGALRM), calls.append("not torn")))
        assert calls == ["not torn", signal.SIGALRM]
        assert signal.getsignal(signal.SIGALRM) is late
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGALRM, before)


def test_of_two_signals_that_raise_none_is_lost() -> None:
    """The second one comes with the next decision."""
    raised = []

    def note_and_raise(number: int, _frame: FrameType | None) -> None:
        raised.append(number)
        raise LookupError

    before = signal.signal(signal.SIGUSR1, note_and_raise)
    signal.signal(signal.SIGINT, note_and_raise)
    try:
        with pytest.raises(LookupError):
            decide(lambda: (press(), signal.raise_signal(signal.SIGUSR1)))
        with pytest.raises(LookupError):
            decide(lambda: None)
        assert sorted(raised) == sorted([signal.SIGINT, signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_raises_while_signals_are_being_put_off_leaves_no_note_taker(
    handler: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of SIGALRM does when it comes between SIGINT's exchange and its own."""
    before = signal.getsignal(signal.SIGALRM)

    def raise_late(_number: int, _frame: FrameType | None) -> None:
        raise LookupError

    exchanged: list[int] = []

    class Meddled:
        getsignal = staticmethod(interrupts._signal.getsignal)

        @staticmethod
        def signal(number: int, new: object) -> object:
            if new is interrupts._note and number == signal.SIGALRM:
                exchanged.append(number)
                signal.raise_signal(signal.SIGALRM)
            return signal.signal(number, new)  # type: ignore[arg-type]

    signal.signal(signal.SIGALRM, raise_late)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(interrupts, "_signal", Meddled)
            with pytest.raises(LookupError):
                decide(lambda: None)
        assert exchanged == [signal.SIGALRM]
        assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGALRM) is raise_late
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_note_taker_that_was_forgotten_is_put_back_by_the_next_decision(handler: object) -> None:
    defer_signals()
    decide(lambda: None)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_decision_within_the_torn_one_does_not_hide_its_note_taker(handler: object) -> None:
    """It has found the same handlers, and had none to put aside."""

    @deciding
    def torn() -> None:
        defer_signals()
        decide(lambda: None)

    torn()
    decide(lambda: None)
    assert signal.getsignal(signal.SIGINT) is handler
