"""Descriptors: how many this process may have open, raised when its workers need more.

The usual soft limit of 1024 is there for programs that use `select()`, which knows no greater numbers; the hard limit
is what the system allows. So the soft one is raised when there is no descriptor left for a worker, and no sooner, and
workers, with the programs that they start, have the one that there was before.
Owner: whoever holds FORKING or the reader's lock raises it; anybody may look.
"""

from __future__ import annotations

import resource

PER_WORKER = 7  # its control socket, calls (two), outcomes, tokens, board and descriptor channel
SPARE = 64  # for what else the program opens

_raised: tuple[int, int] | None = None  # the soft limit that there was before, and the one that was set


def soft_limit() -> int:
    """The soft limit of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def soft_limit_before() -> int:
    """The soft limit that this process would have if it had not been raised here: that of workers."""
    soft = soft_limit()
    return _raised[0] if _raised is not None and soft == _raised[1] else soft


def raise_limit(workers: int, notes: list[str]) -> bool:
    """Make room for so many workers more, as all that the limit allows is open; False when there is none to be had.

    Adds to `notes` what is to be logged, once.
    """
    global _raised  # noqa: PLW0603 -- a process has one limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + workers * PER_WORKER + SPARE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted <= soft:
        return False
    before = soft_limit_before()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # the system has another limit above
        return False
    if before == soft:
        notes.append(f"the soft limit on open files was raised from {soft} to {wanted}, for {workers} workers more")
    _raised = before, wanted
    return True


def lack(workers: int) -> str:
    """Why there will not be so many workers, and what to do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"no descriptor is left for one more of {workers} workers: each needs {PER_WORKER} of this program, "
        f"{workers * PER_WORKER} in all, and it may have {soft} open files in all (soft limit; hard limit {hard}): "
        "raise the limit (ulimit -n), or use fewer workers"
    )
