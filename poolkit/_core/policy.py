"""Pure rules with numbers in them: which failures are retried, how long to back off, when a worker is recycled."""

from __future__ import annotations

import random

from poolkit import errors
from poolkit._core.options import CallOptions

RETRY_BASE, RETRY_CAP = 0.05, 30.0  # seconds: the first back-off of a retried task, and the longest
BOOT_BASE, BOOT_CAP = 0.1, 10.0  # seconds: the same for workers that die before they are ready
EARLY = 0.1  # seconds; a worker that dies within so long of being ready, without a task, may do so of itself
EARLY_DEATHS = 2  # so many in a row are replaced at once all the same: somebody may have killed them
LARGE_CALL = 64 * 1024  # bytes; a worker may die of receiving a call of more than that
RECEIVE_FAILURES = 3  # so many workers that died with such a call next to be begun are laid to it
MANY_STALLED = 32  # streams that wait for their readers, each with a worker: a warning is due
BOOT_FAILURES = 3  # so many in a row that died before they were ready raise to the waiting tasks
COROUTINE_GRACE = 0.25  # seconds that a coroutine has to end once it was cancelled, or has passed its limit
STREAM_GRACE = 1.0  # seconds that a generator has for its `finally`
STOP_GRACE = 5.0  # seconds a worker gets to leave by itself before it is killed
DEATH_GRACE = 1.0  # seconds to wait for a killed worker's death before its task is settled all the same
LOOK_AGAIN = 0.01  # seconds after which a task with a shorter limit is looked at again when it has not begun
CHECK_MEMORY_NEAR, CHECK_MEMORY_FAR = (
    0.005,
    0.05,
)  # seconds between two looks at a worker's memory, near its limit and far from it
GROWTH = 2e9  # bytes a second by which a worker may grow meanwhile


def check_memory_in(room: int) -> float:
    """In how many seconds to look again at a worker that may use `room` bytes more."""
    return min(CHECK_MEMORY_FAR, max(CHECK_MEMORY_NEAR, room / GROWTH))


def retries_left(options: CallOptions, attempts: int) -> bool:
    """Whether a task that began `attempts` times may begin once more."""
    return attempts <= options.retries


def counts_for_retry(options: CallOptions, error: BaseException) -> bool:
    """Whether `error` is of a kind that is retried: a crash always, and what `retry_on` names."""
    if isinstance(error, options.retry_on):
        return True
    return isinstance(error, errors.PoolkitError) and isinstance(error, errors.WorkerCrashed)  # made at its first use


def backoff(failures: int, rng: random.Random, *, base: float = RETRY_BASE, cap: float = RETRY_CAP) -> float:
    """Seconds to wait after `failures` (1 or more) in a row: doubled each time, capped, with jitter of a half.

    The jitter keeps tasks that failed together from coming back together.
    """
    longest = min(cap, base * 2.0 ** min(failures - 1, 60))
    return float(longest * (0.5 + 0.5 * rng.random()))


def recycle_after(max_tasks: int | None, rng: random.Random) -> int | None:
    """How many tasks one worker gets: `max_tasks`, or up to a tenth fewer, so that they do not all leave at once."""
    if max_tasks is None:
        return None
    return max_tasks - rng.randint(0, max_tasks // 10)


def replace_ahead(limit: int) -> int:
    """How many tasks before a worker's last one its replacement is started, so that it is warm in time.

    The replacement takes over as soon as it is warm; with a small limit it starts with the last task, so that a worker
    gets exactly as many as were asked for.
    """
    return limit // 20
