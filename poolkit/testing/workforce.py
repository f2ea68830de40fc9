"""Fake workforce: workers that exist in the books only. Calls run in the caller's thread, on a virtual clock.

It obeys the same orders and gives the same reports as a real workforce. Nothing happens by itself: the driver has tasks
begun and ended (`driver.py`). A call takes the virtual time that the script says; it really runs at the end of that.
Owner: the thread whose turn it is.
"""

from __future__ import annotations

import contextvars
import functools
import math
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from poolkit._child.chunk import run_chunk
from poolkit._child.coroutines import run_coroutine
from poolkit._child.loop import run_call
from poolkit._child.stream import run_stream
from poolkit._core.workforce import (
    AnyTask,
    Begun,
    BootFailed,
    Died,
    Drained,
    Finished,
    Progressed,
    Ready,
    Report,
    Status,
    Workforce,
)
from poolkit._kinds.loggers import mark_records
from poolkit._kinds.references import by_reference
from poolkit._wire import codec
from poolkit._wire.buffers import Found
from poolkit.context import TaskContext
from poolkit.errors import SerializationError
from poolkit.outcome import Outcome
from poolkit.task import SENT, Progress
from poolkit.testing.calls import FakeCall, Function, Timeline, Whole
from poolkit.testing.mail import FakeMail
from poolkit.testing.runs import FakeWorker, Run
from poolkit.testing.script import CRASHES, RUNS, UNSCRIPTED, Step, When
from poolkit.testing.streams import FakeStream
from poolkit.testing.waits import Turn

if TYPE_CHECKING:
    from poolkit.testing.commands import FakeProgramForce


class FakeWorkforce:
    """Workers of the fake kind behind the Workforce protocol.

    Attributes:
        script: what happens to the calls; what was said last comes first.
        reports: what the workers have to say.
    """

    max_batch = 1
    runs_only_calls = False
    keeps_limits = False
    ends_coroutines = False
    programs: Workforce | None = None
    commands: FakeProgramForce | None = None  # the same
    why_memory_unknown: str | None = None

    def __init__(self, timeline: Timeline, seed: int, initializer: Function | None, *, check_pickle: bool) -> None:
        mark_records()
        self.script: list[When] = []
        self.reports: deque[Report] = deque()
        self.received = [0, 0]  # items and messages
        self.turn = Turn()
        self.by_reference = not check_pickle
        self._rng = random.Random(seed)
        self._clock = timeline
        self._note = timeline.note
        self._initializer = initializer
        self._workers: dict[int, FakeWorker] = {}

    def pack(self, fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[FakeCall, int]:
        """Send a call through the real codec, so that what would not travel fails here too."""
        known, count = (args[0], len(args[1])) if fn is run_chunk else (args[0] if fn is run_stream else fn, 1)
        if self.by_reference:
            whole = by_reference(fn, args, kwargs)
            return FakeCall(known, count, lambda: whole, variables=contextvars.copy_context()), 0
        with Found() as found:  # handles and read-only arrays go as they would to a worker
            call = codec.pack_call(fn, args, kwargs, found)
        load = functools.partial(codec.load_call, *call[:2])
        return FakeCall(known, count, load, found.memories), len(call[0]) + len(call[1])

    # ===== orders =====

    def finish(self, worker_id: int, grace: float) -> None:
        """It runs no programs."""

    def start(self, worker_id: int) -> None:
        """A worker comes up at once, unless the initializer raises."""
        if worker_id in self._workers:
            return
        worker = self._workers[worker_id] = FakeWorker(worker_id)
        try:
            if self._initializer is not None:
                worker.context.run(self._initializer)
        except BaseException as exc:  # noqa: BLE001 -- whatever it raises is what the pool is told
            self.reports += [BootFailed(worker_id, exc), Died(worker_id, exitcode=1)]
        else:
            self.reports.append(Ready(worker_id, None))

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        """Note what was sent."""
        self._workers[worker_id].claims.extend((task, announce) for task in tasks)
        written.append(True)

    def reclaim(self, worker_id: int, taken: list[Any], _told: list[Any]) -> None:
        """Take back what has not begun; a fake worker has always dropped it already."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.claims:
            taken += worker.claims
            worker.claims.clear()
            self.reports.append(Drained(worker_id))

    def status(self, worker_id: int) -> Status:
        """What the worker runs."""
        return self._workers[worker_id].status if worker_id in self._workers else Status()

    def progress(self, worker_id: int, task: AnyTask) -> Progress | None:
        """What the call that is being run has reported."""
        worker = self._workers.get(worker_id)
        context = None if worker is None else worker.task
        reported = None if context is None or context.id != task.id else context.reported()
        return None if reported is None else Progress.reported(*reported)

    def memory(self, worker_id: int) -> int:
        """What the script says; else nothing."""
        runs = (run for run, worker in self.running() if worker.id == worker_id)
        return max((step.nbytes for run in runs for step in run.steps), default=0)

    def stop(self, worker_id: int) -> None:
        """The worker leaves at once."""
        self.reports.append(Died(worker_id, exitcode=0))

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        """A stream goes on, if it waits."""
        for run, worker in self.running():
            if worker.id == worker_id and run.task.id == task_id and run.stream is not None:
                run.stream.credit(taken)
                self._resume(run, worker)

    def mail(self, worker_id: int, task_id: int, mail: deque[Any]) -> None:
        """Leave it where it is: the task takes it there."""

    def pack_mail(self, message: object) -> Any:
        """Pack a message to a task."""
        return message if self.by_reference else codec.pack_call(_given, (message,), {})

    def end(self, worker_id: int, task: AnyTask) -> None:
        """A stream is closed as the next thing that happens."""
        for run, worker in self.running():
            if worker.id == worker_id and run.task is task:
                if run.stream is not None:
                    run.stream.is_to_end = True
                run.ends_at = self._clock.now

    def _resume(self, run: Run, worker: FakeWorker) -> None:
        if worker.status.made == math.inf and run.stream is not None and not run.stream.is_full():
            worker.status.made = self._clock.now
            run.ends_at = self._clock.now + run.stream.every

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """The worker dies at once."""
        self._note("worker", worker_id, "is killed")
        worker = self._workers[worker_id]
        stack = worker.run.stack() if want_stack and worker.run is not None else ""
        if worker.run is not None and worker.run.actor is not None:
            worker.run.actor.kill()
        worker.run = None
        self.reports.append(Died(worker_id, signal="SIGKILL", stack=stack))

    def forget(self, worker_id: int) -> None:
        """Strike the worker out."""
        if worker_id in self._workers:
            self._workers.pop(worker_id).coroutines.drop()

    # ===== what the driver asks =====

    def running(self) -> list[tuple[Run, FakeWorker]]:
        """What runs, and where."""
        return [(worker.run, worker) for worker in self._workers.values() if worker.run is not None]

    def dues(self, *, actors: bool = True) -> list[float]:
        """When what runs goes on by itself; inf of what hangs, or waits for who uses it. Of `actors`, their limits."""
        programs = [] if self.commands is None else [program.due() for program in self.commands.stage.running]
        calls = [math.inf if run.actor is not None and not actors else run.ends_at for run, _ in self.running()]
        return [*calls, *programs]

    def stalled(self, *, programs: bool) -> set[int]:
        """The tasks that wait for their readers; of `programs`, too, also for their input."""
        streams = {run.task.id for run, worker in self.running() if worker.status.made == math.inf}
        return streams if self.commands is None or not programs else streams | self.commands.stalled()

    def is_stalled(self) -> bool:
        """Whether all that runs are streams that wait for their readers, and there are some."""
        return bool(self.dues()) and len(self.stalled(programs=False)) == len(self.dues())

    def is_limited(self, task: AnyTask) -> bool:
        """Whether time that passes ends a task, whatever it does."""
        options = task.options
        if options.deadline is not None or (task.phase is not SENT and options.queue_timeout is not None):
            return True
        if task.phase is not SENT or task.worker_id is None:
            return False
        if options.memory_limit is not None:
            force = self if options.grace is None or self.commands is None else self.commands
            if (force.memory(task.worker_id) or 0) > options.memory_limit:
                return True
        return options.timeout is not None

    def begin_one(self) -> bool:
        """Have one worker begin its next task, and end it if it takes no time; False when none can begin any.

        Which one, of those that a real pool could have begin next, the seed picks.
        """
        idle = [worker for worker in self._workers.values() if worker.claims and worker.run is None]
        able: list[Callable[[], object]] = [functools.partial(self._begin, worker) for worker in idle]
        if self.commands is not None:
            able += [functools.partial(self.commands.stage.begin, program) for program in self.commands.stage.waiting]
        if able:
            (self._rng.choice(able) if len(able) > 1 else able[0])()
        return bool(able)

    def _begin(self, worker: FakeWorker) -> None:
        task, announce = worker.claims.popleft()
        now = self._clock.now
        worker.status = Status(task.id, now)
        if announce:
            self.reports.append(Begun(worker.id, task.id))
        self._note(named(task), "begins on worker", worker.id)
        worker.run = Run(task, now, self.script)
        if worker.run.ends_at <= now:
            self._end(worker.run, worker)

    def end_one(self) -> bool:
        """End one run whose time has come, or have one program go on; False when there is none."""
        now = self._clock.now
        over = [functools.partial(self._end, run, worker) for run, worker in self.running() if run.ends_at <= now]
        if self.commands is not None:
            stage = self.commands.stage
            over += [functools.partial(stage.go_on, program) for program in stage.running if program.due() <= now]
        if over:
            self._rng.choice(over)()
        return bool(over)

    def _end(self, run: Run, worker: FakeWorker) -> None:
        """A run's time is over: its worker dies, or the call runs now and its outcome is sent."""
        if run.call is not None and run.call[0] is run_stream and self._go_on(run, worker):
            return
        if run.actor is not None and not run.actor.go_on(run, functools.partial(self._outcome, run, worker)):
            return
        how = run.steps[-1].payload if run.steps and run.steps[-1].what == CRASHES else None
        if run.actor is not None and run.actor.has_crashed:
            how = run.actor.crash[:2]
        if how is not None:
            worker.run = None
            signal, exitcode = how
            self._note("worker", worker.id, "dies:", signal or f"exit code {exitcode}")
            self.reports.append(Died(worker.id, signal=signal, exitcode=exitcode))
            return
        run.ends_at = math.inf  # it is ended here; a call that uses the pool must not end it again
        if run.actor is not None:
            outcome = run.actor.outcome
        else:
            outcome = self._outcome(run, worker) if run.stream is None else run.stream.outcome
        assert outcome is not None  # noqa: S101 -- a stream that is over has one
        if worker.run is run:  # else it had itself stopped
            worker.run, worker.status.done = None, run.task.id
            worker.status.made = 0.0
            given = outcome.payload, outcome.ok, outcome.load
            report = Finished(worker.id, run.task.id, worker.status.since, self._clock.now, 0, *given)
            report.cancelled = outcome.cancelled
            self.reports.append(report)

    def _go_on(self, run: Run, worker: FakeWorker) -> bool:
        """A stream makes its next item; false when it is over."""
        if run.stream is None:
            assert run.call is not None  # noqa: S101 -- it runs
            step = run.steps[0] if run.steps else UNSCRIPTED
            run.stream = FakeStream(run.task, run.call[1], step, self._clock, self._run, by_reference=self.by_reference)
        run.ends_at = math.inf  # as in `_end`
        stream = run.stream
        context = stream.context = stream.context or self._context(run, worker)
        worker.task = context
        if stream.variables is None:
            stream.variables = self._variables(run, worker)
        stream.variables.run(run_call, context, stream.next, (), {})
        worker.task = None
        if worker.run is not run:  # it had itself stopped
            return True
        if stream.is_over:
            if (reported := context.reported()) is not None:
                self.reports.append(Progressed(worker.id, run.task.id, Progress.reported(*reported)))
            return False
        worker.status.made = math.inf if stream.is_full() else self._clock.now
        if not stream.is_full():
            run.ends_at = self._clock.now + stream.every
        return True

    @staticmethod
    def _variables(run: Run, worker: FakeWorker) -> contextvars.Context:
        """The context variables of a run: the worker's, or, as a thread has it, a copy of its submitter's."""
        if run.task.call.variables is None:
            return worker.context
        variables: contextvars.Context = run.task.call.variables.copy()
        variables.run(worker.coroutines.keep)
        return variables

    def _context(self, run: Run, worker: FakeWorker) -> TaskContext:
        task, limit = run.task, run.task.options.timeout
        deadline = None if limit is None else worker.status.since + limit
        end = run.stream or FakeMail(task, self._clock, by_reference=self.by_reference)
        end.received = self.received
        return TaskContext(task.id, task.name, task.attempts + 1, deadline, self._clock, worker.id, end)

    def _outcome(self, run: Run, worker: FakeWorker) -> Outcome:
        if run.call is None:
            return Outcome.failure(run.failure)
        task, context, variables = run.task, self._context(run, worker), self._variables(run, worker)
        worker.task = context
        try:
            ok, value = variables.run(run_call, context, *self._as_scripted(*run.call, run.steps))
        finally:
            worker.task = None
        if (reported := context.reported()) is not None:
            self.reports.append(Progressed(worker.id, task.id, Progress.reported(*reported)))
        try:
            if self.by_reference or (run.actor is not None and run.actor.by_reference):
                return Outcome(value, ok=ok)
            if not ok:
                return Outcome(codec.pack_error(value), ok=False, load=codec.load_error)
            with Found() as found:
                packed = codec.pack_value(value, found)
            # Together: the shared memory that it refers to is held until it is loaded.
            return Outcome((packed, found.memories), ok=True, load=lambda both: codec.load_value(both[0]))
        except SerializationError as exc:
            exc.args = (f"task {task.id} ({task.name}, attempt {context.attempt}): {exc}",)  # as in `_child/loop.py`
            return Outcome(codec.pack_error(exc), ok=False, load=codec.load_error)
        finally:
            del value  # an exception's traceback holds this frame

    def _as_scripted(self, fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any], steps: list[Step]) -> Whole:
        """The call, or each one in a chunk, as the script says and where it can run."""
        called = plain = args[0] if fn is run_chunk else fn
        if any(step.what != RUNS for step in steps):
            turns = iter(steps)
            called = lambda *own, **named: next(turns).perform(plain, own, named)  # noqa: E731
        called = self._apart(called)
        return (fn, (called, *args[1:]), kwargs) if fn is run_chunk else (called, args, kwargs)

    def _apart(self, fn: Function) -> Function:
        """Have what it returns run by `_run`, where that is a coroutine and an event loop runs in this thread."""
        if not _is_in_loop():
            return fn

        def run(*args: Any, **kwargs: Any) -> Any:
            value = fn(*args, **kwargs)
            return self._run(value) if type(value) is types.CoroutineType else value

        return run

    def _run(self, coroutine: Any) -> Any:
        """Run a coroutine; in a thread of its own where an event loop runs in this one, which takes no second."""
        if not _is_in_loop():
            return run_coroutine(coroutine)

        def run_lent() -> Any:
            with self.turn.lent():
                return run_coroutine(coroutine)

        with ThreadPoolExecutor(1, "poolkit-fake") as thread:
            return thread.submit(contextvars.copy_context().run, run_lent).result()


def _is_in_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None  # noqa: SLF001 -- get_running_loop() raises


def _given(message: object) -> object:
    """What a message is packed as an argument of."""
    return message


def named(task: AnyTask) -> str:
    """A task in the timeline."""
    return f"task {task.id} ({task.name})"
