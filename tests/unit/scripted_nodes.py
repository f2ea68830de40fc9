"""A scheduler, the real node workforce, and nodes on a scripted network: nothing happens but what the test says.

A node does what `agent.py` does: it begins what it is sent once its lease was answered for, one task a worker and at
most one a slot; it kills, answers, asks for its lease by its own clock, and ends all its work when its connection ends
or its lease is over. Work that is ended goes on for up to `D` seconds, as processes may. Every run is taken down with
its times, of a clock that nobody but the test has, and everything that may never happen fails the test at once.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import mock

from poolkit._core.options import CallOptions, PoolLimits
from poolkit._core.roster import Hiring
from poolkit._core.scheduler import PoolPhase, Scheduler
from poolkit._core.workforce import BUSY, IDLE, Report
from poolkit._locks import RLock
from poolkit._nodes import messages, slots, workforce
from poolkit._nodes.interfaces import Message, NodeFacts
from poolkit._nodes.lease import Tenant
from poolkit._wire import codec
from poolkit.errors import NodeLost
from poolkit.outcome import Outcome
from poolkit.task import Task, TaskPhase

AnyTask = Task[Any]
LEASE = 5.0
STEP = 0.25  # seconds, at most, between two looks of the supervisor while time passes
SAMPLES = 2  # tasks after which a node may be sent some ahead


class ScriptedChannel:
    """The owner's end of a connection."""

    take: Callable[[], Message | None]
    on_message: Callable[[bytes, list[Any]], object]
    on_end: Callable[[str], object]

    def __init__(self) -> None:
        self.has_started = self.is_awake = self.is_aborted = self.has_ended = False

    def start(self) -> None:
        self.has_started = True

    def wake(self) -> None:
        self.is_awake = True

    def abort(self) -> None:
        self.is_aborted = True


class ScriptedProvider:
    """Takes down which nodes are held."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.wanted: list[int] = []

    def hold(self, number: str, wanted: bool) -> None:
        (self.held.add if wanted else self.held.discard)(number)

    def begin(self, *_: Any) -> None:
        """Nodes join when the test says so."""

    def want(self, nodes: int, *, fewer: bool = True) -> None:
        self.wanted.append(nodes)

    def close(self) -> None:
        """The test ends the nodes."""


class Run:
    """A task at a node; begun or not."""

    def __init__(self, slot: int, task_id: int, attempt: int, priority: int) -> None:
        self.slot, self.task_id, self.attempt, self.priority = slot, task_id, attempt, priority
        self.begun: float | None = None
        self.ended: float | None = None

    def is_live(self, now: float) -> bool:
        return self.begun is not None and (self.ended is None or self.ended > now)


class ScriptedNode:
    """One life of a node: its half of the protocol, and both directions of its connection."""

    def __init__(
        self,
        pool: NodesPool,
        number: str,
        workers: int,
        *,
        offset: float = 0.0,
        rate: float = 1.0,
        lingers: float = 0.0,
    ) -> None:
        self.pool = pool
        self.facts = NodeFacts(number, f"tcp://{number}", "host", 1, workers, {})
        self.offset, self.rate, self.lingers = offset, rate, lingers
        self.channel = ScriptedChannel()
        self.to_node: deque[Message] = deque()  # on the way
        self.to_owner: deque[bytes] = deque()
        self.is_deaf = self.is_mute = False  # a direction of the network that delivers nothing
        self.outbox: list[tuple[Any, ...]] = []
        self.runs: dict[int, Run] = {}  # by slot
        self.queue: list[Run] = []  # of those, what waits for a worker
        self.tenant: Tenant | None = None
        self.asked: float | None = None
        self.is_over = False  # it does nothing any more; its end of the connection is closed
        self.is_leaving = False
        self.ask_first()
        self.outbox += [(messages.UP, count + 1) for count in range(workers)]

    # ===== its clock and its lease =====

    def clock(self) -> float:
        return self.offset + self.rate * self.pool.now

    def ask_first(self) -> None:
        self.asked = self.clock()
        self.outbox.append((messages.ASK, self.asked))

    def look(self) -> None:
        """Ask for the lease if it is time to; end if it is over, at the moment that it was."""
        if self.is_over:
            return
        now = self.clock()
        if self.tenant is None:
            assert self.asked is not None
            if now >= self.asked + LEASE:
                self.ask_first()
        elif self.tenant.is_over(now):
            self.end(at=(self.tenant.until - self.offset) / self.rate)
        elif (stamp := self.tenant.ask(now)) is not None:
            self.outbox.append((messages.ASK, stamp))

    def end(self, at: float | None = None) -> None:
        """End all work, now or soon, and its end of the connection."""
        if not self.is_over:
            self.is_over = True
            self.to_node.clear()
            for run in self.running():
                run.ended = (self.pool.now if at is None else at) + self.lingers
            self.runs.clear()
            self.queue.clear()
            self.outbox.clear()

    # ===== what it does =====

    def running(self) -> list[Run]:
        return [run for run in self.runs.values() if run.begun is not None]

    def write(self) -> None:
        """Put all it has to say into one message."""
        if self.outbox and not self.is_over:
            self.to_owner.append(messages.pack(self.outbox))
            self.outbox = []

    def hear(self) -> None:
        """Take in the next message that is on the way to it."""
        self.look()
        if self.is_over or self.is_deaf or not self.to_node:
            return
        head, parts = self.to_node.popleft()
        count = 0
        for entry in messages.unpack(head):
            kind = entry[0]
            if kind == messages.RUN:
                count += entry[-1]
                self._order(entry)
            elif kind == messages.MEMORY:
                count += 1
            elif kind == messages.KILL:
                self._kill(*entry[1:3])
            elif kind == messages.LEASED:
                self._leased(entry[1])
            elif kind == messages.BYE:
                self.end()
                return
        assert count == len(parts)

    def _order(self, entry: tuple[Any, ...]) -> None:
        slot, task_id, attempt, priority = entry[1], entry[2], entry[3], entry[7]
        assert slot not in self.runs, "two tasks at a time in one slot"
        run = self.runs[slot] = Run(slot, task_id, attempt, priority)
        self.queue.append(run)
        self._begin()

    def _begin(self) -> None:
        """Have free workers begin what waits."""
        while self.tenant is not None and self.queue and len(self.running()) < self.facts.workers:
            run = max(self.queue, key=lambda each: each.priority)
            self.queue.remove(run)
            self.pool.begins(run)

    def _leased(self, stamp: float) -> None:
        if self.tenant is None:
            if stamp == self.asked:
                self.tenant = Tenant(LEASE, stamp)
                self._begin()
        elif not self.tenant.is_over(self.clock()):
            self.tenant.answered(stamp)

    def _kill(self, slot: int, task_id: int) -> None:
        run = self.runs.get(slot)
        if run is not None and run.task_id == task_id:
            self._settle(run)
        self.outbox.append((messages.CANCELLED, slot, task_id, ""))

    def _settle(self, run: Run) -> None:
        del self.runs[run.slot]
        if run.begun is None:
            self.queue.remove(run)
        else:
            run.ended = self.pool.now
        self._begin()

    def finish(self, pick: int = 0, error: BaseException | None = None, *, packed: bool = False) -> None:
        """A task that it runs ends: with a value, an error of its own (`packed`), or one of the node's pool."""
        running = self.running()
        if self.is_over or not running:
            return
        run = running[pick % len(running)]
        assert run.begun is not None
        seconds = (self.pool.now - run.begun) * self.rate
        which = run.slot, run.task_id
        if error is None:
            self.outbox.append((messages.DONE, *which, True, b"value", seconds, 0, None, 0))
        elif packed:
            self.outbox.append((messages.DONE, *which, False, codec.pack_error(error), seconds, 0, None, 0))
        else:
            self.outbox.append((messages.FAILED, *which, codec.pack_error(error), seconds))
        self._settle(run)

    def give_back(self) -> None:
        """What waits behind something that takes long is given back."""
        if not self.is_over and self.queue:
            run = self.queue.pop()
            del self.runs[run.slot]
            self.outbox.append((messages.BACK, run.slot, run.task_id))

    def leave(self, reason: str = "retired") -> None:
        if not self.is_over and not self.is_leaving:
            self.is_leaving = True
            self.outbox.append((messages.LEAVING, reason))


class NodesPool:
    """A scheduler, its node workforce, the nodes, and a clock that the test moves. Keeps what was decided."""

    def __init__(self, *, seed: int = 0, size: int | None = None, **limits: Any) -> None:
        self.now = 100.0
        self._patches = contextlib.ExitStack()
        self._patches.enter_context(mock.patch.object(workforce, "monotonic", new=self.clock))
        self._patches.enter_context(mock.patch.object(slots, "FEWEST_SAMPLES", SAMPLES))
        self.provider = ScriptedProvider()
        self.workforce = workforce.NodeWorkforce(RLock(), self.provider, lease=LEASE, shm_threshold=65536)
        self.scheduler = Scheduler(self.workforce, PoolLimits(size or 1, **limits), random.Random(seed))
        self.workforce.post_all, self.workforce.leave = self.post_all, self.leave
        self.workforce.log_now = lambda records: records.clear()
        self.workforce.changed = lambda node, reason: self._resized()
        self.workforce.looked = lambda: None
        self.workforce.resized, self.workforce.dismiss = self._resized, self._dismiss
        self._size = size
        self.posted: deque[Report] = deque()
        self.is_held_up = False  # another thread has the lock: reports wait for the supervisor
        self.nodes: list[ScriptedNode] = []
        self.tasks: dict[int, AnyTask] = {}
        self.outcomes: dict[AnyTask, Outcome] = {}
        self.runs: list[Run] = []
        self.written: Counter[tuple[int, int]] = Counter()  # task and attempt, while not given back
        self._numbers = itertools.count(1)

    def clock(self) -> float:
        return self.now

    def close(self) -> None:
        self._patches.close()

    # ===== the engine =====

    def leave(self, report: Report) -> None:
        self.posted.append(report)

    def post_all(self, reports: Iterable[Report]) -> None:
        self.posted.extend(reports)
        if not self.is_held_up:
            self.handle()

    def handle(self) -> None:
        """Take in what was reported."""
        self.scheduler.handle_all(self.posted, self.now)
        self.collect()

    def _resized(self) -> None:
        if self._size is None and self.scheduler.phase is PoolPhase.OPEN:
            self.scheduler.resize(max(1, self.workforce.places(spare=True)), self.now)
            self.collect()

    def _dismiss(self, worker_ids: Sequence[int]) -> None:
        self.scheduler.dismiss(worker_ids, self.now)
        self.collect()

    def collect(self) -> None:
        """Take what was decided; no task is ever settled twice, nor told as lost while it runs or was not written."""
        while True:
            for task, outcome in self.scheduler.settled:
                assert task not in self.outcomes, f"{task} was settled twice"
                assert task.phase is TaskPhase.SETTLED
                self.outcomes[task] = outcome
                self.scheduler.accepted.pop(task, None)
                if isinstance(outcome.payload, NodeLost):
                    self.check_lost(task)
            self.scheduler.settled.clear()
            self.scheduler.events.clear()
            if not self.scheduler.unread:
                return
            for task, outcome in list(self.scheduler.unread.items()):
                outcome.error()
                self.scheduler.read(task, self.now)

    def check_lost(self, task: AnyTask) -> None:
        assert (task.id, task.attempt) in self.written, "what was never written was told as lost"
        assert not self.live(task.id), "told as lost while it runs"

    def live(self, task_id: int) -> list[Run]:
        return [run for run in self.runs if run.task_id == task_id and run.is_live(self.now)]

    def supervise(self) -> None:
        """What the supervisor thread does in one turn."""
        self.scheduler.tick(self.now)
        self.collect()
        self.posted += self.workforce.act()
        self.handle()

    # ===== what callers do =====

    def submit(self, **options: Any) -> AnyTask:
        task: AnyTask = Task(None, "work", (b"function", b"body", None, (), []), CallOptions(**options), 100)
        self.scheduler.submit(task, self.now)
        self.tasks[task.id] = task
        self.collect()
        return task

    # ===== nodes and the network =====

    def join(self, workers: int = 1, **habits: Any) -> ScriptedNode:
        node = ScriptedNode(self, f"n{next(self._numbers)}", workers, **habits)
        self.nodes.append(node)
        self.workforce.joined(node.facts, node.channel)
        return node

    def pump(self, node: ScriptedNode) -> bool:
        """Have one message written to a node, if there is one."""
        channel = node.channel
        if channel.has_ended or channel.is_aborted or not channel.is_awake:
            return False
        message = channel.take()
        if message is None:
            channel.is_awake = False
            return False
        for entry in messages.unpack(message[0]):
            if entry[0] == messages.RUN:
                task = self.tasks[entry[2]]
                self.written[task.id, entry[3]] += 1
                assert self.written[task.id, entry[3]] == 1, "written twice"
                assert task.phase is TaskPhase.SENT, "what was taken back was written"
                assert (task.attempt, task.worker_id) == (entry[3], entry[1])
        if not node.is_over:
            node.to_node.append(message)
        return True

    def begins(self, run: Run) -> None:
        assert not self.live(run.task_id), "two runs of one task at a time"
        task = self.tasks[run.task_id]
        begun = [each for each in self.runs if each.task_id == run.task_id]
        assert len(begun) <= task.options.retries, "begun more often than asked for"
        assert all(each.attempt < run.attempt for each in begun), "begun again without a retry"
        run.begun = self.now
        self.runs.append(run)

    def hear(self, node: ScriptedNode) -> None:
        """The owner takes in the next message of a node."""
        channel = node.channel
        if node.to_owner and not (node.is_mute or channel.has_ended or channel.is_aborted):
            head = node.to_owner.popleft()
            for entry in messages.unpack(head):
                if entry[0] == messages.BACK:
                    task = self.tasks[entry[2]]
                    self.written[task.id, task.attempt] = 0
            channel.on_message(head, [])

    def see_end(self, node: ScriptedNode) -> None:
        """The owner sees that a connection has ended, if it has and if it can; what was on the way is lost."""
        channel = node.channel
        if not channel.has_ended and (channel.is_aborted or (node.is_over and not node.is_mute)):
            channel.has_ended = True
            node.to_owner.clear()
            channel.on_end("closed")

    def give_up(self, node: ScriptedNode) -> None:
        """The owner's end of a connection gives up, as nothing comes through; the node does not notice."""
        channel = node.channel
        if not channel.has_ended and (node.is_deaf or node.is_mute):
            channel.has_ended = True
            node.to_owner.clear()
            channel.on_end("silent")

    def see_abort(self, node: ScriptedNode) -> None:
        """A node sees that the owner has ended the connection."""
        if (node.channel.is_aborted or node.channel.has_ended) and not node.is_deaf:
            node.end()

    def tick(self, seconds: float, *, supervised: bool = True) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + STEP)
            for node in self.nodes:
                node.look()
            if supervised:
                self.supervise()

    def behave(self) -> None:
        """Everybody does what there is to do, and everything runs to its end."""
        for node in self.nodes:
            node.look()
            while self.pump(node):
                pass
            while node.to_node and not node.is_deaf:
                node.hear()
            node.finish()
            node.write()
            while node.to_owner and not (node.is_mute or node.channel.has_ended or node.channel.is_aborted):
                self.hear(node)
            self.see_end(node)
            self.see_abort(node)
        self.supervise()

    # ===== what always holds =====

    def check(self) -> None:
        force, scheduler = self.workforce, self.scheduler
        for node in self.nodes:
            assert len(node.running()) <= node.facts.workers
        for known in force._nodes.values():
            spare = sum(slot.is_spare for slot in known.slots.values())
            assert (known.plain, known.spare) == (len(known.slots) - spare, spare)
            assert known.plain <= known.facts.workers, "more slots than workers"
        assert not (force._waiting and any(each.room(spare=False) > 0 for each in force._nodes.values())), "room unused"
        if self.posted:
            return
        roster = scheduler.roster
        assert set(roster.workers) == set(force._slots)
        for worker in roster:
            slot = force._slots[worker.id]
            if worker.state is IDLE:
                assert slot.task is None
                assert slot.node is not None
                assert slot.node.state == "up", "idle where nothing is to be sent"
            elif worker.state is BUSY and not worker.draining:
                assert worker.sent
                assert slot.task is worker.sent[0], "a lost slot"
        due = scheduler.next_deadline()
        is_due = due is not None and due <= self.now  # the supervisor has not looked yet
        if scheduler.queue.size and roster.hiring is not Hiring.NONE and self.now >= roster.boot_at and not is_due:
            assert not roster.idle or roster.busy >= roster.size, "idle with work queued"
            full = roster.busy >= roster.size  # with those that have been dismissed and run something
            called = full or roster.counted >= roster.size or roster.starting >= scheduler.queue.size
            assert called, "places unused with work queued"
