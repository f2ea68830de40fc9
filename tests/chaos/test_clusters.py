"""Faults at every step of a cluster's way: in its workers, its template process, and the owner.

Whatever happens once: in the end all workers serve, a reload works, and the stop leaves nobody behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support_serving as served
from lifecycle.scripts import running
from poolkit._cluster.acceptor import Acceptor, Hand
from poolkit._cluster.generations import Generations
from poolkit._cluster.thread import ClusterThread
from support import WATCHDOG, wait_until
from support_serving import Clients, ask, pids_of, serving

pytestmark = pytest.mark.slow

SCHEDULES = ["kernel", "round_robin"]


def check_serves(cluster: poolkit.Cluster, workers: int = 2) -> None:
    """All places have a worker, each of them answers, and a reload works."""
    wait_until(lambda: cluster.stats().ready == workers and cluster.stats().state == "serving", "all workers")
    before = cluster.stats().generation
    while cluster.stats().generation == before:
        with contextlib.suppress(poolkit.ReloadFailed):  # a busy machine may take longer than a short limit of a boot
            cluster.reload(WATCHDOG)
    found: set[int] = set()

    def answered() -> bool:
        worker, generation, _ = ask(cluster.address)
        if generation == cluster.stats().generation:
            found.add(worker)
        return len(found) == workers

    wait_until(answered, "an answer of each worker")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fault", served.FAULTS)
@pytest.mark.parametrize("step", served.STEPS)
@pytest.mark.every_nth(8)
def test_a_fault_in_a_worker_costs_no_more_than_what_it_had(
    step: str, fault: str, schedule: str, tmp_path: Path
) -> None:
    target = partial(served.sabotaged, arms=tmp_path)
    options: dict[str, Any] = {"grace": 1.0}
    if fault in {"stop", "hang"}:  # which is noticed by such limits alone
        options |= {"liveness": 4.0, "boot_timeout": 6.0}
    with serving(target, schedule=schedule, **options) as cluster, Clients(cluster.address, 3) as clients:
        clients.wait_for_more(10)
        served.arm(tmp_path, step, fault)
        try:
            cluster.reload(WATCHDOG)
        except poolkit.ReloadFailed:
            assert step in {"boot", "ready"} or options.get("boot_timeout")
        wait_until(lambda: not (tmp_path / step).exists(), "the fault")
        clients.wait_for_more(10)
        check_serves(cluster)
        assert all("TimeoutError" not in failure for failure in clients.failures)
        assert len(clients.failures) <= 2


OWNERS_STEPS: dict[str, tuple[type, str]] = {
    "begin": (Generations, "env_of"),
    "boot": (ClusterThread, "_made"),
    "ready": (ClusterThread, "_told_ready"),
    "accept": (Acceptor, "_keep"),
    "pass": (Hand, "give"),
    "take back": (Hand, "take_back"),
    "drain": (ClusterThread, "_drain"),
    "stop": (ClusterThread, "_stop"),
    "gone": (ClusterThread, "_gone"),
    "reloaded": (ClusterThread, "_told_reloaded"),
    "drop": (Generations, "drop"),
}
OUTSIDE = ["kill a worker", "kill all workers", "kill template", "stop template", "no descriptors"]


class Saboteur:
    """Has one fault happen when the owner comes to a step, once it is armed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: str, fault: str) -> None:
        self.fault = fault
        self.cluster: poolkit.Cluster | None = None  # once it is armed
        self.is_done = False
        self._pids: list[int] = []
        self._templates: list[int] = []
        owner, name = OWNERS_STEPS[step]
        call = getattr(owner, name)

        def new_call(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self.cluster is not None and not self.is_done:
                self.is_done = True
                if self.fault == "no descriptors" and step == "pass":
                    return False  # as it tells that itself
                self._do()
            return call(this, *args, **kwargs)

        monkeypatch.setattr(owner, name, new_call)

    def arm(self, cluster: poolkit.Cluster) -> None:
        self._pids = pids_of(cluster)
        self._templates = [
            int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in self._pids
        ]
        self.cluster = cluster

    def _do(self) -> None:
        if self.fault == "no descriptors":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        pids = self._templates if "template" in self.fault else self._pids
        for pid in {*pids[: 1 if "a worker" in self.fault else None]}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if "stop" in self.fault else signal.SIGKILL)


@pytest.fixture
def new_saboteur(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Saboteur]:
    """What sets a fault."""
    return partial(Saboteur, monkeypatch)


@pytest.mark.parametrize("schedule", ["round_robin", "kernel"])
@pytest.mark.parametrize("fault", OUTSIDE)
@pytest.mark.parametrize("step", OWNERS_STEPS)
@pytest.mark.every_nth(14)
def test_a_fault_at_a_step_of_the_owner_ends_no_service(
    step: str, fault: str, schedule: str, new_saboteur: Callable[[str, str], Saboteur]
) -> None:
    if schedule == "kernel" and step in {"accept", "pass", "take back"}:
        pytest.skip("the kernel does that")
    if fault == "no descriptors" and step not in {"boot", "pass"}:
        pytest.skip("nothing is opened there, or that is tried there alone")
    saboteur = new_saboteur(step, fault)
    with serving(served.in_turn, schedule=schedule) as cluster:
        with Clients(cluster.address, 3) as clients:
            clients.wait_for_more(10)
            saboteur.arm(cluster)
            with contextlib.suppress(poolkit.ReloadFailed):
                cluster.reload(WATCHDOG)
            wait_until(lambda: saboteur.is_done, "the fault")
            clients.wait_for_more(10)
            check_serves(cluster)
        assert all("TimeoutError" not in failure for failure in clients.failures)
        assert len(clients.failures) <= 4


@pytest.mark.parametrize("schedule", ["round_robin", "kernel"])
@pytest.mark.parametrize("step", OWNERS_STEPS)
@pytest.mark.every_nth(7)
def test_an_owner_that_is_killed_at_a_step_leaves_nobody_and_no_port(step: str, schedule: str) -> None:
    if schedule == "kernel" and step in {"accept", "pass", "take back"}:
        pytest.skip("the kernel does that")
    owner, name = OWNERS_STEPS[step]
    source = """
import os, signal, socket, sys, threading
import poolkit
from poolkit._cluster import acceptor, generations, thread

def serve(context):
    for connection, _ in context.connections():
        with connection:
            connection.sendall(b"here")

owner = next(vars(room)[sys.argv[1]] for room in (acceptor, generations, thread) if sys.argv[1] in vars(room))
setattr(owner, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
cluster = poolkit.Cluster(serve, 2, "127.0.0.1:0", schedule=sys.argv[3])
print(cluster.address[1], flush=True)
cluster.start()

def ask():
    while True:
        with socket.create_connection(cluster.address) as client:
            client.recv(10)

threading.Thread(target=ask, daemon=True).start()
while True:
    cluster.reload()
"""
    with running(source, owner.__name__, name, schedule) as script:
        address = "127.0.0.1", int(script.read_lines(1)[0])
        assert script.process.wait(WATCHDOG) == -signal.SIGKILL
        script.wait_until_gone()
        socket.create_server(address).close()


@pytest.mark.parametrize("fault", ["raise", "choose nobody"])
def test_a_schedule_that_fails_costs_no_connection(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def schedule(_address: Any, slots: Any) -> int:
        calls.append(slots)
        if fault == "raise":
            raise MemoryError
        return 7

    with serving(served.in_turn, schedule=schedule) as cluster:
        assert {ask(cluster.address)[0] for _ in range(4)} == {0, 1}
        assert len(calls) == 4
    caplog.clear()  # the records have the frames in which it raised, and so what those have
