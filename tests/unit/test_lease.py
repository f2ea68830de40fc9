"""The lease of a node: whatever the network and the clocks do, no owner counts a node as ended before it has."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit._nodes.lease import D, Landlord, Tenant

ROUNDING = 1e-6  # seconds: clocks of many digits
LEASES = st.floats(0.1, 100)
DELAYS = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 500), st.none())  # None: lost
RATES = st.one_of(st.sampled_from([0.99, 1.0, 1 / 0.99, 1.01]), st.floats(0.99, 1 / 0.99))


class Clock:
    """One machine's: it begins anywhere, and runs at a rate of its own."""

    def __init__(self, offset: float, rate: float) -> None:
        self._offset, self._rate = offset, rate

    def at(self, true: float) -> float:
        """What it shows at a true time."""
        return self._offset + self._rate * true

    def when(self, shown: float) -> float:
        """At which true time it shows that."""
        return (shown - self._offset) / self._rate


CLOCKS = st.tuples(st.floats(-1e5, 1e6), st.floats(-1e5, 1e6), RATES, st.floats(0.5, 2)).map(
    lambda drawn: (Clock(drawn[0], drawn[3]), Clock(drawn[1], drawn[2] * drawn[3]))
)  # the node's and the owner's


class Link:
    """A tenant that looks at its clock now and then, a landlord, and messages that take as long as they are told to."""

    def __init__(self, lease: float, clocks: tuple[Clock, Clock], joining: float = 0.0) -> None:
        self.node, self.owner = clocks
        self.tenant = Tenant(lease, self.node.at(0.0))
        self.landlord = Landlord(lease, self.owner.at(joining))
        self.answers = 0
        self._numbers = itertools.count()
        self._later: list[tuple[float, int, Callable[[float], None]]] = []

    def later(self, when: float, step: Callable[[float], None]) -> None:
        heapq.heappush(self._later, (when, next(self._numbers), step))

    def look(self, there: float | None, back: float | None) -> Callable[[float], None]:
        """Ask if it is time to; so long the question and its answer take."""

        def ask(now: float) -> None:
            stamp = self.tenant.ask(self.node.at(now))
            if stamp is not None and there is not None:
                self.later(now + there, lambda now: self._asked(stamp, now, back))

        return ask

    def _asked(self, stamp: float, now: float, back: float | None) -> None:
        if self.landlord.asked(self.owner.at(now)) and back is not None:
            self.later(now + back, lambda now: self._answered(stamp, now))

    def _answered(self, stamp: float, now: float) -> None:
        self.answers += 1
        if not self.tenant.is_over(self.node.at(now)):
            self.tenant.answered(stamp)

    def run(self) -> None:
        while self._later:
            now, _, step = heapq.heappop(self._later)
            step(now)


@given(
    LEASES,
    CLOCKS,
    st.one_of(st.just(0.0), st.floats(0, 200)),
    st.lists(st.tuples(st.floats(0, 60), DELAYS, DELAYS), max_size=30),
    st.floats(0, 1000),
)
def test_no_node_is_counted_as_ended_before_its_work_has_ended(
    lease: float,
    clocks: tuple[Clock, Clock],
    joining: float,
    looks: list[tuple[float, float | None, float | None]],
    given_up: float,
) -> None:
    """With messages late, lost in either direction alone, or overtaken, and clocks that differ by 1 %."""
    link = Link(lease, clocks, joining)
    for when, (_, there, back) in zip(itertools.accumulate(gap for gap, _, _ in looks), looks, strict=True):
        link.later(when, link.look(there, back))
    link.later(joining + given_up, lambda _: link.landlord.give_up())
    link.run()
    gone = link.node.when(link.tenant.until + D)
    assert gone <= link.owner.when(link.landlord.ends_at()) + ROUNDING


@pytest.mark.parametrize("rates", [(1.0, 1.01), (0.99, 1.0)], ids=str)
@pytest.mark.parametrize("lease", [0.1, 30.0, 1000.0])
def test_an_owner_whose_clock_is_the_faster_one_waits_longer(lease: float, rates: tuple[float, float]) -> None:
    """By 1 % of its own seconds, or of the node's, with no message late."""
    link = Link(lease, (Clock(0.0, rates[0]), Clock(0.0, rates[1])))
    link.later(lease / 2, link.look(0.0, 0.0))
    link.run()
    assert link.answers == 1
    assert link.node.when(link.tenant.until + D) <= link.owner.when(link.landlord.ends_at()) + ROUNDING


@given(CLOCKS)
def test_the_owner_waits_no_longer_than_the_clocks_make_it(clocks: tuple[Clock, Clock]) -> None:
    lease = 30.0
    link = Link(lease, clocks)
    link.later(0.0, link.look(0.0, 0.0))
    link.run()
    assert link.landlord.ends_at() - link.owner.at(0.0) <= (lease + D) * 1.011


@given(LEASES, CLOCKS, st.lists(st.tuples(st.floats(0, 0.25), st.floats(0, 0.25)), min_size=1, max_size=5))
def test_a_link_that_works_is_renewed_for_ever(
    lease: float, clocks: tuple[Clock, Clock], delays: list[tuple[float, float]]
) -> None:
    """The delays are parts of a lease."""
    link = Link(lease, clocks)
    second = link.node.when(1.0) - link.node.when(0.0)  # of the node, in true time
    endless = itertools.cycle(delays)
    looks = 1000
    for number in range(looks):
        there, back = (delay * lease * second for delay in next(endless))
        link.later(number * lease * second / 20, link.look(there, back))
    end = (looks - 1) * lease * second / 20
    link.later(end, lambda now: over.append(link.tenant.is_over(link.node.at(now))))
    over: list[bool] = []
    link.run()
    assert over == [False]
    assert looks / 20 * 3 < link.answers <= looks / 20 * 5 + 1, "asked about five times in a lease"


@given(LEASES, st.floats(-1e5, 1e6), st.lists(st.floats(0, 1), max_size=20))
def test_a_node_without_answers_ends_when_its_lease_does(lease: float, begun: float, looks: list[float]) -> None:
    tenant = Tenant(lease, begun)
    until = tenant.until
    assert until == begun + lease
    for part in sorted(looks):
        now = begun + part * lease
        tenant.ask(now)
        assert tenant.is_over(now) == (now >= until)
    assert tenant.is_over(until)
    assert tenant.until == until


def test_an_answer_counts_from_its_question() -> None:
    tenant = Tenant(10.0, 0.0)
    assert (tenant.ask(0.0), tenant.ask(1.9), tenant.ask(2.0)) == (0.0, None, 2.0)
    tenant.answered(2.0)
    tenant.answered(0.0)  # it was overtaken
    assert tenant.until == 12.0


def test_what_is_over_stays_so() -> None:
    """Else the work would go on, after the owner was told of its end."""
    tenant = Tenant(10.0, 0.0)
    assert tenant.ask(9.0) == 9.0
    assert tenant.ask(10.0) is None
    tenant.answered(9.0)
    assert tenant.until == 10.0
    assert tenant.is_over(10.0)
    assert tenant.is_over(-math.inf)


@pytest.mark.parametrize("questions", [0, 3])
def test_who_gave_up_answers_nothing_more(questions: int) -> None:
    landlord = Landlord(10.0, 100.0)
    for number in range(questions):
        assert landlord.asked(101.0 + number)
    ends = landlord.ends_at()
    landlord.give_up()
    assert not landlord.asked(200.0)
    assert landlord.ends_at() == ends >= 100.0 + questions + 10.0 + D
