"""A scripted workforce for tests of the scheduler: it keeps the protocol, and nothing happens but what the test says.

The workers keep the protocol as processes do: tasks are claimed one by one, a reclaim takes what is unclaimed and is
answered by `Drained`, reports stand in a pipe until the test delivers them, and a death is read last.
Orders that no real worker could carry out fail the test at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from poolkit._core.workforce import Report, Status
from poolkit.task import Progress, Task

AnyTask = Task[Any]


class ScriptedWorker:
    """One worker of the script."""

    def __init__(self, worker_id: int, *, is_program: bool = False) -> None:
        self.id = worker_id
        self.is_program = is_program  # it runs one task, and is up from the start
        self.up = is_program
        self.dead = False
        self.killed = False  # ordered
        self.stopped = False  # ordered
        self.want_stack = False
        self.unclaimed: deque[tuple[AnyTask, bool]] = deque()
        self.drops = 0  # reclaims that it has not answered
        self.running: AnyTask | None = None
        self.told_to_end = False  # the stream that it runs
        self.made = 0  # items of that
        self.credited = 0  # of which the worker knows that they were taken
        self.announce = False
        self.claims: list[AnyTask] = []  # all it ever claimed
        self.status = Status()
        self.memory: int | None = 0
        self.progress: Progress | None = None  # of the run that it has begun last
        self.pipe: deque[Report] = deque()  # written, not delivered


class ScriptedWorkforce:
    """Workers that do what the test says, behind the Workforce protocol."""

    def __init__(self, max_batch: int = 64) -> None:
        self.max_batch = max_batch
        self.keeps_limits = False
        self.ends_coroutines = True
        self.workers: dict[int, ScriptedWorker] = {}
        self.begun: Counter[AnyTask] = Counter()
        self.reclaims = 0  # orders, whether or not there was something to take
        self.programs: Any = ScriptedPrograms(self)

    def start(self, worker_id: int) -> None:
        assert worker_id not in self.workers
        self.workers[worker_id] = ScriptedWorker(worker_id)

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        worker = self.workers[worker_id]
        assert all(task.options.grace is None for task in tasks) or worker.is_program, "a program sent to a worker"
        assert worker.up
        assert not worker.stopped
        assert not worker.killed
        assert not worker.drops, "sent something before it had drained"
        assert len(tasks) <= self.max_batch
        if any(task.options.alone for task in tasks):
            assert len(tasks) == 1
            assert worker.running is None
            assert not worker.unclaimed
        assert not self.is_streaming(worker), "sent something behind a stream"
        worker.unclaimed.extend((task, announce) for task in tasks)
        written.append(True)

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        self.reclaims += 1
        worker = self.workers[worker_id]
        taken += worker.unclaimed
        worker.unclaimed.clear()
        if taken and not told:
            worker.drops += 1
            told.append(True)

    def status(self, worker_id: int) -> Status:
        worker = self.workers.get(worker_id)
        return Status() if worker is None else worker.status

    def progress(self, worker_id: int, task: AnyTask) -> Progress | None:
        worker = self.workers.get(worker_id)
        return None if worker is None or worker.status.begun != task.id else worker.progress

    def memory(self, worker_id: int) -> int | None:
        worker = self.workers.get(worker_id)
        return None if worker is None else worker.memory

    def forget(self, worker_id: int) -> None:
        del self.workers[worker_id]

    def stop(self, worker_id: int) -> None:
        worker = self.workers[worker_id]
        assert not worker.unclaimed
        assert worker.running is None
        assert not worker.stopped
        worker.stopped = True

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        worker = self.workers[worker_id]
        if worker.running is not None and worker.running.id == task_id:
            worker.credited = max(worker.credited, taken)

    def end(self, worker_id: int, task: AnyTask) -> None:
        worker = self.workers[worker_id]
        if worker.running is task:
            worker.told_to_end = True

    @staticmethod
    def is_streaming(worker: ScriptedWorker) -> bool:
        """Whether a worker runs a stream, or will next."""
        tasks = [worker.running] if worker.running is not None else [task for task, _ in worker.unclaimed]
        return any(task.options.window is not None for task in tasks)

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        worker = self.workers[worker_id]
        assert not worker.killed
        worker.killed = True
        worker.want_stack = want_stack


class ScriptedPrograms(ScriptedWorkforce):
    """The same for programs, which are among the workers: each is there from when it is sent its task."""

    def __init__(self, workforce: ScriptedWorkforce) -> None:
        self.max_batch = 1
        self.keeps_limits = False
        self.ends_coroutines = False
        self.workers, self.begun = workforce.workers, workforce.begun
        self.reclaims = 0

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        if not tasks:
            return
        assert worker_id not in self.workers
        assert [task.options.grace is None for task in tasks] == [False]
        self.workers[worker_id] = ScriptedWorker(worker_id, is_program=True)
        super().send(worker_id, tasks, written, announce=announce)
