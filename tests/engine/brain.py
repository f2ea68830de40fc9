"""What the rules of a pool cost, with how many workers: the scheduler alone, before workers that do nothing.

Usage, from the repository's root:

    python -m tests.engine.brain --slots 64 1024 16384 65536

The workers are those of nodes, as the scheduler sees them: one task each, begun as soon as it was sent, limits kept
elsewhere. All are busy and more is queued, of several priorities, some with limits; the clock goes on by ten thousand
tasks a second, and what falls due is done. Measured is CPU time: of a task, from its acceptance until its outcome was
published; of a worker, from its `Ready` until that is taken into account; of a node of 64 workers that dies.

Exit status 1 when a bar is not met: a task costs at most twice what it costs with the fewest workers; a `Ready` less
than 10 us, also while another worker is leaving.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if str(Path(__file__).resolve().parent.parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # the library, where it is not installed

from poolkit._core.options import CallOptions, PoolLimits
from poolkit._core.scheduler import Scheduler
from poolkit._core.workforce import Died, Finished, KillReason, Ready, Status
from poolkit.task import Progress, Task

NODE = 64  # workers
MESSAGE = 16  # outcomes that come together
TASK_EVERY = 1e-4  # seconds between two outcomes
MOST_TIMES = 2.0  # what a task may cost, in times of what it costs with the fewest workers
MOST_READY = 10e-6  # seconds

PLAIN = CallOptions()
MIXED = (PLAIN, CallOptions(timeout=60.0), CallOptions(priority=1), CallOptions(timeout=60.0, priority=-1))


class SlotForce:
    """Workers that do nothing: what is ordered is written down."""

    max_batch = 1
    keeps_limits = True
    ends_coroutines = False
    programs = None

    def __init__(self) -> None:
        self.started: deque[int] = deque()  # ordered, not up
        self.sent: deque[tuple[int, Task[Any]]] = deque()  # no outcome yet, in order; the dead are among them
        self.running: dict[int, tuple[Task[Any], float]] = {}  # by worker, since when
        self.killed: set[int] = set()
        self.now = 0.0

    def start(self, worker_id: int) -> None:
        """Write it down."""
        self.started.append(worker_id)

    def send(self, worker_id: int, tasks: Sequence[Task[Any]], written: list[Any], *, announce: bool) -> None:
        """Write it down: from now on it runs."""
        del announce
        for task in tasks:
            self.sent.append((worker_id, task))
            self.running[worker_id] = task, self.now
            written.append(True)

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        """Nothing can be taken back."""

    def status(self, worker_id: int) -> Status:
        """What was sent has begun."""
        task, since = self.running.get(worker_id, (None, 0.0))
        return Status() if task is None else Status(task.id, since)

    def progress(self, worker_id: int, task: Task[Any]) -> Progress | None:
        """None is told."""

    def memory(self, worker_id: int) -> int | None:
        """It is not known here."""

    def forget(self, worker_id: int) -> None:
        """Forget what it ran."""
        self.running.pop(worker_id, None)

    def stop(self, worker_id: int) -> None:
        """Write it down."""
        self.killed.add(worker_id)

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """Write it down."""
        del want_stack
        self.killed.add(worker_id)

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        """It runs no streams."""

    def mail(self, worker_id: int, task_id: int, mail: deque[Any]) -> None:
        """It takes no messages."""

    def end(self, worker_id: int, task: Task[Any]) -> None:
        """Nothing ends by itself."""

    def finish(self, worker_id: int, grace: float) -> None:
        """It runs no programs."""


class Brain:
    """A scheduler of so many slots, and what drives it as an engine would; the clock is the test's."""

    def __init__(self, slots: int, **limits: Any) -> None:
        self.slots = slots
        self.force = SlotForce()
        self.scheduler = Scheduler(self.force, PoolLimits(slots, **limits), random.Random(0))
        self.now = 100.0
        self.settled = 0
        self.failed: list[BaseException] = []

    def hand_in(self, reports: Sequence[Any]) -> None:
        """Have reports taken into account, publish what was decided, and do what is due."""
        self.force.now = self.now
        self.scheduler.handle_all(deque(reports), self.now)
        self.publish()

    def publish(self) -> None:
        """Take what was decided, as an engine does."""
        scheduler = self.scheduler
        while True:
            for task, outcome in scheduler.settled:
                scheduler.accepted.pop(task, None)
                self.settled += 1
                if not outcome.ok:
                    self.failed.append(outcome.payload)
            scheduler.settled.clear()
            due = scheduler.next_deadline()
            if due is None or due > self.now:
                return
            scheduler.tick(self.now)

    def warm_up(self) -> None:
        """Order all workers."""
        self.scheduler.warm_up(self.now)

    def ready(self) -> int:
        """Those that were ordered come up, node by node. Returns how many."""
        started = self.force.started
        count = len(started)
        while started:
            self.hand_in([Ready(started.popleft(), None) for _ in range(min(NODE, len(started)))])
            self.now += TASK_EVERY
        return count

    def tasks(self, count: int, mix: Sequence[CallOptions] = MIXED) -> list[Task[Any]]:
        """New tasks, not submitted."""
        return [Task(None, "work", None, mix[at % len(mix)], 100) for at in range(count)]

    def submit(self, tasks: Sequence[Task[Any]]) -> None:
        """Submit tasks."""
        self.force.now = self.now
        for task in tasks:
            self.scheduler.submit(task, self.now)

    def finish(self, count: int) -> None:
        """So many of the tasks that were sent end, the oldest first."""
        force = self.force
        reports: list[Finished] = []
        for _ in range(count):
            while True:
                worker_id, task = force.sent.popleft()
                if force.running.get(worker_id, (None,))[0] is task:
                    break
            since = force.running.pop(worker_id)[1]
            reports.append(Finished(worker_id, task.id, since, self.now, 0, None, True))
        self.hand_in(reports)
        self.now += count * TASK_EVERY

    def run(self, tasks: Sequence[Task[Any]]) -> None:
        """As many tasks are submitted as end, until all of these are."""
        for at in range(0, len(tasks), MESSAGE):
            some = tasks[at : at + MESSAGE]
            self.submit(some)
            self.finish(len(some))

    def node(self, *, busy: bool) -> list[Died]:
        """The deaths of 64 workers, of those that run something, or of those that do not."""
        found = [each for each in self.scheduler.roster if bool(each.sent) is busy and each.id not in self.force.killed]
        at = max(0, len(found) - NODE) // 2
        return [Died(each.id) for each in found[at : at + NODE]]


def measure(slots: int, count: int, repeat: int) -> dict[str, float]:
    """What it costs with so many slots, in seconds of CPU."""

    def took(what: Any, *args: Any) -> float:
        start = time.process_time()
        what(*args)
        return time.process_time() - start

    brain = Brain(slots)
    brain.warm_up()
    found = {"ready": took(brain.ready) / slots}
    for name, mix in ("plain", (PLAIN,)), ("mixed", MIXED):
        brain.submit(brain.tasks(2 * slots, mix))  # as many wait as run
        brain.run(brain.tasks(slots, mix))
        found[name] = min(took(brain.run, brain.tasks(count, mix)) / count for _ in range(repeat))
        while brain.force.running:
            brain.finish(len(brain.force.running))
    brain.submit(brain.tasks(2 * slots))
    roster = brain.scheduler.roster
    roster.kill(next(iter(roster)), KillReason(None, "shrunk"), want_stack=False)
    found["death"] = took(brain.hand_in, brain.node(busy=True))
    found["ready again"] = took(brain.ready) / NODE
    while brain.force.running:
        brain.finish(len(brain.force.running))
    found["idle death"] = took(brain.hand_in, brain.node(busy=False))
    return found


def main() -> int:
    """Measure what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.engine.brain", description="What a pool's rules cost.")
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 1024, 16384, 65536], metavar="N")
    parser.add_argument("--tasks", type=int, default=50_000, metavar="N", help="of which the mean is taken")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="times, of which the best is taken")
    asked = parser.parse_args()
    print("CPU, in us and in times of the first; of 64 workers that die together, in ms")
    print("  slots    a task          one of a mix      a Ready  beside one     64 busy   64 idle")
    print("                                                      that goes      die       die")
    first: dict[str, float] = {}
    good = True
    for slots in asked.slots:
        found = measure(slots, asked.tasks, asked.repeat)
        first = first or found
        plain, mixed = (found[name] / first[name] for name in ("plain", "mixed"))
        good &= max(plain, mixed) <= MOST_TIMES and max(found["ready"], found["ready again"]) < MOST_READY
        print(
            f"{slots:>7}{found['plain'] * 1e6:>10.2f}{plain:>7.2f}{found['mixed'] * 1e6:>10.2f}{mixed:>7.2f}"
            f"{found['ready'] * 1e6:>14.2f}{found['ready again'] * 1e6:>12.2f}"
            f"{found['death'] * 1e3:>10.2f}{found['idle death'] * 1e3:>10.2f}",
            flush=True,
        )
    print(f"bars (a task at most {MOST_TIMES:g} times as much; Ready below {MOST_READY * 1e6:g} us):", end=" ")
    print("met" if good else "NOT met")
    return not good


if __name__ == "__main__":
    sys.exit(main())
