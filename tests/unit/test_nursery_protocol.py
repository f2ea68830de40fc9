"""Orders and notices between the owner and the template process, over a socket pair and without a process.

Longer than most: each kind of message and each way it can be cut short is a test of its own.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from poolkit import _os_processes
from poolkit._child import nursery as template
from poolkit._child.session import MOST_FDS, Session
from poolkit._wire import messages
from poolkit._wire.messages import NOTICE, ORDER
from poolkit._workforce import templates
from poolkit._workforce.nursery import Nursery
from support import WATCHDOG


@pytest.fixture
def owner() -> Iterator[Nursery]:
    """The owner's handle, whose template is the test."""
    nursery = Nursery()
    yield nursery
    nursery.close_in_forked_child()


def peer(owner: Nursery) -> socket.socket:
    return owner._theirs


def orders(owner: Nursery) -> tuple[list[tuple[int, ...]], list[int]]:
    """What the template would read."""
    found, descriptors = [], []
    peer(owner).setblocking(False)
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(peer(owner), ORDER.size, MOST_FDS)
        except BlockingIOError:
            return found, descriptors
        found.append(ORDER.unpack(data))
        descriptors += fds


# ===== the owner's side =====


def test_the_control_socket_is_no_standard_stream_and_not_inherited(owner: Nursery) -> None:
    for fd in (owner.fileno(), peer(owner).fileno()):
        assert fd > 2
        assert not os.get_inheritable(fd)


def test_a_fork_order_carries_descriptors_and_closes_the_owners(owner: Nursery) -> None:
    read, write = os.pipe()
    owner.fork(7, [write])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)
    found, (theirs,) = orders(owner)
    assert found == [(messages.FORK, 0, 1, 0, 7)]
    os.write(theirs, b"here")
    assert os.read(read, 10) == b"here"
    os.close(theirs)
    os.close(read)


def test_signals_are_for_a_worker_or_its_group(owner: Nursery) -> None:
    owner.signal(3, signal.SIGKILL, group=True)
    owner.signal(4, signal.SIGUSR1, group=False)
    assert orders(owner)[0] == [
        (messages.SIGNAL, 1, 0, signal.SIGKILL, 3),
        (messages.SIGNAL, 0, 0, signal.SIGUSR1, 4),
    ]


def test_a_signal_that_is_not_carried_out_is_overdue(owner: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = []
    monkeypatch.setattr("poolkit._workforce.nursery.ANSWER_GRACE", 0.0)
    monkeypatch.setattr("poolkit._workforce.nursery.SECOND_LOOK", 0.0)
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(os, "waitid", lambda *_: None)  # it runs
    owner._template = templates.Template(12345, None)
    assert owner.answer_due() is None
    owner.signal(3, signal.SIGKILL, group=True)
    owner.signal(4, signal.SIGKILL, group=True)
    assert owner.answer_due() is not None
    for worker in (3, 4):
        peer(owner).sendall(NOTICE.pack(messages.SIGNALLED, 0, worker, 0, 0, 0))
    assert owner.receive() == []
    owner.kill_if_it_hangs()
    assert killed == []
    owner.signal(5, signal.SIGKILL, group=True)
    owner.kill_if_it_hangs()
    assert killed == [], "all of the machine may have stood still"
    owner.kill_if_it_hangs()
    assert killed == [(12345, signal.SIGKILL)]


def test_a_template_that_may_still_be_importing_is_not_hurried(owner: Nursery) -> None:
    owner.signal(3, signal.SIGKILL, group=True, up=False)
    assert owner.answer_due() is None


def test_orders_that_do_not_fit_are_kept_in_order(owner: Nursery) -> None:
    count = 0
    while owner.flush():
        owner.signal(count, signal.SIGKILL, group=False)
        count += 1
    for _ in range(10):
        owner.signal(count, signal.SIGKILL, group=False)
        count += 1
    found = orders(owner)[0]
    while not owner.flush():
        found += orders(owner)[0]
    found += orders(owner)[0]
    assert [order[-1] for order in found] == list(range(count))


def test_orders_to_a_template_that_is_gone_are_dropped(owner: Nursery) -> None:
    """With their descriptors; its end-of-file tells."""
    peer(owner).close()
    read, write = os.pipe()
    owner.fork(1, [write])
    owner.signal(1, signal.SIGKILL, group=True)
    assert owner.flush()
    assert os.read(read, 1) == b""
    os.close(read)
    with pytest.raises(EOFError):
        owner.receive()


def test_notices_are_taken_apart_and_put_together(owner: Nursery) -> None:
    data = (
        NOTICE.pack(messages.EXITED, 9, 1, 100, 5000, 0)
        + NOTICE.pack(messages.PRELOAD_FAILED, 0, 0, 0, 0, 5)
        + b"error"
        + NOTICE.pack(messages.FORK_FAILED, -11, 2, 0, 0, 0)
    )
    whole = [
        ((messages.EXITED, 9, 1, 100, 5000, 0), b""),
        ((messages.PRELOAD_FAILED, 0, 0, 0, 0, 5), b"error"),
        ((messages.FORK_FAILED, -11, 2, 0, 0, 0), b""),
    ]
    assert owner.receive() == []
    peer(owner).sendall(data)
    assert owner.receive() == whole
    notices = []
    for index in range(len(data)):
        peer(owner).sendall(data[index : index + 1])
        notices += owner.receive()
    assert notices == whole


def test_a_forked_child_closes_both_ends(owner: Nursery) -> None:
    ends = owner.fileno(), peer(owner).fileno()
    owner.close_in_forked_child()
    for fd in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_workers_that_do_not_end_keep_the_owner_waiting_no_longer_than_that(
    owner: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their template gets no other pool."""
    left = []
    monkeypatch.setattr("poolkit._workforce.nursery.END_GRACE", 0.01)
    monkeypatch.setattr(templates, "leave", lambda template, *, is_over: left.append((template, is_over)))
    owner._template = templates.Template(12345)
    peer(owner).sendall(NOTICE.pack(messages.OPENED, 0, 0, 0, 0, 0))
    owner.receive()
    owner.close()
    assert peer(owner).recv(1) == b""
    assert left == [(owner._template, True)]


# ===== the template's side =====


class Served:
    """A template that is served by hand, and the owner's ends of its sockets."""

    def __init__(self) -> None:
        self.root, theirs = socket.socketpair()
        self.nursery = template.Nursery(theirs, "forkserver")
        self._ends = [self.root, theirs]

    def open(self) -> tuple[Session, socket.socket]:
        """One more pool."""
        ours, theirs = socket.socketpair()
        self.nursery.open(theirs)
        self._ends += [ours, theirs]
        assert notice(ours)[0] == messages.OPENED
        return self.nursery._sessions[theirs.fileno()], ours

    def attend(self, session: Session) -> bool:
        """Look at a pool's socket once; whether the pool is served on."""
        self.nursery._attend(session, select.POLLIN)
        return not session.is_over

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self.nursery._give_up_spares()
        for fd in (self.nursery._wakeup_read, self.nursery._wakeup_write):
            os.close(fd)


@pytest.fixture
def served() -> Iterator[Served]:
    """A template that is served by hand."""
    served = Served()
    yield served
    served.close()


def notice(ours: socket.socket) -> tuple[int, ...]:
    ours.settimeout(WATCHDOG)
    return NOTICE.unpack(ours.recv(NOTICE.size))


def test_the_owners_end_ends_the_template(served: Served) -> None:
    served.root.close()
    served.nursery.serve()


def test_a_pools_end_ends_that_pool_alone(served: Served) -> None:
    (one, ours), (other, _) = served.open(), served.open()
    ours.close()
    assert not served.attend(one)
    assert served.attend(other)
    assert list(served.nursery._sessions.values()) == [other]


def test_a_template_without_a_root_ends_with_its_only_pool() -> None:
    ours, theirs = socket.socketpair()
    nursery = template.Nursery(None, "fork")
    nursery.open(theirs)
    assert notice(ours)[0] == messages.OPENED
    ours.shutdown(socket.SHUT_WR)
    nursery.serve()
    assert ours.recv(1) == b""
    ours.close()
    for fd in (nursery._wakeup_read, nursery._wakeup_write):
        os.close(fd)


def test_half_an_order_is_waited_for_and_dropped_with_its_pool(served: Served) -> None:
    session, ours = served.open()
    order = ORDER.pack(messages.SIGNAL, 0, 0, signal.SIGKILL, 99)
    ours.sendall(order[:5])
    assert served.attend(session)
    ours.sendall(order[5:])
    assert served.attend(session)
    assert notice(ours)[:3] == (messages.SIGNALLED, 0, 99)
    ours.sendall(order[:5])
    assert served.attend(session)
    ours.close()
    assert not served.attend(session)


def test_descriptors_that_came_with_half_an_order_are_closed_with_its_pool(served: Served) -> None:
    session, ours = served.open()
    read, write = os.pipe()
    socket.send_fds(ours, [ORDER.pack(messages.FORK, 0, 1, 0, 8)[:5]], [write])
    os.close(write)
    assert served.attend(session)
    ours.close()
    assert not served.attend(session)
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_pool_that_reads_nothing_keeps_nobody_waiting(served: Served) -> None:
    """What it is to be told is kept, and told in order when it reads again."""
    session, ours = served.open()
    count = 0
    while not session.unsent or count % 10:
        ours.sendall(ORDER.pack(messages.SIGNAL, 0, 0, signal.SIGKILL, count))
        assert served.attend(session)
        count += 1
    found: list[int] = []
    while len(found) < count:
        found.append(notice(ours)[2])
        served.nursery._attend(session, select.POLLOUT)
    assert found == list(range(count))
    assert not session.unsent


def test_a_signal_reaches_the_worker_that_is_meant(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody, when it has ended: its number may be somebody else's by now; nor one of another pool."""
    (session, ours), (other, _) = served.open(), served.open()
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(("one", pid, number)))
    monkeypatch.setattr(_os_processes, "kill_trees", lambda pids: sent.append(("all of", *pids, signal.SIGKILL)))
    session.pids[5] = 12345
    other.pids.update({5: 23456, 6: 34567})
    for worker, group in ((5, 0), (5, 1), (6, 0), (6, 1)):
        ours.sendall(ORDER.pack(messages.SIGNAL, group, 0, signal.SIGKILL, worker))
        assert served.attend(session)
    assert sent == [("one", 12345, signal.SIGKILL), ("all of", 12345, signal.SIGKILL)]


def test_a_process_that_cannot_be_had_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the descriptors that came for it are closed."""
    session, ours = served.open()

    def no_fork() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", no_fork)
    read, write = os.pipe()
    socket.send_fds(ours, [ORDER.pack(messages.FORK, 0, 1, 0, 8)], [write])
    os.close(write)
    assert served.attend(session)
    assert notice(ours) == (messages.FORK_FAILED, errno.EAGAIN, 8, 0, 0, 0)
    assert os.read(read, 1) == b""
    os.close(read)
    assert session.pids == {}


def test_a_worker_whose_descriptors_found_no_room_is_refused(served: Served) -> None:
    session, ours = served.open()
    read, write = os.pipe()
    socket.send_fds(ours, [ORDER.pack(messages.FORK, 0, 2, 0, 8)], [write])
    os.close(write)
    assert served.attend(session)
    assert notice(ours) == (messages.FORK_FAILED, errno.EMFILE, 8, 0, 0, 0)
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_long_reason_is_told_as_fast_as_it_is_read(served: Served) -> None:
    """And keeps the template waiting for nobody."""
    served.nursery._failure = b"why" * 1_000_000
    ours, control = socket.socketpair()
    served.nursery.open(control)
    found = b""
    while served.nursery._sessions:
        found += ours.recv(65536)
        served.nursery._attend(served.nursery._sessions[control.fileno()], select.POLLOUT)
    while data := ours.recv(65536):
        found += data
    ours.close()
    assert found[NOTICE.size :] == b"why" * 1_000_000


def test_each_pool_is_told_why_a_template_serves_nobody() -> None:
    root, theirs = socket.socketpair()
    nursery = template.Nursery(theirs, "forkserver")
    nursery._failure = b"why"
    for _ in range(2):
        ours, control = socket.socketpair()
        nursery.open(control)
        assert ours.recv(100) == NOTICE.pack(messages.PRELOAD_FAILED, 0, 0, 0, 0, 3) + b"why"
        assert ours.recv(100) == b""
        ours.close()
    for end in (root, theirs):
        end.close()
    nursery._give_up_spares()
    for fd in (nursery._wakeup_read, nursery._wakeup_write):
        os.close(fd)
