"""Scheduler: batches, stealing and priorities.

Longer than most: what is sent ahead may be taken back for many reasons, each a case.
"""

from __future__ import annotations

from unit.quick_tasks import finish_all, occupied, sent_ahead, up
from unit.scripted import ScriptedPool

from poolkit._core.dispatch import BEGIN_WITHIN, DRAIN_WITHIN, UNBLOCK_AFTER
from poolkit._core.policy import LARGE_CALL
from poolkit._core.workforce import NAMES
from poolkit.task import TaskPhase

# ===== batches =====


def test_quick_tasks_go_out_several_at_once_shared_by_the_workers() -> None:
    """Nobody gets more than its part."""
    pool = up(2)
    first = pool.submit()
    pool.submit()
    for _ in range(20):
        pool.submit()
    worker = pool.runner(first)
    pool.run(worker)
    assert len(worker.unclaimed) == 10
    pool.end()


def test_an_unknown_function_goes_out_alone() -> None:
    """It may run for hours."""
    pool = ScriptedPool(1)
    pool.warm_up()
    first = pool.submit("new")
    for _ in range(9):
        pool.submit("new")
    assert len(pool.runner(first).unclaimed) == 1
    pool.end()


def test_the_first_run_of_a_function_at_a_worker_says_nothing_about_the_next() -> None:
    """It may have had to import; with many workers, a burst would go out one by one for long."""
    pool = ScriptedPool(1)
    pool.warm_up()
    times = pool.scheduler._dispatcher.times
    for known in (False, True):
        worker = pool.runner(pool.submit("new"))
        pool.run(worker)
        assert bool(times.seconds) is known
    pool.end()


def test_of_a_worker_only_so_many_functions_are_remembered() -> None:
    pool = ScriptedPool(1)
    pool.warm_up()
    for number in range(NAMES + 1):
        task = pool.submit(f"f{number}")
        pool.run(pool.runner(task))
    assert pool.scheduler.roster.workers[pool.alive()[0].id].has_run == {task.function}
    pool.end()


def test_a_worker_gets_more_before_it_has_finished_what_it_has() -> None:
    """So it need not wait for the next message."""
    pool = up(max_batch=2)
    tasks = [pool.submit() for _ in range(8)]
    worker = pool.runner(tasks[0])
    pool.run(worker)
    assert len(worker.unclaimed) == 2
    pool.run(worker)
    assert len(worker.unclaimed) == 3
    pool.end()


def test_nothing_more_is_sent_behind_work_for_a_while() -> None:
    """What is queued can still go anywhere."""
    pool = up(max_batch=3)
    tasks = [pool.submit() for _ in range(8)]
    worker = pool.runner(tasks[0])
    pool.run(worker)
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 0.01)
    pool.run(worker)
    assert len(worker.unclaimed) == 2
    pool.end()


def test_one_that_is_large_is_not_sent_ahead() -> None:
    """It would fill the pipe."""
    pool = up(max_batch=2)
    pool.submit()
    pool.submit()
    pool.submit()
    large = pool.task()
    large.nbytes = 10**6
    pool.scheduler.submit(large, pool.now)
    worker = pool.alive()[0]
    pool.run(worker)
    pool.run(worker)
    assert large.phase is TaskPhase.QUEUED
    pool.end()


def test_kinds_that_gain_nothing_by_it_get_one_task_at_a_time() -> None:
    """As threads do."""
    pool = up(max_batch=1)
    for _ in range(5):
        pool.submit()
    worker = pool.alive()[0]
    pool.run(worker)
    assert len(worker.unclaimed) == 1
    pool.end()


# ===== stealing =====


def test_what_stands_behind_a_slow_task_goes_to_an_idle_worker() -> None:
    """A batch never owns its tasks."""
    pool = up(2, max_batch=64)
    idle = occupied(pool)
    worker, tasks = sent_ahead(pool, 3)
    finish_all(pool, idle)
    assert tasks[1].worker_id == worker.id, "it may be quick"
    pool.tick(0.001)
    assert [task.worker_id for task in tasks[1:]] == [idle.id, None], "each its share"
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_what_stands_behind_a_slow_task_comes_before_what_is_queued() -> None:
    """Also when there is always something queued, so that nobody is idle to take it."""
    pool = up(2)
    other = occupied(pool)
    worker, tasks = sent_ahead(pool, 3)
    queued = [pool.submit() for _ in range(200)]
    assert [task.worker_id for task in tasks[1:]] == [worker.id, worker.id]
    pool.tick(UNBLOCK_AFTER)
    pool.finish(other)
    assert [task.worker_id for task in tasks[1:]] == [other.id, other.id]
    assert queued[-1].phase is TaskPhase.QUEUED
    pool.run_to_rest()
    pool.end()


def test_a_look_comes_again_while_the_first_task_has_not_begun() -> None:
    """Nothing is stolen from who has just been sent something."""
    pool = up(2)
    idle = occupied(pool)
    worker, tasks = sent_ahead(pool, 3)
    pool.finish(worker)
    unbegun = list(worker.unclaimed)
    assert len(unbegun) > 2
    finish_all(pool, idle)
    pool.tick(0.01)
    assert list(worker.unclaimed) == unbegun, "the first of them has not begun"
    pool.claim(worker)
    pool.tick(0.01)
    assert not worker.unclaimed
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_a_worker_is_started_for_what_stands_behind_a_slow_task() -> None:
    """It is demand as if it were queued."""
    pool = ScriptedPool(1)
    pool.warm_up()
    pool.scheduler._dispatcher.times.measured(id(None) ^ hash("work"), 1e-6)
    worker, tasks = sent_ahead(pool, 3)
    pool.resize(2)
    pool.tick(0.002)
    assert len(pool.alive()) == 2
    assert tasks[1].phase is TaskPhase.QUEUED
    pool.finish(worker)
    pool.end()


def test_everybody_who_is_stuck_is_relieved_while_there_is_room() -> None:
    """One stolen task does not fill two idle workers."""
    pool = up(4)
    idle = [occupied(pool), occupied(pool)]
    stuck = [occupied(pool), occupied(pool)]
    tasks = [pool.submit() for _ in range(8)]
    for worker in stuck:
        pool.finish(worker)
        pool.claim(worker)
        while len(worker.unclaimed) > 1:
            pool.finish(worker)
            pool.claim(worker)
    for worker in idle:
        finish_all(pool, worker)
    assert [len(worker.unclaimed) for worker in stuck] == [1, 1]
    pool.tick(0.001)
    assert [len(worker.unclaimed) for worker in [*stuck, *idle]] == [0, 0, 1, 1]
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_several_slow_workers_are_relieved_by_one_look() -> None:
    """One timer, whoever is stuck."""
    pool = up(4)
    workers = [occupied(pool) for _ in range(4)]
    tasks = [pool.submit() for _ in range(16)]
    for worker in workers[:3]:
        pool.finish(worker)
        pool.claim(worker)
    assert all(worker.unclaimed for worker in workers[:3])
    finish_all(pool, workers[3])
    timers = len(pool.scheduler.timers)
    pool.tick(0.0005)
    assert len(pool.scheduler.timers) == timers == 2  # and one to look for what does not begin
    pool.tick(0.001)
    assert workers[3].unclaimed
    assert sum(not worker.unclaimed for worker in workers[:3]) == 1, "one is enough for one idle worker"
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok for task in tasks)
    pool.end()


def test_what_an_idle_worker_does_not_begin_goes_to_another_one() -> None:
    """It was stopped, or a thread that a task left behind holds it up."""
    pool = up(2)
    stuck = pool.runner(task := pool.submit())
    pool.tick(BEGIN_WITHIN)
    assert stuck.unclaimed, "it may just be slow"
    pool.tick(BEGIN_WITHIN)
    assert not stuck.unclaimed
    assert pool.run(pool.runner(task)) is task
    assert pool.scheduler.next_deadline() is not None
    pool.tick(10.0)
    assert pool.scheduler.next_deadline() is None, "nothing is looked for any more"
    pool.drain(stuck)
    pool.end()


def test_what_a_worker_does_not_begin_waits_until_another_one_has_room() -> None:
    pool = up(2)
    other = occupied(pool)
    stuck = pool.runner(task := pool.submit())
    assert stuck is not other
    pool.tick(10.0)
    assert stuck.unclaimed
    pool.finish(other)
    pool.tick(BEGIN_WITHIN)
    assert pool.runner(task) is other
    pool.run_to_rest()
    pool.end()


def test_what_a_worker_does_not_begin_after_a_long_task_goes_to_another_one() -> None:
    """It had been found running; and nobody looks a thousand times a second meanwhile."""
    pool = up(2)
    other = occupied(pool)
    worker = pool.runner(held := pool.submit())
    pool.claim(worker)
    tasks = [pool.submit() for _ in range(8)]
    pool.finish(worker)
    while len(worker.unclaimed) > 3:
        pool.run(worker)
    assert not pool.scheduler.queue.size
    pool.claim(worker)
    pool.tick(BEGIN_WITHIN * 3)
    assert len(worker.unclaimed) == 2, "nobody else is free"
    pool.finish(worker)
    pool.finish(other)
    assert pool.outcomes[held].ok
    looks = 0
    end = pool.now + BEGIN_WITHIN * 4
    while (due := pool.scheduler.next_deadline()) is not None and due <= end:
        pool.tick(due - pool.now)
        looks += 1
        while other.unclaimed:
            pool.run(other)
    assert not worker.unclaimed
    assert all(pool.outcomes[task].ok for task in tasks)
    assert looks < 1000 * BEGIN_WITHIN + 10
    pool.run_to_rest()
    pool.end()


def test_a_worker_that_does_not_even_drop_what_was_taken_back_is_killed() -> None:
    """It has nothing, so no task suffers; its place is filled. One that answers is not."""
    pool = up(2)
    stuck = pool.runner(task := pool.submit())
    pool.tick(BEGIN_WITHIN * 2)
    (other,) = (worker for worker in pool.alive() if worker is not stuck)
    assert pool.run(other) is task
    pool.tick(DRAIN_WITHIN - 0.01)
    assert not stuck.killed
    pool.tick(0.01)
    assert stuck.killed
    assert len(pool.alive()) == 3, "another one is started at once"
    pool.die(stuck)
    assert pool.outcomes[task].ok
    assert pool.scheduler.counters.crashed == 0
    pool.end()
    pool = up(2)
    stuck = pool.runner(pool.submit())
    pool.tick(BEGIN_WITHIN * 2)
    pool.drain(stuck)
    pool.tick(DRAIN_WITHIN * 2)
    assert not stuck.killed
    pool.end()


def test_what_has_ended_counts_as_begun() -> None:
    """Its outcome is in the pipe."""
    pool = up(2)
    worker = pool.runner(pool.submit())
    pool.claim(worker)
    pool.finish(worker, deliver=False)
    pool.tick(BEGIN_WITHIN * 3)
    assert pool.workforce.reclaims == 0
    pool.deliver(worker)
    pool.end()


def test_a_large_call_may_take_its_time_to_arrive() -> None:
    pool = up(2)
    task = pool.task()
    task.nbytes = LARGE_CALL + 1
    pool.scheduler.submit(task, pool.now)
    pool.tick(10.0)
    assert pool.runner(task).unclaimed
    pool.run_to_rest()
    pool.end()


# ===== priorities =====


def test_a_more_urgent_task_takes_back_what_was_sent_ahead() -> None:
    """Priority is strict: it runs before everything that has not begun."""
    pool = up()
    worker, tasks = sent_ahead(pool, 3)
    urgent = pool.submit(priority=5)
    assert not worker.unclaimed
    pool.finish(worker)
    pool.drain(worker)
    assert pool.claim(worker) is urgent
    pool.finish(worker)
    pool.run_to_rest()
    assert all(pool.outcomes[task].ok and task.attempts == 1 for task in tasks)
    pool.end()


def test_an_equal_or_less_urgent_task_takes_nothing_back() -> None:
    """First in, first out."""
    pool = up()
    worker, tasks = sent_ahead(pool, 3, priority=2)
    assert len(worker.unclaimed) == 2
    for priority in (2, 1, 0, -3):
        pool.submit(priority=priority)
    assert [task for task, _ in worker.unclaimed] == tasks[1:]
    assert pool.workforce.reclaims == 0
    pool.end()


def test_the_last_of_a_mixed_batch_is_taken_back_too() -> None:
    """What was sent ahead is as urgent as its least urgent task."""
    pool = up()
    blocker = pool.submit(priority=9)
    worker = pool.runner(blocker)
    for priority in (3, 3, 1):
        pool.submit(priority=priority)
    pool.run(worker)
    assert [task.options.priority for task, _ in worker.unclaimed] == [3, 3, 1]
    pool.submit(priority=2)
    assert not worker.unclaimed
    pool.end()


def test_urgent_tasks_in_a_row_look_for_what_was_sent_ahead_once() -> None:
    """A burst of them costs one look, not one each."""
    pool = up()
    sent_ahead(pool, 3)
    for _ in range(50):
        pool.submit(priority=1)
    assert pool.workforce.reclaims == 1
    pool.end()


def test_an_urgent_task_that_comes_back_takes_way_too() -> None:
    """From a retry as well as from a submit."""
    pool = up()
    urgent = pool.submit(priority=5, retries=1, retry_on=(ValueError,))
    pool.run(pool.runner(urgent), error=ValueError())
    worker, _ = sent_ahead(pool, 3)
    assert worker.unclaimed
    pool.tick(0.1)
    assert urgent.phase is TaskPhase.QUEUED
    assert not worker.unclaimed
    pool.end()


def test_only_what_is_less_urgent_is_taken_back() -> None:
    """Who was sent nothing less urgent keeps it."""
    pool = up(2)
    workers = [occupied(pool), occupied(pool)]
    urgent = [pool.submit(priority=3) for _ in range(6)]
    pool.finish(workers[0])
    pool.claim(workers[0])
    for _ in range(6):
        pool.submit(priority=1)
    pool.finish(workers[1])
    assert {task.options.priority for task, _ in workers[0].unclaimed} == {3}
    pool.claim(workers[1])
    for task in urgent:
        if task.phase is TaskPhase.QUEUED:
            pool.cancel(task)
    while {task.options.priority for task, _ in workers[1].unclaimed} != {1}:
        pool.run(workers[1]) if workers[1].running is None else pool.finish(workers[1])
    kept = list(workers[0].unclaimed)
    pool.submit(priority=2)
    assert not workers[1].unclaimed
    assert list(workers[0].unclaimed) == kept
    pool.end()


def test_urgent_tasks_that_are_gone_again_take_nothing_back() -> None:
    """The queue knows what is left in it."""
    pool = up()
    blocker = pool.submit(priority=5)
    pool.claim(pool.runner(blocker))
    pool.cancel(pool.submit(priority=5))
    pool.submit()
    pool.submit()
    assert pool.workforce.reclaims == 0
    pool.end()
