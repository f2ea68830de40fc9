"""Clusters whose workers die, hang, or do not come up: each row of the failure table, within one owner."""

from __future__ import annotations

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
from poolkit import ClusterFailed, ReloadFailed, WorkerCrashed
from support import WATCHDOG, wait_for_exit, wait_until
from support_clusters import Client, Load, MakeCluster, pids, tell, who
from support_gates import Gate

pytestmark = pytest.mark.slow

both_kinds = pytest.mark.parametrize("of", ["process", "thread"])

# ===== deaths =====


@pytest.mark.every_nth(2)
@pytest.mark.parametrize(
    ("what", "cause", "said"),
    [
        ("kill 9", "crashed", "SIGKILL"),
        ("kill 11", "crashed", "SIGSEGV"),
        ("exit 3", "crashed", "code 3"),
        ("raise", "failed", "LookupError: it was asked to"),
        ("return", "crashed", "returned, and was not told to stop"),
    ],
)
def test_a_worker_that_dies_is_replaced(
    make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture, what: str, cause: str, said: str
) -> None:
    exits: list[Any] = []
    with make_cluster(schedule="round_robin") as cluster:
        cluster.on("worker_exited", exits.append)
        with Client(cluster.address) as bystander, Client(cluster.address) as victim:
            slot = victim.who().worker_id
            assert bystander.who().worker_id != slot
            victim.say(what)
            wait_until(lambda: cluster.stats().crashed == 1 and cluster.stats().ready == 2)
            assert bystander.who().worker_id != slot  # it goes on
            with pytest.raises(ConnectionError):
                while True:
                    victim.hear()
        assert {who(cluster.address).worker_id for _ in range(4)} == {0, 1}
        assert {info.worker_id: info.restarts for info in cluster.workers()} == {slot: 1, 1 - slot: 0}
        wait_until(lambda: exits)
        assert (exits[0].worker_id, exits[0].cause) == (slot, cause)
        assert said in caplog.text


@pytest.mark.parametrize("what", ["raise", "return"])
def test_a_thread_that_ends_is_replaced(make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture, what: str) -> None:
    with make_cluster(kind="thread") as cluster:
        tell(cluster.address, what)
        wait_until(lambda: cluster.stats().crashed == 1 and cluster.stats().ready == 2)
        assert who(cluster.address).generation == 1
    caplog.clear()  # the frames of what was raised hold what the worker had


@pytest.mark.every_nth(1)
@pytest.mark.parametrize("schedule", ["kernel", "round_robin"])
def test_deaths_cost_nobody_else_a_connection(make_cluster: MakeCluster, schedule: str) -> None:
    """Those of the dead alone are reset: at most one for each client at each death."""
    with make_cluster(workers=3, schedule=schedule) as cluster, Load(cluster.address) as load:
        for turn in range(4):
            os.kill(pids(cluster)[turn % 3] or 0, signal.SIGKILL)
            wait_until(lambda: cluster.stats().crashed == turn + 1 and cluster.stats().ready == 3)  # noqa: B023
    assert len(load.failures) <= 4 * 3
    assert all(isinstance(failure, ConnectionResetError) for failure in load.failures)


def test_what_was_passed_and_not_accepted_goes_to_another(make_cluster: MakeCluster) -> None:
    with make_cluster(schedule="round_robin") as cluster, Client(cluster.address) as client:
        victim = client.who()
        os.kill(victim.pid, signal.SIGSTOP)  # accepts nothing more
        others = [Client(cluster.address) for _ in range(6)]
        try:
            wait_until(lambda: cluster.stats().passed == 7)
            os.kill(victim.pid, signal.SIGKILL)
            assert {each.who().generation for each in others} == {1}
            assert cluster.stats().passed_again >= 1
        finally:
            for each in others:
                each.close()


def test_the_template_is_killed(make_cluster: MakeCluster) -> None:
    with make_cluster() as cluster:
        before = [pid or 0 for pid in pids(cluster)]
        template = int(Path(f"/proc/{before[0]}/stat").read_text().rpartition(")")[2].split()[1])
        assert template != os.getpid()
        os.kill(template, signal.SIGKILL)
        wait_for_exit(*before)
        wait_until(lambda: cluster.stats().ready == 2)
        assert who(cluster.address).pid not in before
        assert not {*before} & {*pids(cluster)}
        assert cluster.reload() == 2
        assert who(cluster.address).generation == 2


# ===== hangs =====


@both_kinds
def test_a_worker_that_hangs_is_killed_and_its_stack_logged(
    make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture, of: str
) -> None:
    exits: list[Any] = []
    with make_cluster(work.talk_and_be_alive, liveness=1.5, kind=of, schedule="round_robin") as cluster:
        cluster.on("worker_exited", exits.append)
        with Client(cluster.address) as client:
            slot = client.who().worker_id
            client.say("block")
            wait_until(lambda: cluster.stats().hung == 1 and cluster.stats().ready == 2)
        assert who(cluster.address).worker_id in {0, 1}
        wait_until(lambda: exits)
        assert (exits[0].worker_id, exits[0].cause) == (slot, "hung")
    assert "gave no sign of life for 1.5 s" in caplog.text
    assert "support_clusters.py" in caplog.text
    assert "in block_the_loop" in caplog.text
    caplog.clear()  # the frames of what was raised hold what the worker had


def test_who_shows_signs_of_life_is_left_alone(make_cluster: MakeCluster) -> None:
    with make_cluster(work.talk_and_be_alive, 1, liveness=1.0) as cluster:
        first = who(cluster.address).pid
        started = cluster.stats().uptime
        wait_until(lambda: cluster.stats().uptime > started + 2.5)
        assert cluster.stats().hung in {0, 1}  # a machine may stand still for a second
        assert cluster.stats().hung or who(cluster.address).pid == first


def test_a_worker_that_is_not_ready_in_time(make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(4):  # on a busy machine it may be too late for a stack
        cluster = make_cluster(work.never_ready, 3, bind=None, boot_timeout=2)
        with pytest.raises(ClusterFailed, match="its first start"):
            cluster.start(WATCHDOG)
        assert "was not ready for " in caplog.text
        if "its stack then:\n  File " in caplog.text:
            return
    pytest.fail(caplog.text)


# ===== what does not come up =====


@both_kinds
def test_the_first_start_raises(make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture, of: str) -> None:
    cluster = make_cluster(work.raise_at_once, kind=of, name="shop")
    with pytest.raises(ClusterFailed, match=r"cluster shop has failed in its first start.*no database") as caught:
        cluster.start(WATCHDOG)
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.worker_id in {0, 1}
    assert caught.value.generation == 1
    assert not isinstance(caught.value, ReloadFailed)
    assert cluster.wait(0)
    assert work.is_refused(cluster.address)
    assert "no database for shop" in caplog.text
    caplog.clear()


def test_the_first_start_dies(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(work.die_at_once, 1)
    with pytest.raises(ClusterFailed, match="SIGKILL") as caught:
        cluster.start(WATCHDOG)
    assert isinstance(caught.value.__cause__, WorkerCrashed)
    assert cluster.stats().started == 3


def test_those_that_serve_are_not_stopped_by_one_that_cannot_start(make_cluster: MakeCluster, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    with make_cluster(functools.partial(work.fail_while_there_is, path=str(bad))) as cluster:
        bad.touch()
        os.kill(pids(cluster)[0] or 0, signal.SIGKILL)
        wait_until(lambda: cluster.stats().crashed >= 4)  # it is tried again, later and later
        assert cluster.stats().ready == 1
        assert who(cluster.address).generation == 1
        wait_until(lambda: "waiting" in [info.state for info in cluster.workers()])
        bad.unlink()
        wait_until(lambda: cluster.stats().ready == 2)


@pytest.mark.long
def test_a_crash_loop_ends_it(make_cluster: MakeCluster, tmp_path: Path) -> None:
    bad, ends = tmp_path / "bad", []
    with make_cluster(functools.partial(work.fail_while_there_is, path=str(bad))) as cluster:
        cluster.on("stopped", ends.append)
        bad.touch()
        for pid in pids(cluster):
            os.kill(pid or 0, signal.SIGKILL)
        assert cluster.wait(WATCHDOG)
        wait_until(lambda: ends == [4])
        assert cluster.stats().uptime >= 10


# ===== stops in between =====


@both_kinds
@pytest.mark.every_nth(2)
@pytest.mark.parametrize("meanwhile", ["start", "reload", "resize"])
def test_a_stop_meanwhile(make_cluster: MakeCluster, new_gate: Callable[[], Gate], meanwhile: str, of: str) -> None:
    gate = new_gate()
    cluster = make_cluster(functools.partial(work.ready_by, how="ready", gate=gate), 1, kind=of)
    errors: list[BaseException] = []

    def do(what: Callable[[], object]) -> None:
        try:
            what()
        except ClusterFailed as exc:
            errors.append(exc)

    if meanwhile != "start":
        gate.signal()
        cluster.start(WATCHDOG)
    steps = {"start": cluster.start, "reload": cluster.reload, "resize": functools.partial(cluster.resize, 3)}
    thread = threading.Thread(target=do, args=(steps[meanwhile],))
    thread.start()
    wait_until(lambda: "starting" in [info.state for info in cluster.workers()])
    cluster.stop(WATCHDOG)
    thread.join(WATCHDOG)
    assert not thread.is_alive()
    assert cluster.wait(0)
    assert len(errors) == (meanwhile != "resize")
    assert all("stopped" in str(error) for error in errors)


@both_kinds
@pytest.mark.every_nth(3)
@pytest.mark.parametrize("event", ["worker_started", "worker_ready", "worker_exited", "reloaded"])
def test_a_stop_from_a_callback(make_cluster: MakeCluster, event: str, of: str) -> None:
    # A thread that is stopped while it makes an event loop would leave that.
    cluster = make_cluster(work.talk if event == "worker_exited" else work.in_a_loop, kind=of)
    if event in {"worker_exited", "reloaded"}:
        cluster.start(WATCHDOG)
    cluster.on(event, lambda _: cluster.stop())
    try:
        if event == "worker_exited":
            tell(cluster.address, "return")
        elif event == "reloaded":
            cluster.reload()
        else:
            cluster.start(WATCHDOG)
    except ClusterFailed as exc:
        assert "stopped" in str(exc)  # noqa: PT017 -- it may be up before
    assert cluster.wait(WATCHDOG)


def test_a_reload_and_a_message_from_a_callback(make_cluster: MakeCluster) -> None:
    numbers: list[int] = []
    with make_cluster(kind="thread") as cluster:
        cluster.on_message(lambda _id, _message: numbers.append(cluster.reload()))
        assert work.ask(cluster.address, "say reload") == "said"
        wait_until(lambda: numbers == [2])


def test_a_stop_from_a_signal_handler(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    before = signal.signal(signal.SIGUSR1, lambda *_: cluster.stop())
    try:
        cluster.start(WATCHDOG)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert cluster.wait(WATCHDOG)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("at", [3, 10, 25, 40, 60, 80, 100, 130])
def test_a_stop_from_a_signal_handler_at_any_moment(make_cluster: MakeCluster, at: int) -> None:
    """In whatever line of `start` or `wait` it comes, no lock keeps it waiting."""
    cluster, stops = make_cluster(work.until_told, 1, bind=None, kind="thread"), list[int]()

    def trace(_frame: Any, event: str, _arg: object) -> Any:
        nonlocal at
        at -= event == "line"
        if not at:
            cluster.stop()  # as a handler would, called here
            stops.append(at)
        return trace

    sys.settrace(trace)
    try:
        cluster.start()
        while not stops:
            cluster.wait(0)
    except RuntimeError as exc:  # ClusterFailed, or it was stopped before
        assert "stopped" in str(exc) or "started before" in str(exc)  # noqa: PT017 -- it may be up before
    finally:
        sys.settrace(None)
    assert cluster.wait(WATCHDOG)
    assert stops


def test_many_at_once(make_cluster: MakeCluster) -> None:
    """All of it at the same time, from many threads; nothing is left of it."""
    cluster = make_cluster(work.in_a_loop, schedule="least_busy", kind="thread")
    cluster.start(WATCHDOG)

    def do(number: int) -> None:
        for step in range(5):
            cluster.resize(1 + (number + step) % 3)
            cluster.stats()
            try:
                if number == 0:
                    cluster.reload()
                cluster.send("x")
            except ClusterFailed:
                pass
            work.answer_of(cluster.address)

    threads = [threading.Thread(target=do, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    cluster.resize(2)
    wait_until(lambda: cluster.stats().ready == 2 == len(cluster.workers()))
    assert cluster.stats().crashed == 0


def test_a_client_that_goes_before_it_is_accepted(make_cluster: MakeCluster) -> None:
    with make_cluster(work.accept_for_ever, 1, schedule="round_robin") as cluster:
        for _ in range(50):
            with socket.create_connection(cluster.address) as gone:
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        assert work.answer_of(cluster.address) == "0"
        assert cluster.stats().crashed <= 1  # one that has sent to a reset connection
