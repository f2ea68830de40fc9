"""Fake workforce: workers that exist in the books only. Calls run in the caller's thread, on a virtual clock.

It obeys the same orders and gives the same reports as a real workforce. Nothing happens by itself: the driver has tasks
begun and ended (`driver.py`). A call takes the virtual time that the script says; it really runs at the end of that.
Owner: the thread whose turn it is.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import random
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from poolkit._child.chunk import run_chunk
from poolkit._child.coroutines import Coroutines, run_coroutine
from poolkit._child.loop import run_call
from poolkit._core.workforce import AnyTask, Begun, BootFailed, Died, Drained, Finished, Ready, Report, Status
from poolkit._kinds.driven import DrivenWorkforce
from poolkit._kinds.loggers import mark_records
from poolkit._kinds.references import by_reference
from poolkit._wire import codec
from poolkit._wire.buffers import Found
from poolkit.context import TaskContext
from poolkit.errors import SerializationError
from poolkit.outcome import Outcome
from poolkit.testing.script import CRASHES, HANGS, RAISES, RUNS, UNSCRIPTED, Arguments, Script, Step

Function = Callable[..., Any]
Whole = tuple[Function, tuple[Any, ...], dict[str, Any]]


class VirtualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds since the pool was made."""
        return self.now


class Turn:
    """Whose turn it is to drive: one thread's at a time. Re-entrant; may be lent to a thread that is waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0
        self._depth = 0

    def __enter__(self) -> None:
        if self._holder != threading.get_ident():
            self._lock.acquire()
            self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_exc: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = 0
            self._lock.release()

    def is_free(self) -> bool:
        """Whether nobody has it."""
        return not self._depth

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Give it to this thread."""
        before, self._holder = self._holder, threading.get_ident()
        try:
            yield
        finally:
            self._holder = before


class FakeCall:
    """A call as a fake worker gets it: packed by the real codec, or the caller's own objects. Frozen after __init__.

    Attributes:
        fn: what a test knows it by: the caller's own function, of which pickling may make a copy.
        count: how many calls it is: several for a chunk of `map`.
        load: gives what is called, anew each time if it was packed. Raises whatever unpickling raises.
    """

    __slots__ = ("_memories", "count", "fn", "load")

    def __init__(self, fn: Function, count: int, load: Callable[[], Whole], memories: Any = ()) -> None:
        self.fn = fn
        self.count = count
        self.load = load
        self._memories = memories  # shared memory that the arguments refer to

    def arguments(self) -> list[Arguments]:
        """The arguments of each of its calls. Raises as `load`."""
        return each_call(*self.load())

    def kept(self) -> FakeCall:
        """The same for a record, which keeps no shared memory."""
        return FakeCall(self.fn, self.count, self.load)


class Run:
    """One run of a task on a fake worker. `steps`: what each call in it does, up to the first that ends it."""

    __slots__ = ("call", "ends_at", "failure", "steps", "task")

    def __init__(self, task: AnyTask) -> None:
        self.task = task
        self.ends_at = math.inf
        self.call: Whole | None = None
        self.failure: BaseException | None = None  # it could not be unpickled
        self.steps: list[Step] = []


class FakeWorker:
    """One worker in the books."""

    __slots__ = ("begun", "claims", "context", "coroutines", "done", "id", "run", "since")

    def __init__(self, worker_id: int) -> None:
        self.id = worker_id
        self.claims: deque[tuple[AnyTask, bool]] = deque()  # sent, not claimed
        self.run: Run | None = None
        self.context = contextvars.Context()  # the caller's variables are not seen in a worker, nor the other way round
        self.coroutines = Coroutines()
        self.context.run(self.coroutines.keep)
        self.begun, self.since, self.done = 0, 0.0, 0


class FakeWorkforce(DrivenWorkforce):
    """Workers of the fake kind behind the Workforce protocol."""

    max_batch = 1

    def __init__(
        self,
        clock: VirtualClock,
        rng: random.Random,
        *,
        check_pickle: bool,
        initializer: Callable[[], object] | None,
        note: Callable[..., object],
    ) -> None:
        mark_records()
        self.script = Script()
        self.turn = Turn()
        self.by_reference = not check_pickle
        self._clock = clock
        self._rng = rng
        self._initializer = initializer
        self._note = note  # writes a line of the timeline
        self._workers: dict[int, FakeWorker] = {}
        self._reports: deque[Report] = deque()  # what the workers will say when they are asked

    # ===== orders =====

    def pack(self, fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[FakeCall, int]:
        """Send a call through the real codec, so that what would not travel fails here too."""
        known, count = (args[0], len(args[1])) if fn is run_chunk else (fn, 1)
        if self.by_reference:
            whole = by_reference(fn, args, kwargs)
            return FakeCall(known, count, lambda: whole), 0
        with Found() as found:  # handles and read-only arrays go as they would to a worker
            call = codec.pack_call(fn, args, kwargs, found)
        return FakeCall(known, count, functools.partial(codec.load_call, *call[:2]), found.memories), len(
            call[0]
        ) + len(call[1])

    def start(self, worker_id: int) -> None:
        """A worker comes up at once, unless the initializer raises."""
        worker = self._workers[worker_id] = FakeWorker(worker_id)
        try:
            if self._initializer is not None:
                worker.context.run(self._initializer)
        except BaseException as exc:  # noqa: BLE001 -- whatever it raises is what the pool is told
            self._reports += [BootFailed(worker_id, exc), Died(worker_id, exitcode=1)]
        else:
            self._reports.append(Ready(worker_id, None))

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
            self._reports.append(Drained(worker_id))

    def status(self, worker_id: int) -> Status:
        """What the worker runs."""
        worker = self._workers.get(worker_id)
        return Status() if worker is None else Status(worker.begun, worker.since, worker.done)

    def memory(self, worker_id: int) -> int:
        """What the script says; else nothing."""
        worker = self._workers.get(worker_id)
        return 0 if worker is None or worker.run is None else max((step.nbytes for step in worker.run.steps), default=0)

    def stop(self, worker_id: int) -> None:
        """The worker leaves at once."""
        self._reports.append(Died(worker_id, exitcode=0))

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """The worker dies at once."""
        self._note("worker", worker_id, "is killed")
        run, self._workers[worker_id].run = self._workers[worker_id].run, None
        stack = _stack_of(run.call[0]) if want_stack and run is not None and run.call is not None else ""
        self._reports.append(Died(worker_id, signal="SIGKILL", stack=stack))

    def forget(self, worker_id: int) -> None:
        """Strike the worker out."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            worker.coroutines.drop()

    # ===== what the driver asks =====

    def begin_one(self) -> bool:
        """Have one worker begin its next task, and end it if it takes no time; False when none can begin any.

        Which one, of those that a real pool could have begin next, the seed picks.
        """
        able = [worker for worker in self._workers.values() if worker.claims and worker.run is None]
        if not able:
            return False
        worker = self._rng.choice(able) if len(able) > 1 else able[0]
        task, announce = worker.claims.popleft()
        worker.begun, worker.since, worker.done = task.id, self._clock(), 0
        if announce:
            self._reports.append(Begun(worker.id, task.id))
        self._note(named(task), "begins on worker", worker.id)
        worker.run = self._planned(task)
        if worker.run.ends_at <= self._clock():
            self._end(worker)
        return True

    def end_one(self) -> bool:
        """End one run whose time has come; False when there is none."""
        now = self._clock()
        over = [worker for worker in self._workers.values() if worker.run is not None and worker.run.ends_at <= now]
        if over:
            self._end(self._rng.choice(over))
        return bool(over)

    def next_end(self) -> float:
        """When the next run ends by itself; infinity when none does."""
        runs = (worker.run for worker in self._workers.values())
        return min((run.ends_at for run in runs if run is not None), default=math.inf)

    def is_running(self) -> bool:
        """Whether a worker runs a task."""
        return any(worker.run is not None for worker in self._workers.values())

    def _planned(self, task: AnyTask) -> Run:
        """What this run of a task will be."""
        run = Run(task)
        run.ends_at = self._clock()
        try:
            run.call = task.call.load()
        except Exception as exc:  # noqa: BLE001 -- unpickling runs the user's code
            run.failure = exc
            return run
        if not self.script:
            return run
        for args, kwargs in each_call(*run.call):
            step = self.script.next_step(task.call.fn, args, kwargs)
            run.steps.append(step)
            run.ends_at += math.inf if step.what == HANGS else step.seconds
            if step.what in {HANGS, CRASHES, RAISES}:
                break
        return run

    def _end(self, worker: FakeWorker) -> None:
        """A run's time is over: its worker dies, or the call runs now and its outcome is sent."""
        run = worker.run
        assert run is not None  # noqa: S101 -- as its callers know
        last = run.steps[-1] if run.steps else UNSCRIPTED
        if last.what == CRASHES:
            worker.run = None
            signal, exitcode = last.payload
            self._note("worker", worker.id, "dies:", signal or f"exit code {exitcode}")
            self._reports.append(Died(worker.id, signal=signal, exitcode=exitcode))
            return
        run.ends_at = math.inf  # it is ended here; a call that uses the pool must not end it again
        outcome = self._outcome(run, worker)
        if worker.run is not run:  # it had itself stopped
            return
        worker.run = None
        worker.done = run.task.id
        how = outcome.payload, outcome.ok, outcome.load
        self._reports.append(Finished(worker.id, run.task.id, worker.since, self._clock(), 0, *how))

    def _outcome(self, run: Run, worker: FakeWorker) -> Outcome:
        if run.call is None:
            return Outcome.failure(run.failure or RuntimeError("no call"))
        fn, args, kwargs = run.call
        task = run.task
        if any(step.what != RUNS for step in run.steps):
            steps = iter(run.steps)
            if fn is run_chunk:
                item = args[0]
                args = (lambda *own, **named: next(steps).perform(item, own, named), *args[1:])
            else:
                plain = fn
                fn = lambda *own, **named: next(steps).perform(plain, own, named)  # noqa: E731
        if fn is run_chunk:
            args = (self._apart(args[0]), *args[1:])
        limit = task.options.timeout
        deadline = None if limit is None else worker.since + limit
        context = TaskContext(task.id, task.name, task.attempts + 1, deadline, self._clock, worker.id)
        ok, value = worker.context.run(run_call, context, self._apart(fn), args, kwargs)
        try:
            if self.by_reference:
                return Outcome(value, ok=ok)
            if not ok:
                return Outcome(codec.pack_error(value), ok=False, load=codec.load_error)
            with Found() as found:
                packed = codec.pack_value(value, found)
            return Outcome((packed, found.memories), ok=True, load=_load_value)
        except SerializationError as exc:
            exc.args = (f"task {task.id} ({task.name}, attempt {context.attempt}): {exc}",)  # as in `_child/loop.py`
            return Outcome(codec.pack_error(exc), ok=False, load=codec.load_error)
        finally:
            del value  # an exception's traceback holds this frame

    def _apart(self, fn: Function) -> Function:
        """Run coroutines in a thread of their own where an event loop runs in this one, which takes no second."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or asyncio._get_running_loop() is None:  # noqa: SLF001 -- get_running_loop() raises instead
            return fn

        def run_lent(coroutine: Any) -> Any:
            with self.turn.lent():
                return run_coroutine(coroutine)

        def run(*args: Any, **kwargs: Any) -> Any:
            value = fn(*args, **kwargs)
            if type(value) is not types.CoroutineType:
                return value
            with ThreadPoolExecutor(1, "poolkit-fake") as thread:
                return thread.submit(contextvars.copy_context().run, run_lent, value).result()

        return run

    # ===== what the supervisor asks =====

    def wait(self, timeout: float, *, links: bool) -> bool:  # noqa: ARG002 -- nothing comes later
        """There is always something to do: nobody waits."""
        return True

    def act(self) -> deque[Report]:
        """What the workers have to say."""
        reports, self._reports = self._reports, deque()
        return reports

    def wake(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Strike all workers out."""
        for worker_id in list(self._workers):
            self.forget(worker_id)


def each_call(fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Arguments]:
    """The arguments of each call that a task makes: several for a chunk of `map`."""
    if fn is not run_chunk:
        return [(args, kwargs)]
    return [((tuple(item) if kwargs["starred"] else (item,)), {}) for item in args[1]]


def named(task: AnyTask) -> str:
    """A task in the timeline."""
    return f"task {task.id} ({task.name})"


def _stack_of(fn: Function) -> str:
    """Where a call that hangs would be stuck, in the form in which real stacks come."""
    code = getattr(fn, "__code__", None)
    return "" if code is None else f'  File "{code.co_filename}", line {code.co_firstlineno} in {code.co_name}'


def _load_value(packed: tuple[bytes, object]) -> Any:
    """The value of a result, while the shared memory that it refers to is held."""
    return codec.load_value(packed[0])
