"""WorkerThread of the thread workforce: one worker thread, and the exception that stops its task.

Guarded by: its own lock, taken inside nothing but itself and held for a few instructions, where it says so. The
asynchronous exception may only be raised while the task it is meant for runs; the thread takes back one that came too
late.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from poolkit._child.coroutines import RUNS, Coroutines, Ended, Running
from poolkit._clock import monotonic
from poolkit._core.workforce import AnyTask, Finished, Report
from poolkit._kinds.thread_mail import ThreadMail
from poolkit._kinds.thread_stream import ThreadStream
from poolkit.context import TaskContext


class StopTask(BaseException):
    """Raised inside a task's thread to stop it. Not an Exception, so that `except Exception` lets it pass."""


def stop_task_of(*idents: int) -> None:
    """Raise StopTask in threads at their next bytecode; in this one it is taken at once. Not for the main thread.

    CPython up to 3.12 notes for all threads that one waits, until any thread takes one. While it waits, all are slower;
    on 3.11, one that is traced goes round in its next call for ever. So this thread takes one itself; a thread for
    which one waits notes it anew when it gets the lock of the interpreter.
    """
    stop, send = ctypes.py_object(StopTask), ctypes.pythonapi.PyThreadState_SetAsyncExc
    try:
        for ident in (*idents, threading.get_ident()):
            send(ctypes.c_ulong(ident), stop)
        for _ in range(_ENOUGH):
            pass
    except StopTask:
        pass


_ENOUGH = 8  # steps after which an asynchronous exception was raised


class WorkerThread:
    """One worker thread."""

    def __init__(self, worker_id: int, post: Callable[[Report], None]) -> None:
        self.id = worker_id
        self.thread: threading.Thread | None = None  # that has taken this on; until then, the last one that was made
        self.inbox: SimpleQueue[str] = SimpleQueue()  # wakes the thread
        self.resting = False  # whether it has to be woken; owner: the worker thread
        self.claims: deque[tuple[AnyTask, bool]] = deque()  # sent and not claimed; claimed from the left
        self.begun, self.since, self.done = 0, 0.0, 0  # owner: the worker thread; others only look
        self.made = 0.0  # as `Status` has it; the same
        self.task: AnyTask | None = None  # that it runs; the same
        self.stream: ThreadStream | Running | None = None  # the stream, or coroutine, that it runs; the same
        self.closed: Ended | None = None  # the task that runs was told to, and has ended its coroutine
        self.told_to_end = 0, 0  # the last task that was, and in which attempt
        self.post = post  # takes what the worker reports
        self.received = [0, 0]  # items and messages of its tasks
        self._mail: ThreadMail | None = None
        self.context: TaskContext | None = None  # of the running task; owner: the worker thread
        self.unclaimed = [True]  # taken out by the thread that is the worker: an interrupted start may be repeated
        self.coroutines = Coroutines(self)
        self.coroutines_here = self.coroutines.keeper()  # has those of the context that it is called in run there
        self.lock = threading.Lock()
        self.running = False  # guarded by: lock
        self.is_to_stop = False  # guarded by: lock
        self.ended = False  # reported as died, by whoever set this first. guarded by: lock
        self.abandoned = False  # owner: the supervisor thread
        self.stack = ""  # owner: the supervisor thread

    # ===== the end of what a task sends while it runs; see `context.py` =====

    def begin_stream(self, task_id: int, most: int, _most_bytes: float) -> ThreadStream:
        """What runs now is a stream."""
        assert self.task is not None  # noqa: S101 -- it asks
        self.stream = stream = ThreadStream(self, task_id, self.task.incoming, most)
        self._end_if_told(task_id)
        return stream

    def begin_coroutine(self, running: Running) -> Running | None:
        """What runs now is a coroutine; None where it is a part of a stream, which is told to end as such."""
        if self.stream is not None or self.thread is not threading.current_thread():
            return None
        self.stream = running
        self.made = RUNS
        self._end_if_told(running.task_id)
        return running

    def never_begun(self, task: AnyTask) -> Finished | None:
        """Return what says so of a task that was cancelled before it began; None when this thread is to end, too."""
        with self.lock:
            if self.is_to_stop:
                return None
        now = monotonic()
        report = Finished(self.id, task.id, now, now, 0, "", False)
        report.cancelled = True
        return report

    def _end_if_told(self, task_id: int) -> None:
        """End what begins if it was told to before; who tells looks for it afterwards."""
        context, stream = self.context, self.stream
        if context is not None and stream is not None and self.told_to_end == (task_id, context.attempt):
            stream.end()

    def end_coroutine(self, _running: Running) -> None:
        """Note that it has ended."""
        self.made = 0.0
        self.stream = None

    def mail(self) -> ThreadMail:
        """Return what messages go through; made at its first use."""
        if self._mail is None:
            self._mail = ThreadMail(self)
        return self._mail

    def is_told_to_end(self, task_id: int) -> bool:
        """Whether the task that runs was told to end."""
        stream = self.stream
        return stream is not None and stream.task_id == task_id and stream.is_to_end
