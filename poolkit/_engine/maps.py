"""Maps: the maps of one pool that are not at their end, and who takes up those that nobody reads.

What was handed to `map` is done, whether or not somebody reads it. So there are three threads that may go on with one:

    its reader           takes items as it reads (`poolkit/results.py`)
    the thread here      takes up what was dropped before anybody read it, and what `shutdown(wait=False)` leaves
    whoever shuts down   and waits for it, takes up what is alive then

The two latter drive it: each of its tasks that is done puts it into the queue of its driver, who has it go on.
A fake pool has no thread, and drives what is in the queue whenever it settles.
Guarded by: nothing; each step on `open`, `left` and a map's claim is atomic, as finalizers and signal handlers come by.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from poolkit._clock import monotonic
from poolkit._engine.feed import Feed
from poolkit._kinds.loggers import log
from poolkit._waits import get

WARN_AFTER = 1.0  # seconds after which a shutdown says what it waits for


class MapsThread(threading.Thread):
    """The thread that takes up maps; its own class, so that poolkit knows its own."""


class Maps:
    """The maps of one pool; see the file's header. `wake` wakes the supervisor."""

    def __init__(self, pool_name: str, wake: Callable[[], None], is_open: Callable[[], bool]) -> None:
        self._pool_name = pool_name
        self._wake = wake
        self._is_open = is_open
        self.open: set[Feed[Any]] = set()  # those that are not at their end
        self.left: SimpleQueue[Feed[Any] | None] = SimpleQueue()  # to be taken up by the thread
        self._thread: threading.Thread | None = None
        self._ending = False
        self._closed = False
        self._warn_at = math.inf

    def enlist(self, feed: Feed[Any]) -> bool:
        """Note a new map; false when the pool takes no more."""
        self.open.add(feed)  # first: who shuts down looks after the pool was closed
        if self._is_open():
            return True
        self.open.discard(feed)
        return False

    def forget(self, feed: Feed[Any]) -> None:
        """A map is at its end."""
        self.open.discard(feed)
        if self._ending:
            self._wake()

    def leave(self, feed: Feed[Any]) -> None:
        """Have the thread take a map up. From finalizers too."""
        if self._closed:
            self.forget(feed)
        else:
            self.left.put(feed)
            self._wake()

    def end(self, *, leaves: bool, warns: bool) -> bool:
        """The pool is shut down gracefully: see what is to be taken up, and `leave` it; false when there is nothing."""
        self._ending = True
        for feed in list(self.open):
            if not feed.goes_on():
                self.forget(feed)
            elif leaves:
                self.leave(feed)
        if warns and self.open:
            self._warn_at = min(self._warn_at, monotonic() + WARN_AFTER)
            self._wake()  # to look when that is
        return bool(self.open)

    def finish(self) -> None:
        """Take up what is alive, and do it to its end. On the thread that shuts down, which may be interrupted."""
        news: SimpleQueue[Feed[Any] | None] = SimpleQueue()
        mine: set[Feed[Any]] = set()
        try:
            self._finish(news, mine)
        finally:
            for feed in mine:
                feed.release()
                self.leave(feed)

    def _finish(self, news: SimpleQueue[Feed[Any] | None], mine: set[Feed[Any]]) -> None:
        for feed in list(self.open):
            if (not feed.dropped or self._thread is None) and feed.claim(news):
                mine.add(feed)
                news.put(feed)
        while mine:
            feed = get(news)  # type: ignore[arg-type]
            if not self._go_on(feed):
                mine.discard(feed)

    def stop_endless(self) -> None:
        """A Ctrl-C has ended the wait for them: close those that may have no end."""
        for feed in list(self.open):
            if not feed.is_sized:
                feed.close()

    def take_up(self) -> bool:
        """Go on with what was left, without waiting; false when nothing changes. Where there is no thread."""
        changes = False
        for _ in range(self.left.qsize()):
            feed = self.left.get_nowait()
            if feed is not None and feed.claim(self.left):
                if self._go_on(feed, wait=False) and feed.is_held():
                    self.left.put(feed)  # it waits for room
                else:
                    changes = True
        return changes

    def start_if_needed(self) -> None:
        """Start the thread where it has something to do. On the supervisor thread."""
        if self._thread is None and not self.left.empty():
            thread = MapsThread(target=self._run, name=f"poolkit-{self._pool_name}-maps", daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError:  # as at the interpreter's end: whoever shuts down takes them up
                pass

    def warn_if_slow(self) -> float:
        """Say what a shutdown goes on with. Returns for how many seconds there is nothing to say."""
        if monotonic() >= self._warn_at:
            self._warn_at = math.inf
            for feed in list(self.open):
                if not feed.is_sized:
                    log.warning(
                        "the shutdown of pool %s goes on with %s, whose input has no length: if that is endless, give "
                        "shutdown() a timeout, or close() the results before",
                        self._pool_name,
                        feed.name,
                    )
        return max(0.0, self._warn_at - monotonic())

    def close(self) -> None:
        """Nothing is taken up any more. Idempotent."""
        self._closed = True
        self.open.clear()
        self.left.put(None)

    def leave_parent(self) -> None:
        """Be a copy in a forked child, which has no thread."""
        for feed in list(self.open):
            feed.leave_parent()
        self.left = SimpleQueue()
        self._ending = False
        self.close()

    def is_here(self) -> bool:
        """Whether this is the thread."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        while (feed := self.left.get()) is not None:
            if feed.claim(self.left):
                try:
                    self._go_on(feed)
                except BaseException:
                    log.exception("pool %s gives %s up, as its input raised", self._pool_name, feed.name)
            del feed

    def _go_on(self, feed: Feed[Any], *, wait: bool = True) -> bool:
        """Have a map go on; false when it needs that no more."""
        is_more = False
        try:
            is_more = feed.go_on(wait=wait)
        finally:
            if not is_more:
                self.forget(feed)
        return is_more
