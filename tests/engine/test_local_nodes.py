"""Pools on nodes that are processes of this machine: what they promise beside what every pool does."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support_functions
from engine import work
from engine.local import MakePool, pid_of, stopped
from engine.work import Journal
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool
from support import WATCHDOG, is_alive, wait_until

pytestmark = pytest.mark.slow


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


def test_a_pool_without_tasks_tells_of_its_nodes(make_pool: MakePool) -> None:
    pool = make_pool()
    told: list[Any] = []
    for event in ("node_joined", "node_left"):
        pool.on(event, told.append)
    provider: Any = pool._nodes._provider
    provider.add()
    wait_until(lambda: told, "the new node")
    victim = pool.nodes()[0]
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: len(told) == 2, "the end of the other")
    assert [type(event).__name__ for event in told] == ["NodeJoined", "NodeLeft"]
    assert (told[1].node, told[1].reason) == (victim.address, "lost")
    assert len(pool.nodes()) == 1


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


def test_what_waits_for_a_stopped_node_never_begins_there(make_pool: MakePool, journal: Journal) -> None:
    """It was written, so it counts as begun, and is done again elsewhere."""
    pool = make_pool(2, 1, lease=1.0)
    pool.warm_up(WATCHDOG)
    assert pool.submit(work.journalled, journal.path, 9).result(WATCHDOG) == 9
    silent = pool.nodes()[0].pid
    with stopped(silent):
        tasks = [pool.options(retries=1).submit(work.journalled, journal.path, number, 0.3) for number in range(2)]
        assert [task.result(WATCHDOG) for task in tasks] == [0, 1]
        assert sorted(task.attempts for task in tasks) == [1, 2]
    wait_until(lambda: not is_alive(silent), "the node to end, as its lease was over")
    assert journal.begun() == {9: 1, 0: 1, 1: 1}


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


def test_a_limit_on_memory_costs_one_task(make_pool: MakePool) -> None:
    pool = make_pool(1, 2)
    error = pool.options(memory_limit=64 << 20).submit(work.eat, 1 << 30)
    others = [pool.submit(abs, -number) for number in range(50)]
    assert isinstance(error.exception(WATCHDOG), poolkit.MemoryLimitExceeded)
    assert [task.result(WATCHDOG) for task in others] == list(range(50))
    assert len(pool.nodes()) == 1


def test_a_bounded_queue_holds_back_who_submits(make_pool: MakePool, journal: Journal) -> None:
    pool = make_pool(1, 1, max_queue=2)
    tasks = [pool.submit(work.journalled, journal.path, 0, 30.0)]
    wait_until(journal.begun)
    tasks += [pool.submit(abs, -1) for _ in range(2)]
    with pytest.raises(poolkit.QueueFull):
        pool.options(block=False).submit(abs, -1)
    tasks[0].cancel()
    assert [task.result(WATCHDOG) for task in tasks[1:]] == [1, 1]
    assert pool.options(block=False).submit(abs, -2).result(WATCHDOG) == 2


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


def meet(folder: str, name: int, count: int) -> bool:
    """Be here until so many are, who all run at the same time."""
    place = Path(folder)
    (place / str(name)).touch()
    ends = time.monotonic() + WATCHDOG / 4
    while len(list(place.iterdir())) < count:
        if time.monotonic() > ends:
            return False
        time.sleep(0.005)  # noqa: TID251 -- other processes are waited for
    return True


def test_no_task_waits_behind_a_long_one_while_another_worker_rests(make_pool: MakePool, tmp_path: Path) -> None:
    """What was sent ahead, where all had been short, is given back when it would have to wait."""
    pool = make_pool(2, 2)
    pool.warm_up()
    for each in range(3):
        for task in [pool.submit(os.getpid) for _ in range(80)]:
            task.result(WATCHDOG)
        held = [pool.submit(meet, str(tmp_path), i, 99) for i in range(4)]
        wait_until(lambda held=held: all(task.running() for task in held))
        for task in held:
            task.cancel()
        place = tmp_path / f"together {each}"
        place.mkdir()
        tasks = [pool.submit(meet, str(place), i, 4) for i in range(4)]
        assert [task.result(WATCHDOG) for task in tasks] == [True] * 4


class AskedProvider(LocalProvider):
    """Notes how many nodes it was asked for, and whether there may be fewer than there are."""

    def __init__(self, nodes: int = 1) -> None:
        super().__init__(nodes)
        self.wanted: list[int] = []
        self.fewer: list[bool] = []

    def want(self, nodes: int, *, fewer: bool = True) -> None:
        self.wanted.append(nodes)
        self.fewer.append(fewer)
        super().want(nodes, fewer=fewer)


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


def test_nodes_that_are_there_at_the_start_are_kept_for_idle_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    provider, idle_timeout = AskedProvider(2), 1.5
    with NodePool(provider, max_nodes=2, idle_timeout=idle_timeout) as pool:
        monkeypatch.setattr("poolkit.nodes.AGAIN", 0.0)
        wait_until(lambda: len(pool.nodes()) == 2, "both nodes")
        began = pool._wanted_since
        wait_until(lambda: any(provider.fewer[1:]), "one to be given back")
        assert provider.wanted[-1] == 1
        assert pool._asked >= began + idle_timeout
