"""Those who wait for room: turns by number, kept over tries; giving up at any moment."""

from __future__ import annotations

from poolkit._engine.waiters import Waiter, Waiters


def some(count: int) -> tuple[Waiters, list[Waiter]]:
    waiters, all_of_them = Waiters(), [Waiter(lambda: None) for _ in range(count)]
    for waiter in all_of_them:
        waiters.add(waiter)
    return waiters, all_of_them


def take(waiters: Waiters, count: int) -> list[Waiter]:
    """The first, as they are woken and removed."""
    woken = waiters.first(count)
    waiters.remove(woken)
    return woken


def test_who_came_first_is_taken_first_and_is_marked_as_woken() -> None:
    waiters, all_of_them = some(3)
    assert take(waiters, 2) == all_of_them[:2]
    assert [waiter.woken for waiter in all_of_them] == [True, True, False]
    assert len(waiters) == 1


def test_those_who_come_back_stand_where_they_stood() -> None:
    waiters, all_of_them = some(4)
    woken = take(waiters, 3)
    for waiter in woken[::-1]:
        waiters.add(waiter)
    assert not any(waiter.woken for waiter in all_of_them)
    assert take(waiters, 4) == all_of_them


def test_nobody_passes_who_came_later_but_those_before_may() -> None:
    waiters, _ = some(3)
    first, second = take(waiters, 2)
    assert waiters.precedes(Waiter(lambda: None))
    assert not waiters.precedes(first)
    waiters.add(first)
    assert waiters.precedes(second)
    assert not Waiters().precedes(Waiter(lambda: None))


def test_those_who_left_are_not_called_and_not_kept_at_the_end() -> None:
    waiters, all_of_them = some(3)
    all_of_them[0].gone = all_of_them[2].gone = True
    waiters.add(Waiter(lambda: None))
    assert len(waiters) == 3
    assert [waiter.wake() for waiter in take(waiters, 3)] == [False, True, True]


def test_a_coroutine_whose_loop_was_closed_has_left() -> None:
    def fail() -> None:
        raise RuntimeError

    assert not Waiter(fail).wake()


def test_who_waits_again_before_the_end_of_the_call_that_woke_it_is_not_removed() -> None:
    waiters, all_of_them = some(2)
    woken = waiters.first(2)
    waiters.add(all_of_them[0])
    waiters.remove(woken)
    assert waiters.waiting == [all_of_them[0]]
