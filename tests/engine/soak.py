"""Everything that can fail, at random, while tasks of all kinds run on nodes; with exact accounting and flat memory.

Usage: python -m tests.engine.soak [--minutes 10] [--tasks N] [--seed N]

The pool belongs to a process of its own, on three nodes of two workers, one of them under a nanny. Tasks come at a rate
that makes 100,000 in ten minutes; one in twenty is bad: it crashes, exits, hangs over its limit, raises, returns what
cannot be pickled, or is cancelled. Every five seconds something fails, see `soak_faults.py`; what is then missing of
the nodes is started anew with the next. Seed and schedule are printed: the same seed has the same schedule and tasks.
Each run of a task writes down when it begins, lives and ends, the owner when it has which outcome.
Bars: each task has one outcome, and of its kind; it begins at most `1 + retries` times; no run begins while another of
that task lives, and none lives on when its outcome is there; what has a result has ended; the pool serves on all nodes
afterwards; nothing is left when it is shut down; descriptors, threads and memory of the owner, and of nodes that lived
for long, are in the last tenth of the time what they were in the second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import distributed
import psutil

from engine.cluster import Bars, Cluster, new_journal, offspring, overlapping, pause, wait_for
from engine.ownerkill import what_is_left
from engine.soak_faults import WEIGHTS, Faults, Holdings
from engine.soak_owner import AFTERWARDS, FITS, LEASE, OUTCOMES, WORKERS, Owner, Plan
from engine.work import Journal
from poolkit._nodes.lease import D

EVERY = 5.0  # seconds between two faults
RATE = 100_000 / 600  # tasks in a second
LOOK = 2.0  # seconds between two looks at what everybody holds
SHOWN = 5  # of what is wrong


def schedule(seed: int, seconds: float) -> list[str]:
    """What fails, one after another; each kind of fault at least once where there is time."""
    rng = random.Random(seed)
    count = int(seconds // EVERY)
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=max(0, count - len(WEIGHTS)))
    names += rng.sample(list(WEIGHTS), min(len(WEIGHTS), count))
    rng.shuffle(names)
    return names


def run(minutes: float, tasks: int | None, seed: int | None) -> int:
    """Have everything fail; returns the exit status."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    seconds = minutes * 60
    tasks = int(seconds * RATE) if tasks is None else tasks
    bars = Bars(
        f"soak: {tasks:,} tasks in {minutes:g} minutes, a fault every {EVERY:g} s, lease {LEASE:g} s, seed {seed}"
    )
    names = schedule(seed, seconds)
    bars.tell(f"schedule: {' '.join(names)}")
    with Cluster(0, WORKERS) as cluster, new_journal() as journal:
        owner = Owner(cluster.address, journal.path, seconds, tasks, seed)
        faults, holdings = Faults(cluster, owner), Holdings()
        try:
            faults.restore()
            wait_for(lambda: owner.has_said("up"), "the nodes")
            took = _fail(faults, holdings, names, seed)
            bars.tell(f"{len(names)} faults, {took:.0f} s; in vain: {dict(faults.in_vain) or 0}")
            _afterwards(bars, owner, faults)
            _left(bars, owner, cluster)
        finally:
            owner.end()
        _account(bars, journal, owner, seed, tasks)
        _held(bars, owner, holdings)
    return bars.done()


def _fail(faults: Faults, holdings: Holdings, names: list[str], seed: int) -> float:
    """Have one thing after another fail, until the owner has all outcomes."""
    begun = look_at = time.monotonic()
    next_at = begun + EVERY
    left = list(enumerate(names))
    while not faults.owner.has_said("settled"):
        faults.act()
        now = time.monotonic()
        if now >= next_at:
            next_at += EVERY
            faults.restore()
            if left:
                number, name = left.pop(0)
                faults.do(name, seed + number)
        if now >= look_at:
            look_at = now + LOOK
            holdings.look([faults.owner.pid, *faults.dask_workers()])
        pause(0.05)
    return time.monotonic() - begun


def _afterwards(bars: Bars, owner: Owner, faults: Faults) -> None:
    """All is well again."""
    faults.settle()
    faults.restore()
    owner.go_on()
    wait_for(lambda: owner.has_said("stats"), "the tasks afterwards")
    again = Counter(owner.said.get("again", "").split())
    bars.bar(again == {"results": AFTERWARDS}, f"afterwards: {dict(again)}, on {owner.said.get('on')} nodes")


def _left(bars: Bars, owner: Owner, cluster: Cluster) -> None:
    """Nothing is left of the pool when it was shut down."""
    bars.bar(owner.end() == 0 and "clean" in owner.said, "the owner ends, with nothing left of the pool")
    left: list[str] = []
    with distributed.Client(cluster.address, set_as_default=False) as client:

        def is_clean() -> bool:
            left[:] = what_is_left(client)
            for pid in cluster.nodes:
                left.extend(_told(process) for process in offspring(pid) if "poolkit" in _told(process))
            return not left

        wait_for(is_clean, "nothing to be left on the nodes")
    bars.bar(not left, "nothing of it is left on the nodes")


def _told(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return ""


def _account(bars: Bars, journal: Journal, owner: Owner, seed: int, tasks: int) -> None:
    """The ledger."""
    lines = [line.split() for line in Path(journal.path + OUTCOMES).read_text().splitlines()]
    runs = {number: found for number, found in journal.all_runs().items() if number < tasks}
    ended = {int(line[1]) for line in journal.lines() if line[0] == "end"}
    plans = {number: Plan(seed, number) for number in range(tasks)}
    counts = Counter(int(line[0]) for line in lines)
    unfit: list[str] = []
    late: list[str] = []
    unended: list[str] = []
    unasked: list[str] = []
    outcomes: Counter[str] = Counter()
    for which, at, attempts, name in lines:
        number = int(which)
        plan, found = plans[number], runs.get(number, [])
        outcomes[name] += 1
        told = f"{number} ({plan.kind}, {plan.retries} retries, {attempts} attempts): {name}, begun {len(found)} times"
        if name != FITS[plan.kind] and not name.startswith("NodeLost") and name != "WorkerCrashed(SIGKILL)":
            unfit.append(told)
        allowed = LEASE + D if plan.kind == "cancel" else 0.0  # what is cancelled is told at once, and killed then
        if found and found[-1][1] > float(at) + allowed:
            late.append(f"{told}, lived for {found[-1][1] - float(at):.3f} s after that")
        if name == "results" and number not in ended:
            unended.append(told)
        if len(found) > int(attempts):
            unasked.append(told)
    bars.tell(f"outcomes: {', '.join(f'{count:,} {name}' for name, count in sorted(outcomes.items()))}")
    begun = Counter(map(len, runs.values()))
    bars.tell(f"begun: {', '.join(f'{begun[times]:,} {times} times' for times in sorted(begun))}")
    often = [str(number) for number, found in runs.items() if len(found) > 1 + plans[number].retries]
    for name, found in (
        ("without outcome", [str(number) for number in plans if not counts[number]]),
        ("with several outcomes", [str(number) for number in plans if counts[number] > 1]),
        ("begun more than 1 + retries times", often),
        ("begun more often than there were attempts", unasked),
        ("with runs that overlap", [str(number) for number in overlapping(journal)]),
        ("with an outcome of another kind", unfit),
        ("that lived on after their outcome", late),
        ("with a result that have not ended", unended),
    ):
        bars.bar(not found, f"tasks {name}: {len(found)}")
        for each in found[:SHOWN]:
            bars.tell(each)
    stats = json.loads(owner.said.get("stats", "{}"))
    sums = sum(stats.get(name, 0) for name in ("succeeded", "failed", "cancelled"))
    bars.bar(stats.get("submitted") == sums == tasks + AFTERWARDS, f"the pool has counted the same: {stats}")
    waits = [again[0] - run[1] for found in runs.values() for run, again in itertools.pairwise(found)]
    if waits:
        bars.tell(f"a run after another began {min(waits):.3f} s after its last sign of life, or later")


def _held(bars: Bars, owner: Owner, holdings: Holdings) -> None:
    """What everybody held."""
    for pid in (owner.pid, *holdings.old(owner.pid)):
        told, is_more = holdings.grown(pid)
        bars.bar(not is_more, f"{'owner' if pid == owner.pid else f'node {pid}'}: {told}")


def main() -> int:
    """Do what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.soak", description="Everything fails, at random.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--tasks", type=int, metavar="N", help="as many as make 100,000 in ten minutes if not given")
    parser.add_argument("--seed", type=int, metavar="N")
    asked = parser.parse_args()
    return run(asked.minutes, asked.tasks, asked.seed)


if __name__ == "__main__":
    sys.exit(main())
