"""Dask's plugin that gives each dask worker a pool as one of its executors; see `poolkit.dask.install`."""

from __future__ import annotations

import asyncio
from typing import Any

import distributed
from distributed.diagnostics.plugin import WorkerPlugin

from poolkit.pool import Pool

RUNS_TASKS = ("distributed.worker",)  # what each of Dask's tasks needs: the template process has it imported, once


class ExecutorPlugin(WorkerPlugin):  # type: ignore[misc]
    """Puts a pool into each dask worker, and ends it with that."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self._name = name
        self._settings = settings
        self._pool: Pool | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ExecutorPlugin, (self._name, self._settings)

    def setup(self, worker: distributed.Worker) -> None:
        """Called on the worker's event loop: the pool starts its processes with the first task."""
        settings = {"max_workers": worker.state.nthreads, "name": self._name} | self._settings
        settings["preload"] = [*RUNS_TASKS, *settings.get("preload", ())]
        self._pool = worker.executors[self._name] = Pool(**settings)

    async def teardown(self, worker: distributed.Worker) -> None:
        """End the pool; what runs in it is killed, as Dask has given it up."""
        if self._pool is not None:
            if worker.executors.get(self._name) is self._pool:
                del worker.executors[self._name]
            await asyncio.to_thread(self._pool.shutdown, kill=True)
