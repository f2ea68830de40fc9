"""The failure table: what each event costs where Dask has a part in it; see `test_failures.py`."""

from __future__ import annotations

import os
import signal

import distributed
import pytest

import poolkit
from engine import ownerkill, work
from engine.cluster import Cluster, offspring
from engine.local import stopped
from engine.work import Journal
from poolkit.dask import DaskPool
from support import WATCHDOG, is_alive, wait_until

pytestmark = pytest.mark.slow


def test_a_dask_worker_that_its_nanny_starts_again_joins_by_itself(journal: Journal) -> None:
    with Cluster(1, 1, nanny=True) as cluster, DaskPool(cluster.address) as pool:
        lost = pool.submit(work.journalled, journal.path, 0, 60.0)
        again = pool.options(retries=1, priority=-1).submit(work.journalled, journal.path, 1)
        wait_until(journal.begun)
        (before,) = pool.nodes()
        os.kill(before.pid, signal.SIGKILL)
        error = lost.exception(WATCHDOG)
        assert isinstance(error, poolkit.NodeLost)
        assert (error.reason, error.begun) == ("closed", True)
        assert again.result(WATCHDOG) == 1
        (after,) = pool.nodes()
        assert after.pid != before.pid
    assert journal.begun() == {0: 1, 1: 1}


def test_when_the_scheduler_dies_what_is_queued_waits_for_other_nodes(journal: Journal) -> None:
    with Cluster(1, 2) as cluster, DaskPool(cluster.address) as pool:
        (before,) = pool.nodes()
        running = [pool.submit(work.journalled, journal.path, number, 60.0) for number in range(2)]
        queued = [pool.submit(work.journalled, journal.path, 2 + number) for number in range(20)]
        wait_until(lambda: len(journal.begun()) == 2)
        cluster.kill_scheduler()
        for task in running:
            error = task.exception(WATCHDOG)
            assert isinstance(error, poolkit.NodeLost)
            assert (error.reason, error.begun) == ("scheduler", True)
        assert not any(task.done() for task in queued)
        cluster.new_scheduler()
        cluster.add(1)
        assert [task.result(WATCHDOG) for task in queued] == list(range(2, 22))
        assert before.pid not in {node.pid for node in pool.nodes()}
    assert journal.begun() == dict.fromkeys(range(22), 1)


def test_a_while_after_the_owner_was_killed_nothing_is_left_on_the_nodes(journal: Journal) -> None:
    with Cluster(ownerkill.NODES, ownerkill.WORKERS, "--preload", "engine.impatient") as cluster:
        with ownerkill.owner(cluster.address, journal, 30.0) as process:
            process.kill()
            wait_until(lambda: not any(map(is_alive, journal.processes())), "the end of all work")
        with distributed.Client(cluster.address, set_as_default=False) as client:
            wait_until(lambda: not ownerkill.what_is_left(client), "the plugins to be gone")
        wait_until(lambda: not any(map(offspring, cluster.nodes)), "the processes to be gone")
    assert journal.begun() == dict.fromkeys(range(ownerkill.TASKS), 1)


def test_nodes_join_again_when_an_owner_speaks_again(journal: Journal) -> None:
    """It was silent for longer than its lease, so all work has ended, and is told as lost."""
    with Cluster(ownerkill.NODES, ownerkill.WORKERS) as cluster:
        with ownerkill.owner(cluster.address, journal, 2.0) as process:
            with stopped(process.pid):
                wait_until(lambda: not any(map(is_alive, journal.processes())), "the end of all work")
            said, _ = process.communicate(timeout=2 * WATCHDOG)
        lost, then, where = said.splitlines()
    assert lost.count("NodeLost") == ownerkill.TASKS
    assert then.split()[1:] == ["results"] * (2 * ownerkill.TASKS)
    assert where == f"on {ownerkill.NODES}"
    assert set(journal.begun().values()) == {1}
