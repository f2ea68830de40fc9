"""Dedicated: the hidden pools that dedicated workers are of, one for each kind and settings.

A dedicated worker is a task that never ends, on a pool of any number of workers, each of which gets one task and
leaves. Such a pool ends with the last of them, and with the interpreter, whose end kills what runs.
Guarded by: `_lock`: `_pools`. By the pool's lock: what the methods of `Dedicated` look at.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

from poolkit._core.options import PoolLimits
from poolkit._core.workforce import DYING, STOPPING, AnyTask
from poolkit._engine import lifetime
from poolkit._engine.build import build
from poolkit._engine.supervisor import Supervisor
from poolkit._kinds.settings import PoolSettings
from poolkit._locks import RLock
from poolkit._wire import messages
from poolkit._wire.plans import Sent, inheritance
from poolkit.errors import PoolClosed

MOST = 1_000_000  # workers of such a pool
UNUSED = 0.1  # seconds after which a worker leaves whose task was cancelled before it began it
AT_EXIT = 1.0  # seconds that the end of the interpreter waits for workers to be gone

_pools: dict[object, DedicatedPool] = {}
_lock = RLock()  # re-entrant for finalizers
lifetime.locks.append(_lock)
_numbers = itertools.count(1)


class Dedicated(Supervisor):
    """Drives one such pool."""

    def end_with_interpreter(self) -> None:
        """Kill what runs. Blocks for a second at most."""
        self.shutdown(wait=True, cancel_queued=True, kill=True, timeout=AT_EXIT)

    def cancel_after(self, task: AnyTask, grace: float) -> None:
        """Cancel a task in so many seconds. Does not block."""

        def cancel(task: AnyTask, now: float) -> None:
            self._scheduler.cancel(task, now)

        self._do_soon(lambda now: self._scheduler.timers.add(now + grace, cancel, task))

    def time_out(self, task: AnyTask, limit: float) -> None:
        """Stop a task as one that ran longer than so many seconds: its error has its stack. Does not block."""
        self._do_soon(lambda now: self._scheduler.time_out(task, limit, now))

    def signal(self, task: AnyTask, number: int) -> None:
        """Send a signal to the process that has this task, if one is up. Does not block."""

        def send(_now: float) -> None:
            if task.worker_id is not None and task.worker_id in self._scheduler.roster.workers:
                self.workforce.signal(task.worker_id, number)  # type: ignore[attr-defined]  # a process

        self._do_soon(send)

    def pid_of(self, task: AnyTask) -> int | None:
        """The process that has this task, if one is up."""
        with self._lock:
            worker = self._scheduler.roster.workers.get(task.worker_id or 0)
            return None if worker is None else worker.pid

    def is_over(self, task: AnyTask) -> bool:
        """Whether no worker ends with this task, which is done: none began it."""
        with self._lock:
            worker = self._scheduler.roster.workers.get(task.worker_id or 0)
            return task.worker_id is None or (worker is not None and worker.state not in {STOPPING, DYING})

    def sent(self, settings: PoolSettings) -> Sent:
        """What a new worker has of the script."""
        if settings.start_method != "fork":
            return Sent()
        known = self.workforce._inherited  # type: ignore[attr-defined]  # noqa: SLF001 -- of the forked template
        return Sent(inheritance() if known is None else known)  # it will be forked later


class DedicatedPool:
    """One such pool, and how many lives of workers have it."""

    def __init__(self, settings: PoolSettings, key: object) -> None:
        self._settings, self._key = settings, key
        self.users = 0  # guarded by: `_lock`
        limits = PoolLimits(MOST, max_tasks_per_child=1, idle_timeout=UNUSED, on_demand=True)
        if settings.kind == "process":
            lifetime.prepare(settings)
        settings.fork_flags = messages.HAS_CHANNEL
        self.engine = build(settings, limits, f"workers-{next(_numbers)}", Dedicated)

    def sent(self) -> Callable[[], Sent]:
        """What makes the note of what a new worker has of the script."""
        return functools.partial(self.engine.sent, self._settings)

    def retire(self) -> None:
        """Its template process is for nobody else, and ends with it."""
        template = getattr(self.engine.workforce, "_template", None)
        if template is not None:
            template.is_retired = True

    def release(self) -> None:
        """One of them has ended. The last one ends the pool; the template process stays for the next."""
        with _lock:
            self.users -= 1
            if self.users:
                return
            if _pools.get(self._key) is self:
                del _pools[self._key]
        self.engine.drop()


def pool_for(settings: PoolSettings) -> DedicatedPool:
    """Return the pool with these settings, to be released, or a new one. Raises PoolClosed, and as `build`."""
    if lifetime.is_over:  # else `on_exit` that makes another would do so until nobody waits any more
        msg = "no worker can be started: the interpreter ends, which terminates them all"
        raise PoolClosed(msg)
    key = (
        *(settings.kind, settings.start_method, settings.preload, settings.shm_threshold),
        frozenset(settings.env.items()),
    )
    with _lock:
        found = _pools.get(key)
        if found is None or not found.engine.is_open():
            found = _pools[key] = DedicatedPool(settings, key)
        found.users += 1
        return found
