"""The line of those who wait for room: turns by ticket, kept over tries; leaving at any moment."""

from __future__ import annotations

from poolkit._workforce.line import Line, Place


def new_line(count: int) -> tuple[Line, list[Place]]:
    line, places = Line(), [Place(lambda: None) for _ in range(count)]
    for place in places:
        line.stand(place)
    return line, places


def test_who_came_first_is_taken_first_and_is_marked_as_called() -> None:
    line, places = new_line(3)
    assert line.take(2) == places[:2]
    assert [place.called for place in places] == [True, True, False]
    assert len(line) == 1


def test_those_who_come_back_stand_where_they_stood() -> None:
    line, places = new_line(4)
    called = line.take(3)
    for place in called[::-1]:
        line.stand(place)
    assert not any(place.called for place in places)
    assert line.take(4) == places


def test_nobody_passes_who_came_later_but_those_before_may() -> None:
    line, _ = new_line(3)
    first, second = line.take(2)
    assert line.precedes(Place(lambda: None))
    assert not line.precedes(first)
    line.stand(first)
    assert line.precedes(second)
    assert not Line().precedes(Place(lambda: None))


def test_those_who_left_are_not_called_and_not_kept_at_the_end() -> None:
    line, places = new_line(3)
    places[0].gone = places[2].gone = True
    line.stand(Place(lambda: None))
    assert len(line) == 3
    assert [place.call() for place in line.take(3)] == [False, True, True]


def test_a_coroutine_whose_loop_was_closed_has_left() -> None:
    def fail() -> None:
        raise RuntimeError

    assert not Place(fail).call()
