"""Runs: the pool of a node, and the tasks that its agent makes of the owner's orders.

A run has the number, name and attempt that its task has at the owner's; what it says goes to the agent as it is packed.
Guarded by: the pool's lock, as in every pool.
"""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from poolkit._core.options import CallOptions, PoolLimits
from poolkit._core.workforce import Logged
from poolkit._engine.log_records import Records
from poolkit._engine.supervisor import Supervisor
from poolkit._kinds.peer import boot_settings
from poolkit._kinds.process import ProcessWorkforce
from poolkit._kinds.settings import PoolSettings
from poolkit._locks import RLock
from poolkit._memory.memory import Memory
from poolkit._memory.owner import OwnerTransport
from poolkit._nodes.script import NodeScript
from poolkit._wire.buffers import found_from
from poolkit.outcome import Outcome
from poolkit.task import Task


class Hears(Protocol):
    """What runs tell of themselves: the agent."""

    engine: NodeEngine

    def ended(self, run: Run, outcome: Outcome) -> None:
        """How it ended."""

    def told(self, run: Run, entry: Any) -> None:
        """A message that it sent."""


class Run(Task[Any]):
    """What a slot runs: a task of the node's pool, with the number, name and attempt that it has at the owner's."""

    def __init__(self, agent: Hears, slot: int, name: str, call: Any, options: CallOptions, nbytes: int) -> None:
        super().__init__(agent.engine, name, call, options, nbytes)
        self.agent = agent
        self.slot = slot
        self.announces = False  # its begin is to be told, and was not
        self.is_to_stop = False
        self.came = math.inf  # when the node's pool accepted it
        self.is_given_back = False
        self.told_progress: object = None
        self.told_at = 0, 0  # process, bytes of its memory

    def publish(self, outcome: Outcome) -> None:
        """Send the outcome, as it is packed."""
        self.call = None
        self.agent.ended(self, outcome)

    def open_exchange(self) -> Any:
        """What takes the messages that the task sends."""
        if self.exchange is None:
            self.exchange = Told(self)
        return self.exchange


class Told:
    """Sends on what a task sends, in place of an `Exchange` and its `Incoming`."""

    closed = False
    mail = ()

    def __init__(self, run: Run) -> None:
        self._run = run
        self.incoming = self
        self.items: deque[Any] = deque()
        self.come = self.asked = self.worker_id = 0
        self.plain = True
        self.resume: Callable[[], object] | None = None

    def note(self, _nbytes: int) -> bool:
        """None waits here."""
        return False

    def count(self, received: list[int]) -> None:
        """Add to the counts of the pool."""
        received[1] += len(self.items)

    def ring(self) -> None:
        """Send what has come."""
        while self.items:
            self._run.agent.told(self._run, self.items.popleft())


class NodeRecords(Records):
    """Sends on what workers log."""

    send: Callable[[Logged], object]

    def add(self, records: deque[Logged]) -> None:
        """Send records, and empty `records`."""
        while records:
            self.send(records.popleft())


class NodeEngine(Supervisor):
    """Drives the node's pool."""

    records: NodeRecords

    def _settle_in(self) -> None:
        super()._settle_in()
        workforce = self.workforce
        self.records = NodeRecords(self.callbacks, self.name, self._publish, workforce.wake, workforce.links)

    def run(self, runs: Sequence[Run]) -> None:
        """Accept tasks that have their numbers."""

        def step(now: float) -> None:
            for run in runs:
                self._scheduler.submit(run, now)
                run.came = now

        if self._thread is None:
            self._start_thread()
        self._decide(step)

    def give_back(self, runs: Sequence[Run]) -> None:
        """Cancel those of these that have not begun."""

        def step(now: float) -> None:
            for run in runs:
                run.is_given_back = self._scheduler.withdraw(run, now) or run.is_given_back

        self._decide(step)

    def pid_of(self, worker_id: int | None) -> int:
        """The process of a worker; 0 when it is gone."""
        worker = self._scheduler.roster.workers.get(worker_id or 0)
        return 0 if worker is None else worker.pid or 0

    def ready_count(self) -> int:
        """How many workers are up."""
        with self._lock:
            return self._scheduler.roster.ready_count()

    def stop(self, task: Run, *, want_stack: bool) -> None:
        """Stop a task, with the stack of where it was, if that is wanted."""
        if want_stack:
            self._decide(lambda now: self._scheduler.time_out(task, now - (task.started_at or now) + 1.0, now))
        else:
            self.cancel(task)


def build(
    content: dict[str, Any], workers: int, name: str, script: NodeScript, lease_fd: int, streams: tuple[int, int]
) -> NodeEngine:
    """Make the node's pool, as the owner's would be made here; its workers live under this lease, and print there."""
    settings = PoolSettings(
        workers, "process", None, None, (), content["preload"], content["env"], content["shm_threshold"]
    )
    settings.share_cpus()
    settings.given, settings.lease_fd, settings.streams = content["given"], lease_fd, streams
    lock, transport = RLock(), OwnerTransport(settings.shm_threshold, name)
    initializer = None
    if content["initializer"] is not None:
        data, payload, regions = content["initializer"]
        memories = {number: memory_of(number, part) for number, part in regions}
        initializer = data, None if payload is None else script.define(payload, memories)
    boot = functools.partial(
        boot_settings,
        settings,
        initializer=initializer,
        measure_rss=content["max_memory_per_child"] is not None,
        shm_threshold=transport.threshold,
        habits={},
    )
    workforce = ProcessWorkforce(lock, settings, boot=boot, inherited_fds=(), transport=transport)
    limits = PoolLimits(
        workers,
        max_tasks_per_child=content["max_tasks_per_child"],
        max_memory_per_child=content["max_memory_per_child"],
    )
    return NodeEngine(lock, workforce, limits, name=name)


def memory_of(number: int, content: Any) -> Memory:
    """Shared memory of this machine with what the owner has in its own of this number."""
    made = Memory.create(max(1, len(content)))
    mapping = made.mapping()
    mapping[: len(content)] = content
    return Memory(os.dup(made.fd), number, made.nbytes)


class Came(found_from(0)):  # type: ignore[misc]
    """The buffers of a call as they came."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
