"""Loggers: the library's own, and what workers need to know of those of this process.

The logger is made when poolkit is imported, not when a pool is made, which is when most of the rest is imported: making
a logger takes a lock of `logging`, and a thread that holds that may be waiting for the pool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from poolkit.context import current_task

log = logging.getLogger("poolkit")
_marking: Callable[..., logging.LogRecord] | None = None


def log_levels() -> dict[str, int]:
    """The levels that were set in this process, by the names of the loggers; "" is the root logger."""
    levels = {"": int(logging.root.level)}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[str(name)] = int(logger.level)
    return levels


def mark_records() -> None:
    """Have records that tasks in this process make say which worker and task made them.

    Done anew where somebody has set another factory since; one that wraps ours marks them twice, with the same marks.
    """
    global _marking  # noqa: PLW0603 -- a process has one factory
    make = logging.getLogRecordFactory()
    if make is _marking:
        return

    def make_marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        task = current_task()
        if task is not None and task.worker_id:
            record.poolkit_worker, record.poolkit_task = task.worker_id, task.id
        return record

    _marking = make_marked
    logging.setLogRecordFactory(make_marked)
