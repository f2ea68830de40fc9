"""Clusters: the pains that users of prefork servers complain of most.

One test a row, named after what holds here. No test asserts a time that matters on a slow machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support_serving as served
from lifecycle.scripts import running
from support import WATCHDOG, wait_until
from support_groups import limited_group
from support_serving import Clients, ask, pids_of, serving, wait_for_generation, wait_until_ready

pytestmark = pytest.mark.slow

PASSING = ["kernel", "round_robin"]
SCHEDULES = ["kernel", "round_robin", "least_busy", "sticky"]
MEMORY = 100 << 20


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("schedule", PASSING)
@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.long)])
def test_row_01_reloads_cut_no_connection_that_is_kept(schedule: str, count: int) -> None:
    with serving(served.keep_alive, schedule=schedule) as cluster:
        with Clients(cluster.address, 8, keep=True) as clients:
            for number in range(count):
                clients.wait_for_more()
                assert cluster.reload(WATCHDOG) == number + 2
            wait_for_generation(cluster, count + 1)
            clients.wait_for_more()
        assert clients.failures == []
        assert {each[1] for each in clients.asked} == set(range(1, count + 2))


@pytest.mark.parametrize("schedule", PASSING)
@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.long)])
def test_row_05_reloads_lose_no_connection_of_an_event_loop(schedule: str, count: int) -> None:
    with serving(served.one_request, schedule=schedule) as cluster:
        with Clients(cluster.address, 8) as clients:
            for _ in range(count):
                clients.wait_for_more()
                cluster.reload(WATCHDOG)
            clients.wait_for_more()
        assert clients.failures == []


def test_row_07_a_worker_that_hangs_is_killed_and_it_is_told_where(caplog: pytest.LogCaptureFixture) -> None:
    """It holds the interpreter's lock, so it can tell nothing itself."""
    caplog.set_level(logging.INFO, "poolkit.cluster")
    with serving(served.hang_when_asked, 1, liveness=1.0) as cluster:
        with pytest.raises(ConnectionError):
            ask(cluster.address, "hang")
        assert ask(cluster.address)[0] == 0
        assert cluster.stats().hung >= 1
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert any("gave no sign of life" in line for line in told)
    assert any("support_serving.py" in line and "in hang_with_the_gil" in line for line in told)


def test_row_08_a_worker_that_boots_or_computes_for_long_is_not_killed() -> None:
    with serving(partial(served.busy_in_c, seconds=1), 1, liveness=WATCHDOG) as cluster:
        assert ask(cluster.address)[2] == pids_of(cluster)[0]
        assert (cluster.stats().hung, cluster.stats().started) == (0, 1)
    ready: queue.SimpleQueue[poolkit.ClusterWorkerInfo] = queue.SimpleQueue()
    cluster = poolkit.Cluster(partial(served.slow_to_boot, seconds=1), 1, served.LOCAL, liveness=0.5)
    cluster.on("worker_ready", ready.put)
    with cluster:
        assert ready.get(timeout=WATCHDOG).restarts == 0  # the first that was started


RUN = """
import logging, os, sys
import poolkit
from poolkit._core import cluster as rules

logging.basicConfig()
rules.NOBODY_FOR = 0.5
"""


def test_row_09_what_cannot_boot_is_told_once_and_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken_application.py").write_text("x = = 1\n")
    source = """
def target(context):
    import broken_application

sys.path.insert(0, sys.argv[1])
sys.exit(poolkit.Cluster(target, 3, "127.0.0.1:0").run())
"""
    with running(RUN + source, str(tmp_path)) as script:
        ended = script.finish()
        assert ended.code == 3
        assert "in its first start" in ended.err
        assert ended.err.count("Traceback") == 1, ended.err
        assert 'broken_application.py", line 1' in ended.err
        script.wait_until_gone()


def test_row_09_what_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    source = """
from functools import partial
from pathlib import Path
flag = Path(sys.argv[1])

def target(context):
    if flag.exists():
        os._exit(5)
    flag.touch()
    context.ready()
    os._exit(6)

sys.exit(poolkit.Cluster(target, 1, "127.0.0.1:0").run())
"""
    with running(RUN + source, str(tmp_path / "flag")) as script:
        ended = script.finish()
        assert ended.code == 4
        assert "in a crash loop" in ended.err
        assert "code 5" in ended.err
        script.wait_until_gone()


def test_row_09_one_that_does_not_boot_beside_others_stops_no_service(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with serving(partial(served.does_not_boot_while, flag=flag), 3) as cluster:
        flag.touch()
        kill(*[info.pid for info in cluster.workers() if info.worker_id == 0 and info.pid])
        wait_until(lambda: cluster.stats().crashed >= 4, "starts that fail")
        assert {ask(cluster.address)[0] for _ in range(5)} <= {1, 2}
        assert cluster.stats().ready == 2
        flag.unlink()
        wait_until_ready(cluster, 3)


def test_row_10_connections_that_never_end_hold_up_a_reload_once(caplog: pytest.LogCaptureFixture) -> None:
    """For the grace of one, and not of one after the other."""
    grace, workers = 1.0, 4
    with serving(served.stubborn, workers, schedule="round_robin", grace=grace) as cluster:
        exited: queue.SimpleQueue[poolkit.WorkerExited] = queue.SimpleQueue()
        cluster.on("worker_exited", exited.put)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(served.connect(cluster.address)[0]) for _ in range(workers)]
            assert cluster.reload(WATCHDOG) == 2
            ends = []
            for _ in range(workers):
                assert exited.get(timeout=WATCHDOG).cause == "reloaded"
                ends.append(time.monotonic())
            assert ends[-1] - ends[0] < grace * (workers - 1)
            assert [client.recv(1) for client in clients] == [b""] * workers
    assert "in never_end" in caplog.text


@pytest.mark.every_nth(1)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_row_16_small_answers_are_sent_at_once(schedule: str) -> None:
    for target in (served.no_delay_of_loops, served.no_delay_of_calls):
        with serving(target, 1, schedule=schedule, kind="process" if schedule in PASSING else "thread") as cluster:
            client = socket.create_connection(cluster.address, WATCHDOG)
            with client:
                assert client.recv(10) == b"1\n"


@pytest.mark.parametrize("schedule", PASSING)
def test_row_17_what_waits_in_the_queue_is_served_by_others(schedule: str) -> None:
    """A worker that accepts nothing is killed, and one that accepts nothing is reloaded."""
    with serving(served.first_generation_takes_nothing, schedule=schedule) as cluster, contextlib.ExitStack() as stack:
        clients = []
        for number in range(60):
            clients.append(stack.enter_context(socket.create_connection(cluster.address, WATCHDOG)))
            clients[-1].sendall(b"ask\n")
            if number == 30:
                kill(pids_of(cluster)[0])
        cluster.reload(WATCHDOG)
        for client in clients:
            assert client.makefile("rb").readline().split()[1] == b"2"


@pytest.mark.every_nth(1)
@pytest.mark.parametrize("schedule", ["round_robin", "least_busy"])
def test_row_18_a_burst_is_shared_evenly(schedule: str) -> None:
    with serving(served.held, 4, schedule=schedule) as cluster, contextlib.ExitStack() as stack:
        found = []
        for _ in range(100):
            client, who = served.connect(cluster.address)
            stack.enter_context(client)
            found.append(who)
        counts = served.shares(found)
        assert len(counts) == 4
        assert max(counts) - min(counts) <= (0 if schedule == "round_robin" else 2)


def test_row_18_a_client_keeps_its_worker() -> None:
    """Over reconnects, a respawn and a reload."""
    with serving(served.in_turn, 3, schedule="sticky") as cluster:
        clients = [f"127.0.0.{number}" for number in range(2, 10)]
        before = [ask(cluster.address, source=client)[0] for client in clients]
        assert len({*before}) > 1
        assert [ask(cluster.address, source=client)[0] for client in clients] == before
        kill(*pids_of(cluster))
        assert [ask(cluster.address, source=client)[0] for client in clients] == before
        cluster.reload(WATCHDOG)
        found = [ask(cluster.address, source=client) for client in clients]
        assert [each[0] for each in found] == before
        assert {each[1] for each in found} == {2}


def test_row_20_a_thread_that_a_preloaded_module_starts_is_there_in_each_worker(tmp_path: Path) -> None:
    """A fork would not copy it, so each worker is a new interpreter; the log says so."""
    (tmp_path / "with_thread.py").write_text(
        "import threading\nover = threading.Event()\n"
        "thread = threading.Thread(target=over.wait, name='of-the-import', daemon=True)\nthread.start()\n"
    )
    source = """
def target(context):
    import with_thread, threading
    names = [thread.name for thread in threading.enumerate()]
    context.send([with_thread.thread.is_alive(), "of-the-import" in names])
    context.ready()
    context.stopping.wait()

import queue
sys.path.insert(0, sys.argv[1])
found = queue.SimpleQueue()
cluster = poolkit.Cluster(target, 2, "127.0.0.1:0", preload=["with_thread"])
cluster.on_message(lambda worker_id, message: found.put(message))
with cluster:
    print(found.get(), found.get())
"""
    with running(RUN + source, str(tmp_path)) as script:
        ended = script.finish()
        assert ended.out.split("\n")[0] == "[True, True] [True, True]", ended.err
        assert "threads run since with_thread was imported" in ended.err


@pytest.mark.parametrize("schedule", PASSING)
@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.long)])
def test_row_21_it_serves_again_each_time_that_all_workers_were_killed(schedule: str, count: int) -> None:
    with serving(served.in_turn, 3, schedule=schedule) as cluster:
        for _ in range(count):
            wait_until_ready(cluster, 3)
            wait_until(lambda: all(info.since > 1.0 for info in cluster.workers()), "workers that count as started")
            kill(*pids_of(cluster))
            assert len(ask(cluster.address)) == 3
        wait_until_ready(cluster, 3)
        stats = cluster.stats()
        assert (stats.state, stats.crashed) == ("serving", 3 * count)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of its own, with a limit of memory."""
    with limited_group(MEMORY) as group:
        yield group


def test_row_22_a_kill_for_want_of_memory_is_named(memory_group: Path) -> None:
    source = """
from pathlib import Path

def target(context):
    for connection, _ in context.connections():
        with connection:
            kept = []
            while True:
                kept.append(bytearray(1 << 20))

import socket
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
with poolkit.Cluster(target, 1, "127.0.0.1:0") as cluster:
    with socket.create_connection(cluster.address, 20) as client:
        try:
            client.recv(1)
        except ConnectionError:
            pass
    while not cluster.stats().crashed:
        pass
"""
    with running(RUN + source, str(memory_group)) as script:
        ended = script.finish()
        assert ended.code == 0, ended.err
        assert "SIGKILL" in ended.err
        assert "the kernel's out-of-memory killer" in ended.err
        assert "MB of the group were used up" in ended.err
        assert "with a peak of" in ended.err
        script.wait_until_gone()


@pytest.mark.parametrize("schedule", ["round_robin", "kernel"])
@pytest.mark.parametrize("count", [6, pytest.param(10, marks=pytest.mark.long)])
def test_row_26_a_dead_worker_costs_only_what_it_had_accepted(schedule: str, count: int) -> None:
    """Each serves one connection at a time, so a kill costs one request."""
    with serving(served.in_turn, 2, schedule=schedule) as cluster:
        with Clients(cluster.address, 8) as clients:
            for _ in range(count):
                clients.wait_for_more()
                wait_until(lambda: pids_of(cluster), "a worker")
                with contextlib.suppress(ProcessLookupError):  # it is being replaced just now
                    kill(pids_of(cluster)[0])
            clients.wait_for_more()
        assert len(clients.failures) <= count, clients.failures
        assert "TimeoutError" not in str(clients.failures)


@pytest.mark.parametrize("schedule", PASSING)
def test_row_29_a_worker_that_blocks_on_its_listener_freezes_no_other(schedule: str) -> None:
    with serving(served.blocking_beside_a_loop, 2, schedule=schedule) as cluster:
        heard: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        cluster.on_message(lambda slot, message: heard.put((slot, message)))
        for number in range(30):
            assert len(ask(cluster.address)) == 3
            cluster.send(number, 1)  # a loop that waits in `accept` would not answer
            assert heard.get(timeout=WATCHDOG) == (1, number)
        assert not os.get_blocking(cluster._thread._fds[0])
