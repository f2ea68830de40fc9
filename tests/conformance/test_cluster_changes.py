"""Clusters that change: reload, resize, drain and recycle, without a lost connection."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import support_clusters as work
from poolkit import ReloadFailed
from support import WATCHDOG, wait_until
from support_clusters import Client, Load, MakeCluster, ask, is_refused, pids, who
from support_gates import Gate

pytestmark = pytest.mark.slow

both_kinds = pytest.mark.parametrize("of", ["process", "thread"])


# ===== reload, resize =====


def module(folder: Path, text: str) -> None:
    """Write the application, as one does while it serves."""
    (folder / "app_that_changes.py").write_text(
        f"{text}\nasync def serve(context):\n    import support_clusters\n    talk = support_clusters.Talk(context)\n"
        "    talk.on_version = version\n    await talk.run()\nasync def version():\n    return VERSION\n"
    )


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write a module `app_that_changes`, which the workers can import."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within a second have one time
    yield functools.partial(module, tmp_path)
    sys.modules.pop("app_that_changes", None)


def load_and_serve(context: Any) -> None:
    import app_that_changes  # type: ignore[import-not-found]

    asyncio.run(app_that_changes.serve(context))


@pytest.mark.parametrize("preload", [(), ("app_that_changes",)], ids=str)
def test_a_reload_imports_all_code_anew(
    make_cluster: MakeCluster, application: Callable[[str], None], preload: tuple[str, ...], tmp_path: Path
) -> None:
    application("VERSION = 'first'")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    with make_cluster(load_and_serve, preload=preload, env=env) as cluster:
        assert {ask(cluster.address, "version") for _ in range(4)} == {"first"}
        before = pids(cluster)
        application("VERSION = 'second edition'")
        assert cluster.reload() == 2
        assert {ask(cluster.address, "version") for _ in range(4)} == {"second edition"}
        assert not {*before} & {*pids(cluster)}
        application("VERSION = = 'broken'")
        with pytest.raises(ReloadFailed, match=r"generation 3 .* generation 2 goes on") as caught:
            cluster.reload()
        assert isinstance(caught.value.__cause__, SyntaxError)
        assert (caught.value.generation, caught.value.worker_id in {0, 1}) == (3, True)
        assert {ask(cluster.address, "version") for _ in range(4)} == {"second edition"}
        application("VERSION = 'third'")
        assert cluster.reload() == 4
        assert {ask(cluster.address, "version") for _ in range(4)} == {"third"}
        assert "app_that_changes" not in sys.modules  # the owner imports nothing of it
        wait_until(lambda: len(cluster.workers()) == 2, "the old ones to be gone")
        assert (cluster.stats().reloads, cluster.stats().reloads_failed, cluster.stats().crashed) == (2, 1, 1)


@pytest.mark.every_nth(1)
@pytest.mark.parametrize("how", ["raise", "die", "hang"])
def test_a_reload_that_fails_is_not_noticed(make_cluster: MakeCluster, how: str) -> None:
    with make_cluster(functools.partial(work.fail_in_generation, number=2, how=how)) as cluster:
        before = pids(cluster)
        told: list[Any] = []
        cluster.on("reload_failed", told.append)
        with pytest.raises(ReloadFailed, match="generation 2") as caught:
            cluster.reload(None if how != "hang" else 1.0)
        kinds = {"raise": LookupError, "die": Exception, "hang": TimeoutError}
        assert isinstance(caught.value.__cause__, kinds[how])
        assert pids(cluster) == before
        assert who(cluster.address).generation == 1
        assert cluster.reload() == 3
        assert who(cluster.address).generation == 3
        wait_until(lambda: told)
        assert isinstance(told[0], ReloadFailed)


@both_kinds
@pytest.mark.every_nth(4)
@pytest.mark.parametrize("schedule", ["kernel", "round_robin", "least_busy", "sticky"])
def test_no_connection_is_lost_by_reloads_and_resizes(make_cluster: MakeCluster, schedule: str, of: str) -> None:
    with make_cluster(schedule=schedule, kind=of) as cluster, Load(cluster.address) as load:
        for size in (3, 1, 2):
            cluster.reload()
            cluster.resize(size)
            wait_until(lambda: cluster.stats().ready == size == len(cluster.workers()))  # noqa: B023
    assert load.failures == []


def test_reloads_during_a_reload_are_one_more(make_cluster: MakeCluster, new_gate: Callable[[], Gate]) -> None:
    gate = new_gate()
    cluster = make_cluster(functools.partial(work.ready_by, how="ready", gate=gate), 1)
    gate.signal()
    cluster.start()
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(cluster.reload())) for _ in range(6)]
    threads[0].start()
    wait_until(lambda: cluster.stats().state == "reloading")
    for thread in threads[1:]:
        thread.start()
    gate.signal(2)
    for thread in threads:
        thread.join(WATCHDOG)
    assert sorted(numbers) in ([2, 3, 3, 3, 3, 3], [2, 2, 3, 3, 3, 3], [2, 2, 2, 3, 3, 3])


@both_kinds
def test_another_number_of_workers(make_cluster: MakeCluster, of: str) -> None:
    with make_cluster(schedule="round_robin", kind=of) as cluster:
        cluster.resize(4)
        wait_until(lambda: cluster.stats().ready == 4)
        assert [who(cluster.address).worker_id for _ in range(8)] in [
            [*range(n, 4), *range(4), *range(n)] for n in range(4)
        ]
        cluster.resize(1)
        wait_until(lambda: len(cluster.workers()) == 1)
        assert {who(cluster.address).worker_id for _ in range(3)} == {0}
        assert cluster.stats().workers == 1


# ===== draining, recycling =====


@both_kinds
@pytest.mark.parametrize("order", ["stop", "reload", "resize"])
@pytest.mark.parametrize("schedule", ["kernel", "round_robin"])
def test_what_is_in_flight_is_finished(
    make_cluster: MakeCluster, new_gate: Callable[[], Gate], order: str, schedule: str, of: str
) -> None:
    arrived, release = new_gate(), new_gate()
    with make_cluster(schedule=schedule, kind=of) as cluster, Client(cluster.address) as client:
        client.say(f"gate {arrived.path} {release.path}")
        arrived.wait()
        thread = None
        if order == "stop":
            thread = threading.Thread(target=cluster.stop)
            thread.start()
            wait_until(lambda: cluster.stats().state == "stopping")
            wait_until(lambda: is_refused(cluster.address))
            assert not cluster.wait(0)
        elif order == "reload":
            assert cluster.reload() == 2
            assert {who(cluster.address).generation for _ in range(4)} == {2}
        else:
            cluster.resize(1)
            assert {who(cluster.address).worker_id for _ in range(4)} <= {0, 1}
        release.signal()
        assert client.hear().startswith("done")
        if thread is not None:
            thread.join(WATCHDOG)
        assert cluster.stats().crashed == 0


@both_kinds
@pytest.mark.every_nth(3)
@pytest.mark.parametrize("order", ["stop", "reload", "resize"])
def test_what_does_not_stop_is_killed_and_its_stack_logged(
    make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture, order: str, of: str
) -> None:
    for _ in range(5):  # on a busy machine it may be too late for a stack
        cluster = make_cluster(work.deaf, bind=None, grace=0.2, kind=of)
        cluster.start()
        if order == "stop":
            cluster.stop(WATCHDOG)
        elif order == "reload":
            assert cluster.reload() == 2
        else:
            cluster.resize(1)
        left = {"stop": 0, "reload": 2, "resize": 1}[order]
        wait_until(lambda: [info.state for info in cluster.workers()] == ["ready"] * left)  # noqa: B023
        assert "did not stop for 0.2 s, and is killed" in caplog.text
        if "in stay_asleep" in caplog.text:
            return
    pytest.fail(caplog.text)


@both_kinds
@pytest.mark.every_nth(3)
@pytest.mark.parametrize("how", [SystemExit, ConnectionAbortedError, LookupError])
def test_how_a_target_may_end(
    make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture, how: type[BaseException], of: str
) -> None:
    with make_cluster(functools.partial(work.leave, how=how), bind=None, kind=of) as cluster:
        assert cluster.reload() == 2
        cluster.stop(WATCHDOG)
        assert cluster.stats().crashed == 0
    assert caplog.text.count("what its target raised") == (4 if how is LookupError else 0)
    caplog.clear()


def test_kill_does_not_wait(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(work.deaf, bind=None)
    cluster.start()
    with pytest.raises(TimeoutError, match="not stopped within 0"):
        cluster.stop(0)
    cluster.stop(WATCHDOG / 2, kill=True)
    assert cluster.wait(0)


@both_kinds
def test_a_worker_that_has_served_enough_is_replaced(make_cluster: MakeCluster, of: str) -> None:
    with make_cluster(max_requests=20, schedule="round_robin", kind=of) as cluster:
        with Load(cluster.address, 2) as load:
            wait_until(lambda: cluster.stats().recycled >= 3)
        assert load.failures == []
        assert cluster.stats().crashed == 0
        assert cluster.stats().served >= 3 * 18
        assert {info.restarts for info in cluster.workers()} == {0}


def test_a_worker_that_has_grown_is_replaced(make_cluster: MakeCluster) -> None:
    with make_cluster(workers=1, max_memory=300 << 20) as cluster:
        before = who(cluster.address)
        assert ask(cluster.address, f"grow {400 << 20}") == "grown"
        wait_until(lambda: cluster.stats().recycled == 1)
        wait_until(lambda: who(cluster.address).pid != before.pid)
