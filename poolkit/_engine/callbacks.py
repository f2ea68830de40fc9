"""Callbacks: what a pool calls of the user's code, on threads apart from all that keeps the pool going.

One, the callback thread, calls done callbacks, listeners to events and handlers of what tasks log. Another unpickles
failures whose type decides whether they are retried, as a callback may wait for such a task. What belongs to no pool of
the user's has one callback thread for the whole process (`services.py`).

So a callback that takes long, or waits for another task of the pool, delays other callbacks, records and the outcomes
behind those, and nothing else: no thread that runs tasks, and not the supervisor, which is needed for limits and
deaths. It starts with the first callback.
Where no thread is to be had, as at the end of the interpreter, whoever finds callbacks left calls them.
Owner: the supervisor thread: `start` and `close`. `wake` is for any thread, also in the midst of another `wake`.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class CallbackThread(threading.Thread):
    """The thread; its own class, so that poolkit knows its own."""

    def __init__(self, name: str, run: Callable[[CallbackThread], object]) -> None:
        super().__init__(target=run, args=(self,), name=name, daemon=True)
        self.words: SimpleQueue[bool] = SimpleQueue()  # whether to go on; re-entrant, as an Event is not


Calls = deque[tuple[Callable[[Any], object], Any]]  # what is to be called, with what

publishing = threading.local()  # .depth > 0 while this thread runs callbacks


class Caller:
    """Calls what is left to be called. `call` does it, and returns when there is nothing left."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self._name = name
        self._call = call
        self._thread: CallbackThread | None = None  # who may be told to call
        self._last: CallbackThread | None = None  # the same, or one that calls what is left, or has ended
        self.ident = 0  # of the thread

    def wake(self) -> bool:
        """Have the thread look; False when there is none, yet or any more. Does not block."""
        thread = self._thread
        if thread is None:
            return False
        if thread.words.empty():  # else it will look as it is
            thread.words.put(True)
        return True

    def start(self) -> bool:
        """Start the thread if need be, and have it look; False when there is none to be had."""
        if self._thread is None:
            before = self._last
            thread = CallbackThread(self._name, lambda thread: self._run(thread, before))
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = self._last = thread
        return self.wake()

    def end(self) -> None:
        """Have the thread, if there is one, end once all is called. Does not block."""
        thread = self._thread
        if thread is not None:
            thread.words.put(False)

    def close(self, seconds: float) -> bool:
        """Wait until all is called, for at most so many seconds, and end the thread. True when it has ended."""
        thread = self._last
        if thread is None:
            return True
        self.end()
        thread.join(None if seconds == math.inf else max(0.0, min(seconds, threading.TIMEOUT_MAX)))
        return not thread.is_alive()

    def _run(self, thread: CallbackThread, before: CallbackThread | None) -> None:
        if before is not None:  # one at a time
            before.join()
        self.ident = threading.get_ident()
        while thread.words.get():
            self._call()
        self._thread = None  # who comes from now on calls himself
        self._call()
        self.ident = 0


class Callbacks:
    """Done callbacks, events for listeners and log records of one pool, in the order in which they came. Thread-safe.

    Where no thread is to be had, as at the end of the interpreter, whoever finds something in the queue calls it.
    """

    def __init__(self, pool_name: str, wake_supervisor: Callable[[], None]) -> None:
        self.queue: Calls = deque()  # appended to by anybody
        self.thread = Caller(f"poolkit-{pool_name}-callbacks", self.call_all)
        self.has_waited = False  # what runs on the thread waits, or has waited, for the pool; see `log_records.py`
        self._wake_supervisor = wake_supervisor

    def call_all(self) -> None:
        """Call what is in the queue."""
        if self.queue:
            self.call(self.queue)

    def leave(self, calls: Calls) -> None:
        """Leave what is still to be called to the thread."""
        if calls and calls is not self.queue:
            self.queue.extend(calls)
            calls.clear()
            self._wake_supervisor()

    def call(self, calls: Calls) -> None:
        """Call these, on this thread. What they have called by ending tasks is called after them, by the same loop."""
        outer: Calls | None = getattr(publishing, "calls", None)
        if outer is not None:
            while calls and outer is not calls:
                outer.append(calls.popleft())
            return
        depth = getattr(publishing, "depth", 0)
        try:
            publishing.calls, publishing.depth = calls, depth + 1  # in here, as a signal handler may raise before
            self._call_each(calls)
        finally:
            publishing.depth = depth
            publishing.calls = None
            self.leave(calls)

    def _call_each(self, calls: Calls) -> None:
        is_shared = calls is self.queue
        while calls:
            try:
                call, what = calls.popleft() if is_shared else calls[0]
            except IndexError:  # another thread was faster
                return
            try:
                call(what)
            except BaseException:  # a Ctrl-C; what is left of them is for the pool's threads
                if is_shared:
                    calls.appendleft((call, what))
                raise
            if is_shared:
                self.has_waited = False
            else:  # not before: a signal handler may raise between the two
                calls.popleft()
