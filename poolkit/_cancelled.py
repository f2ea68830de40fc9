"""Cancelled: the error that is also a `concurrent.futures.CancelledError`. It belongs to `poolkit.errors`."""

from __future__ import annotations

import concurrent.futures

from poolkit._root_error import PoolkitError


class TaskCancelled(PoolkitError, concurrent.futures.CancelledError):
    """The task was cancelled and delivers no result."""

    __module__ = "poolkit.errors"  # where it is to be found, also by pickle
