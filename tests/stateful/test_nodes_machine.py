"""Orders of events that no real network would show, driven through the scheduler and the real node workforce.

Nodes join, leave, die and fall silent, each direction alone; what they and the owner say is late, or lost with its
connection. No order of events begins a task twice, has two runs of one at a time, loses one, or loses a slot.
"""

from __future__ import annotations

import random
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit.scripted_nodes import AnyTask, NodesPool, ScriptedNode

from poolkit._core.scheduler import PoolPhase
from poolkit._nodes.lease import D
from poolkit.errors import (
    DeadlineExceeded,
    NodeLost,
    PoolClosed,
    QueueTimeout,
    TaskTimeout,
    WorkerCrashed,
)
from poolkit.task import TaskPhase

RARELY = st.sampled_from([False] * 7 + [True])
MOVES = [
    *["pump"] * 8,
    *["arrive"] * 8,
    *["finish"] * 6,
    *["write"] * 8,
    *["hear"] * 8,
    *["fail", "fail packed", "crash", "time out", "give back"],
    *["see end", "see end", "see abort", "give up", "heal", "heal"],
    *["die", "cut", "deaf", "mute", "leave", "told to leave"],
]
FEW = ["die", "cut", "deaf", "mute", "leave", "told to leave"]
SECONDS = [0.001, 0.01, 0.1, 0.3, 1.0, 2.5, 5.0, 7.0]
LIMITS = st.sampled_from([None, None, None, None, 0.1, 1.0, 3.0])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.integers(-1, 2),
        "timeout": LIMITS,
        "queue_timeout": LIMITS,
        "deadline": LIMITS,
        "retries": st.integers(0, 2),
        "retry_on": st.sampled_from([(), (ValueError,), (TaskTimeout, ValueError)]),
    },
)
HABITS = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 3),
        "offset": st.sampled_from([0.0, -1e5, 1e5]),
        "rate": st.sampled_from([1.0, 0.995, 1.005]),  # which differ by 1 % at most
        "lingers": st.sampled_from([0.0, 0.5, 0.99 * D]),
    }
)
LONGEST = 2000  # rounds of good behaviour until all is quiet


class NodesMachine(RuleBasedStateMachine):
    """A pool on nodes, its callers, the nodes, the network and the clocks."""

    @initialize(
        size=st.sampled_from([None, None, None, 1, 3]),
        max_tasks_per_child=st.sampled_from([None, None, None, 2]),
        idle_timeout=st.sampled_from([None, None, 0.5]),
        seed=st.integers(0, 3),
        first=st.lists(HABITS, min_size=0, max_size=2),
    )
    def make(self, first: list[dict[str, Any]], **options: Any) -> None:
        self.pool = NodesPool(**options)
        self.tasks: list[AnyTask] = []
        self.cancelled: set[AnyTask] = set()
        self.all_cancelled = False
        for habits in first:
            self.pool.join(**habits)

    # ===== callers =====

    @rule(count=st.integers(1, 5), options=OPTIONS)
    def submit(self, count: int, options: dict[str, Any]) -> None:
        for _ in range(count):
            try:
                self.tasks.append(self.pool.submit(**options))
            except PoolClosed:
                assert self.pool.scheduler.phase is not PoolPhase.OPEN

    @precondition(lambda self: self.pool.scheduler.unsettled)
    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        self._cancel(pick)

    def _cancel(self, pick: int) -> None:
        open_ones = [task for task in self.tasks if task.phase is not TaskPhase.SETTLED]
        if open_ones:
            task = open_ones[-1 - pick % len(open_ones)]
            self.cancelled.add(task)
            assert self.pool.scheduler.cancel(task, self.pool.now)
            self.pool.collect()
            assert self.pool.outcomes[task].cancelled

    @rule(begun=st.booleans(), really=RARELY)
    def cancel_all(self, begun: bool, really: bool) -> None:
        if really:
            self.all_cancelled = True
            self.pool.scheduler.cancel_all(begun=begun, now=self.pool.now)
            self.pool.collect()

    @rule(kill=st.booleans(), cancel_queued=st.booleans(), kill_after=LIMITS, really=RARELY)
    def shutdown(self, kill: bool, cancel_queued: bool, kill_after: float | None, really: bool) -> None:
        if really:
            self.all_cancelled |= kill or cancel_queued or kill_after is not None
            self.pool.scheduler.shutdown(
                cancel_queued=cancel_queued, kill=kill, now=self.pool.now, kill_after=kill_after
            )
            self.pool.collect()

    # ===== nodes =====

    @rule(habits=HABITS)
    def join(self, habits: dict[str, Any]) -> None:
        if len(self._there()) < 4:
            self.pool.join(**habits)

    def _there(self) -> list[ScriptedNode]:
        return [node for node in self.pool.nodes if not (node.is_over and node.channel.has_ended)]

    @rule(moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 5)), min_size=1, max_size=8))
    def act(self, moves: list[tuple[str, int]]) -> None:
        for move, pick in moves:
            self._move(move, pick)

    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 80))
    def bustle(self, seed: int, count: int) -> None:
        """Very many things happen: far more than could be drawn one by one."""
        rng = random.Random(seed)
        calm = rng.random() < 0.5
        for _ in range(count):
            move = rng.choice(MOVES)
            if move not in FEW or (not calm and rng.random() < 0.3):
                self._move(move, rng.randrange(6))
            if rng.random() < 0.2 and self.pool.scheduler.phase is PoolPhase.OPEN:
                self.tasks.append(self.pool.submit(retries=rng.randrange(3), priority=rng.randrange(2)))
            if rng.random() < 0.05:
                self._cancel(rng.randrange(5))
            if rng.random() < 0.1:
                self.pool.tick(rng.choice(SECONDS[:4]), supervised=rng.random() < 0.8)
            if rng.random() < 0.2:
                self.pool.supervise()
            if not calm and rng.random() < 0.03 and len(self._there()) < 4:
                self.pool.join(rng.randint(1, 3), lingers=0.99 * D * rng.random(), offset=rng.choice([0.0, 7e4]))
            self.pool.check()

    def _move(self, move: str, pick: int) -> None:  # noqa: C901, PLR0912 -- one branch for each
        there = self._there()
        if not there:
            return
        pool, node = self.pool, there[pick % len(there)]
        node.look()
        if move == "pump":
            pool.pump(node)
        elif move == "arrive":
            node.hear()
        elif move == "finish":
            node.finish(pick)
        elif move == "fail":
            node.finish(pick, ValueError("no"))
        elif move == "fail packed":
            node.finish(pick, ValueError("no"), packed=True)
        elif move == "crash":
            node.finish(pick, WorkerCrashed("it died", worker_id=1))
        elif move == "time out":
            node.finish(pick, TaskTimeout("too long", timeout=1.0))
        elif move == "give back":
            node.give_back()
        elif move == "write":
            node.write()
        elif move == "hear":
            pool.hear(node)
        elif move == "see end":
            pool.see_end(node)
        elif move == "give up":
            pool.give_up(node)
        elif move == "see abort":
            pool.see_abort(node)
        elif move in {"die", "cut"}:
            if move == "cut":
                node.write()
            node.end()
        elif move == "deaf":
            node.is_deaf = True
        elif move == "mute":
            node.is_mute = True
        elif move == "heal":
            node.is_deaf = node.is_mute = False
        elif move == "leave":
            node.leave()
        else:
            pool.workforce.leaving(node.facts.number, "scheduler")

    @rule(held_up=st.booleans())
    def hold_up(self, held_up: bool) -> None:
        """Another thread has the lock for a while, or no more."""
        self.pool.is_held_up = held_up

    @rule(times=st.integers(1, 6))
    def behave(self, times: int) -> None:
        for _ in range(times):
            self.pool.behave()

    @rule(seconds=st.sampled_from(SECONDS), supervised=st.sampled_from([True, True, True, False]))
    def tick(self, seconds: float, supervised: bool) -> None:
        self.pool.tick(seconds, supervised=supervised)

    # ===== what always holds =====

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()

    @invariant()
    def outcomes_are_deserved(self) -> None:
        if not hasattr(self, "pool"):
            return
        for task, outcome in self.pool.outcomes.items():
            error = outcome.payload
            if outcome.cancelled:
                assert task in self.cancelled or self.all_cancelled
            elif not outcome.ok:
                assert isinstance(
                    outcome.error(),
                    (ValueError, TaskTimeout, NodeLost, WorkerCrashed, QueueTimeout, DeadlineExceeded),
                )
                if type(error) is WorkerCrashed:
                    assert "it died" in str(error), "it is the node that was lost"

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        try:
            self._end()
        finally:
            self.pool.close()

    def _end(self) -> None:
        """Everybody behaves: all is settled, the nodes that are gone are forgotten, and the pool ends."""
        pool = self.pool
        pool.is_held_up = False
        for node in pool.nodes:
            node.is_deaf = node.is_mute = False
        for _ in range(LONGEST):
            if not pool.scheduler.unsettled:
                break
            if all(node.is_over or node.is_leaving for node in pool.nodes):
                pool.join(2)
            pool.behave()
            pool.check()
            pool.tick(0.1)
        assert not pool.scheduler.unsettled, "a task was lost"
        assert set(self.tasks) == set(pool.outcomes)
        pool.scheduler.shutdown(cancel_queued=False, kill=False, now=pool.now)
        for _ in range(LONGEST):
            if pool.scheduler.phase is PoolPhase.CLOSED:
                break
            pool.behave()
            pool.tick(0.1)
        assert pool.scheduler.phase is PoolPhase.CLOSED
        assert not pool.workforce._slots
        self.outcomes_are_deserved()


TestNodes = pytest.mark.slow(NodesMachine.TestCase)
TestNodes.settings = hypothesis.settings(hypothesis.settings.get_profile("stateful"))
