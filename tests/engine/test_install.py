"""`poolkit.dask.install`: a task that Dask schedules costs no dask worker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import dask
import distributed
import pytest

import poolkit.dask
import support_dask
import support_dask_tasks as tasks
from support import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def node() -> Iterator[tuple[distributed.Client, support_dask.Node]]:
    with support_dask.cluster(1) as (scheduler, (node,)):
        client = distributed.Client(scheduler.address, set_as_default=False)
        try:
            client.wait_for_workers(1)
            yield client, node
        finally:
            client.close()


@contextlib.contextmanager
def installed(client: distributed.Client, name: str, **settings: Any) -> Iterator[None]:
    poolkit.dask.install(client, name, **settings)
    try:
        with dask.annotate(executor=name):
            yield
    finally:
        client.unregister_worker_plugin(f"poolkit-executor-{name}")


def test_a_crash_costs_one_key_of_a_graph(node: tuple[distributed.Client, support_dask.Node]) -> None:
    client, program = node
    with installed(client, "contained"):
        crash, fine = dask.delayed(tasks.crash)(), [dask.delayed(tasks.pid)(n) for n in range(4)]
        broken = dask.delayed(tasks.pid)(crash)
        futures = client.compute([crash, broken, *fine])
        for future in futures[:2]:
            with pytest.raises(poolkit.WorkerCrashed) as crashed:
                future.result(30)
            assert crashed.value.signal == "SIGSEGV"
        assert program.pid not in client.gather(futures[2:])
    assert client.submit(tasks.pid, pure=False).result(30) == program.pid  # it is the same dask worker


def test_a_limit_stops_one_task(node: tuple[distributed.Client, support_dask.Node]) -> None:
    client, program = node
    with installed(client, "limited", timeout=1.0):
        endless = client.submit(tasks.spin)
        fine = client.submit(tasks.pid, pure=False)
        with pytest.raises(poolkit.TaskTimeout):
            endless.result(30)
        assert fine.result(30) != program.pid


def test_installed_again_it_replaces_the_pools_and_a_removed_plugin_leaves_nothing(
    node: tuple[distributed.Client, support_dask.Node],
) -> None:
    client, program = node

    def executors(dask_worker: distributed.Worker) -> set[str]:
        return set(dask_worker.executors)

    before = client.run(executors).popitem()[1]
    for limit in (5.0, 1.0):
        poolkit.dask.install(client, "again", timeout=limit)
    with dask.annotate(executor="again"):
        worker = client.submit(tasks.pid, pure=False).result(30)
        with pytest.raises(poolkit.TaskTimeout, match="1 s"):
            client.submit(tasks.spin).result(30)
    client.unregister_worker_plugin("poolkit-executor-again")
    assert client.run(executors).popitem()[1] == before
    wait_until(lambda: worker not in support_dask.support.descendants(), "the pool's process gone")
    assert program.pid in support_dask.support.descendants()
