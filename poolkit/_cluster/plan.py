"""Plan: what a cluster was asked for, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolkit._cluster.acceptor import Schedule
from poolkit._cluster.binding import Bound
from poolkit._kinds.settings import PoolSettings


class Plan:
    """What a cluster was asked for, checked. Frozen."""

    def __init__(  # noqa: PLR0913 -- the options
        self,
        *,
        name: str,
        target: Callable[[Any], object],
        size: int,
        bound: list[Bound],
        schedule: str | Schedule,
        settings: PoolSettings,
        grace: float,
        boot_timeout: float,
        liveness: float | None,
        max_requests: int | None,
        max_memory: int | None,
    ) -> None:
        self.name, self.target, self.size, self.bound, self.schedule = name, target, size, bound, schedule
        self.settings, self.grace, self.boot_timeout, self.liveness = settings, grace, boot_timeout, liveness
        self.max_requests, self.max_memory = max_requests, max_memory
