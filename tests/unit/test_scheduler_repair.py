"""Scheduler: an exception at any line of a step loses no task and no worker, once the next step has repaired it."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from unit.scripted import AnyTask, ScriptedPool, ScriptedWorker, ScriptedWorkforce
from unit.scripted_workforce import ScriptedPrograms

from poolkit._core import scheduler
from poolkit._core.policy import STOP_GRACE
from poolkit._core.workforce import Died, Drained, Finished, Report, WorkerState

HOME = str(Path(scheduler.__file__).parent)


class PatientWorkforce(ScriptedWorkforce):
    """May be given an order again: that one of them was torn is known to nobody."""

    def start(self, worker_id: int) -> None:
        if worker_id not in self.workers:
            super().start(worker_id)

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None and not worker.killed:
            super().kill(worker_id, want_stack=want_stack)

    def stop(self, worker_id: int) -> None:
        if not self.workers[worker_id].stopped:
            super().stop(worker_id)

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        if worker_id in self.workers:
            super().reclaim(worker_id, taken, told)

    def forget(self, worker_id: int) -> None:
        self.workers.pop(worker_id, None)


class PatientPrograms(PatientWorkforce, ScriptedPrograms):
    """The same for programs; what is told to leave may never have been sent anything."""

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        self.workers.setdefault(worker_id, ScriptedWorker(worker_id, is_program=True))
        super().kill(worker_id, want_stack=want_stack)

    def stop(self, worker_id: int) -> None:
        self.workers.setdefault(worker_id, ScriptedWorker(worker_id, is_program=True))
        super().stop(worker_id)


class TornPool(ScriptedPool):
    """What was torn may be counted twice, or not at all: a run, an outcome. Their sum is right."""

    def check(self) -> None:
        scheduler, roster = self.scheduler, self.scheduler.roster
        assert scheduler.unsettled == len(scheduler.unsettled_tasks())
        counters = scheduler.counters
        assert counters.submitted == scheduler.unsettled + counters.succeeded + counters.failed + counters.cancelled
        states = Counter(worker.state.name for worker in roster)
        busy = states["BUSY"] + sum(worker.is_program and worker.state is WorkerState.DYING for worker in roster)
        assert (states["IDLE"], busy, states["STARTING"]) == (len(roster.idle), roster.busy, roster.starting)
        assert roster.programs == sum(each.is_program and each.counted and each.lender is None for each in roster)
        assert roster.counted == sum(worker.counted for worker in roster) <= roster.size
        for task in self.outcomes:
            assert self.workforce.begun[task] <= 1 + task.options.retries, "begun more often than asked for"


class Stage:
    """Two workers: the first runs a task and was sent another one ahead, the second runs one; a fourth is queued."""

    def __init__(self, **limits: Any) -> None:
        self.pool = TornPool(2, **limits)
        self.pool.workforce.__class__ = PatientWorkforce
        pool = self.pool
        pool.warm_up()
        pool.scheduler._dispatcher.times.measured(id(None) ^ hash("small"), 1e-6)
        self.tasks = [pool.submit("small", timeout=5.0) for _ in range(2)]
        self.workers = [pool.runner(task) for task in self.tasks]
        self.tasks.append(pool.submit("large", retries=1))
        self.tasks.append(pool.submit("small", deadline=50.0))
        for worker in self.workers:
            pool.run(worker)
            pool.claim(worker)
        self.tasks += [pool.submit("small") for _ in range(2)]
        self.reports: deque[Report] = deque()

    def running(self) -> AnyTask:
        task = self.workers[0].running
        assert task is not None
        return task

    # ===== what is torn =====

    def submit(self) -> None:
        task = self.pool.task("small")
        self.tasks.append(task)
        self.pool.scheduler.submit(task, self.pool.now)

    def cancel_running(self) -> None:
        self.pool.scheduler.cancel(self.running(), self.pool.now)

    def cancel_queued(self) -> None:
        self.pool.scheduler.cancel(self.tasks[-1], self.pool.now)

    def cancel_all(self) -> None:
        self.pool.scheduler.cancel_all(begun=True, now=self.pool.now)

    def resize(self) -> None:
        self.pool.scheduler.resize(1, self.pool.now)

    def shut_down(self) -> None:
        self.pool.scheduler.shutdown(cancel_queued=True, kill=True, now=self.pool.now)

    def time_out(self) -> None:
        self.pool.scheduler.tick(self.pool.now + 100.0)

    def handle(self) -> None:
        self.pool.scheduler.handle_all(self.reports, self.pool.now)

    def say_finished(self) -> None:
        worker = self.workers[0]
        task = self.running()
        self.reports.append(Finished(worker.id, task.id, worker.status.since, self.pool.now, 0, None, True))
        worker.running = None
        worker.status.done = task.id

    def say_died(self) -> None:
        worker = self.workers[0]
        worker.dead = True
        self.reports.append(Died(worker.id, signal="SIGSEGV", pid=1))

    def say_drained(self) -> None:
        pool, worker = self.pool, self.workers[0]
        pool.scheduler._dispatcher.reclaim(pool.scheduler.roster.workers[worker.id])
        self.say_finished()
        if worker.drops:
            worker.drops -= 1
            self.reports.append(Drained(worker.id))


class StreamStage(Stage):
    """Two workers: a stream waits for its reader, and something else runs, for long."""

    def __init__(self) -> None:
        self.pool = TornPool(2)
        self.pool.workforce.__class__ = PatientWorkforce
        pool = self.pool
        pool.warm_up()
        self.tasks = [pool.submit("stream", is_stream=True, buffersize=1, timeout=5.0), pool.submit("large")]
        self.workers = [pool.runner(task) for task in self.tasks]
        for worker in self.workers:
            pool.claim(worker)
        pool.give(self.workers[0])
        self.reports = deque()

    def give_way(self) -> None:
        """The third task is sent to the third worker, which is started in the place of the stream."""
        self.submit()
        self.pool.boot(self.pool.alive()[-1])

    def say_ended(self) -> None:
        self.give_way()
        self.say_finished()

    def shut_down_gently(self) -> None:
        self.pool.shutdown()

    # ===== what is torn =====

    def take(self) -> None:
        self.pool.take(self.running())

    def close(self) -> None:
        self.pool.scheduler.end(self.running(), 0.5, self.pool.now)

    def time_passes(self) -> None:
        """Until nobody has read the stream for a second, and for another."""
        for _ in range(10):
            self.pool.now += 0.25
            self.pool.scheduler.tick(self.pool.now)


class ProgramStage(Stage):
    """Two workers: one has lent its place to a program, which runs; the other is idle."""

    def __init__(self) -> None:
        self.pool = TornPool(2)
        self.pool.workforce.__class__ = PatientWorkforce
        self.pool.workforce.programs.__class__ = PatientPrograms
        pool = self.pool
        pool.warm_up()
        self.tasks = [pool.submit("program", is_program=True, timeout=5.0)]
        self.workers = [pool.runner(self.tasks[0])]
        pool.claim(self.workers[0])
        self.reports = deque()

    def submit(self) -> None:
        task = self.pool.task("program", is_program=True)
        self.tasks.append(task)
        self.pool.scheduler.submit(task, self.pool.now)

    def submit_to_have_it_taken_back(self) -> None:
        self.tasks.append(self.pool.submit("program", is_program=True))

    def take_back(self) -> None:
        self.pool.scheduler.cancel_all(begun=False, now=self.pool.now)

    def say_ended(self) -> None:
        self.say_finished()
        self.say_died()

    def shrink(self) -> None:
        self.pool.resize(1)


DEEDS: dict[str, tuple[Callable[[Any], None] | None, Callable[[Any], None]]] = {
    "submit": (None, Stage.submit),
    "cancel what runs": (None, Stage.cancel_running),
    "cancel what is queued": (None, Stage.cancel_queued),
    "cancel all": (None, Stage.cancel_all),
    "resize": (None, Stage.resize),
    "shutdown": (None, Stage.shut_down),
    "limits": (None, Stage.time_out),
    "an outcome": (Stage.say_finished, Stage.handle),
    "a death": (Stage.say_died, Stage.handle),
    "a drained worker": (Stage.say_drained, Stage.handle),
    "a stream gives way": (None, StreamStage.submit),
    "a stream goes on": (StreamStage.give_way, StreamStage.take),
    "a stream is closed": (None, StreamStage.close),
    "a stream is closed that gave way": (StreamStage.give_way, StreamStage.close),
    "a stream that gave way ends": (StreamStage.say_ended, StreamStage.handle),
    "a stream that is cancelled": (StreamStage.give_way, StreamStage.cancel_running),
    "a stream that nobody reads": (StreamStage.shut_down_gently, StreamStage.time_passes),
    "a program is begun": (None, ProgramStage.submit),
    "a program is taken back": (ProgramStage.submit_to_have_it_taken_back, ProgramStage.take_back),
    "a program ends": (ProgramStage.say_ended, ProgramStage.handle),
    "a program is cancelled": (None, ProgramStage.cancel_running),
    "a program has a limit": (None, ProgramStage.time_out),
    "a program and a shutdown": (None, ProgramStage.shut_down),
    "a program has less room": (ProgramStage.shrink, ProgramStage.submit),
}


class Injector:
    """Raises once, at the n-th line of the scheduler's own files."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise MemoryError
        return self


@pytest.mark.parametrize("deed", DEEDS)
def test_an_error_at_any_line_of_a_step_is_repaired(deed: str) -> None:
    """Every task that was accepted ends once, the books agree, and the pool serves at full size until it ends."""
    prepare, act = DEEDS[deed]
    at = 0
    while True:
        at += 1
        stage = StreamStage() if "stream" in deed else ProgramStage() if "program" in deed else Stage()
        pool = stage.pool
        pool.is_interrupted = True
        if prepare is not None:
            prepare(stage)
        injector = Injector(at)
        tracer = sys.gettrace()
        sys.settrace(injector)
        try:
            act(stage)
        except MemoryError:
            pass
        finally:
            sys.settrace(tracer)
        if injector.left > 0:
            break
        accepted = [*pool.scheduler.accepted, *pool.outcomes]
        pool.scheduler.repair(deque(), pool.now)
        stage.handle()
        pool.collect()
        pool.run_to_rest()
        lost = [task for task in accepted if task not in pool.outcomes]
        assert not lost, f"line {at}: {lost} have no outcome"
        pool.check()
        if pool.scheduler.phase is scheduler.PoolPhase.OPEN:
            more = [pool.submit("large") for _ in range(2)]
            roster = pool.scheduler.roster
            for worker in list(pool.workforce.workers.values()):
                if not worker.up:
                    pool.boot(worker)
            assert sum(task.worker_id is not None for task in more) == roster.size, f"line {at}: a worker is lost"
            pool.run_to_rest()
        pool.tick(STOP_GRACE)  # of those that were not told to leave
        pool.run_to_rest()
        pool.end()
    assert at > 10
