"""Everything that can fail, at random, while tasks of all kinds run on nodes; with exact accounting and flat memory.

Usage: python -m tests.engine.soak [--minutes 10] [--tasks N] [--seed N]

The pool belongs to a process of its own, on three nodes of two workers, one of them under a nanny. Tasks come at a rate
that makes 100,000 in ten minutes; one in twenty is bad: it crashes, exits, hangs over its limit, raises, returns what
cannot be pickled, or is cancelled. Every five seconds something fails, see `soak_faults.py`; what is then missing of
the nodes is started anew with the next. The same seed has the same faults and the same tasks.
Each run of a task writes down when it begins, lives and ends, the owner when it has which outcome.
Bars: each task has one outcome, and of its kind; it begins at most `1 + retries` times; no run begins while another of
that task lives, and none lives on when its outcome is there; what has a result has ended; the pool serves on all nodes
afterwards; nothing is left when it is shut down; descriptors, threads and memory of the owner, and of nodes that live
for two minutes or longer, are at the end what they were near the begin.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import distributed
import psutil

from engine.cluster import Bars, Cluster, new_journal, offspring, pause, wait_for
from engine.ownerkill import what_is_left
from engine.soak_faults import SHORT_MEMORY, WEIGHTS, Faults, Holdings
from engine.soak_ledger import Ledger, Outcome
from engine.soak_owner import AFTERWARDS, LEASE, OUTCOMES, WORKERS, Owner, Plan
from engine.work import Journal

EVERY = 5.0  # seconds between two faults
RATE = 100_000 / 600  # tasks in a second
LOOK = 2.0  # seconds between two looks at what everybody holds
SHOWN = 5  # of what is wrong


def schedule(seed: int) -> Iterator[str]:
    """What fails, one after another: each kind as often as its weight says before any comes again."""
    rng = random.Random(seed)
    while True:
        deck = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
        rng.shuffle(deck)
        print(f"      next: {' '.join(deck)}", flush=True)
        yield from deck


def run(minutes: float, tasks: int | None, seed: int | None) -> int:
    """Have everything fail; returns the exit status."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    seconds = minutes * 60
    tasks = int(seconds * RATE) if tasks is None else tasks
    bars = Bars(
        f"soak: {tasks:,} tasks in {minutes:g} minutes, a fault every {EVERY:g} s, lease {LEASE:g} s, seed {seed}"
    )
    os.environ |= SHORT_MEMORY
    with new_journal() as journal, Cluster(0, WORKERS) as cluster:
        owner = Owner(cluster.address, journal.path, seconds, tasks, seed)
        faults, holdings = Faults(cluster, owner), Holdings()
        try:
            faults.restore()
            wait_for(lambda: owner.has_said("up"), "the nodes")
            _fail(bars, faults, holdings, seconds, seed)
            _afterwards(bars, owner, faults)
            _left(bars, owner, cluster)
        finally:
            owner.kill()
        _account(bars, journal, owner, {number: Plan(seed, number) for number in range(tasks)})
        _held(bars, owner, holdings)
    return bars.done()


def _fail(bars: Bars, faults: Faults, holdings: Holdings, seconds: float, seed: int) -> None:
    """Have one thing after another fail, for so long, and wait until the owner has all outcomes."""
    begun = look_at = time.monotonic()
    next_at = begun + EVERY
    done: Counter[str] = Counter()
    names = schedule(seed)
    while not faults.owner.has_said("settled"):
        faults.act()
        now = time.monotonic()
        if now >= next_at:
            next_at = now + EVERY
            faults.restore()
            if now < begun + seconds:  # else tasks are left, as the machine is slow
                name = next(names)
                done[name] += 1
                faults.do(name, seed + done.total())
        if now >= look_at:
            look_at = now + LOOK
            holdings.look(faults.owner.pid, *faults.agents())
        pause(0.05)
    bars.tell(f"{done.total()} faults in {time.monotonic() - begun:.0f} s: {dict(done)}")
    bars.tell(f"in vain, as there was nothing to do it to: {dict(faults.in_vain)}")


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
    bars.bar(owner.wait() == 0 and "clean" in owner.said, "the owner ends, with nothing left of the pool")
    left: list[str] = []
    with distributed.Client(cluster.address, set_as_default=False) as client:

        def is_clean() -> bool:
            left[:] = what_is_left(client)
            for pid in cluster.nodes:
                left.extend(_told(process) for process in offspring(pid) if "poolkit._child" in _told(process))
            return not left

        wait_for(is_clean, "nothing to be left on the nodes")
    bars.bar(not left, "nothing of it is left on the nodes")


def _told(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return ""


def _account(bars: Bars, journal: Journal, owner: Owner, plans: dict[int, Plan]) -> None:
    """What became of each task."""
    lines = [line.split() for line in Path(journal.path + OUTCOMES).read_text().splitlines()]
    outcomes = [Outcome(int(number), float(at), int(attempts), name) for number, at, attempts, name in lines]
    ledger = Ledger(journal, outcomes, plans)
    bars.tell(f"outcomes: {', '.join(f'{count:,} {name}' for name, count in sorted(ledger.outcomes.items()))}")
    bars.tell(f"begun: {', '.join(f'{count:,} {times} times' for times, count in sorted(ledger.begun.items()))}")
    for name, found in ledger.wrong.items():
        bars.bar(not found, f"tasks {name}: {len(found)}")
        for each in found[:SHOWN]:
            bars.tell(each)
    if (pause := ledger.shortest_pause()) is not None:
        bars.tell(f"a run after another of the same task began {pause:.3f} s after its last sign of life, or later")
    stats = json.loads(owner.said.get("stats", "{}"))
    sums = sum(stats.get(name, 0) for name in ("succeeded", "failed", "cancelled"))
    bars.bar(stats.get("submitted") == sums == len(plans) + AFTERWARDS, f"the pool has counted the same: {stats}")


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
