"""What the owner does with a template process that it may not kill, and says of one that never began."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from poolkit._workforce import templates

Ends = tuple[templates.Template, socket.socket, int]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A template whose process is a sleeping child, the template's end of its root socket, and what it printed."""
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    ours, theirs = socket.socketpair()
    said = os.memfd_create("said")
    yield templates.Template(pid, ours, (), "/bin/program", said), theirs, said
    theirs.close()
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        pass


def refuse(_pid: int, _number: int) -> None:
    raise PermissionError


def test_one_that_may_not_be_killed_is_told_to_end_and_not_waited_for(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner has dropped its privileges, and the template has not."""
    template, theirs, _ = ends
    theirs.send(b"\1")
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        template.kill(hangs=True)
        assert theirs.recv(1) == b""
        assert not template.is_fit()
        assert "must not be killed" in template.end()


@pytest.mark.parametrize("printed", [b"", b"x" * 5000 + b"last words\n"])
def test_one_that_never_began_is_told_of_with_its_program_and_output(ends: Ends, printed: bytes) -> None:
    template, theirs, said = ends
    os.write(said, printed)
    theirs.close()
    os.kill(template.pid, signal.SIGTERM)
    os.waitid(os.P_PID, template.pid, os.WEXITED | os.WNOWAIT)
    text = template.end()
    assert "was killed by SIGTERM before it was ready; '/bin/program' was started for it" in text
    assert ("last words'" in text) == bool(printed)
    assert ("printed nothing" in text) != bool(printed)
    assert len(text) < 3000
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(said)


def test_one_that_began_is_not_asked_what_it_printed(ends: Ends) -> None:
    template, theirs, said = ends
    theirs.send(b"\1")
    assert template.is_fit()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(said)
    assert template.end() == "was killed by SIGKILL"


def test_one_pool_is_the_first_to_warn(ends: Ends) -> None:
    template, _, _ = ends
    assert [template.is_first_warning() for _ in range(3)] == [True, False, False]
    template.end()
