"""Orders and notices between the owner and the template process, over a socket pair and without a process."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from poolkit import _os
from poolkit._child import nursery as template
from poolkit._wire import messages
from poolkit._wire.messages import NOTICE, ORDER
from poolkit._workforce.nursery import Nursery


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
            data, fds, _, _ = socket.recv_fds(peer(owner), ORDER.size, template.MOST_FDS)
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
    assert killed == [(owner.pid, signal.SIGKILL)]


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


# ===== the template's side =====


@pytest.fixture
def served() -> Iterator[tuple[template.Nursery, socket.socket]]:
    """A template that is served by hand, and the owner's end of its control socket."""
    ours, theirs = socket.socketpair()
    nursery = template.Nursery(theirs, "forkserver")
    yield nursery, ours
    for end in (ours, theirs):
        end.close()
    for fd in (nursery._wakeup_read, nursery._wakeup_write):
        os.close(fd)


def notice(ours: socket.socket) -> tuple[int, ...]:
    data = ours.recv(NOTICE.size)
    return NOTICE.unpack(data)  # type: ignore[no-any-return]


def test_the_owners_end_ends_the_template(served: tuple[template.Nursery, socket.socket]) -> None:
    nursery, ours = served
    ours.close()
    assert not nursery._order()


def test_half_an_order_is_waited_for_and_dropped_with_its_owner(served: tuple[template.Nursery, socket.socket]) -> None:
    nursery, ours = served
    order = ORDER.pack(messages.SIGNAL, 0, 0, signal.SIGKILL, 99)
    ours.sendall(order[:5])
    ours.sendall(order[5:])
    assert nursery._order()
    assert NOTICE.unpack(ours.recv(100))[:3] == (messages.SIGNALLED, 0, 99)
    ours.sendall(order[:5])
    ours.close()
    assert not nursery._order()


def test_a_signal_reaches_the_worker_that_is_meant(
    served: tuple[template.Nursery, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody, when it has ended: its number may be somebody else's by now."""
    nursery, ours = served
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(("one", pid, number)))
    monkeypatch.setattr(_os, "kill_group", lambda pid, number: sent.append(("group", pid, number)))
    nursery._pids[5] = 12345
    nursery._workers[12345] = 5
    for worker, group in ((5, 0), (5, 1), (6, 0), (6, 1)):
        ours.sendall(ORDER.pack(messages.SIGNAL, group, 0, signal.SIGKILL, worker))
        assert nursery._order()
    assert sent == [("one", 12345, signal.SIGKILL), ("group", 12345, signal.SIGKILL)]


def test_a_process_that_cannot_be_had_is_told(
    served: tuple[template.Nursery, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the descriptors that came for it are closed."""
    nursery, ours = served

    def no_fork() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", no_fork)
    read, write = os.pipe()
    socket.send_fds(ours, [ORDER.pack(messages.FORK, 0, 1, 0, 8)], [write])
    os.close(write)
    assert nursery._order()
    assert notice(ours) == (messages.FORK_FAILED, errno.EAGAIN, 8, 0, 0, 0)
    assert os.read(read, 1) == b""
    os.close(read)
    assert nursery._workers == {}
