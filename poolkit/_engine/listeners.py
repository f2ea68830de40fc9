"""Listeners: who is told of a pool's events.

Guarded by: the pool's one lock: `add`, `remove`. `tell` is for the thread that calls callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolkit._core.workforce import EVENT_NAMES, PoolEvent
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
