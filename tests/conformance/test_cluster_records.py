"""Clusters: messages, events, records, whose they are, and what they refuse."""

from __future__ import annotations

import asyncio
import collections
import functools
import gc
import itertools
import pickle
import signal
import socket
from typing import Any

import pytest

import support_clusters as work
from poolkit import Cluster, ClusterFailed
from poolkit._cluster.signals import Waking
from support import WATCHDOG, wait_until
from support_clusters import LOCAL, Client, MakeCluster, ask, is_refused, who
from support_gates import Journal

pytestmark = pytest.mark.slow

both_kinds = pytest.mark.parametrize("of", ["process", "thread"])


# ===== messages, events, records =====


@both_kinds
def test_messages_both_ways(make_cluster: MakeCluster, of: str) -> None:
    came: list[Any] = []
    with make_cluster(schedule="round_robin", kind=of) as cluster:
        cluster.on_message(lambda worker_id, message: came.append((worker_id, message)))
        with pytest.raises(RuntimeError, match="has a callback"):
            cluster.on_message(print)
        with Client(cluster.address) as one, Client(cluster.address) as other:
            clients = {client.who().worker_id: client for client in (one, other)}
            for worker_id, client in clients.items():
                assert client.ask(f"say hello{worker_id}") == "said"
            wait_until(lambda: len(came) == 2)
            assert sorted(came) == [(0, "hello0"), (1, "hello1")]
            cluster.send("to all")
            cluster.send("to one", 1)
            assert [clients[0].ask("hear"), clients[1].ask("hear"), clients[1].ask("hear")] == [
                "to all",
                "to all",
                "to one",
            ]
        with pytest.raises(ValueError, match="no worker 2"):
            cluster.send("to nobody", 2)
        assert cluster.reload() == 2
        assert ask(cluster.address, "say again") == "said"
        wait_until(lambda: len(came) == 3)
        assert came[2][1] == "again"


@both_kinds
def test_who_waits_for_messages_ends(make_cluster: MakeCluster, journal: Journal, of: str) -> None:
    with make_cluster(functools.partial(work.note, journal=journal), bind=None, kind=of, grace=1.0) as cluster:
        cluster.send(1)
        wait_until(lambda: len(journal.lines()) == 2)
    assert {"0 1", "1 1", "stopping 0", "stopping 1"} == {*journal.lines()}


def test_events(make_cluster: MakeCluster) -> None:
    told: list[tuple[str, Any]] = []
    cluster = make_cluster(workers=1)
    names = ["worker_started", "worker_ready", "worker_exited", "reloaded", "stopped"]
    for name in names:
        cluster.on(name, functools.partial(lambda name, what: told.append((name, what)), name))
    cluster.start()
    first = who(cluster.address)
    work.tell(cluster.address, "kill 9")
    wait_until(lambda: cluster.stats().ready == 1 and cluster.stats().started == 2)
    assert cluster.reload() == 2
    wait_until(lambda: len(cluster.workers()) == 1)
    cluster.stop()
    wait_until(lambda: told[-1][0] == "stopped")
    counts = collections.Counter(name for name, _ in told)
    assert counts == {"worker_started": 3, "worker_ready": 3, "worker_exited": 3, "reloaded": 1, "stopped": 1}
    assert [what for name, what in told if name in {"reloaded", "stopped"}] == [2, 0]
    exited = [what for name, what in told if name == "worker_exited"]
    assert (exited[0].worker_id, exited[0].cause, exited[0].signal) == (0, "crashed", "SIGKILL")
    assert exited[0].pid == first.pid
    assert [each.cause for each in exited[1:]] == ["reloaded", "stopped"]
    ready = [what for name, what in told if name == "worker_ready"]
    assert [each.generation for each in ready] == [1, 1, 2]


def test_a_listener_that_raises_or_is_taken_back(make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster = make_cluster(kind="thread")
    told: list[Any] = []

    def fail(_info: Any) -> None:
        raise LookupError("a listener")

    cluster.on("worker_ready", fail)
    cluster.on("worker_ready", told.append)
    cluster.on("worker_started", told.append)
    cluster.off("worker_started", told.append)
    with pytest.raises(ValueError, match="not registered"):
        cluster.off("worker_started", told.append)
    cluster.start()
    wait_until(lambda: len(told) == 2)
    cluster.stop()
    assert len(told) == 2
    assert caplog.text.count("a callback for 'worker_ready' raised") == 2


def test_what_is_told_of_workers(make_cluster: MakeCluster) -> None:
    with make_cluster(schedule="least_busy") as cluster, Client(cluster.address) as client:
        me = client.who()
        wait_until(lambda: cluster.stats().served == 1)
        mine, other = sorted(cluster.workers(), key=lambda info: info.worker_id != me.worker_id)
        assert (mine.pid, mine.served, mine.connections) == (me.pid, 1, 1)
        assert (other.served, other.connections) == (0, 0)
        assert mine.rss > 1 << 20
        assert 0 <= (mine.alive_ago or 0) <= WATCHDOG
        assert mine.since >= 0
        assert cluster.stats().queued == (0,)
        assert cluster.stats().uptime > 0
        assert f"{cluster.address[1]} serving" in repr(cluster)


# ===== whose it is =====


def test_it_cannot_be_pickled(make_cluster: MakeCluster) -> None:
    with pytest.raises(TypeError, match="belongs to the process"):
        pickle.dumps(make_cluster())


def test_one_that_is_dropped_is_killed_with_a_warning() -> None:
    held = [Cluster(work.talk, 1, LOCAL)]
    held[0].start()
    address = held[0].address
    with pytest.warns(ResourceWarning, match="was dropped while it ran"):
        held.clear()
    gc.collect()
    wait_until(lambda: is_refused(address))


def test_one_that_is_dropped_unstarted_lets_go() -> None:
    cluster = Cluster(work.talk, 1, LOCAL)
    address = cluster.address
    del cluster
    gc.collect()
    assert is_refused(address)


# ===== what has no sense =====


@pytest.mark.every_nth(1)
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"target": 3}, TypeError),
        ({"workers": 0}, ValueError),
        ({"workers": -1}, ValueError),
        ({"workers": 1.5}, TypeError),
        ({"workers": True}, TypeError),
        ({"bind": "nowhere"}, ValueError),
        ({"bind": "127.0.0.1:99999"}, ValueError),
        ({"bind": "::1:80"}, ValueError),
        ({"bind": 8000}, TypeError),
        ({"bind": []}, ValueError),
        ({"bind": "unix:"}, ValueError),
        ({"schedule": "fair"}, ValueError),
        ({"schedule": None}, ValueError),
        ({"grace": -1}, ValueError),
        ({"grace": float("nan")}, ValueError),
        ({"grace": "1"}, TypeError),
        ({"grace": None}, TypeError),
        ({"boot_timeout": 0}, ValueError),
        ({"boot_timeout": float("nan")}, ValueError),
        ({"liveness": 0}, ValueError),
        ({"liveness": -2}, ValueError),
        ({"max_requests": 0}, ValueError),
        ({"max_requests": 1.5}, TypeError),
        ({"max_memory": -1}, ValueError),
        ({"backlog": 0}, ValueError),
        ({"kind": "fiber"}, ValueError),
        ({"name": 3}, TypeError),
        ({"start_method": "magic"}, ValueError),
        ({"preload": "module"}, TypeError),
    ],
    ids=str,
)
def test_options_without_sense_are_refused(settings: dict[str, Any], error: type[Exception]) -> None:
    options: dict[str, Any] = {"target": work.talk, "bind": None, **settings}
    name = next(iter(settings))
    pattern = {"target": "something to call", "bind": "bind|address"}.get(name, name)
    with pytest.raises(error, match=pattern):
        Cluster(options.pop("target"), **options)


def test_an_address_that_is_taken(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    port = cluster.address[1]
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        Cluster(work.talk, 1, [LOCAL, f"127.0.0.1:{port}"])


def test_datagrams_are_for_the_kernel() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as given:
        given.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="datagrams"):
            Cluster(work.talk, 1, given, schedule="round_robin")


def test_calls_without_sense_are_refused(make_cluster: MakeCluster) -> None:
    with make_cluster(kind="thread") as cluster:
        for call, error in itertools.chain(
            ((functools.partial(cluster.resize, value), ValueError) for value in (0, -1)),
            ((functools.partial(cluster.reload, value), ValueError) for value in (-1.0, float("nan"), 0)),
            ((functools.partial(cluster.stop, value), ValueError) for value in (-1.0, float("nan"))),
            ((functools.partial(cluster.wait, value), ValueError) for value in (-1.0, float("nan"))),
            [
                (functools.partial(cluster.resize, "2"), TypeError),
                (functools.partial(cluster.on, "ready", print), ValueError),
                (functools.partial(cluster.on, "stopped", None), TypeError),
                (functools.partial(cluster.on_message, 3), TypeError),
                (functools.partial(cluster.send, 1, -1), ValueError),
                (functools.partial(cluster.send, 1, "0"), TypeError),
            ],
        ):
            with pytest.raises(error):
                call()
        assert who(cluster.address).generation == 1


def test_a_start_that_takes_too_long(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(work.never_ready, kind="process")
    with pytest.raises(TimeoutError, match="not all 2 workers"):
        cluster.start(0.2)
    assert cluster.wait(0)
    with pytest.raises(ClusterFailed):
        raise ClusterFailed("x", generation=1)


def test_one_that_was_started_is_not_stopped_by_another_start(make_cluster: MakeCluster) -> None:
    async def enter(cluster: Cluster) -> None:
        async with cluster:
            pass

    with make_cluster(workers=1) as cluster:
        for again in (cluster.start, cluster.run, cluster.__enter__, lambda: asyncio.run(enter(cluster))):
            with pytest.raises(RuntimeError, match="was started before"):
                again()
        assert cluster.stats().state == "serving"
        who(cluster.address)


def test_a_signal_that_comes_before_the_wait_for_it_ends_that() -> None:
    """A wait for a lock sleeps over one whose handler is due: it was to stop, and nobody heard."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with Waking() as waking:
            signal.raise_signal(signal.SIGUSR1)
            waking.wait()
            waking.end.set()
            waking.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
