"""Timers: order, and what becomes of those that nobody needs."""

from __future__ import annotations

from poolkit._core.timers import FEW, Timers


class Book:
    """Notes what fires."""

    def __init__(self) -> None:
        self.over: set[object] = set()
        self.fired: list[object] = []
        self.timers = Timers(self.over.__contains__)

    def note(self, subject: object, now: float) -> None:
        self.fired.append((subject, now))


def test_they_fire_in_order_once_at_the_first_tick_at_or_after_their_instant() -> None:
    """Equal instants fire in the order in which they were set."""
    book = Book()
    for when, subject in ((3.0, "c"), (1.0, "a"), (1.0, "b"), (9.0, "d")):
        book.timers.add(when, book.note, subject)
    assert book.timers.next() == 1.0
    book.timers.fire(0.5)
    assert book.fired == []
    book.timers.fire(3.0)
    book.timers.fire(3.0)
    assert book.fired == [("a", 3.0), ("b", 3.0), ("c", 3.0)]
    assert book.timers.next() == 9.0


def test_nothing_is_due_without_timers() -> None:
    """There is no next instant then."""
    assert Book().timers.next() is None


def test_what_is_over_neither_fires_nor_wakes_anybody() -> None:
    """A settled task's deadline is no reason to wake up."""
    book = Book()
    book.timers.add(1.0, book.note, "a")
    book.timers.add(2.0, book.note, "b")
    book.over.add("a")
    assert book.timers.next() == 2.0
    book.over.add("b")
    book.timers.fire(5.0)
    assert book.fired == []
    assert book.timers.next() is None


def test_what_becomes_over_while_others_fire_does_not_fire() -> None:
    """One tick may settle what the same tick would have looked at."""
    book = Book()
    book.timers.add(1.0, lambda _subject, _now: book.over.add("b"), "a")
    book.timers.add(1.0, book.note, "b")
    book.timers.fire(1.0)
    assert book.fired == []


def test_what_an_action_adds_waits_for_the_next_tick() -> None:
    """So one tick always ends, even if something is set for this very instant."""
    book = Book()

    def again(subject: object, now: float) -> None:
        book.note(subject, now)
        book.timers.add(now, again, subject)

    book.timers.add(1.0, again, "a")
    book.timers.fire(1.0)
    assert len(book.fired) == 1
    book.timers.fire(1.0)
    assert len(book.fired) == 2


def test_what_is_over_is_dropped_once_it_is_the_most() -> None:
    """Far deadlines of tasks that are done do not pile up."""
    book = Book()
    for number in range(100):
        book.timers.add(1000.0 + number, book.note, number)
    for number in range(90):
        book.over.add(number)
        book.timers.let_go(1)
    assert len(book.timers) <= 10 + 2 * FEW
    assert book.timers.next() == 1090.0
    for number in range(90, 100):
        book.timers.fire(1000.0 + number)
    assert [subject for subject, _ in book.fired] == list(range(90, 100))
