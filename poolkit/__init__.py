"""poolkit: a pool of long-lived workers that never loses a task.

The names below are the public ones. They are imported when they are first used, so that a worker half, which
imports parts of this package, does not pay for the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

    from poolkit._child.port import Port, current_port
    from poolkit._core.stats import HistogramSnapshot, PoolStats, WorkerInfo
    from poolkit._core.workforce import TaskDone, TaskRetried, TaskStarted, WorkerExited, WorkerStarted
    from poolkit._kinds.commands import CompletedCommand
    from poolkit._os import usable_cpus
    from poolkit._servers.application import application
    from poolkit.bars import progress
    from poolkit.broadcast import Shared
    from poolkit.cluster import Cluster, ClusterContext, ClusterStats, ClusterWorkerInfo
    from poolkit.command import Command
    from poolkit.context import TaskContext, current_task
    from poolkit.decorator import Offloaded, OffloadedStream, default_pool, offload, set_default_pool, use_pool
    from poolkit.errors import (
        ChannelClosed,
        ClusterFailed,
        CommandFailed,
        DeadlineExceeded,
        InitializerFailed,
        MemoryLimitExceeded,
        NodeLost,
        NoNodes,
        OutputLimitExceeded,
        PoolClosed,
        PoolkitError,
        QueueFull,
        QueueTimeout,
        ReloadFailed,
        RemoteError,
        SerializationError,
        TaskCancelled,
        TaskTimeout,
        VersionMismatch,
        WorkerCrashed,
    )
    from poolkit.exchange import Messages
    from poolkit.face import PoolView
    from poolkit.pool import Pool
    from poolkit.reading import Chunks, Lines
    from poolkit.results import Results
    from poolkit.running import run, spawn
    from poolkit.shared import SharedArray, SharedBuffer
    from poolkit.stream import Stream
    from poolkit.task import Progress, Task
    from poolkit.trace import Trace
    from poolkit.worker import Worker


__version__ = "0.2.0"

_HOMES = {  # of what is no error
    "poolkit._child.port": ("Port", "current_port"),
    "poolkit._core.stats": ("HistogramSnapshot", "PoolStats", "WorkerInfo"),
    "poolkit._core.workforce": ("TaskDone", "TaskRetried", "TaskStarted", "WorkerExited", "WorkerStarted"),
    "poolkit._kinds.commands": ("CompletedCommand",),
    "poolkit.cluster": ("Cluster", "ClusterContext", "ClusterStats", "ClusterWorkerInfo"),
    "poolkit._os": ("usable_cpus",),
    "poolkit._servers.application": ("application",),
    "poolkit.command": ("Command",),
    "poolkit.reading": ("Chunks", "Lines"),
    "poolkit.running": ("run", "spawn"),
    "poolkit.decorator": ("Offloaded", "OffloadedStream", "default_pool", "offload", "set_default_pool", "use_pool"),
    "poolkit.exchange": ("Messages",),
    "poolkit.face": ("PoolView",),
    "poolkit.pool": ("Pool",),
    "poolkit.results": ("Results",),
    "poolkit.bars": ("progress",),
    "poolkit.broadcast": ("Shared",),
    "poolkit.stream": ("Stream",),
    "poolkit.shared": ("SharedArray", "SharedBuffer"),
    "poolkit.context": ("TaskContext", "current_task"),
    "poolkit.task": ("Progress", "Task"),
    "poolkit.trace": ("Trace",),
    "poolkit.worker": ("Worker",),
}
_MODULES = ("dask", "extras", "testing")
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ChannelClosed",
    "Chunks",
    "Cluster",
    "ClusterContext",
    "ClusterFailed",
    "ClusterStats",
    "ClusterWorkerInfo",
    "Command",
    "CommandFailed",
    "CompletedCommand",
    "DeadlineExceeded",
    "HistogramSnapshot",
    "InitializerFailed",
    "Lines",
    "MemoryLimitExceeded",
    "Messages",
    "NoNodes",
    "NodeLost",
    "Offloaded",
    "OffloadedStream",
    "OutputLimitExceeded",
    "Pool",
    "PoolClosed",
    "PoolStats",
    "PoolView",
    "PoolkitError",
    "Port",
    "Progress",
    "QueueFull",
    "QueueTimeout",
    "ReloadFailed",
    "RemoteError",
    "Results",
    "SerializationError",
    "Shared",
    "SharedArray",
    "SharedBuffer",
    "Stream",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskDone",
    "TaskRetried",
    "TaskStarted",
    "TaskTimeout",
    "Trace",
    "VersionMismatch",
    "Worker",
    "WorkerCrashed",
    "WorkerExited",
    "WorkerInfo",
    "WorkerStarted",
    "application",
    "current_port",
    "current_task",
    "default_pool",
    "offload",
    "progress",
    "run",
    "set_default_pool",
    "spawn",
    "usable_cpus",
    "use_pool",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        import sys  # noqa: PLC0415 -- see below

        msg = f"module {__name__!r} has no attribute {name!r}"
        if name in _MODULES:
            msg += f" yet: import poolkit.{name} first"
        raise AttributeError(msg, name=name, obj=sys.modules[__name__])  # so that Python says what was meant
    import importlib  # noqa: PLC0415 -- keeps this module empty

    home = _HOME.get(name)
    if home is not None:
        check_system()
    value = getattr(importlib.import_module(home or "poolkit.errors"), name)
    globals()[name] = value
    return value


def check_system() -> None:
    """Raise RuntimeError on a system on which only the errors can be imported."""
    import os  # noqa: PLC0415 -- see above

    if os.name != "posix":
        msg = (
            f"poolkit does not run on this system (os.name is {os.name!r}): it needs Linux, or a POSIX system like it; "
            "on Windows run the program in WSL 2, or use concurrent.futures"
        )
        raise RuntimeError(msg)


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__", "testing"])
