"""The failure table: what each event costs, on local nodes; a test for each row of it that can be made there.

The other rows are in `test_failures_on_dask.py`, where Dask has a part in it. For the table see
docs/guide/many-machines.md.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

import pytest

import poolkit
from engine import work
from engine.local import NODES, MakePool, owner, pid_of, stopped
from engine.work import Journal
from support import WATCHDOG, is_alive, wait_until

pytestmark = pytest.mark.slow

BADS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], type[BaseException]]] = {
    "raises": (work.go_bad, ("raise",), {}, ValueError),
    "returns what cannot be pickled": (work.go_bad, ("unpicklable",), {}, poolkit.SerializationError),
    "crashes": (work.go_bad, ("segfault",), {}, poolkit.WorkerCrashed),
    "exits": (work.go_bad, ("exit",), {}, poolkit.WorkerCrashed),
    "is too slow": (work.journalled, (60.0,), {"timeout": 0.2}, poolkit.TaskTimeout),
    "is too large": (work.go_bad, ("large",), {"memory_limit": 256 << 20}, poolkit.MemoryLimitExceeded),
}


@pytest.mark.parametrize("how", BADS)
def test_a_task_that_fails_by_itself_costs_nothing_else(make_pool: MakePool, journal: Journal, how: str) -> None:
    fn, args, options, kind = BADS[how]
    pool = make_pool(1, 2)
    (before,) = pool.nodes()
    beside = pool.submit(work.journalled, journal.path, 1, 1.0)
    bad = pool.options(**options).submit(fn, journal.path, 0, *args)
    assert type(bad.exception(WATCHDOG)) is kind
    assert beside.result(WATCHDOG) == 1
    assert pool.submit(work.journalled, journal.path, 2).result(WATCHDOG) == 2
    begun = journal.begun()
    assert begun.pop(0, 0) <= 1, "its limit may be over before it has written that"
    assert begun == {1: 1, 2: 1}
    assert [node.pid for node in pool.nodes()] == [before.pid]


def test_a_cancelled_task_costs_nothing_else(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(1, 2)
    tasks = [pool.submit(work.journalled, journal.path, number, seconds) for number, seconds in enumerate((60.0, 1.0))]
    wait_until(lambda: len(journal.begun()) == 2)
    assert tasks[0].cancel()
    assert tasks[0].cancelled()
    assert tasks[1].result(WATCHDOG) == 1
    assert pool.submit(work.journalled, journal.path, 2, 0.2).result(WATCHDOG) == 2
    ((_, ended),) = journal.runs(0)
    assert pool.submit(work.journalled, journal.path, 3, 0.2).result(WATCHDOG) == 3
    assert journal.runs(0)[0][1] == ended, "it goes on"
    assert journal.begun() == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_lost_node_costs_what_it_ran_and_nothing_else(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 2)
    left: list[Any] = []
    pool.on("node_left", left.append)
    tasks = [pool.submit(work.journalled, journal.path, number, 0.2) for number in range(12)]
    wait_until(lambda: len(journal.begun()) >= 4)
    victim = pool.nodes()[0]
    os.kill(victim.pid, signal.SIGKILL)
    errors = [task.exception(WATCHDOG) for task in tasks]
    lost = [error for error in errors if isinstance(error, poolkit.NodeLost)]
    assert len(lost) <= 2
    assert all(error is None or isinstance(error, poolkit.NodeLost) for error in errors)
    for error in lost:
        assert (error.node, error.host, error.reason, error.begun) == (victim.address, victim.host, "closed", True)
        assert f"{victim.address} (pid {victim.pid}" in str(error)
        assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    assert max(journal.begun().values()) == 1
    assert {number for number, error in enumerate(errors) if error is None} <= set(journal.begun())
    wait_until(lambda: left, "the event")
    assert (left[0].node, left[0].reason) == (victim.address, "lost")
    assert [node.address for node in pool.nodes()] == [task.node for task in tasks if task.node != victim.address][:1]
    assert pool.max_workers == 2
    assert pool.submit(work.journalled, journal.path, 99).result(WATCHDOG) == 99


def test_a_lost_node_whose_tasks_may_be_retried_costs_nothing(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 2, retries=1)
    tasks = [pool.submit(work.journalled, journal.path, number, 0.2) for number in range(12)]
    wait_until(lambda: len(journal.begun()) >= 4)
    os.kill(pool.nodes()[0].pid, signal.SIGKILL)
    pool._nodes._provider.add()  # type: ignore[attr-defined] -- as a nanny would
    assert [task.result(WATCHDOG) for task in tasks] == list(range(12))
    assert sum(count == 2 for count in journal.begun().values()) <= 2
    for number, count in journal.begun().items():
        assert count <= tasks[number].attempts <= 2, "what was sent and had not begun is sent again as well"
        runs = journal.runs(number)
        assert all(ended < again for (_, ended), (again, _) in itertools.pairwise(runs))
    wait_until(lambda: len(pool.nodes()) == 2, "another node")


def test_a_silent_node_is_given_up_after_its_work_has_ended(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 1, lease=1.0)
    tasks = [pool.options(retries=1).submit(work.journalled, journal.path, number, 4.0) for number in range(2)]
    wait_until(lambda: len(journal.begun()) == 2)
    silent = pid_of(pool, tasks[0])
    with stopped(silent):
        wait_until(lambda: len(journal.runs(0)) == 2, "the second run")
        (_, ended), (again, _) = journal.runs(0)
        assert ended < again
        assert [task.result(WATCHDOG) for task in tasks] == [0, 1]
    wait_until(lambda: not is_alive(silent), "the node to end, as its lease was over")


def test_a_silent_node_is_told_by_its_reason(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 1, lease=0.5)
    task = pool.submit(work.journalled, journal.path, 0, 30.0)
    wait_until(journal.begun)
    with stopped(pid_of(pool, task)):
        error = task.exception(WATCHDOG)
    assert isinstance(error, poolkit.NodeLost)
    assert error.reason == "silent"


def test_a_node_that_is_silent_for_less_than_its_lease_loses_nothing(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(1, 1, lease=6.0)
    tasks = [pool.submit(work.journalled, journal.path, number, 1.0) for number in range(2)]
    wait_until(journal.begun)
    (node,) = pool.nodes()
    with stopped(node.pid):
        wait_until(lambda: pool.nodes()[0].last_heard > 1.5, "a question that does not come")
    assert [task.result(WATCHDOG) for task in tasks] == [0, 1]
    assert journal.begun() == {0: 1, 1: 1}
    assert [each.pid for each in pool.nodes()] == [node.pid]


def test_when_the_owner_is_killed_all_work_ends(journal: Journal) -> None:
    with owner(journal, 30.0) as process:
        assert process.stdout is not None
        nodes = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
        wait_until(lambda: not any(map(is_alive, (*nodes, *journal.processes()))), "the end of nodes and workers")
    assert journal.begun() == dict.fromkeys(range(NODES), 1)


def test_while_the_owner_is_silent_for_longer_than_its_lease_all_work_ends(journal: Journal) -> None:
    with owner(journal, 1.0) as process:
        assert process.stdout is not None
        nodes = [int(pid) for pid in process.stdout.readline().split()]
        with stopped(process.pid):
            wait_until(lambda: not any(map(is_alive, (*nodes, *journal.processes()))), "the end of nodes and workers")
        said, _ = process.communicate(timeout=WATCHDOG)
    assert said.splitlines() == [" ".join(["NodeLost"] * NODES), "2 3"]
    assert journal.begun() == dict.fromkeys(range(2 * NODES), 1)


def test_without_nodes_what_is_queued_fails_after_a_while_and_the_pool_goes_on(
    make_pool: MakePool, journal: Journal
) -> None:
    pool = make_pool(1, 1, node_timeout=3.0)
    provider: Any = pool._nodes._provider
    first = pool.submit(work.journalled, journal.path, 0, 30.0)
    queued = pool.submit(work.journalled, journal.path, 1)
    wait_until(journal.begun)
    os.kill(pid_of(pool, first), signal.SIGKILL)
    assert isinstance(first.exception(WATCHDOG), poolkit.NodeLost)
    assert not queued.done()
    error = queued.exception(WATCHDOG)
    assert isinstance(error, poolkit.NoNodes)
    assert isinstance(error, TimeoutError)
    later = pool.submit(work.journalled, journal.path, 2)
    provider.add()
    assert later.result(WATCHDOG) == 2
    assert sorted(journal.begun()) == [0, 2]


def test_an_initializer_that_raises_stops_the_pool(make_pool: MakePool) -> None:
    pool = make_pool(initializer=work.raise_in_initializer)
    for task in [pool.submit(work.name_of_process) for _ in range(3)]:
        error = task.exception(WATCHDOG)
        assert isinstance(error, poolkit.InitializerFailed)
        assert isinstance(error.__cause__, LookupError)
    with pytest.raises(poolkit.InitializerFailed):
        pool.submit(work.name_of_process).result(WATCHDOG)
