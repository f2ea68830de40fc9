"""The template process: what it makes of orders, and what it says of its workers."""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkit import _os_processes
from poolkit._child.template import TemplateProcess
from poolkit._clock import monotonic
from poolkit._wire import messages
from poolkit._wire.lease_page import LeasePage, page
from poolkit._wire.messages import FORK, NOTICE
from support import WATCHDOG


class Served:
    """A template that is served by hand, and the owner's ends of its sockets."""

    def __init__(self) -> None:
        self.root, theirs = socket.socketpair()
        self.process = TemplateProcess(theirs, "forkserver")
        self.process._helpers = _os_processes.children()  # else it may take those of this process for adopted ones
        self._ends = [self.root, theirs]

    def order(self, *fds: int, count: int | None = None, flags: int = 0) -> socket.socket:
        """Order a worker with these descriptors, as if there were `count`."""
        ours, theirs = socket.socketpair()
        order = FORK.pack(flags, 1 + len(fds) if count is None else count)
        socket.send_fds(self.root, [order], [theirs.fileno(), *fds])
        theirs.close()
        self._ends.append(ours)
        return ours

    def adopt(self, pid: int) -> tuple[int, socket.socket]:
        """Have a worker that was not forked."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._ends.append(ours)
        control = theirs.detach()
        self.process._workers[control] = pid
        self.process._poller.register(control, select.POLLIN)
        return control, ours

    def close(self) -> None:
        for end in self._ends:
            end.close()
        process = self.process
        if process._lease is not None:
            process._lease.close()
        for fd in (process._wakeup_read, process._wakeup_write, process._spare, *process._workers):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


def notice(ours: socket.socket) -> tuple[int, ...]:
    ours.settimeout(WATCHDOG)
    return NOTICE.unpack(ours.recv(NOTICE.size))


def test_the_owners_end_ends_the_template(served: Served) -> None:
    served.root.close()
    served.process.serve()


def test_orders_that_were_not_taken_end_with_the_template(served: Served) -> None:
    """Whoever ordered reads the end of the control socket."""
    ours = served.order()
    served.process._root.close()
    assert ours.recv(1) == b""


def test_a_process_that_cannot_be_had_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the descriptors that came for it are closed."""

    def no_fork() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", no_fork)
    read, write = os.pipe()
    ours = served.order(write)
    os.close(write)
    assert served.process._fork()
    assert notice(ours) == (messages.FORK_FAILED, errno.EAGAIN, 0, 0)
    assert ours.recv(1) == b""
    assert os.read(read, 1) == b""
    os.close(read)
    assert served.process._workers == {}


def test_a_worker_whose_descriptors_found_no_room_is_refused(served: Served) -> None:
    read, write = os.pipe()
    ours = served.order(write, count=3)
    os.close(write)
    assert served.process._fork()
    assert notice(ours) == (messages.FORK_FAILED, errno.EMFILE, 0, 0)
    assert ours.recv(1) == b""
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_worker_is_told_of_with_its_number(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of what came for it the template keeps the control socket alone."""
    monkeypatch.setattr(os, "fork", lambda: 12345)
    monkeypatch.setattr(os, "setpgid", lambda *_: None)
    read, write = os.pipe()
    ours = served.order(write)
    os.close(write)
    assert served.process._fork()
    assert notice(ours) == (messages.FORKED, 0, 12345, 0)
    assert os.read(read, 1) == b""
    os.close(read)
    assert [*served.process._workers.values()] == [12345]


def test_an_order_reaches_the_worker_whose_control_socket_it_came_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(("one", pid, number)))
    monkeypatch.setattr(_os_processes, "kill_trees", lambda pids: sent.append(("all of", *pids)))
    (one, ours), _ = served.adopt(12345), served.adopt(23456)
    for order in (signal.SIGUSR1, messages.KILL):
        ours.send(bytes((order,)))
        assert served.process._signal(one)
        assert notice(ours)[0] == messages.SIGNALLED
    assert sent == [("one", 12345, signal.SIGUSR1), ("all of", 12345)]


def test_the_end_of_a_control_socket_kills_that_worker_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """All whose sockets were closed are looked after together: to find what descends from them takes a while."""
    killed: list[tuple[int, ...]] = []
    monkeypatch.setattr(_os_processes, "kill_trees", lambda pids: killed.append(tuple(pids)))
    monkeypatch.setattr(os, "waitpid", lambda *_: (0, 0))
    _, ours = served.adopt(12345)
    _, other = served.adopt(23456)
    served.adopt(34567)
    ours.close()
    other.close()
    polled = served.process._poller.poll

    class Once:
        """Polls once, then the owner is gone."""

        @staticmethod
        def poll(_timeout: float | None) -> list[tuple[int, int]]:
            found: list[tuple[int, int]] = polled()
            served.root.close()
            return found

        unregister = staticmethod(served.process._poller.unregister)

    served.process._poller = Once()
    served.process.serve()
    assert killed[0] == (12345, 23456)


def test_an_owner_that_reads_nothing_keeps_nobody_waiting(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: None)
    control, ours = served.adopt(12345)
    for _ in range(5000):
        ours.send(bytes((signal.SIGUSR1,)))
        assert served.process._signal(control)


def test_how_a_worker_ended_is_told_and_its_socket_closed(served: Served) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    control, ours = served.adopt(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    served.process._threaded.append("lest it takes our children for orphans")
    served.process._reap()
    kind, status, _, peak = notice(ours)
    assert (kind, os.waitstatus_to_exitcode(status)) == (messages.EXITED, 7)
    assert peak > 0
    assert ours.recv(1) == b""
    assert control not in served.process._workers


@pytest.fixture
def leased(served: Served) -> Iterator[tuple[TemplateProcess, LeasePage]]:
    """A template that a FORK order has brought a page, which the test writes. It could not fork."""
    fd = page()
    owners = LeasePage(fd, writes=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fork", cannot_fork)
        ours = served.order(fd, flags=messages.HAS_LEASE)
        os.close(fd)
        assert served.process._fork()
    assert notice(ours)[:2] == (messages.FORK_FAILED, errno.EAGAIN)
    yield served.process, owners
    owners.close()


def cannot_fork() -> int:
    raise BlockingIOError(errno.EAGAIN, "no more processes")


def test_while_a_lease_is_renewed_it_is_looked_at_when_it_would_have_ended(
    served: Served, leased: tuple[TemplateProcess, LeasePage], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, page = leased
    killed: list[list[int]] = []
    monkeypatch.setattr(_os_processes, "kill_trees", killed.append)
    page.until = 0.0
    assert process._keep_lease() is None, "it has no workers, and sleeps until there is an order"
    served.adopt(12345)
    for seconds in (100.0, 200.0):
        page.until = monotonic() + seconds
        left = process._keep_lease()
        assert left is not None
        assert (seconds - 50) * 1000 < left <= seconds * 1000
    page.until = math.inf
    left = process._keep_lease()
    assert left is not None
    assert 1e8 < left < 2**31, "more cannot be waited for"
    assert killed == []


def test_when_a_lease_is_over_all_workers_are_killed(
    served: Served, leased: tuple[TemplateProcess, LeasePage], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, page = leased
    killed: list[list[int]] = []
    monkeypatch.setattr(_os_processes, "kill_trees", killed.append)
    served.adopt(12345)
    served.adopt(23456)
    page.until = monotonic()
    assert process._keep_lease() is None, "the workers' ends wake it"
    served.adopt(34567)
    assert process._keep_lease() is None
    assert killed == [[12345, 23456], [12345, 23456, 34567]]


def test_without_room_for_the_lease_there_is_no_worker(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would live without it."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it was forked"))
    fd = os.open(os.devnull, os.O_RDWR)  # which cannot be mapped
    before = len([*Path("/proc/self/fd").iterdir()])
    ours = served.order(fd, flags=messages.HAS_LEASE)
    assert served.process._fork()
    assert notice(ours)[:2] == (messages.FORK_FAILED, errno.EMFILE)
    assert len([*Path("/proc/self/fd").iterdir()]) == before + 1, "our end of the control socket is left"
    os.close(fd)


@pytest.mark.parametrize("fails", [False, True])
def test_how_the_imports_went_is_told_once_with_more_on_the_page(fails: bool) -> None:
    root, theirs = socket.socketpair()
    page = os.memfd_create("page")
    os.write(page, b"what it was told")
    pid = os.fork()
    if pid == 0:
        try:
            process = TemplateProcess(theirs, "forkserver")
            os._exit(process.prepare(("no_such_module",) if fails else (), page))
        finally:
            os._exit(99)
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (not fails)
    assert root.recv(10) == (messages.UNPREPARED if fails else messages.PREPARED)
    content = os.pread(page, 100_000, 0)
    assert (b"no_such_module" in content) == fails
    assert b"told" not in content
    root.close()
    os.close(page)
