"""DaskPool on a real scheduler and its workers: the same calls, and what only the whole shows."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest

import poolkit
import support_dask
from engine import work
from poolkit._nodes.interfaces import WIRE
from poolkit.dask import DaskPool, NodeLeft
from support import WATCHDOG, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def address() -> Iterator[str]:
    """The scheduler of two nodes with two workers each."""
    with support_dask.cluster(2) as (scheduler, _):
        yield scheduler.address


def test_calls_run_on_the_nodes_of_a_cluster(address: str) -> None:
    with DaskPool(address, min_nodes=2, workers_per_node=2) as pool:
        assert pool.kind == "dask"
        assert pool.max_workers == 4
        assert [task.result(WATCHDOG) for task in [pool.submit(abs, -n) for n in range(200)]] == list(range(200))
        assert list(pool.map(str, range(1000))) == list(map(str, range(1000)))
        seen = {pool.submit(work.name_of_process).result(WATCHDOG) for _ in range(20)}
        assert os.getpid() not in seen
        assert {node.state for node in pool.nodes()} == {"up"}
        crash = pool.submit(work.die).exception(WATCHDOG)
        assert isinstance(crash, poolkit.WorkerCrashed)
        assert crash.signal == "SIGSEGV"
        late = pool.options(timeout=0.2).submit(signal.pause).exception(WATCHDOG)
        assert isinstance(late, poolkit.TaskTimeout)
        assert len(pool.nodes()) == 2


def test_a_client_is_left_open_and_a_pool_may_be_made_again(address: str) -> None:
    with distributed.Client(address, set_as_default=False) as client:
        for _ in range(2):
            with DaskPool(client) as pool:
                assert pool.submit(len, "abc").result(WATCHDOG) == 3
        assert client.submit(len, "abcd").result(WATCHDOG) == 4
    wait_until(lambda: all(not worker.handlers_of_pools for worker in _workers(address)), "nothing to be left there")


class _Worker:
    def __init__(self, handlers: list[str]) -> None:
        self.handlers_of_pools = [name for name in handlers if name.startswith("poolkit-")]


def _workers(address: str) -> list[_Worker]:
    with distributed.Client(address, set_as_default=False) as client:
        found = client.run(lambda dask_worker: list(dask_worker.handlers))
    return [_Worker(handlers) for handlers in found.values()]


def test_what_tasks_print_and_log_comes_before_their_results(
    address: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with DaskPool(address, min_nodes=2) as pool:
        for number in range(5):
            assert pool.submit(os.system, f"echo task {number}; echo error {number} >&2").result(WATCHDOG) == 0
            assert capfd.readouterr() == (f"task {number}\n", f"error {number}\n")
        task = pool.submit(logging.getLogger("engine").warning, "hello")
        task.result(WATCHDOG)
        (record,) = [record for record in caplog.records if record.name == "engine"]
        assert record.poolkit_node == task.node  # type: ignore[attr-defined]


def test_offloaded_calls_and_coroutines_go_there(address: str) -> None:
    import asyncio

    async def main(pool: DaskPool) -> int:
        return await pool.submit(work.name_of_process)

    with DaskPool(address) as pool:
        assert asyncio.run(main(pool)) != os.getpid()


def test_a_script_without_a_main_guard_is_told_so_by_its_node(tmp_path: Path) -> None:
    """Dask starts the node of `DaskPool()` by multiprocessing, which runs the script again. Old ones try for ever."""
    script = tmp_path / "script.py"
    script.write_text("from poolkit.dask import DaskPool\nDaskPool(node_timeout=20).shutdown()\n")
    argv = [sys.executable, os.fspath(script)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stderr is not None
        said = next(line for line in run.stderr if line.startswith("RuntimeError: DaskPool() without a cluster"))
        os.killpg(run.pid, signal.SIGTERM)  # which the tracker of its semaphores survives, to remove them
    assert said.rstrip().endswith("make the pool behind `if __name__ == '__main__':`, or name a cluster")


def test_what_has_no_sense_is_refused_before_a_node_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "LocalCluster", pytest.fail)
    with pytest.raises(ValueError, match="max_nodes must be at least 1 or None, was 0"):
        DaskPool(max_nodes=0)


@pytest.mark.parametrize(
    ("options", "says", "kind"),
    [
        (support_dask.OTHER_WIRE, "wire 0", poolkit.VersionMismatch),
        (support_dask.WITHOUT_POOLKIT, "pip install poolkit", poolkit.PoolkitError),
    ],
    ids=["another wire", "no poolkit"],
)
def test_a_node_that_does_not_fit_is_refused_with_its_reason(
    options: tuple[str, str], says: str, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    with support_dask.cluster(1) as (scheduler, _), DaskPool(scheduler.address) as pool:
        left: list[NodeLeft] = []
        pool.on("node_left", left.append)
        node = support_dask.Node(scheduler.address, *options)
        try:
            wait_until(lambda: left, "the node to be refused")
            with pytest.raises(poolkit.NoNodes, match="1 of 2 nodes are up") as failed:
                pool._wait_for_nodes(2, 0.0)
            cause = failed.value.__cause__
            assert type(cause) is kind
            assert left[0].reason == "refused"
            assert left[0].node in str(cause)
            assert says in str(cause)
            assert left[0].node in caplog.text
            if isinstance(cause, poolkit.VersionMismatch):
                assert cause.node == left[0].node
                assert cause.here.endswith(f"wire {WIRE}")
                assert cause.there.endswith(says)
            assert pool.submit(work.name_of_process).result(WATCHDOG)
            assert len(_workers(scheduler.address)) == 2  # it is one of Dask's as before
        finally:
            node.end()
