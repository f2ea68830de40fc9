"""Callers: threads on which a pool runs the user's code, apart from all that keeps the pool going.

One, the callback thread, calls done callbacks, listeners to events and handlers of what tasks log. Another unpickles
failures whose type decides whether they are retried, as a callback may wait for such a task.

So a callback that takes long, or waits for another task of the pool, delays other callbacks, records and the outcomes
behind those, and nothing else: no thread that runs tasks, and not the supervisor, which is needed for limits and
deaths. It starts with the first callback.
Where no thread is to be had, as at the end of the interpreter, whoever finds callbacks left calls them.
Owner: the supervisor thread: `start` and `close`. `wake` is for any thread, also in the midst of another `wake`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from queue import SimpleQueue


class CallbackThread(threading.Thread):
    """The thread; its own class, so that poolkit knows its own."""


class Caller:
    """Calls what is left to be called. `call` does it, and returns when there is nothing left."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self._name = name
        self._call = call
        self._words: SimpleQueue[bool] = SimpleQueue()  # whether to go on; re-entrant, as an Event is not
        self._thread: CallbackThread | None = None
        self.ident = 0  # of the thread

    def wake(self) -> bool:
        """Have the thread look; False when there is none, yet or any more. Does not block."""
        if self._thread is None:
            return False
        if self._words.empty():  # else it will look as it is
            self._words.put(True)
        return True

    def start(self) -> bool:
        """Start the thread if need be, and have it look; False when there is none to be had."""
        if self._thread is None:
            thread = CallbackThread(target=self._run, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return self.wake()

    def close(self, seconds: float) -> bool:
        """Wait until all is called, for at most so many seconds, and end the thread. True when it has ended."""
        thread = self._thread
        if thread is None:
            return True
        self._words.put(False)
        thread.join(None if seconds == math.inf else max(0.0, min(seconds, threading.TIMEOUT_MAX)))
        return not thread.is_alive()

    def _run(self) -> None:
        self.ident = threading.get_ident()
        while self._words.get():
            self._call()
        self._thread = None  # who comes from now on calls himself
        self._call()
        self.ident = 0
