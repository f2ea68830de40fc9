"""What a measure is, and how its rounds run: interleaved, each trial in a process of its own.

In every round each contender runs once, and the order turns by one from round to round, so that a slow minute of the
machine hits all of them alike. A ratio is taken within a round; what is printed is the median of the rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contenders import MACHINE

TRIAL = Path(__file__).with_name("trial.py")
TRIAL_SECONDS = 180  # finds a contender that hangs; decides nothing else
Figures = dict[str, float]  # by the key of the row


@dataclass(frozen=True)
class Sized:
    """Turns the size of a measure into the one of this run: `--scale 0.01` makes everything a hundredth."""

    scale: float = 1.0

    def __call__(self, full: int) -> int:
        return max(1, round(full * self.scale))


@dataclass(frozen=True)
class Limit:
    """Something that the machine itself can do only so fast."""

    title: str
    unit: str
    run: Callable[[Sized], float]


@dataclass(frozen=True)
class Row:
    """One figure of each contender; the smaller the better. A row without words is not compared."""

    key: str
    title: str
    unit: str
    bars: Mapping[str, str] = field(default_factory=dict)  # by contender: what poolkit wants to reach against it
    limits: tuple[str, ...] = ()  # keys of machine.LIMITS that are shown beside it
    words: tuple[str, str] | None = ("faster", "slower")


@dataclass(frozen=True)
class Measure:
    """Rows that one trial yields together. `trial` runs in a fresh process, with one contender."""

    name: str
    title: str
    contenders: tuple[str, ...]  # poolkit first
    rows: tuple[Row, ...]
    trial: Callable[[str, Sized], Figures]

    @property
    def limits(self) -> tuple[str, ...]:
        """The limits that its rows are shown beside."""
        return tuple(dict.fromkeys(limit for row in self.rows for limit in row.limits))


@dataclass
class Samples:
    """What the rounds of one measure yielded. A figure that is missing in a round was not reached there."""

    rounds: list[dict[str, Figures]] = field(default_factory=list)  # per round: contender -> figures
    failures: dict[str, str] = field(default_factory=dict)  # contender -> the last line it said

    def of(self, contender: str, key: str) -> list[float]:
        """All samples of one figure."""
        return [found[contender][key] for found in self.rounds if key in found.get(contender, {})]

    def ratios(self, contender: str, ours: str, key: str) -> list[float]:
        """How many times larger the figure of `contender` is than that of `ours`, in each round that has both."""
        return [
            found[contender][key] / found[ours][key]
            for found in self.rounds
            if found.get(contender, {}).get(key, 0) > 0 and found.get(ours, {}).get(key, 0) > 0
        ]

    def ratio(self, contender: str, ours: str, key: str) -> float | None:
        """The median of these ratios."""
        ratios = self.ratios(contender, ours, key)
        return statistics.median(ratios) if ratios else None


def run_rounds(measure: Measure, contenders: Sequence[str], repeat: int, scale: float) -> Samples:
    """Run all rounds of a measure. A contender that fails is noted and does not run again."""
    samples = Samples()
    runners = [*contenders, MACHINE] if measure.limits else list(contenders)
    for number in range(repeat):
        turn = number % len(runners)
        found: dict[str, Figures] = {}
        for name in runners[turn:] + runners[:turn]:
            if name in samples.failures:
                continue
            try:
                found[name] = run_trial(measure.name, name, scale)
            except TrialFailedError as failure:
                samples.failures[name] = str(failure)
        samples.rounds.append(found)
    return samples


class TrialFailedError(Exception):
    """A trial ended without figures; says the last line that it wrote."""


def run_trial(measure: str, contender: str, scale: float) -> Figures:
    """Run one contender once, in a fresh process that leads a session; whatever is left of that is removed."""
    with tempfile.TemporaryDirectory(prefix="poolkit-benchmark-") as folder:
        return _run_trial([sys.executable, str(TRIAL), measure, contender, str(scale)], folder)


def _run_trial(argv: Sequence[str], folder: str) -> Figures:
    env = {**os.environ, "TMPDIR": folder}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # programs start from byte code, and start-up is measured, too
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=env,
    )
    try:
        out, err = process.communicate(timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        raise TrialFailedError(f"no end after {TRIAL_SECONDS} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if process.returncode != 0:
        raise TrialFailedError((err.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    figures: Figures = json.loads(out.strip().splitlines()[-1])
    return figures
