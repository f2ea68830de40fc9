"""Build: puts a supervisor and the workforce of a kind together. The one place that knows all kinds."""

from __future__ import annotations

import functools
import os
import threading
from typing import TypeVar

from poolkit._core.options import PoolLimits
from poolkit._engine.callbacks import CallbackThread
from poolkit._engine.listeners import TraceThread
from poolkit._engine.maps import MapsThread
from poolkit._engine.services import OwnThread
from poolkit._engine.supervisor import Supervisor, SupervisorThread
from poolkit._kinds.settings import PoolSettings
from poolkit._locks import RLock
from poolkit._wire import inherit
from poolkit._wire.habits import of_thread
from poolkit._wire.messages import MOST_FDS
from poolkit._wire.plans import Manifest
from poolkit.errors import SerializationError

Some = TypeVar("Some", bound=Supervisor)

PROGRAMS = "poolkit-programs"  # the name of the thread that owns them, whose module few need
_OWN = (SupervisorThread, CallbackThread, MapsThread, TraceThread, OwnThread)
MOST_INHERITED = MOST_FDS - 9  # the rest is for its control socket, its streams, its link and its lease


def build(settings: PoolSettings, limits: PoolLimits, name: str, make: type[Some] = Supervisor) -> Some:  # type: ignore[assignment]
    """Make the supervisor of a pool, of the class `make`. Starts no worker.

    Raises:
        SerializationError: the initializer or its arguments cannot be pickled.
        RuntimeError: what was asked for cannot be had here.
    """
    if settings.kind == "thread":
        return _build_threads(settings, limits, name, make)
    return _build_processes(settings, limits, name, make)


def _build_threads(settings: PoolSettings, limits: PoolLimits, name: str, make: type[Some]) -> Some:
    from poolkit._kinds.thread import ThreadWorkforce  # noqa: PLC0415 -- most programs use one kind

    initializer = settings.bound_initializer()
    workforce = ThreadWorkforce(name=name, prefix=settings.thread_name_prefix, initializer=initializer)
    supervisor = make(RLock(), workforce, limits, name=name)
    workforce.post = supervisor.post
    return supervisor


def _build_processes(settings: PoolSettings, limits: PoolLimits, name: str, make: type[Some]) -> Some:
    from poolkit._kinds.peer import boot_settings  # noqa: PLC0415 -- see above
    from poolkit._kinds.process import ProcessWorkforce  # noqa: PLC0415 -- see above
    from poolkit._memory.owner import OwnerTransport  # noqa: PLC0415 -- see above

    packed: tuple[bytes, Manifest | None] | None = None
    fds: list[int] = []
    if settings.start_method == "fork":
        _refuse_threads()
    elif settings.initializer is not None:
        data, fds, manifest = inherit.pack_initializer(settings.initializer, settings.initargs)
        packed = data, manifest
        if len(fds) > MOST_INHERITED:
            for fd in fds:
                os.close(fd)
            msg = f"initargs need {len(fds)} descriptors in each worker; {MOST_INHERITED} can be handed over"
            raise SerializationError(msg)
    lock, transport = RLock(), OwnerTransport(settings.shm_threshold, name)
    boot = functools.partial(
        boot_settings,
        settings,
        initializer=packed,
        measure_rss=limits.max_memory_per_child is not None,
        shm_threshold=transport.threshold,
        habits=of_thread(),
    )
    workforce = ProcessWorkforce(lock, settings, boot=boot, inherited_fds=fds, transport=transport)
    return make(lock, workforce, limits, name=name)


def _refuse_threads() -> None:
    """A fork copies one thread and every lock: what another thread holds at that moment stays locked for ever."""
    others = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.current_thread() and not isinstance(thread, _OWN) and thread.name != PROGRAMS
    ]
    if others:
        msg = (
            f"start_method='fork' is not safe while other threads run ({', '.join(others)}): "
            "make the pool before they start, or use start_method='forkserver'"
        )
        raise RuntimeError(msg)
