"""Services: what belongs to no pool of the user's, and is one for the process: a callback thread, and a watcher.

    callback thread   calls what was registered with dedicated workers: `on_message`, `on_exit`, done callbacks of calls
    watcher           a thread that waits until something is to be read from a channel, or written, and says so, once

Each starts with its first use, and both end when nobody is left who entered: so there is neither while there are no
callbacks. At the interpreter's end, what is left to be called then is called. A forked child has neither.
Guarded by: `_lock`: `users`, the start and end of the threads.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from poolkit import _os
from poolkit._child.port import Channel
from poolkit._clock import monotonic
from poolkit._engine import lifetime
from poolkit._engine.callbacks import Callbacks
from poolkit._kinds.loggers import log
from poolkit._locks import RLock

AT_EXIT = 5.0  # seconds that the end of the interpreter waits for callbacks

Ready = Callable[[], object]


class OwnThread(threading.Thread):
    """A thread of poolkit's; its own class, so that poolkit knows its own."""


class WatcherThread(OwnThread):
    """The watcher's thread."""


class _Watcher:
    """Waits for descriptors. All but `_run` is for any thread. Guarded by: `_lock`: `_watched`, what is registered."""

    def __init__(self) -> None:
        self._poller = _os.LinkPoller()
        self._wakeup = _os.Wakeup()
        self._poller.register(self._wakeup.fileno())
        self._lock = RLock()
        self._watched: dict[int, Ready] = {}
        self._is_over = False
        try:
            WatcherThread(target=self._run, name="poolkit-watcher", daemon=True).start()
        except RuntimeError:  # there are no more threads
            self.close()
            raise

    def watch(self, fd: int, ready: Ready, *, writes: bool) -> None:
        with self._lock:
            self.leave(fd)
            self._watched[fd] = ready
            with contextlib.suppress(FileExistsError):  # an interrupt came in `leave`
                self._poller.register(fd, writes=writes)
        if self._poller.fileno is None:  # it does not see what comes while it waits
            self._wakeup.set()

    def leave(self, fd: int) -> Ready | None:
        """Watch it no more; returns what was to be called."""
        with self._lock:
            ready = self._watched.pop(fd, None)
            if ready is not None:
                self._unregister(fd)
            return ready

    def _unregister(self, fd: int) -> None:
        with contextlib.suppress(KeyError, OSError, ValueError):  # an interrupt came before; or it is over
            self._poller.unregister(fd)

    def end(self) -> None:
        self._is_over = True
        self._wakeup.set()

    def _run(self) -> None:
        while not self._is_over:
            for fd, _ in self._poller.poll(None):
                if fd == self._wakeup.fileno():
                    self._wakeup.clear()
                elif (ready := self.leave(fd)) is None:
                    with self._lock:
                        if fd not in self._watched:  # an interrupt left it registered
                            self._unregister(fd)
                else:
                    try:
                        ready()
                    except Exception:
                        log.exception("what a dedicated worker said could not be passed on; this is a bug in poolkit")
                ready = None  # nothing is kept alive while it waits
        self.close()

    def close(self) -> None:
        self._poller.close()
        self._wakeup.close()


class Services:
    """See the file's header. Thread-safe."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._callbacks = Callbacks("process", lambda: None)
        self._watcher: _Watcher | None = None
        self._users = 0
        self._unused = threading.Event()
        self._unused.set()

    def enter(self, channel: Channel | None = None) -> None:
        """There is one more who may be called, and have this watched. Raises OSError, RuntimeError: it cannot be."""
        with self._lock:
            if channel is not None and channel.fd is not None and self._watcher is None:
                self._watcher = _Watcher()
            self._users += 1
            self._unused.clear()

    def leave(self) -> None:
        """There is one less. The threads end with the last, after what is to be called."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            watcher, self._watcher = self._watcher, None
            if watcher is not None:
                watcher.end()
            self._callbacks.thread.end()
            self._unused.set()

    def call(self, function: Callable[[Any], object], what: Any) -> None:
        """Have it called on the callback thread. Does not block."""
        self._callbacks.queue.append((function, what))
        with self._lock:
            has_thread = self._callbacks.thread.start()
            if not self._users:
                self._callbacks.thread.end()
        if not has_thread:  # as at the end of the interpreter
            self._callbacks.call_all()

    def watch(self, channel: Channel, ready: Ready, *, writes: bool = False) -> None:
        """Have `ready` called once, when there is something to take, or room, or at the end: on the watcher's thread.

        Or on that of a worker that is a thread. By one who has entered for it. Does not block.
        """
        watcher = self._watcher
        if channel.fd is None:
            channel.call_when_ready(ready)
        elif watcher is not None:
            watcher.watch(channel.fd, ready, writes=writes)

    def unwatch(self, channel: Channel) -> None:
        """Have it called no more, unless that has begun. Does not block."""
        watcher = self._watcher
        if channel.fd is not None and watcher is not None:
            watcher.leave(channel.fd)

    def is_here(self) -> bool:
        """Whether this is the callback thread."""
        return self._callbacks.thread.ident == threading.get_ident()

    def finish(self) -> None:
        """Wait until all is called, for at most AT_EXIT seconds. At the end of the interpreter."""
        give_up = monotonic() + AT_EXIT
        self._unused.wait(AT_EXIT)
        self._callbacks.thread.close(give_up - monotonic())

    def leave_parent(self) -> None:
        """Be a copy in a forked child, which closes what it has of the watcher, and begins anew."""
        if self._watcher is not None:
            self._watcher.close()
        self.__init__()  # type: ignore[misc]


services = Services()
lifetime.last.append(services.finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=services.leave_parent)
