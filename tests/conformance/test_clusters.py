"""Clusters: one address, many workers; from start to stop, ways to accept, and who gets a connection."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import support_clusters as work
from poolkit import PoolClosed
from support import WATCHDOG, wait_until
from support_clusters import LOCAL, Client, MakeCluster, burst, is_refused, pids, shares, who
from support_gates import Gate

pytestmark = pytest.mark.slow

both_kinds = pytest.mark.parametrize("of", ["process", "thread"])


# ===== from start to stop =====


@pytest.mark.every_nth(1)
@pytest.mark.parametrize(
    "settings", [{}, {"start_method": "spawn"}, {"start_method": "fork"}, {"kind": "thread"}], ids=str
)
def test_all_serve_between_start_and_stop(make_cluster: MakeCluster, settings: dict[str, Any]) -> None:
    cluster = make_cluster(**settings, schedule="round_robin", name="shop")
    assert cluster.workers() == []
    assert (cluster.stats().state, cluster.stats().ready) == ("starting", 0)
    assert cluster.address == cluster.addresses[0]
    assert cluster.url == f"http://127.0.0.1:{cluster.address[1]}"
    cluster.start(WATCHDOG)
    found = {who(cluster.address) for _ in range(4)}
    assert {(each.worker_id, each.generation) for each in found} == {(0, 1), (1, 1)}
    infos = cluster.workers()
    assert [(info.worker_id, info.generation, info.state, info.restarts) for info in infos] == [
        (0, 1, "ready", 0),
        (1, 1, "ready", 0),
    ]
    if settings.get("kind") != "thread":
        assert {info.pid for info in infos} == {each.pid for each in found}
        assert os.getpid() not in pids(cluster)
    stats = cluster.stats()
    assert (stats.state, stats.generation, stats.workers, stats.ready, stats.started) == ("serving", 1, 2, 2, 2)
    assert stats.crashed == 0
    wait_until(lambda: cluster.stats().passed == 4)  # it counts when that is done
    assert not cluster.wait(0)
    cluster.stop(WATCHDOG)
    assert cluster.wait(0)
    assert is_refused(cluster.address)
    assert cluster.stats().state == "stopped"
    assert cluster.stats().served == 4
    assert cluster.workers() == []
    cluster.stop()
    with pytest.raises(RuntimeError, match="started before"):
        cluster.start()
    for call in (cluster.reload, lambda: cluster.resize(3), lambda: cluster.send(1)):
        with pytest.raises(PoolClosed, match="is stopped"):
            call()


def test_what_was_not_started_can_be_stopped(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    for call in (cluster.reload, lambda: cluster.resize(3), lambda: cluster.send(1)):
        with pytest.raises(PoolClosed, match="is not started"):
            call()
    cluster.stop()
    assert cluster.wait(0)
    assert is_refused(cluster.address)


def test_a_cluster_in_a_coroutine(make_cluster: MakeCluster) -> None:
    async def main() -> None:
        async with make_cluster(kind="thread") as cluster:
            reader, writer = await asyncio.open_connection(*cluster.address)
            writer.write(b"who\n")
            assert (await reader.readline()).split()[1] == b"1"
            writer.close()
            assert await cluster.reload_async() == 2
        assert cluster.wait(0)

    asyncio.run(asyncio.wait_for(main(), WATCHDOG))


def test_an_interrupted_block_kills(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(work.deaf, bind=None)
    with pytest.raises(KeyboardInterrupt), cluster:
        raise KeyboardInterrupt
    assert cluster.wait(0)


def test_run_is_for_the_main_thread(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            cluster.run()
        except RuntimeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=run, name="other")
    thread.start()
    thread.join(WATCHDOG)
    assert "main thread" in str(errors[0])
    assert "'other'" in str(errors[0])


# ===== what it serves =====


@both_kinds
@pytest.mark.every_nth(4)
@pytest.mark.parametrize("schedule", ["kernel", "round_robin"])
@pytest.mark.parametrize("target", [work.accept_for_ever, work.in_a_loop, work.in_an_async_loop, work.in_a_trio_loop])
def test_ways_to_accept(make_cluster: MakeCluster, target: Any, schedule: str, of: str) -> None:
    with make_cluster(target, schedule=schedule, kind=of) as cluster:
        answers = {work.answer_of(cluster.address) for _ in range(6)}
        assert answers <= {"0", "1"}
        assert schedule == "kernel" or len(answers) == 2
        assert cluster.reload() == 2
        assert {work.answer_of(cluster.address) for _ in range(6)} <= {"0", "1"}
        cluster.stop(WATCHDOG)
        assert cluster.stats().crashed == 0
        assert is_refused(cluster.address)


@both_kinds
@pytest.mark.parametrize("how", ["ready", "listen", "accept", "connections"])
def test_when_a_worker_is_ready(
    make_cluster: MakeCluster, new_gate: Callable[[], Gate], how: str, of: str, request: pytest.FixtureRequest
) -> None:
    gate = new_gate()
    cluster = make_cluster(functools.partial(work.ready_by, how=how, gate=gate), 1, kind=of)
    thread = threading.Thread(target=cluster.start)
    thread.start()
    wait_until(lambda: [info.state for info in cluster.workers()] == ["starting"])
    assert thread.is_alive()
    gate.signal()
    thread.join(WATCHDOG)
    assert cluster.stats().ready == 1
    cluster.stop(WATCHDOG)
    assert cluster.stats().crashed == 0


@both_kinds
def test_workers_without_an_address(make_cluster: MakeCluster, of: str) -> None:
    with make_cluster(work.until_told, 3, bind=None, kind=of) as cluster:
        assert (cluster.address, cluster.addresses, cluster.url) == (None, [], "")
        assert cluster.stats().ready == 3
        assert cluster.stats().queued == ()


@pytest.mark.parametrize("schedule", ["kernel", "round_robin", "sticky"])
def test_several_addresses_and_unix_sockets(make_cluster: MakeCluster, tmp_path: Path, schedule: str) -> None:
    path = tmp_path / "app.sock"
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        with make_cluster(bind=[f"unix:{path}", LOCAL, given], schedule=schedule) as cluster:
            assert cluster.addresses[0] == str(path)
            assert len(set(cluster.addresses)) == 3
            for address in cluster.addresses:
                assert {who(address).generation for _ in range(4)} == {1}
            assert cluster.reload() == 2
            assert {who(address).generation for address in cluster.addresses} == {2}
        assert not path.exists()
        assert all(map(is_refused, cluster.addresses))


# ===== who gets a connection =====


@both_kinds
@pytest.mark.every_nth(1)
@pytest.mark.parametrize(("schedule", "spread"), [("round_robin", 0), ("least_busy", 2)])
def test_exact_shares_of_a_burst(make_cluster: MakeCluster, schedule: str, spread: int, of: str) -> None:
    with make_cluster(workers=4, schedule=schedule, kind=of) as cluster:
        for _ in range(2):
            found = burst(cluster.address, 100, shares)
            assert sum(found) == 100
            assert len(found) == 4
            assert max(found) - min(found) <= spread
            wait_until(lambda: all(info.connections == 0 for info in cluster.workers()), "connections to be closed")


def test_who_has_fewest_gets_the_next(make_cluster: MakeCluster) -> None:
    with make_cluster(workers=3, schedule="least_busy") as cluster:
        clients = [Client(cluster.address) for _ in range(9)]
        try:
            of_first = [client for client in clients if client.who().worker_id == 0]
            assert len(of_first) == 3
            for client in of_first:
                client.close()
            wait_until(lambda: cluster.workers()[0].connections == 0)
            clients += (more := [Client(cluster.address) for _ in range(3)])
            assert [client.who().worker_id for client in more] == [0, 0, 0]
        finally:
            for client in clients:
                client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of their own")
def test_a_client_keeps_its_worker(make_cluster: MakeCluster) -> None:
    sources = [f"127.0.0.{number}" for number in range(2, 14)]
    with make_cluster(workers=4, schedule="sticky") as cluster:

        def slots() -> list[int]:
            return [who(cluster.address, source).worker_id for source in sources]

        before = slots()
        assert len(set(before)) > 1
        for turn in range(10):
            victim = cluster.workers()[turn % 4]
            os.kill(victim.pid or 0, signal.SIGKILL)
            wait_until(lambda: cluster.stats().crashed == turn + 1 and cluster.stats().ready == 4)  # noqa: B023
            assert slots() == before
        for number in (2, 3):
            assert cluster.reload() == number
            assert slots() == before


@both_kinds
def test_a_schedule_of_ones_own(make_cluster: MakeCluster, of: str) -> None:
    asked: list[Any] = []

    def choose(address: Any, ready: Any) -> int:
        asked.append((address[0], list(ready)))
        return len(asked) % 2 and 2

    with make_cluster(workers=3, schedule=choose, kind=of) as cluster:
        assert [who(cluster.address).worker_id for _ in range(4)] == [2, 0, 2, 0]
        assert asked == [("127.0.0.1", [0, 1, 2])] * 4


@pytest.mark.every_nth(1)
@pytest.mark.parametrize("answer", ["raise", 7, None, "x", [0]], ids=repr)
def test_a_schedule_that_makes_no_sense(
    make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    def choose(_address: Any, _ready: Any) -> Any:
        if answer == "raise":
            raise LookupError(answer)
        return answer

    with make_cluster(schedule=choose, kind="thread") as cluster:
        assert burst(cluster.address, 10, shares) == [5, 5]
    assert len([record for record in caplog.records if "schedule" in record.getMessage()]) == 10
    caplog.clear()  # the frames of what was raised hold what the workers shared
