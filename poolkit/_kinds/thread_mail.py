"""The messages of a worker thread's task: objects, as they are.

Owner: the worker thread: `receive`. `send` is for any thread; `wake` too.
"""

from __future__ import annotations

import contextlib
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import Any

from poolkit._clock import monotonic
from poolkit._core.workforce import Asked


class ThreadMail:
    """The messages of one worker thread's tasks."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._task_id = 0  # that has asked
        self.is_to_stop = False
        self.box: deque[Any] = deque()
        self._waker: Callable[[], object] | None = None  # of a coroutine that waits
        self._turn = allocate_lock()  # free: something has changed

    def send(self, task_id: int, message: object) -> None:
        """Hand a message out, and wait while there are too many."""
        worker, task = self._worker, self._worker.task
        if task is None or task.id != task_id:
            return  # its task is over: a thread that it left
        exchange = task.open_exchange()
        exchange.worker_id = worker.id
        exchange.incoming.by_reference = True
        if exchange.note(0) and self.is_here():
            while not exchange.has_room() and not self.is_to_stop:
                exchange.resume = self.wake
                if not exchange.has_room():
                    self._turn.acquire()
        worker.received[1] += 1
        if not exchange.incoming.closed:
            exchange.incoming.items.append(message)
        exchange.incoming.ring()

    def is_here(self) -> bool:
        """Whether this is the worker's thread, and not one that its task has started."""
        return threading.current_thread() is self._worker.thread

    def came(self, mail: deque[Any]) -> None:
        """Keep what came for the task that asked."""
        while mail:
            self.box.append(mail.popleft())
        self.wake()

    def receive(self, task_id: int, seconds: float | None) -> Any:
        """Return the next message to a task. TimeoutError: there is none after so many seconds."""
        if self._task_id != task_id:
            self._task_id = task_id
            self.box.clear()
        give_up = None if seconds is None else monotonic() + seconds
        if not self.box:
            self._worker.post(Asked(self._worker.id, task_id))
        while not self.box and not self.is_to_stop:
            left = -1.0 if give_up is None else give_up - monotonic()
            if give_up is not None and left <= 0.0:
                msg = f"no message came within {seconds} s"
                raise TimeoutError(msg)
            self._turn.acquire(timeout=left)
        return self.box.popleft() if self.box else None  # it is about to be stopped

    async def receive_async(self, task_id: int) -> Any:
        """Do the same in a coroutine."""
        import asyncio  # noqa: PLC0415 -- only for `async def` tasks

        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._waker = lambda: loop.call_soon_threadsafe(woken.set)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    return self.receive(task_id, 0.0)
                await woken.wait()
                woken.clear()
        finally:
            self._waker = None

    def wake(self) -> None:
        """Have the thread look up, if it waits."""
        with contextlib.suppress(RuntimeError):  # it is free, or the event loop was closed
            self._turn.release()
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(RuntimeError):
                waker()

    def stop(self) -> None:
        """The task is to be stopped: an asynchronous exception wakes nobody who waits for a lock."""
        self.is_to_stop = True
        self.wake()
