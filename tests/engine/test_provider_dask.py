"""The Dask provider, on a real scheduler and real dask workers, with agents that echo."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest

import support_dask
from engine.cluster import pause
from poolkit._nodes import dask_node, provider_dask
from poolkit._nodes.provider_dask import DaskProvider
from support import WATCHDOG, wait_until
from support_dask import ECHO, LEAVE, Node, Owner, Scheduler

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def _offloading() -> None:
    """Dask's one thread for this process is there before the first look for leaks."""
    distributed.utils._offload_executor.submit(int).result()


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Scheduler, list[Node]]]:
    """A scheduler with two nodes that no test ends."""
    with support_dask.cluster(2) as found:
        yield found


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Start programs; all end with the test."""
    programs: list[support_dask.Program] = []

    def start(kind: type, *args: Any, **options: Any) -> Any:
        programs.append(kind(*args, **options))
        return programs[-1]

    yield start
    for program in reversed(programs):
        program.end()


@pytest.fixture
def new_owner() -> Iterator[Callable[..., Owner]]:
    """Make owners; all close with the test."""
    owners: list[Owner] = []

    def make(cluster: Any, *, timeout: float = 10.0, agent: str = ECHO, **settings: Any) -> Owner:
        owners.append(Owner(DaskProvider(cluster, timeout=timeout, agent=agent), **settings))
        return owners[-1].begin()

    yield make
    for owner in owners:
        owner.provider.close()


def state_of(scheduler: Scheduler, topic: str) -> list[tuple[bool, bool]]:
    """Of each node: whether it has the plugin of that topic, and its handler."""

    def look(dask_worker: Any) -> tuple[bool, bool]:
        return topic in dask_worker.plugins, topic in dask_worker.handlers

    with distributed.Client(scheduler.address, set_as_default=False) as client:
        return list(client.run(look).values())


def test_nodes_join_and_echo(place: Any, new_owner: Callable[..., Owner]) -> None:
    scheduler, programs = place
    nodes = new_owner(scheduler.address).wait_for_nodes(2)
    assert {node.facts.pid for node in nodes} == {program.pid for program in programs}
    for node in nodes:
        assert node.facts.workers == 2
        for n in range(300):
            node.send(b"%d" % n)
        assert [node.receive()[0] for _ in range(300)] == [b"%d" % n for n in range(300)]


def test_parts_of_any_size_arrive_writable_and_each_in_memory_of_its_own(
    place: Any, new_owner: Callable[..., Owner]
) -> None:
    node = new_owner(place[0].address).wait_for_nodes(2)[0]
    sizes = [0, 1, 2048, 16 * 1024, 16 * 1024 + 1, 65 * 1024, 2 * MIB, 64 * MIB, 3, 65 * MIB]
    for make in (bytes, bytearray, lambda size: memoryview(bytearray(size))):
        node.send(b"head", *(make(size) for size in sizes))
        head, parts = node.receive()
        assert head == b"head"
        views = [memoryview(part) for part in parts]
        assert [view.nbytes for view in views] == sizes
        assert not any(view.readonly for view in views)
        assert all(view[:1] == b"e" and not any(view[1:1000]) for view in views if view.nbytes)
        for view in views:  # whoever keeps one keeps no other
            assert memoryview(view.obj).nbytes <= max(view.nbytes * 9 // 8, view.nbytes + 64)
        for n, view in enumerate(views):
            view[:1] = bytes([n]) if view.nbytes else b""
        assert [view[0] for view in views if view.nbytes] == [n for n, size in enumerate(sizes) if size]


def test_after_close_nothing_is_left_on_the_nodes(place: Any, new_owner: Callable[..., Owner]) -> None:
    scheduler, _ = place
    owner = new_owner(scheduler.address)
    nodes = owner.wait_for_nodes(2)
    topic = f"poolkit-{owner.settings.pool}"
    assert state_of(scheduler, topic) == [(True, True)] * 2
    owner.provider.close()
    assert [node.ended for node in nodes] == [["closed"], ["closed"]]
    assert state_of(scheduler, topic) == [(False, False)] * 2


def test_two_pools_do_not_see_each_other(place: Any, new_owner: Callable[..., Owner]) -> None:
    first, second = new_owner(place[0].address), new_owner(place[0].address)
    for owner in (first, second):
        for node in owner.wait_for_nodes(2):
            assert node.facts.versions["pool"] == owner.settings.pool
    first.provider.close()
    second.wait_for_nodes(2)[0].send(b"still")
    assert second.living()[0].receive()[0] == b"still"


@pytest.mark.parametrize(
    ("error", "reason"), [(TimeoutError(errno.ETIMEDOUT, "no answer"), "silent"), (ConnectionResetError(), "closed")]
)
def test_a_connection_that_timed_out_is_no_end_of_its_node(
    place: Any, new_owner: Callable[..., Owner], error: OSError, reason: str
) -> None:
    node: Any = new_owner(place[0].address).wait_for_nodes(2)[0]
    stream = node.channel._comm.stream
    node.channel._call(lambda: stream.close((type(error), error, None)))  # as it does with an error of its socket
    wait_until(lambda: node.ended)
    assert node.ended == [reason]


def test_an_agent_that_has_ended_is_followed_by_another(place: Any, new_owner: Callable[..., Owner]) -> None:
    owner = new_owner(place[0].address)
    before = owner.wait_for_nodes(2)
    before[0].send(b"quit")  # by itself
    before[1].channel.abort()  # by its owner
    wait_until(lambda: len(owner.nodes) == 4 and len(owner.living()) == 2)
    assert [node.ended for node in before] == [["closed"]] * 2
    assert {node.facts.address for node in owner.living()} == {node.facts.address for node in before}


@pytest.mark.parametrize("settings", [{"python": "2.7"}, {"wire": -1}])
def test_other_versions_are_refused(place: Any, new_owner: Callable[..., Owner], settings: dict[str, Any]) -> None:
    owner = new_owner(place[0].address, **settings)
    wait_until(lambda: len(owner.refused) == 2)
    assert not owner.nodes
    assert [versions for *_, versions in owner.refused] == [dask_node.versions()] * 2
    assert all(address.startswith("tcp://127.0.0.1:") for address, *_ in owner.refused)


def test_an_agent_that_cannot_be_made_is_told(place: Any, new_owner: Callable[..., Owner]) -> None:
    owner = new_owner(place[0].address, agent=support_dask.FAILING)
    wait_until(lambda: len(owner.refused) == 2)
    assert owner.refused[0][1] == "RuntimeError: no agent here"


LOADED = """
import pickle, sys, types
plugin = pickle.load(sys.stdin.buffer)
plugin.setup(types.SimpleNamespace(contact_address=None, address="here", log_event=print))
"""


@pytest.mark.parametrize("poolkit", ["x = = 1", "raise ImportError('no x')", "raise RuntimeError('no x')"])
def test_where_poolkit_cannot_be_imported_the_plugin_is_loaded_and_says_so(poolkit: str, tmp_path: Path) -> None:
    """Where a plugin cannot be loaded, Dask lets no dask worker start."""
    (tmp_path / "poolkit").mkdir()
    (tmp_path / "poolkit/__init__.py").write_text(poolkit, encoding="utf-8")
    plugin = pickle.dumps(dask_node.NodePlugin({"topic": "its topic"}))
    command = [sys.executable, "-c", LOADED]  # whose first place for modules is the working directory
    done = subprocess.run(command, input=plugin, cwd=tmp_path, capture_output=True, check=False, timeout=WATCHDOG)
    said = done.stdout.decode()
    assert said.startswith("its topic {'kind': 'failed', 'address': 'here'"), done.stderr.decode()
    assert "poolkit cannot be imported there (" in said


def test_a_later_node_joins_and_a_killed_one_ends(start: Callable[..., Any], new_owner: Callable[..., Owner]) -> None:
    scheduler = start(Scheduler)
    owner = new_owner(scheduler.address)
    program = start(Node, scheduler.address)
    (node,) = owner.wait_for_nodes(1)
    os.kill(program.pid, signal.SIGKILL)
    wait_until(lambda: node.ended)
    assert node.ended == ["closed"]
    start(Node, scheduler.address)
    owner.wait_for_nodes(1)


def _status(dask_worker: Any) -> str:
    return str(dask_worker.status.name)


def test_a_worker_that_its_nanny_starts_again_joins(start: Callable[..., Any], new_owner: Callable[..., Owner]) -> None:
    scheduler = start(Scheduler)
    start(Node, scheduler.address, nanny=True)
    owner = new_owner(scheduler.address)
    (node,) = owner.wait_for_nodes(1)
    with distributed.Client(scheduler.address, set_as_default=False) as client:  # before, the nanny gives it up
        wait_until(lambda: list(client.run(_status, nanny=True).values()) == ["running"])
    os.kill(node.facts.pid, signal.SIGKILL)
    wait_until(lambda: node.ended)
    (other,) = owner.wait_for_nodes(1)
    assert other.facts.pid != node.facts.pid


def test_a_retired_node_says_so_and_may_finish(start: Callable[..., Any], new_owner: Callable[..., Owner]) -> None:
    scheduler = start(Scheduler)
    program = start(Node, scheduler.address)
    owner = new_owner(scheduler.address)
    (node,) = owner.wait_for_nodes(1)
    with distributed.Client(scheduler.address, set_as_default=False) as client:
        client.retire_workers([node.facts.address], close_workers=True)
        assert node.receive()[0] == LEAVE + b"retired"
        wait_until(lambda: owner.leaving)
        assert owner.leaving == [(node.facts.number, "retired")]
        assert not node.ended
        node.send(b"the last")  # the connection is there until the owner ends it
        assert node.receive()[0] == b"the last"
        node.channel.abort()
        program.wait()
    assert node.ended == ["retired"]


def test_a_node_that_is_held_is_not_retired(start: Callable[..., Any], new_owner: Callable[..., Owner]) -> None:
    scheduler = start(Scheduler)
    for _ in range(2):
        start(Node, scheduler.address)
    owner = new_owner(scheduler.address)
    held, free = owner.wait_for_nodes(2)
    with distributed.Client(scheduler.address, set_as_default=False) as client:

        def spared() -> set[str]:
            return set(client.sync(client.scheduler.workers_to_close, n=2))

        for _ in range(2):
            owner.provider.hold(held.facts.number, True)
            wait_until(lambda: spared() == {free.facts.address}, "held")
            assert any(key.startswith("crunch-hold") for key in client.processing()[held.facts.address])
            assert client.submit(os.getpid, workers=[held.facts.address]).result(30) == held.facts.pid
            owner.provider.hold(held.facts.number, False)
            wait_until(lambda: len(spared()) == 2, "released")
        assert not client.processing()[held.facts.address]
        wait_until(lambda: set(client.run(_holding_threads).values()) == {0}, "the threads of the holds gone")


def _holding_threads() -> int:
    """Threads of this dask worker that are in a hold."""

    def calls(frame: Any) -> Iterator[str]:
        while frame is not None:
            yield frame.f_code.co_name
            frame = frame.f_back

    return sum("hold" in set(calls(frame)) for frame in sys._current_frames().values())


def test_a_cluster_is_scaled_but_for_what_is_held(new_owner: Callable[..., Owner]) -> None:
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster:
        owner = new_owner(cluster)
        try:
            (first,) = owner.wait_for_nodes(1)
            owner.provider.want(3)
            owner.wait_for_nodes(3)
            owner.provider.hold(first.facts.number, True)
            with distributed.Client(cluster, set_as_default=False) as client:
                wait_until(lambda: any(client.processing().values()))
            owner.provider.want(1)
            _end_those_that_leave(owner, 2)
            wait_until(lambda: len(owner.living()) == 1)
            assert owner.living() == [first]
            wait_until(lambda: len(cluster.plan) == 1)
        finally:
            owner.provider.close()


class Jobs:
    """A cluster of which whole jobs end: batch jobs, as of dask-jobqueue, and one dask worker by itself."""

    def __init__(self, *grouped: int, observed: Collection[str] = ()) -> None:
        """`grouped`: so many are in each job."""
        self.worker_spec = {str(job): {"group": [f"-{n}" for n in range(size)]} for job, size in enumerate(grouped)}
        self.worker_spec["alone"] = {}
        self.plan = {f"{job}-{n}" for job, size in enumerate(grouped) for n in range(size)} | {"alone"}
        self.observed = self.plan if observed == () else set(observed)
        self.scaled: list[int] = []
        self.scale = self.scaled.append


def jobs_provider(cluster: Jobs, spared: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> DaskProvider:
    """A provider on that cluster, of which Dask can spare these; it lets go at once of what it has chosen."""
    provider = DaskProvider("tcp://127.0.0.1:1", timeout=1.0)

    async def workers_to_close(**_: Any) -> Sequence[str]:
        return spared

    async def let_go(_names: list[Any]) -> None:
        return

    provider._cluster = cluster
    provider._client = SimpleNamespace(scheduler=SimpleNamespace(workers_to_close=workers_to_close))
    monkeypatch.setattr(provider, "_let_go", let_go)
    return provider


@pytest.mark.parametrize(
    ("excess", "spared", "chosen"),
    [
        (1, ["0-0", "0-1", "alone"], {"alone"}),  # the jobs are too large
        (2, ["0-0", "1-0", "1-1"], {"1-0", "1-1"}),  # another one of the first is held
        (3, ["0-0", "1-0", "1-1", "alone", "0-1"], {"0-0", "0-1", "alone"}),
        (4, ["0-0", "1-0", "1-1", "alone", "0-1"], {"0-0", "0-1", "1-0", "1-1"}),
        (2, ["0-0", "1-0"], set()),
    ],
)
def test_of_batch_jobs_whole_ones_are_given_back(
    excess: int, spared: Sequence[str], chosen: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask ends the job of each one that it is to end, with whatever else runs there."""
    provider = jobs_provider(Jobs(2, 2), spared, monkeypatch)
    asyncio.run(provider._give_back(excess))
    assert provider._going == chosen


def test_a_job_of_which_some_have_not_come_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = jobs_provider(Jobs(2, 2, observed={"0-0", "1-0", "alone"}), ["1-0"], monkeypatch)
    asyncio.run(provider._give_back(3))
    assert provider._going == {"1-0", "1-1"}


def test_while_some_are_given_back_no_more_are_started_than_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Jobs(4)
    provider = jobs_provider(cluster, ["0-0", "0-1", "0-2", "0-3"], monkeypatch)

    async def main() -> None:
        await provider._give_back(4)
        provider._want(2, fewer=False)
        await asyncio.gather(*provider._tasks)

    asyncio.run(main())
    assert cluster.scaled == [2 + 4]


def _end_those_that_leave(owner: Owner, count: int) -> None:
    """Do as an owner does with nodes that run nothing."""
    wait_until(lambda: len(owner.leaving) == count, "nodes to leave")
    for number, _ in owner.leaving:
        owner.nodes[number].channel.abort()


@pytest.fixture
def scaled() -> Iterator[distributed.LocalCluster]:
    """A cluster of one node that has others soon for those that are lost."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0, silence_logs=logging.CRITICAL
        ) as cluster,
    ):
        yield cluster


def test_a_node_that_is_given_back_finishes_what_it_runs(
    scaled: distributed.LocalCluster, new_owner: Callable[..., Owner]
) -> None:
    """It was sent something when it was chosen, and its hold was not there yet."""
    owner = new_owner(scaled)
    owner.provider.want(2)
    owner.wait_for_nodes(2)
    owner.provider.want(1)
    wait_until(lambda: owner.leaving, "a node to be chosen")
    ((number, why),) = owner.leaving
    node = owner.nodes[number]
    assert why == "retired"
    owner.provider.want(3)  # which is beside that one
    owner.wait_for_nodes(4)
    assert len(scaled.plan) == 4
    node.send(b"the last")
    assert node.receive()[0] == b"the last"
    node.channel.abort()
    wait_until(lambda: len(scaled.plan) == 3, "it to be given back")
    assert node.ended == ["retired"]
    assert len(owner.nodes) == 4  # that dask worker was not a node again
    owner.provider.close()


def test_nodes_that_have_not_come_yet_are_not_waited_for(
    scaled: distributed.LocalCluster, new_owner: Callable[..., Owner]
) -> None:
    owner = new_owner(scaled)
    owner.wait_for_nodes(1)
    owner.provider.want(3)
    wait_until(lambda: len(scaled.plan) == 3, "more to be asked for")
    owner.provider.want(1)
    wait_until(lambda: len(scaled.plan) == 1, "them to be asked for no more")
    assert len(owner.living()) == 1
    owner.provider.close()


def test_for_a_node_that_has_gone_by_itself_another_one_is_started(
    scaled: distributed.LocalCluster, new_owner: Callable[..., Owner]
) -> None:
    owner = new_owner(scaled)
    (node,) = owner.wait_for_nodes(1)
    with distributed.Client(scaled, set_as_default=False) as client:
        client.retire_workers([node.facts.address])
        _end_those_that_leave(owner, 1)
        wait_until(lambda: not scaled.requested, "the cluster to see it")
        owner.provider.want(1)
        (other,) = owner.wait_for_nodes(1)
        assert other.facts.pid != node.facts.pid
    owner.provider.close()


def test_a_node_that_dask_does_not_take_away_in_the_end_is_one_again(
    start: Callable[..., Any], new_owner: Callable[..., Owner]
) -> None:
    scheduler = start(Scheduler)
    for _ in range(2):
        start(Node, scheduler.address)
    owner = new_owner(scheduler.address)
    going, other = owner.wait_for_nodes(2)
    with distributed.Client(scheduler.address, set_as_default=False) as client:
        client.retire_workers([going.facts.address], close_workers=False, remove=False)
        wait_until(lambda: owner.leaving == [(going.facts.number, "retired")])
        going.channel.abort()
        wait_until(lambda: going.ended)
        other.send(b"quit")
        wait_until(lambda: len(owner.nodes) == 3, "the agent that follows the other one")
        assert [node.facts.address for node in owner.living()] == [other.facts.address]

        def stay(dask_worker: distributed.Worker) -> None:
            dask_worker.status = distributed.core.Status.running

        client.run(stay, workers=[going.facts.address])
        owner.wait_for_nodes(2)


def test_a_pool_that_ends_while_its_cluster_is_scaled_down_lets_that_go_on(
    new_owner: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster:
        begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()
        scale_down = cluster.scale_down

        async def slow(names: Any) -> None:
            begun.set()
            await asyncio.to_thread(may_end.wait)
            await scale_down(names)
            ended.set()

        monkeypatch.setattr(cluster, "scale_down", slow)
        owner = new_owner(cluster)
        try:
            owner.wait_for_nodes(2)
            owner.provider.want(1)
            _end_those_that_leave(owner, 1)
            wait_until(begun.is_set)
            owner.provider.close()
        finally:
            may_end.set()
        wait_until(ended.is_set)


def test_an_agent_without_an_owner_removes_itself(start: Callable[..., Any]) -> None:
    scheduler = start(Scheduler)
    for _ in range(2):
        start(Node, scheduler.address)
    script = f"""
import os, support_dask
from poolkit._nodes import dask_node, provider_dask
from poolkit._nodes.provider_dask import DaskProvider
owner = support_dask.Owner(DaskProvider({scheduler.address!r}, timeout=10, agent="support_dask:ImpatientAgent")).begin()
owner.wait_for_nodes(2)
print(owner.settings.pool, flush=True)
os._exit(0)  # it says goodbye to nobody
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], env=support_dask.environment(), check=True, capture_output=True, text=True
    )
    topic = f"poolkit-{ran.stdout.strip()}"
    wait_until(lambda: state_of(scheduler, topic) == [(False, False)] * 2, "the plugin gone")


def test_a_node_that_cannot_be_reached_is_told_and_joins_when_it_can_be(
    start: Callable[..., Any], new_owner: Callable[..., Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, cut = provider_dask.connect, threading.Event()
    cut.set()

    async def fail(address: str, **how: Any) -> Any:
        if cut.is_set():
            raise OSError("no route")
        return await connect(address, **how)

    monkeypatch.setattr(provider_dask, "connect", fail)
    scheduler = start(Scheduler)
    start(Node, scheduler.address)
    owner = new_owner(scheduler.address, agent="support_dask:ImpatientAgent")
    wait_until(lambda: owner.refused)
    assert owner.refused[0][1] == "it could not be reached from here: no route"
    with distributed.Client(scheduler.address, set_as_default=False) as client:
        topic = f"poolkit-{owner.settings.pool}"
        wait_until(lambda: len([1 for _, said in client.get_events(topic) if said["kind"] == "unreachable"]) > 12)
    assert state_of(scheduler, topic) == [(True, True)]  # its owner answers: it is no orphan
    cut.clear()
    owner.wait_for_nodes(1)
    assert len(owner.refused) == 1


def test_nodes_that_the_scheduler_has_kept_waiting_do_not_take_themselves_for_orphans(
    start: Callable[..., Any], new_owner: Callable[..., Owner]
) -> None:
    scheduler = start(Scheduler)
    start(Node, scheduler.address)
    owner = new_owner(scheduler.address, agent="support_dask:ImpatientAgent")
    (node,) = owner.wait_for_nodes(1)
    os.kill(scheduler.pid, signal.SIGSTOP)
    node.channel.abort()  # the next agent says that it is up, and nobody hears it
    wait_until(lambda: node.ended)
    pause(1.5)  # three times as long as it waits for an owner
    os.kill(scheduler.pid, signal.SIGCONT)
    owner.wait_for_nodes(1)
    assert state_of(scheduler, f"poolkit-{owner.settings.pool}") == [(True, True)]


@pytest.mark.long
def test_another_scheduler_at_the_address_gets_the_plugin(
    start: Callable[..., Any], new_owner: Callable[..., Owner]
) -> None:
    scheduler = start(Scheduler)
    start(Node, scheduler.address)
    owner = new_owner(scheduler.address)
    (node,) = owner.wait_for_nodes(1)
    scheduler.kill()
    wait_until(lambda: node.ended)
    assert node.ended == ["scheduler"] or (LEAVE + b"scheduler", []) in node.came
    port = int(scheduler.address.rpartition(":")[2])
    second = start(Scheduler, port)
    start(Node, second.address)
    (other,) = owner.wait_for_nodes(1)
    other.send(b"on another cluster")
    assert other.receive()[0] == b"on another cluster"


@pytest.mark.long
def test_a_client_that_has_given_up_is_followed_by_another(
    start: Callable[..., Any], new_owner: Callable[..., Owner]
) -> None:
    scheduler = start(Scheduler)
    owner = new_owner(scheduler.address, timeout=1.0)
    client = owner.provider._client
    scheduler.kill()
    wait_until(lambda: client.status == "closed", "the client has given up")
    second = start(Scheduler, int(scheduler.address.rpartition(":")[2]))
    start(Node, second.address)
    owner.wait_for_nodes(1)


def test_tls_is_used_and_a_client_without_certificates_is_refused(new_owner: Callable[..., Owner]) -> None:
    pytest.importorskip("cryptography")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0, security=True
    ) as cluster:
        owner = new_owner(cluster)
        try:
            (node,) = owner.wait_for_nodes(1)
            assert node.facts.address.startswith("tls://")
            assert node.channel._comm.extra_info["cipher"]  # type: ignore[attr-defined]
            node.send(b"secret", b"1", bytearray(5 * MIB))
            head, parts = node.receive()
            assert (head, [len(part) for part in parts]) == (b"secret", [1, 5 * MIB])
            with pytest.raises(Exception, match=r"TLS|security|certificate|ssl"):
                new_owner(cluster.scheduler_address, timeout=2.0)
        finally:
            owner.provider.close()


def test_a_client_gives_its_address_and_stays_open(place: Any, new_owner: Callable[..., Owner]) -> None:
    with distributed.Client(place[0].address, set_as_default=False) as client:
        owner = new_owner(client)
        owner.wait_for_nodes(2)
        owner.provider.close()
        assert client.status == "running"
        assert client.submit(os.getpid).result(30)


def test_without_a_cluster_the_current_client_then_the_configuration_is_taken(
    place: Any, new_owner: Callable[..., Owner]
) -> None:
    with distributed.Client(place[0].address):
        new_owner(None).wait_for_nodes(2)
    with dask.config.set({"scheduler-address": place[0].address}):
        new_owner(None).wait_for_nodes(2)


def test_without_anything_a_cluster_of_one_node_is_made_and_ended(new_owner: Callable[..., Owner]) -> None:
    owner = new_owner(None)
    (node,) = owner.wait_for_nodes(1)
    owner.provider.close()
    wait_until(lambda: not support_dask.support.is_alive(node.facts.pid))


def test_no_scheduler_is_an_error_of_begin(new_owner: Callable[..., Owner]) -> None:
    with pytest.raises(OSError, match=r"tcp://127\.0\.0\.1:9"):
        new_owner("tcp://127.0.0.1:9", timeout=0.5)


def test_workers_that_are_threads_are_refused() -> None:
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        pytest.raises(ValueError, match="processes=True"),
    ):
        DaskProvider(cluster, timeout=1.0)
    with pytest.raises(TypeError, match="was given 3"):
        DaskProvider(3, timeout=1.0)


def test_nothing_of_dask_is_imported_unless_asked_for() -> None:
    script = """
import importlib.util, sys
import poolkit
poolkit.Pool
import poolkit._nodes.workforce, poolkit._nodes.agent
found = {name.partition(".")[0] for name in sys.modules} & {"dask", "distributed", "tornado"}
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=support_dask.environment())
