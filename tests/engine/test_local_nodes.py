"""Pools on nodes that are processes of this machine: what they promise beside what every pool does."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support_functions
from engine import work
from engine.work import Journal
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool
from support import WATCHDOG, is_alive, wait_until

pytestmark = pytest.mark.slow

MakePool = Callable[..., NodePool]


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Make pools on local nodes; what is left of them is killed after the test."""
    pools: list[NodePool] = []

    def make(nodes: int = 1, workers: int = 1, **settings: Any) -> NodePool:
        pools.append(NodePool(LocalProvider(nodes, workers), min_nodes=nodes, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(kill=True)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A file for what tasks write."""
    return Journal(tmp_path / "journal")


def is_stopped(pid: int) -> bool:
    """Whether each thread of a process is stopped."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def pid_of(pool: NodePool, task: poolkit.Task[Any]) -> int:
    """The process of the node that runs a task."""
    return next(node.pid for node in pool.nodes() if node.address == task.node)


def test_tasks_run_on_all_nodes_and_say_where(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 2)
    assert pool.kind == "nodes"
    assert pool.max_workers == 4
    tasks = [pool.submit(work.journalled, journal.path, number, 0.3) for number in range(4)]
    assert [task.result(WATCHDOG) for task in tasks] == list(range(4))
    assert sorted(filter(None, (task.node for task in tasks))) == sorted([node.address for node in pool.nodes()] * 2)
    assert {info.node for info in pool.workers()} == {node.address for node in pool.nodes()}
    stats = pool.stats()
    assert stats.nodes == 2
    assert stats.network_messages > 0 < stats.network_bytes_sent
    assert sum(node.tasks_done for node in pool.nodes()) == 4


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
    assert len(journal.begun()) == 12
    wait_until(lambda: left, "the event")
    assert (left[0].node, left[0].reason) == (victim.address, "lost")
    assert [node.address for node in pool.nodes()] == [task.node for task in tasks if task.node != victim.address][:1]
    assert pool.max_workers == 2
    assert pool.submit(work.journalled, journal.path, 99).result(WATCHDOG) == 99


def test_runs_of_a_task_never_overlap(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 1)
    tasks = [pool.options(retries=2).submit(work.journalled, journal.path, number, 1.0) for number in range(2)]
    wait_until(lambda: len(journal.begun()) == 2)
    os.kill(pid_of(pool, tasks[0]), signal.SIGKILL)
    assert [task.result(WATCHDOG) for task in tasks] == [0, 1]
    assert tasks[0].attempts == 2
    (_, ended), (again, _) = journal.runs(0)
    assert ended < again
    assert len(journal.runs(1)) == 1


def test_a_silent_node_is_given_up_after_its_work_has_ended(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 1, lease=1.0)
    tasks = [pool.options(retries=1).submit(work.journalled, journal.path, number, 4.0) for number in range(2)]
    wait_until(lambda: len(journal.begun()) == 2)
    silent = pid_of(pool, tasks[0])
    os.kill(silent, signal.SIGSTOP)
    try:
        wait_until(lambda: len(journal.runs(0)) == 2, "the second run")
        (_, ended), (again, _) = journal.runs(0)
        assert ended < again
        assert [task.result(WATCHDOG) for task in tasks] == [0, 1]
    finally:
        os.kill(silent, signal.SIGCONT)
    wait_until(lambda: not is_alive(silent), "the node to end, as its lease was over")


def test_what_waits_for_a_stopped_node_never_begins_there(make_pool: MakePool, journal: Journal) -> None:
    """It was written, so it counts as begun, and is done again elsewhere."""
    pool = make_pool(2, 1, lease=1.0)
    pool.warm_up(WATCHDOG)
    assert pool.submit(work.journalled, journal.path, 9).result(WATCHDOG) == 9
    silent = pool.nodes()[0].pid
    os.kill(silent, signal.SIGSTOP)
    wait_until(lambda: is_stopped(silent), "all threads of it to stop")
    try:
        tasks = [pool.options(retries=1).submit(work.journalled, journal.path, number, 0.3) for number in range(2)]
        assert [task.result(WATCHDOG) for task in tasks] == [0, 1]
        assert sorted(task.attempts for task in tasks) == [1, 2]
    finally:
        os.kill(silent, signal.SIGCONT)
    wait_until(lambda: not is_alive(silent), "the node to end, as its lease was over")
    assert journal.begun() == {9: 1, 0: 1, 1: 1}


def test_a_silent_node_is_told_by_its_reason(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 1, lease=0.5)
    task = pool.submit(work.journalled, journal.path, 0, 30.0)
    wait_until(journal.begun)
    silent = pid_of(pool, task)
    os.kill(silent, signal.SIGSTOP)
    try:
        error = task.exception(WATCHDOG)
    finally:
        os.kill(silent, signal.SIGCONT)
    assert isinstance(error, poolkit.NodeLost)
    assert error.reason == "silent"


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


def test_a_pool_without_nodes_is_not_made() -> None:
    with pytest.raises(poolkit.NoNodes, match="0 of 1 nodes"):
        NodePool(LocalProvider(0), node_timeout=0.1)


def test_limits_are_kept_on_the_node(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool()
    error = pool.options(timeout=0.2).submit(work.journalled, journal.path, 0, 30.0).exception(WATCHDOG)
    assert isinstance(error, poolkit.TaskTimeout)
    assert error.timeout == 0.2
    assert "journalled" in error.stack
    error = pool.options(deadline=0.3).submit(work.journalled, journal.path, 1, 30.0).exception(WATCHDOG)
    assert isinstance(error, poolkit.DeadlineExceeded)
    assert "journalled" in str(error)
    crash = pool.submit(work.die).exception(WATCHDOG)
    assert isinstance(crash, poolkit.WorkerCrashed)
    assert not isinstance(crash, poolkit.NodeLost)
    assert crash.signal == "SIGSEGV"
    assert "task 3 (die, attempt 1)" in str(crash)
    assert pool.stats().crashed == 1
    assert pool.options(retries=1).submit(work.die).exception(WATCHDOG).args[0].count("attempt 2") == 1  # type: ignore[union-attr]


def test_a_cancelled_task_ends_and_its_place_serves_again(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool()
    task = pool.submit(work.journalled, journal.path, 0, 30.0)
    wait_until(journal.begun)
    assert task.cancel()
    assert pool.submit(work.journalled, journal.path, 1).result(WATCHDOG) == 1
    before = journal.runs(0)[0][1]
    pool.submit(work.journalled, journal.path, 2, 0.3).result(WATCHDOG)
    assert journal.runs(0)[0][1] == before, "it goes on"


def test_an_object_is_broadcast_once_to_each_node(make_pool: MakePool) -> None:
    np = pytest.importorskip("numpy")
    pool = make_pool(2, 1)
    array = np.arange(1 << 17)
    handle = pool.broadcast(array)
    before = pool.stats().network_bytes_sent
    sums = [task.result(WATCHDOG) for task in [pool.submit(np.sum, handle) for _ in range(20)]]
    assert set(sums) == {array.sum()}
    sent = pool.stats().network_bytes_sent - before
    assert array.nbytes <= sent < 2 * array.nbytes + 50_000
    assert pool.submit(_is_read_only, handle).result(WATCHDOG)
    handle.close()
    with pytest.raises(poolkit.SerializationError):
        pool.submit(np.sum, handle).result(WATCHDOG)
    node = pool._nodes.nodes()[0]
    del handle
    wait_until(lambda: not node.memories or pool.submit(os.getpid).result(WATCHDOG) is None, "the nodes to be told")


def _is_read_only(array: Any) -> bool:
    return not array.flags.writeable


def test_memory_of_this_machine_is_refused(make_pool: MakePool) -> None:
    pool = make_pool()
    with poolkit.SharedBuffer(10) as buffer, pytest.raises(poolkit.SerializationError, match="another machine"):
        pool.submit(len, buffer).result(WATCHDOG)
    with pytest.raises(RuntimeError, match="on one machine"):
        pool.stream(iter, [])
    with pytest.raises(RuntimeError, match="on one machine"):
        pool.run(["true"])
    with pytest.raises(RuntimeError, match="on this machine"):
        pool.submit(len, "").send("x")
    import multiprocessing

    with poolkit.SharedBuffer(10) as buffer:
        for inherited in (multiprocessing.get_context("spawn").Lock(), buffer):
            with pytest.raises(poolkit.SerializationError, match=r"machine|inheritance"):
                NodePool(LocalProvider(1), initializer=print, initargs=(inherited,))


def test_what_tasks_log_says_on_which_node(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool()
    pool.submit(logging.getLogger("engine").warning, "hello %s", "there").result(WATCHDOG)
    (record,) = [record for record in caplog.records if record.name == "engine"]
    assert record.getMessage() == "hello there"
    assert record.poolkit_node == pool.nodes()[0].address  # type: ignore[attr-defined]
    assert record.poolkit_task == 1  # type: ignore[attr-defined]


def test_an_initializer_that_raises_stops_the_pool(make_pool: MakePool) -> None:
    pool = make_pool(initializer=work.raise_in_initializer)
    error = pool.submit(work.name_of_process).exception(WATCHDOG)
    assert isinstance(error, poolkit.InitializerFailed)
    assert isinstance(error.__cause__, LookupError)
    with pytest.raises(poolkit.InitializerFailed):
        pool.submit(work.name_of_process).result(WATCHDOG)


def test_nothing_is_left_of_a_pool_that_is_shut_down(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(2, 1)
    pool.submit(work.journalled, journal.path, 0, 30.0)
    pids = [pool.submit(work.name_of_process).result(WATCHDOG), *(node.pid for node in pool.nodes())]
    wait_until(journal.begun)
    pool.shutdown(kill=True)
    wait_until(lambda: not any(map(is_alive, pids)))
    assert not [thread for thread in threading.enumerate() if "poolkit-nodes" in thread.name]
    with pytest.raises(poolkit.PoolClosed):
        pool.submit(work.name_of_process)


def test_offloaded_calls_go_there(make_pool: MakePool) -> None:
    pool = make_pool()
    with poolkit.use_pool(pool):
        assert offloaded(2).result(WATCHDOG) == (3, pool.nodes()[0].pid)


@poolkit.offload
def offloaded(number: int) -> tuple[int, int]:
    from support import parent_of

    return number + 1, parent_of(parent_of(os.getpid()))


def test_a_place_is_free_again_soon(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(1, 1)
    for number in range(5):
        task = pool.submit(work.journalled, journal.path, number, 30.0)
        wait_until(lambda number=number: number in journal.begun())
        task.cancel()
    begun = time.monotonic()
    assert pool.submit(work.journalled, journal.path, 9).result(WATCHDOG) == 9
    assert time.monotonic() - begun < WATCHDOG / 2


class AskedProvider(LocalProvider):
    """Notes how many nodes it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[int] = []

    def want(self, nodes: int) -> None:
        self.wanted.append(nodes)
        super().want(nodes)


def test_nodes_are_asked_for_again_when_one_of_them_is_lost(new_gate: Any) -> None:
    provider, arrived, release = AskedProvider(), new_gate(), new_gate()
    with NodePool(provider, max_nodes=2, retries=1) as pool:
        held = [pool.submit(support_functions.arrive_and_wait, arrived, release) for _ in range(2)]
        arrived.wait(2)
        before = len(provider.wanted)
        os.kill(pid_of(pool, held[0]), signal.SIGKILL)
        wait_until(lambda: len(provider.wanted) > before, "it to be asked again")
        assert provider.wanted[-1] == 2
        release.signal(2)
        assert [task.result(WATCHDOG) for task in held] == [None, None]
