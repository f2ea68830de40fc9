"""Listeners: who is told of a pool's events; and the traces, which take down everything.

Guarded by: the pool's one lock: `add`, `remove`. `tell` is for the thread that calls callbacks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from poolkit._core.scheduler import Scheduler
from poolkit._core.workforce import EVENT_NAMES, PoolEvent, Recorder
from poolkit._kinds.loggers import log

Listener = Callable[[Any], object]


class Listeners:
    """The listeners of one pool, by kind of event."""

    def __init__(self, pool_name: str) -> None:
        self._pool_name = pool_name
        self._by_kind: dict[type, tuple[Listener, ...]] = {}

    def add(self, name: str, listener: Listener) -> frozenset[type]:
        """Have `listener` told of events of that name; returns the kinds that anybody listens to."""
        kind = EVENT_NAMES[name]
        self._by_kind[kind] = (*self._by_kind.get(kind, ()), listener)
        return frozenset(self._by_kind)

    def remove(self, name: str, listener: Listener) -> frozenset[type]:
        """Undo one `add`; returns the kinds that anybody listens to. Raises ValueError when it was not listening."""
        kind = EVENT_NAMES[name]
        left = list(self._by_kind.get(kind, ()))
        if listener not in left:
            msg = f"{listener!r} does not listen to {name!r}"
            raise ValueError(msg)
        left.remove(listener)
        if left:
            self._by_kind[kind] = tuple(left)
        else:
            del self._by_kind[kind]
        return frozenset(self._by_kind)

    def tell(self, event: PoolEvent) -> None:
        """Call the listeners to an event. Without the lock: they are the user's code."""
        for listener in self._by_kind.get(type(event), ()):
            try:
                listener(event)
            except BaseException:
                log.exception("a listener of pool %s raised at %r", self._pool_name, event)


class Recording(Protocol):
    """A trace, as far as the engine goes; see `poolkit/trace.py`."""

    take: Recorder

    def stop(self) -> None: ...


class TraceThread(threading.Thread):
    """The thread of a trace; its own class, so that poolkit knows its own."""


class Traces:
    """The traces of one pool, whose lock is `lock`. All methods are thread-safe."""

    def __init__(self, lock: AbstractContextManager[object], scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self.all: tuple[Recording, ...] = ()
        self.clock = clock
        self._lock = lock
        self._scheduler = scheduler

    def add(self, trace: Recording) -> None:
        """Have one more take down what happens; it is stopped when the pool has ended."""
        with self._lock:
            self._scheduler.check_open("trace")
            self._set((*self.all, trace), trace)

    def remove(self, trace: Recording) -> None:
        """Undo one `add`, if that was done."""
        if trace in self.all:  # looked at first, as a thread that ends must not wait for the lock
            with self._lock:
                self._set(tuple(each for each in self.all if each is not trace), trace)

    def _set(self, traces: tuple[Recording, ...], changed: Recording) -> None:
        self._scheduler.tell_state(changed.take, self.clock())
        takes = [trace.take for trace in traces]
        if len(takes) > 1:
            self._scheduler.recorder = lambda record: [take(record) for take in takes]
        else:
            self._scheduler.recorder = takes[0] if takes else None
        self.all = traces

    def end(self) -> None:
        """The pool has ended, so they are complete. Blocks while files are written; not under the lock."""
        for trace in self.all:
            trace.stop()

    def leave_parent(self) -> None:
        """In a forked child there is nothing to take down."""
        self._scheduler.recorder, self.all = None, ()
