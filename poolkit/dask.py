"""Dask: containment for tasks that Dask itself schedules.

`install` puts a `poolkit.Pool` into each dask worker as one of its executors; a task that is annotated with its name
runs in a process of its own kind: a crash, a hang or a leak costs that task, not the dask worker and what it holds.
"""

from __future__ import annotations

import asyncio
from typing import Any

import distributed
from distributed.diagnostics.plugin import WorkerPlugin

from poolkit.pool import Pool

__all__ = ["install"]

RUNS_TASKS = ("distributed.worker",)  # what each of Dask's tasks needs: the template process has it imported, once


def install(client: distributed.Client, name: str = "poolkit", **pool_settings: Any) -> None:
    """Give each dask worker, now and later, a `poolkit.Pool` as an executor.

        poolkit.dask.install(client, timeout=60)
        with dask.annotate(executor="poolkit"):
            collection.compute()

    Dask's rules stay Dask's: a task is run again when its node dies, and `future.cancel()` does not stop one that runs.
    Installed again under the same name, the pools are replaced, and what runs in them is ended.

    Args:
        client: of the cluster.
        name: of the executor, for `dask.annotate` and `client.submit`.
        **pool_settings: as for `poolkit.Pool`; `max_workers` is the number of threads of the dask worker if not given.
    """
    client.register_plugin(ExecutorPlugin(name, pool_settings), name=f"poolkit-executor-{name}")


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
