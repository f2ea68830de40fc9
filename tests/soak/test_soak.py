"""A few seconds of the soak, and a slice of the flat run; how long ones go is in docs/reliability.md."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from soak import flat
from soak.run import Report, lines_of, run

pytestmark = pytest.mark.slow


def new_seed() -> int:
    """The same on a build machine every time."""
    return 1 if "CI" in os.environ else random.SystemRandom().randrange(2**32)


@pytest.mark.every_nth(2)
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_everything_mixed_is_accounted_for(kind: str) -> None:
    report = run(new_seed(), 2, [kind])
    text = "\n".join(lines_of(report))
    print(text)
    assert not report.violations, text
    assert report.rounds


def test_a_violation_is_told_with_the_round_to_repeat() -> None:
    report = Report(7, violations=["round 3 (process, settle): token 5 left two"], rounds=4, seconds=1.0)
    lines = lines_of(report)
    assert "WRONG: round 3 (process, settle): token 5 left two" in lines
    assert lines[-1] == "1 violation; to repeat: python -m tests.soak --seed 7 --first-round N --rounds 1"


def test_many_small_tasks_leave_nothing_behind() -> None:
    """In a process of its own: what a run of tests holds grows when it likes."""
    program = [sys.executable, str(Path(flat.__file__).with_name("__main__.py")), "--tasks", "6000"]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " 6,000  owner " in done.stdout
