"""Generations: for each (re)load of the code a hidden pool, with a template process of its own, which imports it anew.

With start_method="fork" the template is a copy of this process, which has what this process had at the start: the same
for all generations. Owner: the cluster's thread.
"""

from __future__ import annotations

import itertools

from poolkit import _os
from poolkit._engine.dedicated import DedicatedPool, pool_for
from poolkit._kinds.settings import PoolSettings

SHM_THRESHOLD = 64 * 1024  # bytes, of messages
_tokens = itertools.count(1)


class Generations:
    """See the file's header."""

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._size = 0  # of the cluster, when the first was made
        self._pools: dict[int, tuple[dict[str, str], DedicatedPool]] = {}  # environment, hidden pool

    def env_of(self, number: int, size: int) -> dict[str, str]:
        """The environment of a generation, which has a hidden pool, with a template process of its own."""
        if number in self._pools:
            return self._pools[number][0]
        plan = self._settings
        env, start_method = dict(plan.env), None
        if plan.kind == "process":
            start_method = plan.start_method
            if start_method == "fork":
                size = self._size = self._size or size
            env["POOLKIT_SHARE"] = str(size * _os.cpu_share())  # of what this process has
            if start_method != "fork":  # whose template has what this process has, and so is the same for all
                env["POOLKIT_GENERATION"] = f"{next(_tokens)}"
        settings = PoolSettings(1, plan.kind, start_method, None, (), plan.preload, env, SHM_THRESHOLD)
        self._pools[number] = env, pool_for(settings)
        return env

    def drop(self, number: int) -> None:
        """Let go of one. Idempotent."""
        if number in self._pools:
            _, pool = self._pools.pop(number)
            if self._settings.start_method != "fork":
                pool.retire()
            pool.release()

    def drop_all(self) -> None:
        """Let go of all."""
        for number in [*self._pools]:
            self.drop(number)
