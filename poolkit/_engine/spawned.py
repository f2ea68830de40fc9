"""Spawned: the hidden pool of what `poolkit.spawn` starts: at once, as it has a place for each.

At the end of the interpreter what runs is stopped.
Guarded by: `_lock`: `_pool`.
"""

from __future__ import annotations

from poolkit._core.options import PoolLimits
from poolkit._engine import lifetime
from poolkit._engine.build import build
from poolkit._engine.supervisor import Supervisor
from poolkit._kinds.settings import PoolSettings
from poolkit._locks import RLock

MOST = 1_000_000  # programs

_pool: Spawned | None = None
_lock = RLock()  # re-entrant for finalizers
lifetime.locks.append(_lock)


class Spawned(Supervisor):
    """Drives it."""

    def end_with_interpreter(self) -> None:
        """Stop what runs, and wait for that. Blocks."""
        self.shutdown(wait=True, cancel_queued=True, kill=True, timeout=None)


def pool() -> Spawned:
    """Return it; a new one where there is none, or that was another process's."""
    global _pool  # noqa: PLW0603 -- one for the process
    with _lock:
        if _pool is None or not _pool.is_open():
            settings = PoolSettings(MOST, "thread", None, None, (), (), None, None)
            _pool = build(settings, PoolLimits(MOST), "spawned", Spawned)
        return _pool
