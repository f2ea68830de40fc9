"""Many small tasks: what owner, template process and workers hold must be flat after the warm-up."""

from __future__ import annotations

import os
from collections.abc import Callable

import poolkit
import support_functions as work
from chaos import faults
from soak import memory

WARM_UP = 20_000  # tasks
STEPS = 9  # looks after the warm-up
AT_ONCE = 1_000  # tasks under way
GROWTH = 2 << 20  # bytes that any of them may have grown by since the warm-up


def run(count: int, warm_up: int, say: Callable[[str], object]) -> list[str]:
    """Run `count` tasks on two workers; says what everybody holds, and returns what has grown."""
    say(f"{'tasks':>9}  {'who':<10}{'memory (USS)':>14}{'descriptors':>13}{'threads':>9}")
    with poolkit.Pool(2, preload=["chaos.faults"]) as pool:
        pool.warm_up()
        _run_tasks(pool, warm_up)
        done = warm_up
        first = last = _look(pool, done, say)
        for step in range(1, STEPS + 1):
            until = warm_up + (count - warm_up) * step // STEPS
            _run_tasks(pool, until - done)
            done = until
            last = _look(pool, done, say)
        stats = pool.stats()
    wrong = [] if (stats.succeeded, stats.submitted) == (count, count) else [f"not all succeeded: {stats}"]
    for who, (nbytes, *others) in first.items():
        if last[who][0] > nbytes + GROWTH or list(last[who][1:]) != others:
            wrong.append(f"{who} grew: {(nbytes, *others)} after the warm-up, {last[who]} at the end")
    return wrong


def _run_tasks(pool: poolkit.Pool, count: int) -> None:
    """Small tasks, AT_ONCE of them at a time; each result must be its own."""
    for start in range(0, count, AT_ONCE):
        tasks = [pool.submit(work.add, number, 1) for number in range(min(AT_ONCE, count - start))]
        assert [task.result() for task in tasks] == list(range(1, len(tasks) + 1))


def _look(pool: poolkit.Pool, done: int, say: Callable[[str], object]) -> dict[str, tuple[int, int, int]]:
    pids = {"owner": os.getpid(), "template": faults.template_pid(pool)}
    pids |= {f"worker {info.id}": info.pid for info in pool.workers() if info.pid is not None}
    found = {who: (memory.uss(pid), memory.descriptors(pid), memory.threads(pid)) for who, pid in pids.items()}
    for who, (nbytes, descriptors, threads) in found.items():
        say(f"{done:>9,}  {who:<10}{nbytes / 2**20:>10.2f} MiB{descriptors:>13}{threads:>9}")
    return found
