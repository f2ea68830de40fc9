"""The ledger of the soak: what each task has ended with, and how often, against what it wrote down; see `soak.py`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from engine.cluster import overlapping
from engine.soak_owner import FITS, LEASE, Plan
from engine.work import Journal
from poolkit._nodes.lease import D


class Outcome(NamedTuple):
    """What the owner has written down of a task."""

    number: int
    at: float  # when it had that, by the clock by which tasks write
    attempts: int
    name: str


class Ledger:
    """What is wrong, by what it is; and what happened how often."""

    def __init__(self, journal: Journal, outcomes: Iterable[Outcome], plans: Mapping[int, Plan]) -> None:
        self.runs = {number: runs for number, runs in journal.all_runs().items() if number in plans}
        self.outcomes: Counter[str] = Counter()
        self.begun = Counter(map(len, self.runs.values()))
        self.wrong: dict[str, list[str]] = {name: [] for name in WRONG}
        self._ended = {int(number) for kind, number, *_ in journal.lines() if kind == "end"}
        counts: Counter[int] = Counter()
        for outcome in outcomes:
            counts[outcome.number] += 1
            self.outcomes[outcome.name] += 1
            self._check(plans[outcome.number], outcome)
        for number, plan in plans.items():
            if counts[number] != 1:
                self.wrong[SEVERAL if counts[number] else NONE].append(f"{number} ({plan.kind})")
        self.wrong[OVERLAP] += [str(number) for number in overlapping(journal)]

    def _check(self, plan: Plan, outcome: Outcome) -> None:
        number, at, attempts, name = outcome
        runs = self.runs.get(number, [])
        told = f"{number} ({plan.kind}, {plan.retries} retries, {attempts} attempts): {name}, begun {len(runs)} times"
        if name != FITS[plan.kind] and not name.startswith("NodeLost") and name != KILLED:
            self.wrong[UNFIT].append(told)
        if not len(runs) <= attempts <= 1 + plan.retries:
            self.wrong[OFTEN].append(told)
        if name == FITS["good"] and number not in self._ended:
            self.wrong[UNENDED].append(told)
        allowed = LEASE + D if plan.kind == "cancel" else 0.0  # what is cancelled is told at once, and killed then
        if runs and runs[-1][1] > at + allowed:
            self.wrong[LATE].append(f"{told}, lived for {runs[-1][1] - at:.3f} s after that")

    def shortest_pause(self) -> float | None:
        """Seconds between the last sign of life of a run and the next run of the same task, at least."""
        pairs = itertools.chain.from_iterable(map(itertools.pairwise, self.runs.values()))
        return min((again[0] - run[1] for run, again in pairs), default=None)


KILLED = "WorkerCrashed(SIGKILL)"  # a process under a node was killed
NONE, SEVERAL = "without outcome", "with several outcomes"
OFTEN = "begun more often than there were attempts, or with more attempts than 1 + retries"
OVERLAP = "with runs that overlap"
UNFIT = "with an outcome of another kind"
LATE = "that lived on after their outcome"
UNENDED = "with a result that have not ended"
WRONG = (NONE, SEVERAL, OFTEN, OVERLAP, UNFIT, LATE, UNENDED)
