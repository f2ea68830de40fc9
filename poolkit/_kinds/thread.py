"""Thread workforce: workers that are threads of this process.

Guarantees: a sent task goes to exactly one of its worker and a reclaim (a deque hands out each item once); a task that
is to stop is asked by `current_task().cancelled` and by an asynchronous exception; a thread that does not stop within
STOP_GRACE seconds is abandoned: reported dead, replaced, and silent whenever it does end.
Guarded by: the pool's one lock: `_workers`, `_to_kill`. By each one's own lock, taken inside nothing but itself and
held for a few instructions: `running`, `is_to_stop`, `ended`: the asynchronous exception may only be raised while the
task it is meant for runs, and the thread takes back one that came too late.
Owner: the supervisor thread: `_dying`.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from itertools import repeat, starmap
from types import FrameType
from typing import Any

from poolkit import errors
from poolkit._child.coroutines import Ended
from poolkit._child.looks import text_of
from poolkit._child.loop import run_call
from poolkit._clock import monotonic
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
)
from poolkit._kinds import evidence
from poolkit._kinds.driven import DrivenWorkforce
from poolkit._kinds.loggers import mark_records
from poolkit._kinds.references import CallIn, by_reference
from poolkit._kinds.thread_stream import ThreadStream
from poolkit._kinds.worker_thread import StopTask, WorkerThread, stop_task_of
from poolkit.context import TaskContext
from poolkit.task import Progress

STOP_GRACE = 0.25  # seconds: a hundred times the interpreter's switch interval, for a busy machine

_GO, _DROPPED, _STOP = "go", "dropped", "stop"


class ThreadWorkforce(DrivenWorkforce):
    """Threads behind the Workforce protocol.

    `post` takes what a worker reports, in the order in which it is called, without waiting: another thread takes it
    in if need be.
    """

    by_reference = True
    why_memory_unknown = "threads share the memory of their process"
    max_batch = 1  # threads may wait for each other's tasks, so these begin in the order of the queue
    ends_coroutines = True

    post: Callable[[Report], None]

    def __init__(self, *, name: str, prefix: str, initializer: Callable[[], object] | None) -> None:
        mark_records()
        self._name = name
        self._prefix = prefix
        self._initializer = initializer
        self._workers: dict[int, WorkerThread] = {}
        self.unstarted: deque[WorkerThread] = deque()
        self._to_kill: deque[tuple[WorkerThread, bool]] = deque()
        self._wakeup = allocate_lock()  # free: somebody has woken us; an Event takes many steps, and a lock of its own
        self._dying: list[tuple[float, WorkerThread]] = []
        self._received: tuple[int, ...] = (0, 0)  # items and messages, of workers that are gone
        self._ending: list[threading.Thread] = []  # reported their end and about to return; guarded by the pool's lock

    @staticmethod
    def pack(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CallIn, int]:
        """A call goes to a thread as it is, but for arguments that are handles of broadcast objects.

        With it goes a copy of the context of its submitter, in which it runs: as `asyncio.to_thread` has it.
        """
        if args or kwargs:
            fn, args, kwargs = by_reference(fn, args, kwargs)
        return (fn, args, kwargs, copy_context()), 0

    def begin_anew(self) -> None:
        """Nobody waits here."""
        self._wakeup = allocate_lock()

    # ===== orders, given under the pool's lock =====

    def start(self, worker_id: int) -> None:
        """Have whoever holds the lock start a thread when it lets go: at exit, CPython 3.12 lets nobody else do it."""
        if worker_id not in self._workers:
            worker = WorkerThread(worker_id, self.post)
            self.unstarted.append(worker)
            self._workers[worker_id] = worker

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        """Hand tasks to the thread."""
        worker = self._workers[worker_id]
        claims = [(task, announce) for task in tasks]
        written += map(worker.claims.extend, (claims,))
        if worker.resting:  # else it looks for claims before it rests
            worker.inbox.put(_GO)

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        """Take back what the thread has not claimed."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        with contextlib.suppress(IndexError):
            taken += starmap(worker.claims.pop, repeat(()))
        if taken and not told:
            told += map(worker.inbox.put, (_DROPPED,))

    def status(self, worker_id: int) -> Status:
        """What the thread runs."""
        worker = self._workers.get(worker_id)
        return Status() if worker is None else Status(worker.begun, worker.since, worker.done, worker.made)

    def progress(self, worker_id: int, task: AnyTask) -> Progress | None:
        """Look at the context of what the thread runs."""
        worker = self._workers.get(worker_id)
        context = None if worker is None else worker.context
        reported = None if context is None or context.id != task.id else context.reported()
        return None if reported is None else Progress.reported(*reported)

    def memory(self, _worker_id: int) -> None:
        """See `why_memory_unknown`."""

    def stop(self, worker_id: int) -> None:
        """Tell the thread to leave."""
        self._workers[worker_id].inbox.put(_STOP)

    def credit(self, worker_id: int, task_id: int, taken: int) -> None:
        """Tell the thread how many items were taken."""
        stream = self._workers[worker_id].stream
        if isinstance(stream, ThreadStream) and stream.task_id == task_id:
            stream.credit(taken)

    def mail(self, worker_id: int, task_id: int, mail: deque[Any]) -> None:  # noqa: ARG002 -- it runs no other
        """Hand the thread what is for its task."""
        self._workers[worker_id].mail().came(mail)

    def end(self, worker_id: int, task: AnyTask) -> None:
        """Tell the thread that its stream or coroutine is to end."""
        self._workers[worker_id].told_to_end = task.id, task.attempt
        stream = self._workers[worker_id].stream
        if stream is not None and stream.task_id == task.id:
            stream.end()

    def kill(self, worker_id: int, *, want_stack: bool) -> None:
        """Have the supervisor thread stop what the thread runs, or give it up."""
        worker = self._workers.get(worker_id)
        if worker is not None:  # else its end is being noted
            self._to_kill.append((worker, want_stack))
            self.wake()

    def stacks(self, worker_ids: Sequence[int], timeout: float) -> dict[int, str]:  # noqa: ARG002 -- it takes none
        """Look at the frames of all threads."""
        found = list(filter(None, map(self._workers.get, worker_ids)))
        return {**dict.fromkeys(worker_ids, ""), **_stacks_of(found, current_frames())}

    def forget(self, worker_id: int) -> None:
        """Let go of a thread that ended, or was given up."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self._received = tuple(map(sum, zip(self._received, worker.received, strict=True)))
        self._ending = [thread for thread in self._ending if thread.is_alive()]
        if worker is not None and worker.thread is not None and worker.thread.ident and not worker.abandoned:
            self._ending.append(worker.thread)

    def received(self) -> tuple[int, ...]:
        """Items and messages that the threads have handed out."""
        everybody = self._received, *(worker.received for worker in self._workers.values())
        return tuple(map(sum, zip(*everybody, strict=True)))

    def start_now(self) -> None:
        """Start the threads that were ordered; without the lock. Reports those that could not be started."""
        taken: list[WorkerThread] = []
        try:
            while self.unstarted:
                with contextlib.suppress(IndexError):  # another thread was faster
                    taken += starmap(self.unstarted.popleft, ((),))  # taken and noted by one instruction
                    self._start(taken[-1])
        except BaseException:
            self.unstarted += [one for one in taken if one.thread is None or one.thread.ident is None]
            raise

    def _start(self, worker: WorkerThread) -> None:
        if self._workers.get(worker.id) is not worker:  # the order was interrupted, and given again
            return
        # with a prefix, as the standard library names its threads
        name = f"{self._prefix}_{worker.id - 1}" if self._prefix else f"poolkit-{self._name}-{worker.id}"
        worker.thread = thread = threading.Thread(target=self._main, args=(worker,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            if type(exc) is not RuntimeError:  # a RecursionError is one, too
                raise
            self.post(Died(worker.id, hint=f"its thread could not be started: {exc}"))  # no more are to be had

    def is_own_thread(self) -> bool:
        """Whether this is one of the worker threads."""
        current = threading.current_thread()
        return any(worker.thread is current for worker in list(self._workers.values()))

    def wake(self) -> None:
        """Make `wait` return. From any thread."""
        try:
            self._wakeup.release()
        except RuntimeError:  # it is free
            return

    # ===== the supervisor thread =====

    def wait(self, timeout: float, *, links: bool) -> bool:  # noqa: ARG002 -- there are none
        """Wait to be woken, for at most `timeout` seconds. Threads report by themselves."""
        if self._dying:
            timeout = min(timeout, max(0.0, min(at for at, _ in self._dying) - monotonic()))
        return self._wakeup.acquire(timeout=timeout) or bool(self._dying)

    def act(self) -> deque[Report]:
        """Carry out the orders, and give those up that do not stop."""
        reports: deque[Report] = deque()
        while self._to_kill:
            self._stop(*self._to_kill.popleft())
        now = monotonic()
        for at, worker in self._dying:
            if at <= now and self._end(worker):
                worker.abandoned = True
                reports.append(Died(worker.id, stack=worker.stack, abandoned=True))
        self._dying = [(at, worker) for at, worker in self._dying if not worker.ended]
        return reports

    def close(self) -> None:
        """Wait for the threads that are about to end; abandoned ones are left alone."""
        for thread in self._ending:
            if thread is not threading.current_thread():
                thread.join()

    def _stop(self, worker: WorkerThread, want_stack: bool) -> None:
        if want_stack:
            worker.stack = _stacks_of([worker], current_frames()).get(worker.id, "")
        context, thread = worker.context, worker.thread
        if context is not None:
            context.request_stop()
        with worker.lock:
            worker.is_to_stop = True
            if worker.running and thread is not None and thread.ident is not None:
                stop_task_of(thread.ident)
        if (stream := worker.stream) is not None:
            stream.end()  # an asynchronous exception wakes nobody who waits for a lock
        worker.mail().stop()
        worker.coroutines.wake()  # or an event loop would see it when its next timer is due
        worker.inbox.put(_STOP)
        self._dying.append((monotonic() + STOP_GRACE, worker))

    @staticmethod
    def _end(worker: WorkerThread) -> bool:
        """Whether it is for the caller to report this worker's end."""
        with worker.lock:
            if worker.ended:
                return False
            worker.ended = True
            return True

    # ===== the worker threads =====

    def _main(self, worker: WorkerThread) -> None:
        try:
            worker.unclaimed.pop()
        except IndexError:  # it was started twice, as an exception had interrupted the start
            return
        worker.thread = threading.current_thread()
        worker.coroutines.keep()
        try:
            if self._boot(worker):
                self._serve(worker)
        except StopTask:  # it came too late for the task it was meant for
            pass
        finally:
            worker.coroutines.close()
            if self._end(worker):
                self.post(Died(worker.id, stack=worker.stack))

    def _boot(self, worker: WorkerThread) -> bool:
        if self._initializer is not None:
            try:
                self._initializer()
            except BaseException as exc:  # noqa: BLE001 -- whatever it raises is what the pool is told
                errors.InitializerFailed  # noqa: B018 -- made at its first use, which is not to be under the pool's lock
                self.post(BootFailed(worker.id, exc))
                return False
        self.post(Ready(worker.id, threading.get_native_id()))
        return True

    def _serve(self, worker: WorkerThread) -> None:
        claims = worker.claims
        while True:
            try:
                task, announce = claims.popleft()
            except IndexError:
                if not self._rest(worker):
                    return
                continue
            report = self._run(worker, task, announce=announce)
            del task
            if report is None:
                return
            self.post(report)
            del report

    def _rest(self, worker: WorkerThread) -> bool:
        """Wait until there is something to do; false when it is to leave."""
        worker.resting = True
        word = _GO if worker.claims else worker.inbox.get()  # who sends looks at `resting` after that
        worker.resting = False
        if word is _DROPPED:
            self.post(Drained(worker.id))
        return word is not _STOP

    def _run(self, worker: WorkerThread, task: AnyTask, *, announce: bool) -> Finished | None:  # noqa: C901 -- step by step
        """Run one task; None when the thread was is_to_stop meanwhile, and must end without another word."""
        call = task.call
        if call is None:  # cancelled since it was claimed, and forgotten
            return worker.never_begun(task)
        fn, args, kwargs, variables = call
        if task.options.retries:  # each run begins with what the submitter had
            variables = variables.copy()
        variables.run(worker.coroutines_here)
        started = monotonic()
        limit = task.options.timeout
        deadline = None if limit is None else started + limit
        context = TaskContext(task.id, task.name, task.attempts + 1, deadline, monotonic, worker.id, worker)
        worker.context = context
        worker.task = task
        worker.since = started
        worker.done = 0  # it may have been this very task, in an earlier run
        worker.begun = task.id
        if announce:
            self.post(Begun(worker.id, task.id))
        ok, value = False, None
        try:
            with worker.lock:
                worker.running = True
                is_to_stop = worker.is_to_stop
            if not is_to_stop:
                ok, value = variables.run(run_call, context, fn, args, kwargs)
            with worker.lock:
                worker.running = False
                is_to_stop = worker.is_to_stop
            if is_to_stop:
                stop_task_of()
        except StopTask:
            is_to_stop = True
        if context._cell is not None:  # noqa: SLF001 -- without a call, as most tasks report nothing
            self.post(Progressed(worker.id, task.id, Progress.reported(*context.reported())))  # type: ignore[misc]
        worker.context = worker.task = None
        if is_to_stop:
            with worker.lock:
                worker.running = False
            del task, value  # see below
            return None
        worker.done = task.id
        try:
            report = Finished(worker.id, task.id, started, monotonic(), 0, value, ok)
            if not ok and type(value) is Ended:
                worker.closed = value
            if worker.closed is not None:  # whatever became of the error that says so
                report.payload, report.ok, report.cancelled = worker.closed.stack, False, True
                worker.closed = None
            return report
        finally:
            del task, value  # an exception's traceback holds this frame, and must not find itself or its task in it


def current_frames() -> dict[int, FrameType]:
    """Return what each thread of this process executes just now.

    CPython up to 3.11 makes objects for that under a lock of the interpreter's list of threads: a collection that one
    of them sets off may run a finalizer, another thread runs meanwhile, and if that starts or ends a thread, both wait
    for ever. So there is no collection in between.
    """
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()  # noqa: SLF001 -- faulthandler writes, and cannot return
    finally:
        if is_collecting:
            gc.enable()


def _stacks_of(workers: Sequence[WorkerThread], frames: dict[int, FrameType]) -> dict[int, str]:
    """The Python stacks of worker threads, most recent call first, as far as they are in the user's code."""
    threads = {worker.id: worker.thread.ident for worker in workers if worker.thread is not None}
    texts = {worker_id: text_of(frames.get(ident or 0)) for worker_id, ident in threads.items()}
    return {worker_id: evidence.tidy(text) for worker_id, text in texts.items() if evidence.is_complete(text)}
