"""The owner's side of template processes: orders, notices, and one that hangs, must not be killed or never began."""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit._engine import lifetime  # noqa: F401 -- the hooks of forks, which close copies of our sockets
from poolkit._spawn import registry, templates
from poolkit._spawn.templates import Child, Template
from poolkit._wire import messages
from poolkit._wire.messages import FORK, NOTICE
from support import WATCHDOG


class Played:
    """A template whose process is a sleeping child, and which the test plays."""

    def __init__(self, *, is_prepared: bool = True) -> None:
        self.template = Template(self, b"", {}, ("key",), "/bin/program")
        self.template.start(self._launch)
        if is_prepared:
            self.say(messages.PREPARED)
        self.controls: list[socket.socket] = []

    def _launch(self, theirs: Any, _number: int, page: int) -> int:
        ready, is_ready = os.pipe()
        pid = os.fork()
        if not pid:
            theirs.close()
            os.write(is_ready, b"x")
            signal.pause()
            os._exit(0)
        os.read(ready, 1)
        os.close(ready)
        os.close(is_ready)
        self.root = socket.socket(fileno=os.dup(theirs.fileno()))
        self.root.settimeout(WATCHDOG)
        self.page = page
        return pid

    def say(self, word: bytes) -> None:
        self.root.send(word)
        self.template.word()

    def spawn(self, *fds: int) -> tuple[Child, socket.socket, list[int]]:
        """A child, the template's end of its control socket, and the descriptors that came with it."""
        child = self.template.spawn(fds)
        order, (control, *others), _, _ = socket.recv_fds(self.root, FORK.size, 20)
        flags, count = FORK.unpack(order)
        assert count == 1 + len(others) == 1 + (flags & 1) + (flags >> 1) + len(fds)
        self.controls.append(socket.socket(fileno=control))
        for stream in others[: len(others) - len(fds)]:
            os.close(stream)
        return child, self.controls[-1], others[len(others) - len(fds) :]

    def close(self) -> None:
        self.template.end()
        for end in (self.root, *self.controls):
            end.close()


@pytest.fixture
def played() -> Iterator[Played]:
    made = Played()
    yield made
    made.close()


@pytest.fixture
def importing() -> Iterator[Played]:
    made = Played(is_prepared=False)
    yield made
    made.close()


def notice(control: socket.socket, kind: int, status: int = 0, pid: int = 0, peak: int = 0) -> None:
    control.sendall(NOTICE.pack(kind, status, pid, peak))


# ===== children =====


def test_an_order_carries_the_control_socket_the_streams_and_the_descriptors(played: Played) -> None:
    read, write = os.pipe()
    child, control, fds = played.spawn(write)
    (theirs,) = fds
    os.write(theirs, b"here")
    assert os.read(read, 10) == b"here"
    assert child.fileno() > 2
    assert not os.get_inheritable(child.fileno())
    child.close()
    assert control.recv(1) == b"", "there is no other copy of our end"
    for fd in (theirs, read, write):
        os.close(fd)


def test_orders_are_one_byte_each(played: Played) -> None:
    child, control, _ = played.spawn()
    child.signal(signal.SIGUSR1)
    child.signal(messages.KILL)
    assert control.recv(10) == bytes((signal.SIGUSR1, messages.KILL))
    child.close()


def test_notices_say_the_number_and_how_it_ended(played: Played) -> None:
    child, control, _ = played.spawn()
    assert child.receive() is None
    assert child.pid is None
    notice(control, messages.FORKED, pid=12345)
    assert child.receive() is None
    assert child.pid == 12345
    assert not child.unanswered
    child.signal(messages.KILL)
    assert child.unanswered
    notice(control, messages.SIGNALLED)
    notice(control, messages.EXITED, status=9, peak=5000)
    control.close()
    ended = child.receive()
    assert ended is not None
    assert (ended.status, ended.error, ended.peak_rss) == (9, 0, 5000)
    assert not child.unanswered
    assert child.pid == 12345
    child.close()


def test_a_process_that_could_not_be_had_has_an_error(played: Played) -> None:
    child, control, _ = played.spawn()
    notice(control, messages.FORK_FAILED, status=11)
    ended = child.receive()
    assert ended is not None
    assert ended.error == 11
    child.close()


@pytest.mark.parametrize("rest", [b"", b"half a notice"])
def test_an_end_without_how_is_that_of_the_template(played: Played, rest: bytes) -> None:
    child, control, _ = played.spawn()
    control.send(rest)
    control.close()
    with pytest.raises(EOFError):
        child.receive()
    child.signal(messages.KILL)
    child.close()


def test_a_template_that_is_gone_takes_no_order(played: Played) -> None:
    played.root.close()
    assert played.template.has_room()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(templates.GONE):
        played.template.spawn(())
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_template_that_takes_no_orders_has_no_room_in_the_end(played: Played) -> None:
    children = []
    while played.template.has_room():
        children.append(played.template.spawn(()))
        assert len(children) < 5000
    for child in children:
        child.close()


def test_a_forked_child_closes_all_ends(played: Played) -> None:
    child, _, _ = played.spawn()
    fds = (child.fileno(), played.template._root.fileno())
    pid = os.fork()
    if not pid:
        code = 0
        for fd in fds:
            try:
                os.fstat(fd)
                code = 1
            except OSError:
                pass
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    child.close()


def test_children_that_are_gone_in_time_are_waited_for(played: Played) -> None:
    """And those of a template that does not let go of them, no longer than that."""
    (one, its, _), (other, _, _) = played.spawn(), played.spawn()
    its.close()
    assert templates.end_children([one], WATCHDOG)
    assert not templates.end_children([other], 0.01)


def test_children_of_a_template_that_still_imports_are_not_waited_for(importing: Played) -> None:
    child, control, _ = importing.spawn()
    assert templates.end_children([child], WATCHDOG)
    assert control.recv(1) == b""


# ===== the end of one that nobody uses =====


def test_a_finalizer_may_end_a_template_that_its_own_thread_is_looking_at(played: Played) -> None:
    """It may run between any two instructions of that."""
    played.template.users.clear()
    with played.template._lock:
        registry.release(threading.Event(), waits=False)
    assert played.template not in templates.living


# ===== a template that hangs =====


def test_an_order_that_is_not_carried_out_in_time_is_the_end_of_the_template(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "ANSWER_GRACE", 0.0)
    child, control, _ = played.spawn()
    notice(control, messages.FORKED, pid=1)
    child.receive()
    child.end_template_if_it_hangs()
    assert played.template.is_fit(), "it has done all that it was told"
    child.signal(messages.KILL)
    child.end_template_if_it_hangs()
    assert not played.template.is_fit()
    assert "did not answer" in played.template.end()
    child.close()


def test_one_that_carries_out_other_orders_does_not_hang(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand workers that are ordered at once, the last is there late."""
    now = 1000.0
    monkeypatch.setattr(templates, "monotonic", lambda: now)
    (one, control, _), (other, _, _) = played.spawn(), played.spawn()
    assert one.answer_due() == now + templates.FORK_GRACE
    now += templates.FORK_GRACE
    notice(control, messages.FORKED, pid=1)
    one.receive()
    assert one.answer_due() == math.inf
    assert other.answer_due() == now + templates.ANSWER_GRACE
    one.close()
    other.close()


def test_one_that_still_imports_is_not_hurried(importing: Played) -> None:
    child, _, _ = importing.spawn()
    child.signal(messages.KILL)
    assert child.answer_due() == math.inf
    importing.say(messages.PREPARED)
    child.signal(messages.KILL)
    assert child.answer_due() < math.inf
    child.close()


# ===== how its imports went =====


def test_the_failure_of_its_imports_is_on_the_page(importing: Played) -> None:
    template = importing.template
    assert template.word() is None
    assert template.failure() is None
    os.write(importing.page, b"why")
    importing.say(messages.UNPREPARED)
    assert template.failure() == b"why"
    assert template.modules_with_threads() == ""
    assert not template.is_fit()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(importing.page)


def test_modules_with_threads_are_told_to_the_first_who_asks(importing: Played) -> None:
    os.write(importing.page, b"one, other")
    assert importing.template.modules_with_threads() == ""
    importing.say(messages.PREPARED)
    assert importing.template.failure() is None
    assert [importing.template.modules_with_threads() for _ in range(2)] == ["one, other", ""]


def test_one_that_imports_for_too_long_is_not_fit(importing: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    assert importing.template.is_fit()
    monkeypatch.setattr(templates, "PREPARE_GRACE", 0.0)
    assert not importing.template.is_fit()
    importing.say(messages.PREPARED)
    assert importing.template.is_fit()


# ===== ends =====


def refuse(_pid: int, _number: int) -> None:
    raise PermissionError


def test_one_that_may_not_be_killed_is_told_to_end_and_not_waited_for(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner has dropped its privileges, and the template has not."""
    template = played.template
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        assert "must not be killed" in template.end(hangs=True)
        with pytest.raises(ConnectionResetError):  # it left a word unread
            played.root.recv(1)
        assert not template.is_fit()
    os.kill(template.pid, signal.SIGKILL)
    os.waitpid(template.pid, 0)


@pytest.mark.parametrize("printed", [b"", b"x" * 5000 + b"last words\n"])
def test_one_that_never_began_is_told_of_with_its_program_and_output(importing: Played, printed: bytes) -> None:
    template = importing.template
    os.write(importing.page, printed)
    importing.root.close()
    os.kill(template.pid, signal.SIGTERM)
    os.waitid(os.P_PID, template.pid, os.WEXITED | os.WNOWAIT)
    text = template.end()
    assert "was killed by SIGTERM before it was ready; '/bin/program' was started for it" in text
    assert ("last words'" in text) == bool(printed)
    assert ("printed nothing" in text) != bool(printed)
    assert len(text) < 3000
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(importing.page)


def test_one_that_is_a_fork_of_its_owner_has_no_program_to_be_told(importing: Played) -> None:
    importing.template._program = ""
    importing.root.close()
    assert importing.template.end() == "was killed by SIGKILL"


def test_one_that_began_is_not_asked_what_it_printed(played: Played) -> None:
    assert played.template.is_fit()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(played.page)
    assert played.template.end() == "was killed by SIGKILL"
