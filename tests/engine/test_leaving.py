"""Nodes that Dask takes away or starts again, and nodes that a pool asks for and gives back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from distributed.deploy.adaptive import Adaptive

import poolkit
import support
import support_functions
from engine import adapt, nodekill, retire, work
from engine.cluster import LONG, Bars, Cluster, impatient_nodes, local_cluster, up
from poolkit.dask import DaskPool
from support import WATCHDOG, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _offloading() -> None:
    """Dask's one thread for this process is there before the first look for leaks."""
    distributed.utils._offload_executor.submit(int).result()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A scheduler and two nodes with one worker each."""
    with Cluster(2, 1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[distributed.Client]:
    with distributed.Client(cluster.address, set_as_default=False) as client:
        yield client


def retire_it(client: distributed.Client, address: str) -> None:
    """As Dask's adaptive scaling does, and users do."""
    client.retire_workers([address])


def close_gracefully(client: distributed.Client, address: str) -> None:
    """As a dask worker does at the end of its lifetime, which is less than a batch system's walltime."""

    async def close(dask_worker: distributed.Worker) -> None:
        await dask_worker.close_gracefully()

    client.run(close, workers=[address], wait=False)


@pytest.mark.parametrize("take_away", [retire_it, close_gracefully])
def test_a_node_that_is_taken_away_finishes_what_it_runs_and_gets_nothing_more(
    cluster: Cluster,
    client: distributed.Client,
    tmp_path: Path,
    new_gate: Any,
    take_away: Callable[[distributed.Client, str], None],
) -> None:
    journal, arrived, release = work.Journal(tmp_path / "journal"), new_gate(), new_gate()
    with DaskPool(cluster.address, min_nodes=2) as pool:
        held = pool.submit(support_functions.arrive_and_wait, arrived, release, "done")
        arrived.wait()
        more = [pool.submit(work.journalled, journal.path, number) for number in range(20)]
        take_away(client, str(held.node))
        wait_until(lambda: str(held.node) not in up(pool), "the node to leave")
        more += [pool.submit(work.journalled, journal.path, number) for number in range(20, 40)]
        assert [task.result(WATCHDOG) for task in more] == list(range(40))
        assert held.node not in {task.node for task in more}
        assert not held.done()
        release.signal()
        assert held.result(WATCHDOG) == "done"
        wait_until(lambda: len(pool.nodes()) == 1, "the node to have gone")
        assert set(journal.begun().values()) == {1}


def test_what_takes_too_long_on_a_node_that_is_taken_away_is_lost(
    cluster: Cluster, client: distributed.Client, new_gate: Any
) -> None:
    arrived, release = new_gate(), new_gate()
    with impatient_nodes(1.0), DaskPool(cluster.address, min_nodes=2) as pool:
        held = pool.submit(support_functions.arrive_and_wait, arrived, release)
        again = pool.options(retries=1).submit(support_functions.arrive_and_wait, arrived, release, "again")
        arrived.wait(2)
        client.retire_workers([str(held.node)])
        error = held.exception(WATCHDOG)
        assert isinstance(error, poolkit.NodeLost)
        assert (error.reason, error.begun, error.node) == ("retired", True, held.node)
        cluster.add(1)
        client.retire_workers([str(again.node)])
        arrived.wait()
        release.signal()
        assert again.result(WATCHDOG) == "again"
        assert again.attempts == 2


def test_dask_takes_no_node_that_is_in_use_and_all_that_are_not(new_gate: Any) -> None:
    looks = 0

    class Counted(Adaptive):
        async def adapt(self) -> None:
            nonlocal looks
            await super().adapt()
            looks += 1

    def are_held(dask_scheduler: Any) -> bool:
        return all(worker.long_running for worker in dask_scheduler.workers.values())

    arrived, release = new_gate(), new_gate()
    with (
        local_cluster(2, 1) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
        DaskPool(cluster.scheduler_address, min_nodes=2) as pool,
    ):
        held = [pool.submit(support_functions.arrive_and_wait, arrived, release, n) for n in range(2)]
        arrived.wait(2)
        wait_until(lambda: client.run_on_scheduler(are_held), "the nodes to be held")
        cluster.adapt(Adaptive=Counted, minimum=0, maximum=2, interval="20ms", wait_count=1)
        wait_until(lambda: looks >= 10, "Dask to look whether it can take a node")
        assert len(up(pool)) == 2
        release.signal(2)
        assert [task.result(WATCHDOG) for task in held] == [0, 1]
        wait_until(lambda: not pool.nodes() and not cluster.plan, "all nodes to be taken away")


def test_a_pool_has_more_nodes_while_there_is_work_for_them(new_gate: Any) -> None:
    arrived, release = new_gate(), new_gate()
    left = []
    with local_cluster(1, 1) as cluster, DaskPool(cluster, max_nodes=2, idle_timeout=0.1) as pool:
        pool.on("node_left", lambda event: left.append(event.reason))
        held = [pool.submit(support_functions.arrive_and_wait, arrived, release, n) for n in range(2)]
        arrived.wait(2)
        assert {task.node for task in held} == up(pool)
        release.signal(2)
        assert [task.result(WATCHDOG) for task in held] == [0, 1]
        wait_until(lambda: len(pool.nodes()) == len(cluster.plan) == 1, "a node to be given back")
        assert pool.submit(abs, -3).result(WATCHDOG) == 3
        wait_until(lambda: left == ["idle"])


# ===== the programs, of which each is to be right each time =====


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("part", retire.PARTS)
def test_nodes_leave_under_load(part: str, number: int) -> None:
    with support.watchdog(LONG):
        bars = Bars(part)
        retire.PARTS[part](bars, 100, random.Random(number))
        assert not bars.done()


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
def test_a_cluster_grows_and_shrinks(number: int) -> None:
    with support.watchdog(2 * LONG):
        assert adapt.run(1, seed=number) == 0


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize(("short", "nanny"), [(False, True), (True, False)])
def test_a_node_is_killed_under_load(short: bool, nanny: bool, retries: int, number: int) -> None:
    with support.watchdog(LONG):
        assert nodekill.run(5000 if short else 1000, retries, short=short, nanny=nanny, seed=number) == 0
