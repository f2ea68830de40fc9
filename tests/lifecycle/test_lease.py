"""A pool whose workers live under a lease: its template process ends them when nobody renews that."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
import support
import support_functions as work
from chaos.faults import template_pid
from lifecycle.scripts import Script, running
from poolkit._nodes.lease import D
from poolkit._wire.lease_page import LeasePage, page

pytestmark = pytest.mark.slow

LEASE = 1.0  # seconds
OWNER = f"""
import ctypes, os, struct, subprocess, sys, threading, time
import poolkit
from poolkit._wire.lease_page import LeasePage, page

class Pool(poolkit.Pool):
    def _build(self, settings, limits):
        settings.lease_fd = fd
        return super()._build(settings, limits)

def stamp(path):
    with open(path, "ab", 0) as file:
        while True:
            file.write(struct.pack("d", time.monotonic()))
            time.sleep(0.002)

def hold_the_gil(path):
    os.write(1, b"up\\n")
    ctypes.PyDLL(None).sleep(3600)

def start_program(path):
    program = "import os, signal; os.write(1, b'up\\\\n'); signal.pause()"
    hides = "POOLKIT_PORTABLE" not in os.environ  # there, only its group is known
    subprocess.run([sys.executable, "-S", "-c", program], start_new_session=hides)

def square(number):
    return number * number

def renew():
    while True:
        lease.until = time.monotonic() + {LEASE}
        time.sleep(0.01)

fd = page()
lease = LeasePage(fd, writes=True)
threading.Thread(target=renew, daemon=True).start()
pool = Pool(4)
pool.warm_up()
print(fd, pool._supervisor.workforce._template.pid, flush=True)
tasks = [pool.submit(work, sys.argv[1]) for work in (stamp, hold_the_gil, start_program)]
for task in tasks:
    try:
        task.result()
    except poolkit.WorkerCrashed as exc:
        print("crashed", exc.signal)
print(*pool.map(square, range(4)))
pool.shutdown()
"""


def last_stamp(path: Path) -> float:
    """When the task lived for the last time that is known; 0.0: it has not begun."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        whole = file.seek(0, os.SEEK_END) // 8
        if whole:
            file.seek(8 * (whole - 1))
            (when,) = struct.unpack("d", file.read(8))
            return float(when)
    return 0.0


def until_of(script: Script, fd: int) -> float:
    """Until when the workers of a script that is stopped may live."""
    theirs = os.open(f"/proc/{script.process.pid}/fd/{fd}", os.O_RDONLY)
    lease = LeasePage(theirs)
    os.close(theirs)
    until = lease.until
    lease.close()
    return until


def test_workers_end_with_the_lease_when_their_owner_is_stopped(tmp_path: Path) -> None:
    """Also those that hold the interpreter's lock, and what tasks started. When the owner goes on, its pool works."""
    stamps = tmp_path / "stamps"
    with running(OWNER, str(stamps)) as owner:
        fd, template = map(int, owner.read_lines(1)[0].split())
        assert owner.read_lines(2) == ["up", "up"]
        began = support.retry_until(lambda: last_stamp(stamps), bool)
        support.wait_until(lambda: last_stamp(stamps) > began + 2 * LEASE, "a lease to be renewed")
        owner.process.send_signal(signal.SIGSTOP)
        support.wait_until(lambda: support.state_of(owner.process.pid) == "T")
        until = until_of(owner, fd)
        support.wait_until(lambda: set(owner.family()) == {owner.process.pid, template}, "the workers to end")
        assert until - LEASE < last_stamp(stamps) < until + D
        owner.process.send_signal(signal.SIGCONT)
        assert owner.finish().check() == [*["crashed SIGKILL"] * 3, "0 1 4 9"]
        owner.wait_until_gone()


class Leased(poolkit.Pool):
    """A pool whose workers live under a lease."""

    def _build(self, settings: Any, limits: Any) -> Any:
        self.fd = settings.lease_fd = page()
        self.lease = LeasePage(self.fd, writes=True)
        return super()._build(settings, limits)

    def close(self) -> None:
        self.shutdown()
        self.lease.close()
        os.close(self.fd)


@pytest.fixture
def leased() -> Iterator[Leased]:
    with support.watchdog():
        made = Leased(1)
        yield made
        made.close()


def test_its_template_process_is_of_that_pool_alone_and_ends_with_it(leased: Leased) -> None:
    other = Leased(1)
    other.lease.until = time.monotonic()
    with poolkit.Pool(1) as plain:
        assert isinstance(other.submit(work.square, 3).exception(), poolkit.WorkerCrashed)
        assert [pool.submit(work.square, 3).result() for pool in (leased, plain)] == [9, 9]
        found = [template_pid(pool) for pool in (leased, other, plain)]
        assert len(set(found)) == 3
        other.close()
        support.wait_for_exit(found[1])
    assert found[2] in {template.pid for template in support.idle_templates()}


def test_workers_that_are_forked_while_the_lease_is_over_are_killed_too(leased: Leased) -> None:
    """With the template process that there is, the pool works again once the lease is renewed."""
    leased.lease.until = time.monotonic()
    assert isinstance(leased.submit(work.square, 3).exception(), poolkit.WorkerCrashed)
    template = template_pid(leased)
    leased.lease.until = math.inf
    assert leased.submit(work.square, 3).result() == 9
    assert template_pid(leased) == template


def test_a_lease_may_be_over_again_and_again(leased: Leased) -> None:
    for _ in range(3):
        leased.lease.until = time.monotonic() + LEASE / 4
        assert isinstance(leased.submit(signal.pause).exception(), poolkit.WorkerCrashed)
        assert time.monotonic() >= leased.lease.until
    leased.lease.until = math.inf
    assert leased.submit(work.square, 3).result() == 9
