"""Life: one dedicated worker from its start to its end, also when nobody has the `Worker` any more; and its callbacks.

    a message    the watcher, or a worker that is a thread, finds that there is one ──> the callback thread takes it
    the end      the task is done, and what the worker sent is taken; the pool says that the worker has exited

`on_exit` comes when both have come, behind all that `on_message` gets.
Owner: any thread, one atomic operation at a time; the callback thread: `_deliver`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from poolkit._child.port import Channel, ChannelEnd, Left, countdown
from poolkit._core.workforce import WorkerExited
from poolkit._engine.dedicated import DedicatedPool
from poolkit._engine.services import services
from poolkit._kinds.loggers import log
from poolkit.errors import ChannelClosed
from poolkit.task import Task

END_WITHIN = 2.0  # seconds after the end of its channel in which a worker has ended, unless it has closed that itself
AT_ONCE = 100  # messages that one worker's callback gets before others have their turn


class Life:
    """See the file's header."""

    def __init__(self, pool: DedicatedPool, task: Task[Any], channel: Channel, name: str, number: int) -> None:
        self.name = name
        self.engine, self.task, self.channel = pool.engine, task, channel
        self.number = number
        self.exited: WorkerExited | None = None  # once it is, as the pool has it
        self.gone = threading.Event()
        self.ended: Callable[[], object] = _nothing  # called when the task is done, by whoever settles it
        self.at_end: Callable[[], object] = _nothing  # called when it is gone, by whoever finds that
        self._pools = [pool]  # to be released
        self._callback: Callable[[Any], object] | None = None  # for messages, unless one has raised
        self._is_delivering = False  # there is such, and messages may be left
        self._at_exit: deque[Callable[[WorkerExited], object]] = deque()

    def begin(self) -> None:
        """Submit the task."""
        self.engine.listen("worker_exited", self._note_exit)
        try:
            self.engine.submit(self.task)
        except BaseException:
            self.engine.unlisten("worker_exited", self._note_exit)
            raise
        self.task.add_waker(self._task_done)

    def _task_done(self, task: Task[Any]) -> None:
        """A waker of the task, in whatever thread settles it."""
        self.channel.shut()
        if os.getpid() != self.engine.pid:
            return
        ended, self.ended = self.ended, _nothing  # which refers to this, and so would keep the channel
        ended()
        if self.exited is not None or self.engine.is_over(task):
            self._end()

    def _note_exit(self, event: WorkerExited) -> None:
        """A listener of the pool, on its callback thread."""
        if event.worker_id == self.task.worker_id:
            self.exited = event
            if self.task.done():
                self._end()

    def _end(self) -> None:
        self.gone.set()
        self.at_end()
        self._tell_exit()
        with contextlib.suppress(ValueError, IndexError):  # it was told twice
            self.engine.unlisten("worker_exited", self._note_exit)
            self._pools.pop().release()

    # ===== the end, for who sends, receives or calls =====

    def end(self, left: Left) -> BaseException:
        """What ended the channel, once its end was found. May block for a moment, and raise TimeoutError."""
        seconds = left()
        try:
            error = self.task.exception(END_WITHIN if seconds is None else min(seconds, END_WITHIN))
        except CancelledError:
            return ChannelClosed(f"worker {self.name} was terminated")
        except TimeoutError:
            if seconds is not None and seconds < END_WITHIN:
                raise
            return self.closed_itself()
        return ChannelClosed(f"worker {self.name} has ended") if error is None else _again(error)

    def closed_itself(self) -> BaseException:
        """What is told of a worker that has not ended END_WITHIN seconds after its channel."""
        return ChannelClosed(f"worker {self.name} has closed its end of the channel, and goes on")

    def end_of_call(self, _payload: object) -> BaseException:
        """What is the outcome of the calls that are left."""
        return self.end(countdown(None))

    # ===== callbacks =====

    def on_message(self, callback: Callable[[Any], object]) -> None:
        """Have `callback` called with each message, those first that have come. Raises PoolClosed, OSError."""
        self.channel.check_process()
        services.enter(self.channel)
        self._callback, self._is_delivering = callback, True
        self.ended = self._ready  # beside the watcher: a worker that is a thread may be stopped while it is to tell
        self._ready()

    def _ready(self) -> None:
        services.call(self._deliver, None)

    def _deliver(self, _what: object) -> None:
        """Take messages, and call the callback. On the callback thread."""
        if not self._is_delivering:
            return
        for _ in range(AT_ONCE):
            try:
                message = self.channel.receive(_not_at_all, [])
            except TimeoutError:
                services.watch(self.channel, self._ready)
                return
            except ChannelEnd:
                self._is_delivering, self.ended = False, _nothing
                self._tell_exit()
                services.leave()
                return
            except Exception:
                log.exception("a message of worker %s could not be unpickled", self.name)
                continue
            if self._callback is not None and not _has_called(self._callback, message, self.name):
                self._callback = None
        self._ready()

    def on_exit(self, callback: Callable[[WorkerExited], object]) -> None:
        """Have `callback` called when it is gone. Raises PoolClosed."""
        self.channel.check_process()
        services.enter()
        self._at_exit.append(callback)
        self._tell_exit()

    def _tell_exit(self) -> None:
        if not self.gone.is_set() or self._is_delivering:
            return
        with contextlib.suppress(IndexError):  # none is left
            while True:
                services.call(self._call_at_exit, self._at_exit.popleft())

    def _call_at_exit(self, callback: Callable[[WorkerExited], object]) -> None:
        _has_called(callback, self._exit_record(), self.name)
        services.leave()

    def _exit_record(self) -> WorkerExited:
        exited, cause = self.exited, "failed"
        if self.task.cancelled():
            cause = "terminated"
        elif not self.task.has_failed():
            cause = "finished"
        elif exited is None or exited.cause in {"crashed", "memory", "unresponsive"}:
            cause = "crashed" if exited is None else exited.cause
        if exited is None:  # it never was up
            return WorkerExited(self.number, None, None, None, cause)
        return WorkerExited(self.number, exited.pid, exited.exitcode, exited.signal, cause)


def _nothing() -> None:
    pass


def _not_at_all() -> float:
    return 0.0


def _has_called(callback: Callable[[Any], object], what: Any, name: str) -> bool:
    """Call the user's code; false, and logged, where that raised."""
    try:
        callback(what)
    except BaseException:
        log.exception("a callback of worker %s raised; it is not called again", name)
        return False
    return True


def _again(error: BaseException) -> BaseException:
    """A new object of the same exception, as each of those who are told it adds to its traceback; or itself."""
    try:
        new = copy.copy(error)
    except Exception:  # noqa: BLE001 -- its own code
        return error
    if type(new) is not type(error):
        return error
    new.__cause__, new.__context__ = error.__cause__, error.__context__
    new.__suppress_context__ = error.__suppress_context__
    return new.with_traceback(error.__traceback__)
