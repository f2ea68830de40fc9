"""Settings: what a pool is made from, checked where it is given."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from poolkit import _os
from poolkit._core import options as checks
from poolkit._core.options import PoolLimits

KINDS = ("process", "thread")
START_METHODS = ("forkserver", "spawn", "fork")


# Thread counts of the numerical libraries, which read them when they are first imported.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


class Context(Protocol):
    """A context of multiprocessing, as far as it counts."""

    def get_start_method(self) -> str | None:
        """How its processes start."""


class PoolSettings:
    """What a workforce is made from. Never changed once the pool is made."""

    def __init__(  # noqa: PLR0913, PLR0917 -- what the pool was given
        self,
        size: int,
        kind: str,
        start_method: str | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        preload: Sequence[str],
        env: Mapping[str, str] | None,
        shm_threshold: int | None,
        thread_name_prefix: str = "",
    ) -> None:
        """Check what the pool was given. Raises TypeError or ValueError."""
        if kind not in KINDS:
            msg = f"kind must be one of {', '.join(map(repr, KINDS))}, was {kind!r}"
            if kind == "interpreter":
                msg += ": this version of poolkit has no workers of that kind"
            raise ValueError(msg)
        if start_method is not None and start_method not in START_METHODS:
            msg = f"start_method must be one of {', '.join(map(repr, START_METHODS))} or None, was {start_method!r}"
            raise ValueError(msg)
        check_initializer(initializer)
        if not hasattr(initargs, "__iter__"):
            msg = f"initargs must be a tuple of arguments for the initializer, was {initargs!r}"
            raise TypeError(msg)
        if isinstance(preload, str) or not hasattr(preload, "__iter__") or not all(type(it) is str for it in preload):
            msg = f"preload must be a sequence of module names, as in ('numpy',), was {preload!r}"
            raise TypeError(msg)
        variables = _variables(env)
        if kind != "process" and (start_method or preload or variables):
            msg = f"start_method, preload and env are for kind='process', not for kind={kind!r}"
            raise ValueError(msg)
        _check_prefix(thread_name_prefix, kind)
        self.kind = kind
        self.thread_name_prefix = thread_name_prefix
        self.initializer = initializer
        self.initargs = tuple(initargs)
        self.start_method = start_method or "forkserver"
        self.preload = tuple(preload)
        self.env: Mapping[str, str] = variables
        self.shm_threshold = checks.whole_or_none("shm_threshold", shm_threshold, of=" of bytes")
        self.shares: Mapping[str, str] = {}  # variables for workers that are processes; see `share_cpus`
        self.size = size
        self.given: Mapping[str, Any] = {}  # of another process, whose script the workers have; see `_child/boot.py`
        self.fork_flags = 0  # of orders to the template process, see `_wire/messages.py`
        self.streams = 1, 2  # descriptors that its workers print to, open as long as the pool
        self.lease_fd: int | None = None  # of a `LeasePage` that its workers live under, open as long as the pool

    def share_cpus(self) -> None:
        """Give libraries that make threads a fair share of the CPUs, unless the environment says something else.

        For processes alone, as to count CPUs takes longer than all the rest; before anything reads the settings.
        """
        share = str(max(1, _os.usable_cpus() // self.size))
        self.shares = {name: share for name in _THREAD_VARIABLES if name not in os.environ and name not in self.env}

    def bound_initializer(self) -> Callable[[], object] | None:
        """The initializer with its arguments."""
        return None if self.initializer is None else functools.partial(self.initializer, *self.initargs)


def _variables(env: Any) -> dict[str, str]:
    if env is not None and not hasattr(env, "keys"):
        msg = f"env must be a mapping of strings to strings, as in {{'TZ': 'UTC'}}, was {env!r}"
        raise TypeError(msg)
    variables = dict(env or {})
    for name, value in variables.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            msg = f"env must map strings to strings, had {name!r}: {value!r}"
            raise TypeError(msg)
        if not name or "=" in name or "\0" in name + value:
            msg = f"env has what no system takes as an environment variable: {name!r}: {value!r}"
            raise ValueError(msg)
    return variables


def _check_prefix(prefix: object, kind: str) -> None:
    if not isinstance(prefix, str):
        msg = f"thread_name_prefix must be a string, was {prefix!r}"
        raise TypeError(msg)
    if kind != "thread" and prefix:
        msg = f"thread_name_prefix is for kind='thread', not for kind={kind!r}"
        raise ValueError(msg)


def start_method_of(mp_context: Context | None, start_method: str | None) -> str | None:
    """The start method that was asked for, in either way. Raises TypeError or ValueError."""
    if mp_context is None:
        return start_method
    if not callable(getattr(mp_context, "get_start_method", None)):
        msg = (
            f"mp_context must be a context of multiprocessing or None, was {mp_context!r}; "
            "a start method goes into start_method=, the names of threads into thread_name_prefix="
        )
        raise TypeError(msg)
    found = mp_context.get_start_method()
    if found not in START_METHODS:
        msg = f"the start method of mp_context must be one of {', '.join(map(repr, START_METHODS))}, was {found!r}"
        raise ValueError(msg)
    if start_method not in {None, found}:
        msg = f"start_method={start_method!r} contradicts mp_context, whose start method is {found!r}"
        raise ValueError(msg)
    return found


def check_limits(
    size: int,
    *,
    max_queue: int | None,
    max_tasks_per_child: int | None,
    max_memory_per_child: int | None,
    min_workers: int | None,
    idle_timeout: float | None,
) -> PoolLimits:
    """Check what the scheduler has to know of a pool."""
    limits = PoolLimits(
        max_workers=size,
        max_queue=checks.whole_or_none("max_queue", max_queue),
        max_tasks_per_child=checks.whole_or_none("max_tasks_per_child", max_tasks_per_child),
        max_memory_per_child=checks.whole_or_none("max_memory_per_child", max_memory_per_child, of=" of bytes"),
        min_workers=checks.whole_or_none("min_workers", min_workers, least=0) or 0,
        idle_timeout=checks.seconds("idle_timeout", idle_timeout),
    )
    if limits.min_workers > size:
        msg = f"min_workers must not exceed max_workers ({size}), was {min_workers}"
        raise ValueError(msg)
    return limits


def check_initializer(initializer: object) -> None:
    """Check that an initializer can be called, if there is one."""
    if initializer is not None and not callable(initializer):
        msg = f"initializer must be something to call or None, was {initializer!r}"
        raise TypeError(msg)
