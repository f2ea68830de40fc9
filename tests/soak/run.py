"""A run of the soak: eras of about a minute, each of many rounds; after each era nothing is open, and memory is taken.

In an era one pool of each kind stays open and is used again and again between pools that come and go. After it, no
thread, process, descriptor or shared memory may be left, and what this process and the idle template processes hold
of memory must not have grown beyond GROWTH since the first era.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import random
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import poolkit
import support
import support_leaks
from poolkit._kinds.worker_thread import StopTask
from soak.ledger import shown
from soak.memory import HEAD, Sample, take_sample
from soak.stage import ENDS, Stage, new_pool, quiet_logs

ERA_SECONDS = 60.0
ROUND_SECONDS = (0.5, 2.0)
HANG_SECONDS = 240.0  # a round that takes longer hangs
# What may have grown since the first era. Much of a process's memory is free, in pieces; what is in use tells leaks.
GROWTH = {"owner": 64 << 20, "allocated": 4 << 20, "blocks": 30_000, "template": 4 << 20}
# A thread is stopped by an exception that may come anywhere. In a finalizer it is lost, and so is what that would have
# closed: as many descriptors may be left behind.
TORN = "StopTask in "


Watch = Callable[[int, int], contextlib.AbstractContextManager[None]]  # around each round: seed, number


@dataclass
class Report:
    """What a run found."""

    seed: int
    always: Sequence[str] = ()
    started: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    rounds: int = 0
    seconds: float = 0.0


def _unwatched(_seed: int, _number: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def run(  # noqa: PLR0913, PLR0917 -- what the command line has
    seed: int,
    seconds: float,
    kinds: list[str],
    first_round: int = 0,
    rounds: int | None = None,
    watch: Watch = _unwatched,
    always: Sequence[str] = (),
) -> Report:
    """Run for so long, or until something is wrong. Blocks; `watch` says what becomes of a round that hangs.

    Every round has the actors `always`, of those in `exchanges.ACTORS`.
    """
    report = Report(seed, always)
    before = support_leaks.snapshot()
    report.samples.append(take_sample("start"))
    give_up = time.monotonic() + seconds
    number = first_round
    with quiet_logs(), _strays_noted(report):
        while time.monotonic() < give_up and not report.violations and (rounds is None or report.rounds < rounds):
            number = _run_era(report, number, kinds, give_up, rounds, watch)
            gc.collect()
            leaks = support_leaks.find_leaks(before)
            if len(leaks) > sum(count for name, count in report.counts.items() if name.startswith(TORN)):
                report.violations += [f"left behind after round {number - 1}: {leak}" for leak in leaks]
            report.samples.append(take_sample(f"{time.monotonic() - report.started:.0f} s"))
            report.violations += _grown(report.samples)
    report.seconds = time.monotonic() - report.started
    return report


@contextlib.contextmanager
def _strays_noted(report: Report) -> Iterator[None]:
    """Exceptions that nobody catches are violations, but for those of threads that were stopped in the middle."""

    def note_unraisable(stray: Any) -> None:
        if isinstance(stray.exc_value, StopTask):
            report.counts[f"{TORN}{getattr(stray.object, '__qualname__', stray.object)}"] += 1
        elif stray.object is not asyncio.BaseEventLoop.__del__:
            report.violations.append(f"unraisable in {stray.object!r}: {stray.exc_value!r}")

    def note_thread(stray: Any) -> None:
        report.violations.append(f"{stray.thread}: {''.join(traceback.format_exception(stray.exc_value))}")

    before = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = note_unraisable, note_thread
    try:
        with warnings.catch_warnings():
            # A thread that is stopped while asyncio makes or ends a loop.
            warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
            warnings.filterwarnings("ignore", "unclosed .*(socket|event loop)", ResourceWarning)
            # A pool that is dropped; what a task failed with may keep the frames that submitted it, and so the pool.
            warnings.filterwarnings("ignore", ".* was not shut down", ResourceWarning)
            yield
    finally:
        sys.unraisablehook, threading.excepthook = before


def _run_era(report: Report, number: int, kinds: list[str], give_up: float, rounds: int | None, watch: Watch) -> int:
    """Rounds for about a minute; returns the number of the next one."""
    era_ends = min(give_up, time.monotonic() + ERA_SECONDS)
    elders: dict[str, poolkit.Pool] = {}
    with contextlib.ExitStack() as stack:
        while time.monotonic() < era_ends and not report.violations:
            if rounds is not None and report.rounds >= rounds:
                break
            with watch(report.seed, number), tempfile.TemporaryDirectory(prefix="poolkit-soak-") as folder:
                _play(report, number, kinds, elders, stack, Path(folder))
            report.rounds += 1
            number += 1
    return number


def _play(
    report: Report,
    number: int,
    kinds: list[str],
    elders: dict[str, poolkit.Pool],
    stack: contextlib.ExitStack,
    folder: Path,
) -> None:
    """One round. What it does depends on seed and number alone, but for the moments at which things happen."""
    seed = f"{report.seed}/{number}"
    rng = random.Random(seed)
    kind, finish = rng.choice(kinds), rng.choice([*ENDS, *["settle"] * len(ENDS)])
    if finish != "settle":
        pool = new_pool(rng, kind)
    elif kind in elders:
        pool = elders[kind]
    else:
        pool = elders[kind] = stack.enter_context(new_pool(rng, kind))
    stage = Stage(seed, pool, folder, report.always)
    del pool  # the stage alone has it: it may be dropped there
    stage.play(rng.uniform(*ROUND_SECONDS), finish=finish)
    report.ends[finish] += 1
    report.counts += stage.ledger.counts
    report.violations += [f"round {number} ({kind}, {finish}): {one}" for one in shown(stage.ledger.violations)]


@contextlib.contextmanager
def watched(seed: int, number: int) -> Iterator[None]:
    """A round that hangs tells all stacks, kills its children and ends the program."""
    faulthandler.dump_traceback_later(HANG_SECONDS * 1.5, exit=True)  # the other one needs the interpreter's lock
    try:
        with support.watchdog(HANG_SECONDS):
            yield
    except support.WatchdogExpired:
        print(f"round {number} of seed {seed} hangs", flush=True)
        os._exit(1)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _grown(samples: list[Sample]) -> list[str]:
    """What has grown beyond the bound since the first era; the first two samples are before and after it."""
    if len(samples) < 3:
        return []
    base, last = samples[1], samples[-1]
    return [
        f"{name} grew from {getattr(base, name):,} to {getattr(last, name):,} between {base.when} and {last.when}"
        for name, most in GROWTH.items()
        if getattr(last, name) > getattr(base, name) + most and getattr(base, name)
    ]


def lines_of(report: Report) -> list[str]:
    """The summary."""
    counts = report.counts
    settled = sum(count for name, count in counts.items() if name.startswith("call "))
    lines = [
        f"seed {report.seed}: {report.rounds} rounds in {report.seconds:.0f} s",
        f"{settled:,} tasks settled, {settled / report.seconds:,.0f} a second",
        "",
        *_table("outcome", {name: n for name, n in counts.items() if not name.startswith("call ")}),
        *_table("call", {name[5:]: n for name, n in counts.items() if name.startswith("call ")}),
        *_table("end of a round", report.ends),
        HEAD,
        *(sample.line() for sample in report.samples),
        "",
    ]
    lines += [f"WRONG: {one}" for one in shown(report.violations)]
    wrong = len(report.violations)
    also = f" --with {','.join(report.always)}" if report.always else ""
    again = f"to repeat: python -m tests.soak --seed {report.seed}{also} --first-round N --rounds 1"
    lines.append(f"{wrong} violation{'s' * (wrong != 1)}; {again}" if wrong else "nothing wrong")
    return lines


def _table(title: str, counts: dict[str, int]) -> list[str]:
    rows = sorted(counts.items(), key=lambda row: -row[1])
    return [f"{title:<30}{'number':>10}", *(f"{name:<30}{count:>10,}" for name, count in rows), ""]
