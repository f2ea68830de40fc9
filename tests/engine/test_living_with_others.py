"""Pools on a Dask cluster with certificates, beside Dask's own work, and of an owner that is no file."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest

import support_dask
from engine import work
from poolkit.dask import DaskPool
from support import WATCHDOG

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _offloading() -> None:
    """Dask's one thread for this process is there before the first look for leaks."""
    distributed.utils._offload_executor.submit(int).result()


# ===== certificates =====

TLS_ALERT = b"\x15"  # the first byte of one


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    """A cluster of one node that talks by TLS, with certificates of its own."""
    pytest.importorskip("cryptography")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0, security=True
    ) as cluster:
        yield cluster


def ciphers_of_agents(dask_worker: distributed.Worker) -> list[Any]:
    """By what the agents in a dask worker talk with their owners."""
    seats = [plugin._seat for name, plugin in dask_worker.plugins.items() if name.startswith("poolkit-")]
    return [seat._channel._comm.stream.socket.cipher() for seat in seats]


def is_refused(connect: Callable[[], socket.socket]) -> bool:
    """Whether who is there hangs up, or says at most that something is wrong; who is let in is greeted."""
    try:
        with connect() as talk:
            return talk.recv(1) in {b"", TLS_ALERT}
    except (ssl.SSLError, ConnectionError):
        return True


def test_owner_and_nodes_talk_by_tls_and_nobody_else_does(cluster: distributed.LocalCluster) -> None:
    with DaskPool(cluster) as pool:
        assert pool.submit(len, "abc").result(WATCHDOG) == 3
        assert len(pool.submit(bytes, 1 << 20).result(WATCHDOG)) == 1 << 20
        (here,) = pool._provider._nodes.values()  # type: ignore[attr-defined]
        cipher = here.channel._comm.stream.socket.cipher()
        with distributed.Client(cluster, set_as_default=False) as client:
            (there,) = client.run(ciphers_of_agents).values()
        print("the owner:", cipher, "the node:", *there)
        assert [cipher] == [tuple(each) for each in there]
        assert cipher[1] in {"TLSv1.2", "TLSv1.3"}
        node = pool.nodes()[0].address
        assert node.startswith("tls://")
        host, port = node.removeprefix("tls://").split(":")
        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((host, int(port)), WATCHDOG) as plain:
            assert is_refused(lambda: stranger.wrap_socket(plain))  # without a certificate of its own
        with socket.create_connection((host, int(port)), WATCHDOG) as plain:
            plain.sendall(bytes(64))
            assert is_refused(lambda: plain)  # without TLS
        assert pool.submit(len, "abcd").result(WATCHDOG) == 4


def test_an_address_is_enough_where_the_configuration_has_the_certificates(cluster: distributed.LocalCluster) -> None:
    with pytest.raises((OSError, TypeError), match=r"(?i)tls|ssl|certificate"), DaskPool(cluster.scheduler_address):
        pass
    given = cluster.security
    configured = {
        "distributed.comm.tls.ca-file": given.tls_ca_file,
        "distributed.comm.tls.client.cert": given.tls_client_cert,
        "distributed.comm.tls.client.key": given.tls_client_key,
    }
    with dask.config.set(configured), DaskPool(cluster.scheduler_address) as pool:
        assert pool.submit(len, "abc").result(WATCHDOG) == 3


# ===== Dask's own work =====


def test_work_of_dask_and_of_the_pool_go_on_beside_each_other() -> None:
    array = pytest.importorskip("dask.array")
    with (
        support_dask.cluster(2) as (scheduler, nodes),
        distributed.Client(scheduler.address, set_as_default=False) as client,
        DaskPool(client, min_nodes=2) as pool,
    ):
        logs = {program: len(program.log) for program in (scheduler, *nodes)}  # what was said of starting
        numbers = array.arange(2_000_000, chunks=100_000)
        tasks = [pool.submit(abs, -number) for number in range(200)]
        sums = [client.compute((numbers * factor).sum()) for factor in (1, 2, 3)]
        more = pool.map(work.double, range(2000))
        assert [future.result(WATCHDOG) for future in sums] == [1999999000000 * factor for factor in (1, 2, 3)]
        assert [task.result(WATCHDOG) for task in tasks] == list(range(200))
        assert list(more) == list(range(0, 4000, 2))
        assert client.submit(len, "abc").result(WATCHDOG) == 3
        assert pool.submit(len, "abcd").result(WATCHDOG) == 4
        assert {node.state for node in pool.nodes()} == {"up"}
    for program, length in logs.items():
        assert not [line for line in program.log[length:].splitlines() if "WARN" in line.upper() or "ERROR" in line]


# ===== an owner that is no file =====

NOTEBOOK = """
import sys
sys.path.insert(0, sys.argv[2])
import ownmod
from poolkit.dask import DaskPool

class Point:
    def __init__(self, x):
        self.x = x

factor = 3

def scaled(point):
    return Point(point.x * factor)

def adder(by):
    def add(number):
        return number + by
    return add

with DaskPool(sys.argv[1]) as pool:
    print(pool.submit(lambda number: number * factor, 2).result())
    factor = 4
    print(pool.submit(lambda number: number * factor, 2).result())
    print(pool.submit(adder(5), 2).result())
    point = pool.submit(scaled, Point(2)).result()
    print(type(point) is Point, point.x)
    print(list(pool.map(adder(1), range(3))))
    try:
        pool.submit(ownmod.twice, 2).result()
    except ModuleNotFoundError as exc:
        told = "".join([str(exc), *getattr(exc, "__notes__", ())])
        print("ownmod" in told, "by_value" in told)
with DaskPool(sys.argv[1], by_value=["ownmod"]) as pool:
    print(pool.submit(ownmod.twice, 2).result())
"""


def test_an_owner_on_standard_input_is_at_home_on_its_nodes(tmp_path: Path) -> None:
    (tmp_path / "ownmod.py").write_text("def twice(number):\n    return number * 2\n")
    with support_dask.cluster(1) as (scheduler, _):
        done = subprocess.run(
            [sys.executable, "-", scheduler.address, str(tmp_path)],
            input=textwrap.dedent(NOTEBOOK),
            env=support_dask.environment(),
            capture_output=True,
            text=True,
            timeout=2 * WATCHDOG,
            check=False,
        )
    assert done.stdout.splitlines() == ["6", "8", "7", "True 8", "[1, 2, 3]", "True True", "4"], done.stderr
    assert not done.stderr
