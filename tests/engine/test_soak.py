"""The soak of pools on nodes: what its ledger takes for wrong."""

from __future__ import annotations

import pytest

from engine import soak_ledger
from engine.soak_ledger import Ledger, Outcome
from engine.soak_owner import LEASE, Plan
from engine.work import Journal, write


def plan_of(kind: str, retries: int = 0) -> Plan:
    """The plan of a task of that kind."""
    return next(plan for number in range(10_000) if (plan := Plan(1, number)).kind == kind and plan.retries == retries)


def wrong(journal: Journal, plan: Plan, lines: str, *outcomes: tuple[float, int, str]) -> set[str]:
    """What is wrong with a task that wrote these: "begin 1 begin 2", all by one process."""
    for kind, at in zip(*[iter(lines.split())] * 2, strict=True):
        write(journal.path, kind, plan.number, at, 99)
    told = [Outcome(plan.number, *outcome) for outcome in outcomes]
    return {name for name, found in Ledger(journal, told, {plan.number: plan}).wrong.items() if found}


RESULT = "results"


@pytest.mark.parametrize(
    ("kind", "retries", "lines", "outcomes", "found"),
    [
        ("good", 0, "begin 1 end 2", [(3.0, 1, RESULT)], set()),
        ("good", 2, "begin 1 alive 2 begin 3 end 4", [(5.0, 2, RESULT)], set()),
        ("good", 0, "begin 1 alive 2", [(3.0, 1, "NodeLost(closed)")], set()),
        ("good", 0, "", [(3.0, 1, "NodeLost(silent)")], set()),
        ("cancel", 0, "begin 1 alive 3", [(2.0, 1, "TaskCancelled")], set()),
        ("good", 0, "begin 1 end 2", [], {soak_ledger.NONE}),
        ("good", 0, "begin 1 end 2", [(3.0, 1, RESULT)] * 2, {soak_ledger.SEVERAL}),
        ("good", 0, "begin 1 alive 2 begin 3 end 4", [(5.0, 1, RESULT)], {soak_ledger.OFTEN}),
        ("good", 0, "begin 1 alive 2 begin 3 end 4", [(5.0, 2, RESULT)], {soak_ledger.OFTEN}),
        ("good", 2, "begin 1 begin 1 end 4", [(5.0, 2, RESULT)], {soak_ledger.OVERLAP}),
        ("hang", 0, "begin 1 end 2", [(3.0, 1, RESULT)], {soak_ledger.UNFIT}),
        ("good", 0, "begin 1 alive 3", [(2.0, 1, "NodeLost(closed)")], {soak_ledger.LATE}),
        ("cancel", 0, f"begin 1 alive {LEASE + 4}", [(2.0, 1, "TaskCancelled")], {soak_ledger.LATE}),
        ("good", 0, "begin 1 alive 2", [(3.0, 1, RESULT)], {soak_ledger.UNENDED}),
    ],
)
def test_the_ledger_finds_what_is_wrong(
    journal: Journal,
    kind: str,
    retries: int,
    lines: str,
    outcomes: list[tuple[float, int, str]],
    found: set[str],
) -> None:
    assert wrong(journal, plan_of(kind, retries), lines, *outcomes) == found
