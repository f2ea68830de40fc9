"""Clusters and the life of their owner: its end, in whatever way, its forks; and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

import poolkit
import support_serving as served
from lifecycle.scripts import Script, run, running
from support import WATCHDOG, wait_until
from support_serving import Clients, ask, serving, wait_until_ready

pytestmark = pytest.mark.slow

PATIENCE = 10.0  # seconds, on any machine; where nothing else runs it takes a tenth of one

OWNER = """
import gc, os, signal, socket, sys, threading, time, warnings
import poolkit

warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # a fork, from CPython 3.12 on

def serve(context):
    for connection, _ in context.connections():
        with connection:
            connection.recv(100)
            connection.sendall(b"%d\\n" % os.getpid())

def ask(cluster):
    with socket.create_connection(cluster.address, 20) as client:
        client.sendall(b"ask\\n")
        return int(client.makefile().readline())

def sleep(port):
    port.send(None)
    signal.pause()

cluster = poolkit.Cluster(serve, 2, "127.0.0.1:0", schedule=sys.argv[1], kind=sys.argv[2])
"""


def address_of(line: str) -> tuple[str, int]:
    return "127.0.0.1", int(line)


def check_free(address: tuple[str, int]) -> None:
    """Somebody else can listen there at once."""
    socket.create_server(address).close()


def wait_until_gone_and_free(script: Script, address: tuple[str, int]) -> None:
    began = time.monotonic()
    script.wait_until_gone()
    assert time.monotonic() - began < PATIENCE
    check_free(address)


@pytest.mark.parametrize("schedule", ["kernel", "round_robin"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_an_owner_that_is_killed_with_all_that_it_can_have(number: int, schedule: str) -> None:
    source = """
pool = poolkit.Pool(20)
commands = [pool.run(["sh", "-c", "echo; sleep 99 & wait"], stdout="lines") for _ in range(20)]
for command in commands:
    next(command.lines())
workers = [poolkit.Worker(sleep) for _ in range(5)]
for worker in workers:
    worker.recv()
cluster.start(20)
print(cluster.address[1], flush=True)
signal.pause()
"""
    with running(OWNER + source, schedule, "process") as script:
        address = address_of(script.read_lines(1)[0])
        with Clients(address, 4) as clients:
            clients.wait_for_more()
            assert len(script.family()) > 50
            script.kill(number)
            wait_until_gone_and_free(script, address)


@pytest.mark.parametrize("state", ["starting", "reloading", "stopping"])
def test_nobody_outlives_an_owner_that_is_killed_in_the_midst_of(state: str) -> None:
    source = """
def slow(context):
    if context.generation == 2 or sys.argv[3] == "starting":
        print("in the midst", flush=True)
        signal.pause()
    serve(context)
    print("in the midst", flush=True)
    signal.pause()

cluster = poolkit.Cluster(slow, 2, "127.0.0.1:0", schedule=sys.argv[1], kind=sys.argv[2])
print(cluster.address[1], flush=True)
cluster.start()
if sys.argv[3] == "reloading":
    cluster.reload()
cluster.stop()
"""
    with running(OWNER + source, "round_robin", "process", state) as script:
        address = address_of(script.read_lines(1)[0])
        assert script.read_lines(1) == ["in the midst"]
        script.kill()
        wait_until_gone_and_free(script, address)


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("how", ["end", "exit", "raise", "in a thread", "in a with", "os._exit"])
def test_the_end_of_the_interpreter_ends_a_cluster_that_runs(how: str, kind: str) -> None:
    source = """
how = sys.argv[3]
if how == "in a thread":
    thread = threading.Thread(target=cluster.start)
    thread.start()
    thread.join()
else:
    cluster.start(20)
ask(cluster)
print(cluster.address[1], flush=True)
if how == "exit":
    sys.exit(3)
if how == "raise":
    raise SystemExit(3)
if how == "in a with":
    with poolkit.Cluster(serve, 1, "127.0.0.1:0", kind=sys.argv[2]):
        sys.exit(3)
if how == "os._exit":
    os._exit(3)
"""
    with running(OWNER + source, "round_robin", kind, how) as script:
        address = address_of(script.read_lines(1)[0])
        ended = script.finish()
        assert ended.code == (0 if how in {"end", "in a thread"} else 3), ended.err
        assert "Traceback" not in ended.err
        wait_until_gone_and_free(script, address)


@pytest.mark.parametrize("schedule", ["kernel", "round_robin"])
def test_a_forked_child_of_the_owner_has_no_cluster_and_does_it_no_harm(schedule: str) -> None:
    """The child lives on when the owner has stopped, and does not hold the port."""
    source = """
cluster.start(20)
ask(cluster)
pid = os.fork()
if not pid:
    for call in (cluster.reload, cluster.workers, cluster.stats, lambda: cluster.send(1), lambda: cluster.resize(1)):
        try:
            print("wrong", call(), flush=True)
        except poolkit.PoolClosed:
            print("closed", flush=True)
    cluster.stop()
    del cluster
    with poolkit.Cluster(serve, 1, "127.0.0.1:0", schedule=sys.argv[1], kind=sys.argv[2]) as own:
        print(ask(own) > 0, flush=True)
    print("child", os.getpid(), flush=True)
    signal.pause()
while ask(cluster) < 0:
    pass
input()
print(ask(cluster) > 0)
cluster.stop()
socket.create_server(cluster.address).close()
os.kill(pid, 9)
print(os.waitpid(pid, 0)[1])
"""
    with running(OWNER + source, schedule, "process") as script:
        assert script.read_lines(6) == ["closed"] * 5 + ["True"]
        script.read_lines(1)
        assert script.finish("\n").check() == ["True", "9"]
        script.wait_until_gone()


def test_nothing_is_left_behind_by_what_was_started_reloaded_resized_and_stopped() -> None:
    """The leak check around every test finds a thread, process, descriptor, listener or memory that is."""
    with serving(served.one_request, schedule="least_busy") as cluster:
        with Clients(cluster.address, 2) as clients:
            clients.wait_for_more(10)
            cluster.reload(WATCHDOG)
            cluster.resize(4)
            wait_until_ready(cluster, 4)
            cluster.resize(1)
            clients.wait_for_more(10)
            wait_until(lambda: len(cluster.workers()) == 1, "one that is left")
        assert clients.failures == []
    check_free(cluster.address)


def test_nothing_is_left_behind_by_what_did_not_start(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    cluster = poolkit.Cluster(partial(served.does_not_boot_while, flag=flag), 2, served.LOCAL, schedule="sticky")
    with pytest.raises(poolkit.ClusterFailed, match="it cannot boot"):
        cluster.start(WATCHDOG)
    check_free(cluster.address)
    assert (cluster.stats().state, cluster.workers()) == ("stopped", [])
    flag.unlink()
    with serving(partial(served.does_not_boot_while, flag=flag)) as cluster:
        flag.touch()
        with pytest.raises(poolkit.ReloadFailed, match="it cannot boot"):
            cluster.reload(WATCHDOG)
        assert ask(cluster.address)[1] == 1


def test_a_worker_that_is_stopped_before_its_start_is_not_started(caplog: pytest.LogCaptureFixture) -> None:
    """Else it would be given descriptors that are closed, or that are somebody else's by then."""
    with serving(served.in_turn, 1, schedule="round_robin") as cluster:
        began = cluster.stats().started

        def at_once() -> None:
            cluster._thread.resize(3)
            cluster._thread.rules.stop(time.monotonic())

        cluster._thread.ask(at_once)
        assert cluster.wait(WATCHDOG)
        assert (cluster.stats().state, cluster.stats().started) == ("stopped", began + 2)
    assert "could not be started" not in caplog.text


def test_what_was_made_and_never_started_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    cluster = poolkit.Cluster(served.in_turn, 2, ["127.0.0.1:0", f"unix:{path}"], schedule="round_robin")
    assert path.exists()
    cluster.stop()
    assert not path.exists()
    check_free(cluster.address)


FLAT = """
def held():
    own = len(os.listdir("/proc/self/fd"))
    size = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return own, len(threading.enumerate()), size

def held_in_the_end():
    give_up = time.monotonic() + 10  # what has ended gets a moment to be gone
    while time.monotonic() < give_up:
        gc.collect()
        found = held()
        if found[0] <= before[0] and found[1] <= before[1]:
            break
        time.sleep(0.01)
    return found

def live(cluster):
    with cluster:
        ask(cluster)
        cluster.reload()
        cluster.resize(3)
        ask(cluster)

def make():
    return poolkit.Cluster(serve, 2, "127.0.0.1:0", schedule=sys.argv[1], kind=sys.argv[2])

cluster.stop()
for _ in range(3):
    live(make())
before = held()
for _ in range(int(sys.argv[3])):
    live(make())
after = held_in_the_end()
print(after[0] <= before[0], after[1] <= before[1], after[2] - before[2] < 4 << 20, before, after)
"""


@pytest.mark.parametrize("count", ["5", pytest.param("15", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_many_clusters_one_after_the_other_leave_descriptors_threads_and_memory_flat(kind: str, count: str) -> None:
    [line] = run(OWNER + FLAT, "round_robin", kind, count)
    assert line.startswith("True True True"), line


RELOADS = """
def held():
    return len(os.listdir("/proc/self/fd")), len(threading.enumerate()), int(open("/proc/self/statm").read().split()[1])

with cluster:
    for number in range(int(sys.argv[3])):
        if number == 3:
            before = held()
        cluster.reload()
        ask(cluster)
        while len(cluster.workers()) != 2:
            pass
    give_up = time.monotonic() + 10  # the hidden pool of the last generation gets a moment to be gone
    while any(map(int.__gt__, (after := held())[:2], before[:2])) and time.monotonic() < give_up:
        time.sleep(0.01)
print(after[0] <= before[0], after[1] <= before[1], after[2] - before[2] < 1000, before, after)
"""


@pytest.mark.parametrize("count", ["8", pytest.param("30", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_many_reloads_leave_descriptors_threads_and_memory_flat(kind: str, count: str) -> None:
    [line] = run(OWNER + RELOADS, "round_robin", kind, count)
    assert line.startswith("True True True"), line


def test_signals_stop_a_cluster_that_runs_in_the_foreground() -> None:
    source = """
print(cluster.address[1], flush=True)
sys.exit(cluster.run())
"""
    with running(OWNER + source, "kernel", "process") as script:
        address = address_of(script.read_lines(1)[0])
        with Clients(address, 2) as clients:
            clients.wait_for_more(10)
            for name in ("SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGTTOU"):
                script.process.send_signal(getattr(signal, name))
                clients.wait_for_more(10)
            assert clients.failures == []
        script.process.send_signal(signal.SIGTERM)
        assert script.finish().code == 0
        wait_until_gone_and_free(script, address)


def test_an_owner_that_is_stopped_goes_on() -> None:
    """Meanwhile its workers serve what the kernel gives them."""
    source = """
cluster.start(20)
print(cluster.address[1], flush=True)
signal.pause()
"""
    with running(OWNER + source, "kernel", "process") as script:
        address = address_of(script.read_lines(1)[0])
        os.kill(script.process.pid, signal.SIGSTOP)
        wait_until(lambda: ask_for_pid(address) != script.process.pid, "an answer")
        os.kill(script.process.pid, signal.SIGCONT)
        victim = ask_for_pid(address)
        os.kill(victim, signal.SIGKILL)
        assert ask_for_pid(address) != victim
        script.kill()
        wait_until_gone_and_free(script, address)


def ask_for_pid(address: tuple[str, int]) -> int:
    with socket.create_connection(address, WATCHDOG) as client:
        client.sendall(b"ask\n")
        return int(client.makefile("rb").readline())
