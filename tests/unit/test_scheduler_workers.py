"""Scheduler: recycling, idle workers and resizing."""

from __future__ import annotations

from typing import Any

import pytest
from unit.quick_tasks import causes, finish_all, occupied, sent_ahead, up
from unit.scripted import ScriptedPool

from poolkit._core.workforce import WorkerExited
from poolkit.task import TaskPhase

# ===== recycling =====


@pytest.mark.parametrize("limit", [1, 2, 5, 30])
def test_no_worker_gets_more_tasks_than_its_limit(limit: int) -> None:
    """And nobody waits for a boot while others could work; never are more than `size` busy."""
    pool = ScriptedPool(2, max_tasks_per_child=limit)
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    tasks = [pool.submit() for _ in range(100)]
    most: dict[int, int] = {}
    while pool.step():
        pool.check()
        assert pool.scheduler.roster.busy <= 2
        for worker in pool.workforce.workers.values():
            most[worker.id] = len(worker.claims)
    assert all(pool.outcomes[task].ok for task in tasks)
    assert max(most.values()) <= limit
    assert sum(most.values()) == 100
    pool.end()


def test_what_was_taken_back_does_not_count_towards_the_limit() -> None:
    """A worker is worn by what it ran."""
    pool = up(max_tasks_per_child=5)
    worker, _ = sent_ahead(pool, 4)
    pool.submit(priority=5)
    pool.finish(worker)
    pool.drain(worker)
    assert worker.unclaimed
    assert not worker.stopped
    pool.end()


def test_slow_tasks_with_one_task_a_worker_do_not_multiply_the_workers() -> None:
    """A replacement is warm, and waits until a place is free."""
    pool = up(2, max_tasks_per_child=1)
    for _ in range(10):
        pool.submit()
    for _ in range(5):
        for worker in pool.alive():
            if not worker.up:
                pool.boot(worker)
            elif worker.unclaimed:
                pool.claim(worker)
        pool.check()
    running = [worker for worker in pool.alive() if worker.running is not None]
    assert len(running) == 2
    assert len(pool.alive()) == 4
    pool.finish(running[0])
    assert sum(bool(worker.unclaimed) for worker in pool.alive()) == 1
    pool.end()


def test_there_are_never_more_than_twice_as_many_workers_as_places() -> None:
    """A replacement that wears out while its predecessors still work gets none of its own yet."""
    pool = up(3, max_memory_per_child=100)
    for worker in [occupied(pool) for _ in range(3)]:
        pool.finish(worker, rss=101)
    assert len(pool.alive()) == 6
    first, _, last = sorted((occupied(pool) for _ in range(3)), key=lambda worker: worker.id)
    pool.finish(last)
    new = pool.alive()[3]
    pool.boot(new)
    assert occupied(pool) is new
    pool.finish(new, rss=101)
    assert pool.scheduler.roster.recycled == 4
    assert len(pool.alive()) == 6
    pool.finish(first)
    pool.die(first)
    assert len(pool.alive()) == 6, "now there is room for it"
    pool.end()


def test_a_worker_leaves_when_its_replacement_is_warm() -> None:
    """Not before, so that the pool keeps serving."""
    pool = up(1, max_memory_per_child=100)
    worker = pool.alive()[0]
    pool.submit()
    pool.run(worker, rss=101)
    assert not worker.stopped
    replacement = next(each for each in pool.alive() if each is not worker)
    meanwhile = pool.submit()
    assert pool.runner(meanwhile) is worker
    pool.boot(replacement)
    assert not worker.stopped, "it has work"
    pool.run(worker)
    assert worker.stopped
    assert pool.runner(pool.submit()) is replacement
    assert pool.scheduler.roster.recycled == 1
    pool.end()


def test_an_idle_worker_leaves_as_soon_as_its_replacement_is_warm() -> None:
    """Which is when its exit is told, with its cause."""
    pool = up(1, max_memory_per_child=100)
    pool.scheduler.listened = frozenset([WorkerExited])
    worker = pool.alive()[0]
    pool.submit()
    pool.run(worker, rss=101)
    pool.boot(pool.alive()[1])
    assert worker.stopped
    pool.die(worker)
    assert causes(pool) == ["recycled"]
    pool.end()


def test_a_worker_within_its_memory_stays() -> None:
    """And one above it is marked once."""
    pool = up(1, max_memory_per_child=100)
    worker = pool.alive()[0]
    for rss in (100, 0, 101, 102):
        pool.submit()
        pool.run(worker, rss=rss)
    assert pool.scheduler.roster.recycled == 1
    assert len(pool.alive()) == 2
    pool.end()


def test_a_worker_that_crashes_while_it_is_to_leave_has_crashed() -> None:
    """The event says what happened, not what was planned."""
    pool = up(1, max_tasks_per_child=1)
    pool.scheduler.listened = frozenset([WorkerExited])
    task = pool.submit()
    worker = pool.runner(task)
    pool.claim(worker)
    pool.die(worker)
    assert causes(pool) == ["crashed"]
    assert pool.scheduler.roster.respawned == 0, "its replacement is on its way"
    assert len(pool.alive()) == 1
    pool.end()


def test_growth_is_no_replacement() -> None:
    """A worker that was started for something else lets nobody go."""
    pool = ScriptedPool(3, max_memory_per_child=100)
    first = pool.submit()
    pool.boot(pool.alive()[0])
    worker = pool.runner(first)
    pool.claim(worker)
    pool.scheduler.warm_up(pool.now)
    pool.finish(worker, rss=101)
    booting = [each for each in pool.alive() if each is not worker]
    assert len(booting) == 3
    pool.boot(booting[0])
    pool.boot(booting[1])
    assert not worker.stopped
    pool.boot(booting[2])
    assert worker.stopped
    pool.end()


# ===== idle workers =====


def test_idle_workers_leave_down_to_the_least() -> None:
    """The longest idle first; they come back on demand."""
    pool = up(3, min_workers=1, idle_timeout=10.0)
    pool.scheduler.listened = frozenset([WorkerExited])
    pool.tick(5.0)
    warmest = pool.runner(pool.submit())
    pool.run(warmest)
    pool.tick(5.0)
    leaving = [worker for worker in pool.alive() if worker.stopped]
    assert len(leaving) == 2
    assert warmest not in leaving
    for worker in leaving:
        pool.die(worker)
    assert causes(pool) == ["idle", "idle"]
    pool.tick(100.0)
    assert pool.alive() == [warmest], "the least stays, and the others are not replaced"
    for _ in range(3):
        pool.submit()
    assert len(pool.alive()) == 3
    pool.end()


def test_a_worker_that_is_used_is_not_idle() -> None:
    """Its time begins anew; it leaves in its turn when none has to stay."""
    pool = up(1, min_workers=0, idle_timeout=10.0)
    worker = pool.alive()[0]
    pool.tick(9.0)
    pool.submit()
    pool.run(worker)
    pool.tick(9.0)
    assert not worker.stopped
    pool.tick(1.0)
    assert worker.stopped
    pool.die(worker)
    assert pool.scheduler.next_deadline() is None, "an idle pool wakes nobody"
    pool.end()


# ===== resizing =====


def test_shrinking_lets_what_runs_end() -> None:
    """Idle ones go first; what a busy one has not begun runs elsewhere."""
    pool = up(3)
    idle = [occupied(pool), occupied(pool)]
    worker, tasks = sent_ahead(pool, 4)
    for each in idle:
        finish_all(pool, each)
    pool.resize(1)
    assert sum(each.stopped for each in pool.alive()) == 2
    assert not worker.stopped
    for each in pool.alive():
        if each.stopped:
            pool.die(each)
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    assert len(pool.alive()) == 1
    pool.end()


def test_shrinking_busy_workers_takes_back_what_they_have_not_begun() -> None:
    """Nothing new is sent to anybody while more are busy than there are places."""
    pool = up(2)
    staying = occupied(pool)
    leaving, tasks = sent_ahead(pool, 3)
    assert leaving.id < staying.id
    pool.resize(1)
    assert not leaving.unclaimed
    pool.finish(leaving)
    pool.drain(leaving)
    assert leaving.stopped
    assert [task.phase for task in tasks[1:]] == [TaskPhase.QUEUED] * 2
    pool.finish(staying)
    assert tasks[1].worker_id == staying.id
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_shrinking_ends_those_that_are_starting_first() -> None:
    """They have done nothing yet."""
    pool = ScriptedPool(3)
    pool.scheduler.listened = frozenset([WorkerExited])
    for _ in range(3):
        pool.submit()
    pool.boot(pool.alive()[0])
    pool.resize(1)
    assert [worker.killed for worker in pool.alive()] == [False, True, True]
    for worker in pool.alive()[1:]:
        pool.die(worker)
    assert causes(pool) == ["shrunk", "shrunk"]
    assert len(pool.alive()) == 1
    pool.end()


def test_growing_serves_what_waits_at_once() -> None:
    """Workers are started for the queue."""
    pool = up(1)
    blocker = pool.submit()
    pool.claim(pool.runner(blocker))
    for _ in range(2):
        pool.submit()
    pool.resize(3)
    assert len(pool.alive()) == 3
    pool.end()


def test_shrinking_does_not_leave_a_worker_over_that_waits_for_its_replacement() -> None:
    """With the replacement gone and enough workers left, it goes too."""
    pool = up(2, max_memory_per_child=100)
    task = pool.submit()
    worker = pool.runner(task)
    pool.run(worker, rss=101)
    pool.resize(1)
    pool.run_to_rest()
    pool.step()
    assert worker.dead
    assert len(pool.alive()) == 1
    pool.end()


def test_a_worker_that_gets_ready_costs_the_same_however_many_there_are() -> None:
    """Nobody is looked for that may leave while nobody is leaving."""

    class Watched(dict[int, Any]):
        """Counts how often somebody walks over it."""

        walks = 0

        def values(self) -> Any:
            self.walks += 1
            return super().values()

    pool = ScriptedPool(50)
    watched = pool.scheduler.roster.workers = Watched()
    pool.warm_up()
    assert pool.scheduler.roster.ready_count() == 50
    assert watched.walks == 0
    pool.end()
