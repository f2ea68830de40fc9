"""The options of a pool and of a call: checked where they are given, frozen afterwards.

Zero, negative, NaN and non-numeric limits are refused here, with the name and the value in the message;
infinity means no limit. Frozen after __init__, so every thread may read them.
"""

from __future__ import annotations

import math

TYPE_CHECKING = False  # what is imported here is imported before the template process is started
if TYPE_CHECKING:
    from typing import Any

WINDOW = 1024  # items of a stream that may be made and not taken, where no `buffersize` is given
WINDOW_BYTES = 4 << 20  # bytes; the same

UNSET: Any = object()  # an option that was not given, where None means "no limit"


def seconds(name: str, value: object) -> float | None:
    """Check a limit in seconds: a positive number, or None or infinity for no limit."""
    number = _number(name, value)
    if not number > 0:  # NaN is not
        msg = f"{name} must be greater than 0 seconds (None means no limit), was {value!r}"
        raise ValueError(msg)
    return None if number == math.inf else number


def wait_seconds(name: str, value: object) -> float | None:
    """Check how long a caller wants to wait: a number of 0 or more seconds, None or infinity for ever."""
    number = _number(name, value)
    if not number >= 0:
        msg = f"{name} must be at least 0 seconds (None means for ever), was {value!r}"
        raise ValueError(msg)
    return None if number == math.inf else number


def _number(name: str, value: object) -> float:
    """A number of seconds; None, and a whole number too large for a float, are infinity."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{name} must be a number of seconds or None, was {value!r}"
        raise TypeError(msg)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def whole(name: str, value: object, *, least: int = 1, of: str = "") -> int:
    """Check a whole number of at least `least`; `of` goes behind "number" in what is said of others."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        msg = f"{name} must be a whole number{of}, was {value!r}"
        raise TypeError(msg)
    number = int(value.__index__())
    if number < least:
        msg = f"{name} must be at least {least}{' or None' if of.endswith(_OR_NONE) else ''}, was {number}"
        raise ValueError(msg)
    return number


def whole_or_none(name: str, value: object, *, least: int = 1, of: str = "") -> int | None:
    """Check a whole number of at least `least`, or None."""
    return None if value is None else whole(name, value, least=least, of=of + _OR_NONE)


_OR_NONE = " or None"


def exception_types(name: str, value: object) -> tuple[type[BaseException], ...]:
    """Check a tuple of exception types; one type alone is taken as a tuple of it."""
    types = value if isinstance(value, tuple) else (value,)
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            msg = f"{name} must be a tuple of exception types, was {value!r}"
            raise TypeError(msg)
    return types


def text_or_none(name: str, value: object) -> str | None:
    """Check a string or None."""
    if value is not None and not isinstance(value, str):
        msg = f"{name} must be a string or None, was {value!r}"
        raise TypeError(msg)
    return value


class CallOptions:
    """What holds for one call; views of a pool differ in these only. Seconds, None: no limit. Never changed once made.

    Not a dataclass: importing those takes 9 ms, and no template process is started before.
    """

    NAMES = (
        *("timeout", "queue_timeout", "deadline", "memory_limit", "priority", "retries", "retry_on", "block", "name"),
        "buffersize",
    )
    __slots__ = (*NAMES, "alone", "grace", "special", "unhurried", "window")

    def __init__(  # noqa: PLR0913 -- all that can be asked for, by keyword
        self,
        *,
        timeout: float | None = None,
        queue_timeout: float | None = None,
        deadline: float | None = None,
        memory_limit: int | None = None,
        priority: int = 0,
        retries: int = 0,
        retry_on: tuple[type[BaseException], ...] = (),
        block: bool = True,
        name: str | None = None,
        buffersize: int | None = None,
    ) -> None:
        """Take what was checked."""
        self.timeout = timeout
        self.queue_timeout = queue_timeout
        self.deadline = deadline
        self.memory_limit = memory_limit
        self.priority = priority
        self.retries = retries
        self.retry_on = retry_on
        self.block = block
        self.name = name
        self.buffersize = buffersize
        # Of a stream: how many items, and bytes, may be made and not taken. None: it is no stream.
        self.window: tuple[int, float] | None = None
        # Of a program: how many seconds it gets to end by itself. None: it is none.
        self.grace: float | None = None
        self.alone = memory_limit is not None  # whether such a task is sent to a worker only by itself
        self.special = self.alone  # whether not any idle worker will do for it
        # Whether nothing is to be done for such a task as long as all workers are busy, but to keep it.
        self.unhurried = priority <= 0 and queue_timeout is None and deadline is None

    def for_stream(self) -> CallOptions:
        """A copy for a stream."""
        copy = CallOptions(**self.as_dict())
        copy.window = (WINDOW, WINDOW_BYTES) if self.buffersize is None else (self.buffersize, math.inf)
        copy.alone = True
        return copy

    def for_program(self, grace: float) -> CallOptions:
        """A copy for a command."""
        copy = CallOptions(**self.as_dict())
        copy.grace = grace
        copy.alone = copy.special = True
        copy.unhurried = False
        return copy

    def check_memory_limit(self, why_not: str | None) -> None:
        """Raise ValueError where it has a limit on memory, and there is a reason why none can be kept."""
        if self.memory_limit is not None and why_not is not None:
            msg = f"memory_limit={self.memory_limit!r} cannot be kept: {why_not}"
            raise ValueError(msg)

    def as_dict(self) -> dict[str, Any]:
        """Each option by its name."""
        return {name: getattr(self, name) for name in self.NAMES}

    def __eq__(self, other: object) -> bool:
        """Whether both say the same."""
        return isinstance(other, CallOptions) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Show all of them."""
        return f"CallOptions({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def changed(self, **given: Any) -> CallOptions:
        """A checked copy with the options in `given` that are not UNSET."""
        checks: dict[str, Any] = {
            "timeout": seconds,
            "queue_timeout": seconds,
            "deadline": seconds,
            "memory_limit": _nbytes,
            "priority": _priority,
            "retries": lambda name, value: whole(name, value, least=0),
            "retry_on": exception_types,
            "block": flag,
            "name": text_or_none,
            "buffersize": whole_or_none,
        }
        changes = {name: checks[name](name, value) for name, value in given.items() if value is not UNSET}
        return CallOptions(**{**self.as_dict(), **changes})


def _nbytes(name: str, value: object) -> int | None:
    return None if value == math.inf else whole_or_none(name, value, of=" of bytes")


def _priority(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        msg = f"{name} must be a whole number (larger runs earlier), was {value!r}"
        raise TypeError(msg)
    return int(value.__index__())


def flag(name: str, value: object) -> bool:
    """Check True or False."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, was {value!r}"
        raise TypeError(msg)
    return value


class PoolLimits:
    """What the scheduler has to know of a pool. Times in seconds, sizes in bytes, None for no limit. Never changed."""

    def __init__(  # noqa: PLR0913 -- what the pool was given
        self,
        max_workers: int,
        *,
        max_queue: int | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        min_workers: int = 0,
        idle_timeout: float | None = None,
        on_demand: bool = False,
    ) -> None:
        """Take what was checked."""
        self.on_demand = on_demand  # workers are started for queued tasks alone, and for none that left or died
        self.max_workers = max_workers
        self.max_queue = max_queue
        self.max_tasks_per_child = max_tasks_per_child
        self.max_memory_per_child = max_memory_per_child
        self.min_workers = min_workers
        self.idle_timeout = idle_timeout
