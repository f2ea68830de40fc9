"""Who reads the links: a leader that waits, the standby, a passer-by."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

import pytest
from unit.lonely_tasks import new_task, value

from poolkit._engine import reader as module
from poolkit._engine.reader import LEASE, Reader
from poolkit._wire import spin
from poolkit.task import Task
from support import wait_until

pytestmark = pytest.mark.skipif(not module.LEADING, reason="nobody leads here")


class ScriptedLinks:
    """Links on which something is to be read when the test says so."""

    fileno = 0

    def __init__(self) -> None:
        self._something = threading.Event()
        self.asleep = threading.Event()  # somebody waits for more than a moment
        self.sleeps: list[float] = []

    def arrive(self) -> None:
        self._something.set()

    wake = arrive

    def poll(self, seconds: float) -> list[int]:
        if seconds:
            self.sleeps.append(seconds)
            self.asleep.set()
        return [1] if self._something.wait(seconds) else []

    def clear(self) -> None:
        self._something.clear()


class Engine:
    """A reader, its links, and what was done."""

    def __init__(self) -> None:
        self.links = ScriptedLinks()
        self.takes = 0
        self.wakes = 0
        self.busy = 0  # so many takes find another thread reading
        self.to_settle: Task[Any] | None = None
        self.reader = Reader(self.links, self.wake, self.take)  # type: ignore[arg-type]

    def take(self, ready: object = None) -> bool:
        self.takes += 1
        if self.takes <= self.busy:
            return False
        self.links.clear()
        if self.to_settle is not None:
            self.to_settle.publish(value(1))
        return True

    def wake(self) -> None:
        self.wakes += 1

    def lead(self, task: Task[Any], timeout: float | None = None) -> None:
        self.reader.lead(task, timeout)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(module, "FIRST_SLEEP", 0.001)
    return Engine()


def test_a_leader_reads_until_its_task_is_done(desk: Engine) -> None:
    task = desk.to_settle = new_task()
    desk.links.arrive()
    desk.lead(task)
    assert task.done()
    assert desk.takes == 1
    assert desk.wakes == 0, "handing over costs nothing"


def test_a_leader_waits_for_a_thread_that_reads_just_now(desk: Engine) -> None:
    task = desk.to_settle = new_task()
    desk.busy = 3
    desk.links.arrive()
    desk.lead(task)
    assert desk.takes == 4


def test_the_standby_is_spared_while_somebody_leads_and_a_moment_longer(desk: Engine) -> None:
    assert desk.reader.lease_left() == 0.0
    desk.lead(new_task(), 0.0)
    assert 0.0 < desk.reader.lease_left() <= LEASE


def test_a_leader_gives_up_in_time(desk: Engine) -> None:
    desk.lead(new_task(), 0.02)
    assert desk.takes == 0


def test_a_second_one_leads_when_the_first_leaves(desk: Engine) -> None:
    """At once, also where nothing comes that would wake anybody."""
    first, second = new_task(), new_task()
    leader = threading.Thread(target=desk.lead, args=(first,))
    leader.start()
    desk.links.asleep.wait()
    follower = threading.Thread(target=desk.lead, args=(second,))
    follower.start()
    wait_until(lambda: desk.reader._followers)
    desk.to_settle = first
    desk.links.asleep.clear()
    desk.links.arrive()
    leader.join()
    desk.links.asleep.wait()  # the second sleeps on the links
    desk.to_settle = second
    desk.links.arrive()
    follower.join()
    assert first.done()
    assert second.done()
    assert not desk.reader._followers
    assert not second._wakers


def test_one_who_waits_beside_a_leader_goes_when_his_task_is_done_or_in_time(desk: Engine) -> None:
    first, second = new_task(), new_task()
    leader = threading.Thread(target=desk.lead, args=(first,))
    leader.start()
    desk.links.asleep.wait()
    desk.lead(second, 0.01)
    follower = threading.Thread(target=desk.lead, args=(second,))
    follower.start()
    wait_until(lambda: desk.reader._followers)
    second.publish(value(1))
    follower.join()
    assert not desk.reader._followers
    desk.to_settle = first
    desk.links.arrive()
    leader.join()


def test_one_who_is_woken_to_lead_and_cannot_wakes_the_next(desk: Engine) -> None:
    """His own task was done, or his time was up, at the same moment."""
    first, second, third = (new_task() for _ in range(3))
    leader = threading.Thread(target=desk.lead, args=(first,))
    leader.start()
    desk.links.asleep.wait()
    followers = []
    for number, task in enumerate((second, third), 1):
        followers.append(threading.Thread(target=desk.lead, args=(task,)))
        followers[-1].start()
        wait_until(lambda number=number: len(desk.reader._followers) == number)
    wake = desk.reader._followers.popleft()  # as the leader does it
    second.publish(value(1))
    wake()
    followers[0].join()
    wait_until(lambda: len(desk.reader._followers) == 1)  # the third was woken, and found the leader still there
    desk.to_settle = first
    desk.links.arrive()
    leader.join()
    desk.to_settle = third
    desk.links.arrive()
    followers[1].join()


def test_a_leader_that_slept_for_long_wakes_the_standby_when_it_leaves(desk: Engine) -> None:
    """Which has gone to sleep for as long as it takes."""
    task = new_task()
    thread = threading.Thread(target=desk.lead, args=(task,))
    thread.start()
    wait_until(lambda: desk.reader.lease_left() > LEASE * 10)
    desk.to_settle = task
    desk.links.arrive()
    thread.join()
    assert desk.wakes == 1
    assert desk.reader.lease_left() <= LEASE


def test_a_task_that_another_thread_settles_ends_the_sleep_of_its_leader(desk: Engine) -> None:
    task = new_task()
    thread = threading.Thread(target=desk.lead, args=(task,))
    thread.start()
    desk.links.asleep.wait()
    task.publish(value(1))
    desk.reader.published()
    thread.join()


def test_a_passer_by_takes_what_is_there(desk: Engine) -> None:
    desk.reader.pass_by()
    assert desk.takes == 1
    assert desk.reader._until > 0.0, "the standby is not needed for a moment"


def test_a_passer_by_leaves_a_sleeping_leader_alone(desk: Engine) -> None:
    desk.reader._until = time.monotonic() + 1000.0
    desk.reader.pass_by()
    assert desk.reader.lease_left() > 900.0


def test_who_is_to_be_called_back_gets_the_standby_at_once(desk: Engine) -> None:
    desk.reader.end_lease()
    assert desk.wakes == 0, "it was not lease"
    desk.reader.pass_by()
    desk.reader.end_lease()
    assert desk.wakes == 1
    assert desk.reader.lease_left() == 0.0


def test_nobody_leads_where_there_are_no_links() -> None:
    desk = Engine()
    reader = Reader(None, desk.wake, desk.take)
    reader.lead(new_task(), None)
    reader.pass_by()
    reader.published()
    reader.close()
    assert desk.takes == 0


def test_closing_waits_for_the_leader(desk: Engine) -> None:
    task = new_task()
    thread = threading.Thread(target=desk.lead, args=(task,))
    thread.start()
    desk.links.asleep.wait()
    task.publish(value(1))
    desk.reader.close()
    thread.join()
    desk.lead(new_task())


def test_a_leader_that_is_torn_away_may_lead_again_and_stops_nobody(desk: Engine) -> None:
    """An exception of a signal handler came just after it had the lock."""
    desk.reader._leader.acquire()
    task = desk.to_settle = new_task()
    desk.links.arrive()
    desk.lead(task)
    assert task.done()
    thread = threading.Thread(target=desk.reader.close)
    thread.start()
    thread.join()


class Poller:
    """Has something to read at the n-th look."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.slept = 0

    def poll(self, timeout: float | None = None) -> bool:
        self.looks -= 1
        self.slept += timeout is None
        return self.looks <= 0


def test_a_spin_that_finds_something_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "SPIN", 30.0)
    poller = Poller(5)
    spin.Spin().wait(poller)
    assert poller.slept == 0


def test_spinning_that_does_not_pay_is_given_up_until_a_sleep_was_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "SPIN", 1e-6)
    waiter = spin.Spin()
    for _ in range(spin.GIVE_UP):
        assert waiter.seconds > 0.0
        waiter.slept(1.0)
    assert waiter.seconds == 0.0
    waiter.slept(1e-6)
    assert waiter.seconds > 0.0


# ===== an event loop =====


def test_a_loop_neither_spins_nor_sleeps_on_its_thread() -> None:
    """It has the descriptor, and takes in what is there; if another thread is just reading, it goes on."""
    takes = iter([False, True])
    links = ScriptedLinks()
    reader = Reader(links, lambda: None, lambda: next(takes))  # type: ignore[arg-type]
    reader._never = None  # type: ignore[assignment]
    links.poll = None  # type: ignore[method-assign,assignment]
    assert reader.watch() == links.fileno
    assert reader.lease_left() > 0.0
    assert not reader.pass_by()
    assert reader.pass_by()
    reader.close()
    assert reader.watch() is None


def test_what_a_signal_handler_raises_comes_out_of_a_leader_that_waits_for_another_reader(
    desk: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, wherever in the wait it comes."""

    class Rung(Exception):
        pass

    def ring(_number: int, _frame: object) -> None:
        raise Rung

    desk.busy = sys.maxsize
    monkeypatch.setattr(desk.links, "poll", lambda _seconds: [1])
    monkeypatch.setattr(module, "PAUSE", 0.00001)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for number in range(2000):
            with pytest.raises(Rung):
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + number % 100 * 0.000001)
                desk.lead(new_task())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
