"""What goes wrong in the chaos tests, and who makes it go wrong. Imported by workers too.

POOLKIT_CHAOS_SCALE multiplies how long every test goes on; the default is a slice that fits a build. A longer run:

    POOLKIT_CHAOS_SCALE=20 POOLKIT_TIMEOUT_SCALE=20 pytest tests/chaos

Random choices come from POOLKIT_CHAOS_SEED, or a new seed; a failing test shows it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import poolkit
import support
import support_functions as work
from support import retry_until
from support_gates import Gate, Journal

if TYPE_CHECKING:
    from typing_extensions import Self

SCALE = float(os.environ.get("POOLKIT_CHAOS_SCALE", "1"))


def scaled(count: int) -> int:
    """How often to do something that is done `count` times by default."""
    return max(1, round(count * SCALE))


def new_rng() -> random.Random:
    """Random choices that can be repeated; the seed is printed."""
    seed = int(os.environ.get("POOLKIT_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"POOLKIT_CHAOS_SEED={seed}")
    return random.Random(seed)


def new_pool(max_workers: int, **options: Any) -> poolkit.Pool:
    """A pool whose workers have imported what the tests run, as that takes longer than most of them live."""
    if options.get("kind", "process") == "process":
        options.setdefault("preload", ["chaos.faults"])
    return poolkit.Pool(max_workers, **options)


# ===== who kills =====


def worker_pids(pool: poolkit.Pool, *states: str, tasks_done: int = 0) -> list[int]:
    """Processes of a pool's workers, in some states or any, that have done so many tasks."""
    return [
        info.pid
        for info in pool.workers()
        if info.pid is not None and (not states or info.state in states) and info.tasks_done >= tasks_done
    ]


def template_pid(pool: poolkit.Pool) -> int:
    """The process that forks a pool's workers; waits until there is one."""

    def look() -> int:
        template = pool._supervisor.workforce._template  # type: ignore[attr-defined]
        return -1 if template is None else int(template.pid)

    return retry_until(look, lambda pid: pid > 0, "a template process")


def kill_worker(pool: poolkit.Pool, pid: int) -> bool:
    """Kill a worker; False when it is gone already. Numbers go round, so whose child it is is looked at first."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
        if parent != template_pid(pool):
            return False
        os.kill(pid, signal.SIGKILL)
    except (OSError, IndexError):
        return False
    return True


class Killer:
    """A thread that kills random workers of a pool, every `every` seconds or so, until the `with` is left.

    It spares those that have done nothing yet. On a busy machine it would kill several in a row of them, which is what
    a pool takes for workers that cannot start: it waits longer each time, and in the end tells its tasks.
    """

    def __init__(self, pool: poolkit.Pool, rng: random.Random, *states: str, every: float = 0.02) -> None:
        self.victims: Counter[int] = Counter()  # how often each process was killed: numbers go round
        self._pool = pool
        self._rng = rng
        self._states = states
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")

    def _run(self) -> None:
        while not self._over.wait(self._every * self._rng.uniform(0.5, 1.5)):
            pids = worker_pids(self._pool, *self._states, tasks_done=1)
            if pids:
                pid = self._rng.choice(pids)
                self.victims[pid] += kill_worker(self._pool, pid)

    @property
    def kills(self) -> int:
        """How many."""
        return sum(self.victims.values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


# ===== what must hold afterwards =====


def check_serves(pool: poolkit.Pool, new_gate: Callable[[], Gate]) -> None:
    """The pool runs as many tasks at once as it has workers, and says that nothing else is left."""
    arrived, release = new_gate(), new_gate()
    tasks = [pool.submit(work.arrive_and_wait, arrived, release, index) for index in range(pool.max_workers)]
    arrived.wait(len(tasks))
    release.signal(len(tasks))
    assert [task.result() for task in tasks] == list(range(pool.max_workers))
    stats = pool.stats()
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled


def check_ran_once(journal: Journal) -> set[int]:
    """The numbers that tasks wrote down; none may stand there twice."""
    lines = [int(line) for line in journal.lines()]
    assert len(lines) == len(set(lines)), sorted(line for line in set(lines) if lines.count(line) > 1)
    return set(lines)


class Ledger:
    """What tasks are to end with, and how often each of them told its callbacks that it had."""

    def __init__(self) -> None:
        self._tasks: list[tuple[poolkit.Task[Any], Callable[[poolkit.Task[Any]], object]]] = []
        self._ends: collections.Counter[int] = collections.Counter()  # by task; what the callbacks counted

    def add(self, task: poolkit.Task[Any], check: Callable[[poolkit.Task[Any]], object]) -> None:
        """Have a task looked at in the end; `check` is true when its outcome is right."""
        self._tasks.append((task, check))
        task.add_done_callback(lambda ended: self._ends.update([ended.id]))

    def submit(self, pool: poolkit.Pool | poolkit.PoolView, count: int, journal: Journal) -> None:
        """Tasks whose neighbours are to suffer: each has a value of its own, and writes that down when it runs."""
        for _ in range(count):
            number = len(self._tasks)
            self.add(pool.submit(work.write_line, journal, number), lambda task, number=number: task.result() == number)

    def settle(self) -> list[poolkit.WorkerCrashed]:
        """Wait for all; every task ended once, and as it should. Returns the crashes among them."""
        crashes = []
        for task, check in self._tasks:
            try:
                assert check(task), (task, task.exception())
            except poolkit.WorkerCrashed as crash:
                crashes.append(crash)
        support.wait_until(lambda: len(self._ends) == len(self._tasks), "the callbacks of all tasks")
        assert set(self._ends.values()) <= {1}, self._ends
        return crashes


# ===== what happens to a worker =====


def do(fault: str) -> None:
    """Have something happen to this process."""
    happenings[fault]()


def _kill_first(pid: int) -> None:
    """Kill the process that ends this one."""
    os.kill(pid, signal.SIGKILL)
    signal.pause()


def _raise() -> None:
    raise ZeroDivisionError("fault")


happenings: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "raise": _raise,
    "kill": work.die,
    "segfault": work.segfault,
    "abort": os.abort,
    "exit": lambda: os._exit(0),
    "spin": work.spin,
    "hang": work.hold_the_gil,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill-template": lambda: _kill_first(os.getppid()),
    "kill-owner": lambda: _kill_first(int(os.environ["POOLKIT_TEST_OWNER"])),
}


class Trap:
    """An object at which a fault happens, in any process but its owner: when it is pickled, or unpickled."""

    def __init__(self, step: str, fault: str, owner: int, arrived: Gate | None = None) -> None:
        self.step = step
        self.fault = fault
        self.owner = owner
        self.arrived = arrived

    def _pass(self, step: str) -> None:
        if step == self.step and os.getpid() != self.owner:
            if self.arrived is not None:
                self.arrived.signal()
            do(self.fault)

    def __reduce__(self) -> tuple[Any, ...]:
        self._pass("pickle")
        return _unpickled, (self.step, self.fault, self.owner, self.arrived)


def _unpickled(*args: Any) -> Trap:
    trap = Trap(*args)
    trap._pass("unpickle")
    return trap


def run_fault(trap: Trap) -> None:
    trap._pass("run")


def make_trap(trap: Trap) -> Trap:
    return trap


def carry(trap: Trap, array: Any, sent: Any, shared: Any) -> Any:
    """Have arrays on both ways, and the trap behind them in the result."""
    trap._pass("run")
    return array + sent[0], shared, trap


def shared_sum(shared: Any) -> int:
    return int(shared.array.sum())


def arrive_and_do(arrived: Gate, release: Gate, fault: str) -> None:
    arrived.signal()
    release.wait()
    do(fault)


def initialize_with(trap: Trap) -> None:
    trap._pass("initialize")


def leave_thread_behind(release: Gate, fault: str) -> int:
    """A thread that outlives its task, and does something when nobody expects it."""

    def later() -> None:
        release.wait()
        do(fault)

    threading.Thread(target=later, daemon=True).start()
    return os.getpid()


def run_for(seconds: float, value: Any) -> Any:
    """Work for about so long."""
    over = threading.Event()
    over.wait(seconds)
    return value


def run_and_write(seconds: float, journal: Journal, line: int) -> object:
    """Work for about so long, and write that down."""
    return work.write_line(journal, run_for(seconds, line))


def make_bytes(count: int) -> bytearray:
    return bytearray(count)


def sleep_forever(arrived: Gate | None = None) -> NoReturn:
    """Wait in the kernel for what never comes."""
    if arrived is not None:
        arrived.signal()
    while True:
        signal.pause()


# ===== primitives that lie =====


class MeddlingOs:
    """Stands for the module `os` in one other module, and does something at one call of one function."""

    def __init__(self, name: str, at_call: int, action: Callable[[], object]) -> None:
        self._name = name
        self._posted_reports = at_call
        self._action = action

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name != self._name:
            return found

        def meddle(*args: Any) -> Any:
            self._posted_reports -= 1
            if self._posted_reports == 0:
                self._action()
            return found(*args)

        return meddle


@contextlib.contextmanager
def closed_by_force(pool: poolkit.Pool) -> Iterator[poolkit.Pool]:
    """Leave a pool whose tasks may never end."""
    try:
        yield pool
    finally:
        pool.shutdown(kill=True)
