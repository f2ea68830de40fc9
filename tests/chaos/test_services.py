"""Faults at every step of a program's way, with other commands queued and running beside it.

Every command ends, with its own result or an error that says what happened to it; no place is lost, and nobody is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import poolkit
from poolkit._child import starter as protocol
from poolkit._spawn import programs as owner
from poolkit._spawn.output import Output
from poolkit._spawn.program import Program
from poolkit._spawn.programs import Programs
from poolkit._spawn.starters import Starter
from support import WATCHDOG, wait_for_exit, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),  # of the faults themselves
]

STEPS = ["exec", "executed", "started", "first byte", "ended", "buried"]
FAULTS = ["kill program", "kill starter", "stop program", "stop starter", "raise", "no descriptors"]
KINDS = {protocol.STARTED: "started", protocol.ENDED: "ended", protocol.BURIED: "buried"}
SCRIPT = "echo one; echo two; sleep 0.05; echo three"


class Saboteur:
    """Has one fault happen at the third time that somebody comes to a step."""

    def __init__(self, step: str, fault: str) -> None:
        self.step, self.fault, self.left = step, fault, 3
        self.stopped: list[int] = []

    def comes_to(self, step: str, program: Program | None) -> None:
        """Called on the programs thread."""
        if step == self.step:
            self.left -= 1
            if not self.left:
                self._do(program)

    def _do(self, program: Program | None) -> None:
        pids = owner.programs().lasting()[0] if "starter" in self.fault else [getattr(program, "pid", None)]
        for pid in filter(None, pids):
            number = signal.SIGKILL if "kill" in self.fault else signal.SIGSTOP
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if "stop" in self.fault:
                self.stopped.append(pid)
        if self.fault == "raise":
            raise MemoryError
        if self.fault == "no descriptors":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def go_on(self) -> None:
        """Let those go on that were stopped."""
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Saboteur]]:
    """What sets a fault."""
    made: list[Saboteur] = []

    def begin(step: str, fault: str) -> Saboteur:
        saboteur = Saboteur(step, fault)
        made.append(saboteur)
        note, execute, feed = Programs._note, Starter.execute, Output.feed

        def new_note(self: Programs, starter: Starter, each: Any) -> None:
            saboteur.comes_to(KINDS.get(each[0], ""), self._programs.get(each[1]))
            note(self, starter, each)

        def new_execute(self: Starter, *given: Any) -> None:
            saboteur.comes_to("exec", None)
            execute(self, *given)
            saboteur.comes_to("executed", None)

        def new_feed(self: Output, data: bytes) -> bool:
            found = [each for each in owner.programs()._programs.values() if self in each.pipes.values()]
            saboteur.comes_to("first byte", found[0] if found else None)
            return feed(self, data)

        monkeypatch.setattr(Programs, "_note", new_note)
        monkeypatch.setattr(Starter, "execute", new_execute)
        monkeypatch.setattr(Output, "feed", new_feed)
        return saboteur

    yield begin
    for saboteur in made:
        saboteur.go_on()


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.every_nth(3)
def test_a_fault_at_a_step_costs_no_other_command(
    step: str, fault: str, kind: str, sabotage: Callable[[str, str], Saboteur]
) -> None:
    if fault == "no descriptors" and step != "exec":
        pytest.skip("descriptors are opened there alone")
    with poolkit.Pool(2, kind=kind) as pool:
        assert pool.run(["true"]).result(WATCHDOG).exitcode == 0  # a starter is up
        saboteur = sabotage(step, fault)
        commands = [pool.run(["sh", "-c", SCRIPT], timeout=6.0, grace=0.2) for _ in range(6)]
        if fault == "stop starter":  # until then, what it has started ends for nobody
            wait_until(lambda: saboteur.stopped or all(command.done() for command in commands), "the fault")
            saboteur.go_on()
        failed = [error for error in map(_error, commands) if error is not None]
        for error in failed:
            kinds = (poolkit.WorkerCrashed, poolkit.CommandFailed, poolkit.TaskTimeout, OSError, MemoryError)
            assert isinstance(error, kinds), error
        assert len(failed) <= (2 if fault in {"kill starter", "raise"} else 1), failed
        saboteur.step = "none any more"
        _check_serves(pool)
    for command in commands:
        if command.pid is not None:
            wait_for_exit(command.pid)


def _error(command: poolkit.Command[bytes]) -> BaseException | None:
    error = command.exception(WATCHDOG)
    assert error is not None or command.result().stdout == b"one\ntwo\nthree\n"
    return error


def _check_serves(pool: poolkit.Pool) -> None:
    """Both places are there, for programs and for tasks."""
    commands = [pool.run(["cat"], stdin="pipe") for _ in range(2)]
    wait_until(lambda: all(command.pid is not None for command in commands), "two places")
    for command in commands:
        command.write(b"here")
        command.close_stdin()
        assert command.result(WATCHDOG).stdout == b"here"
    assert [pool.submit(abs, -number).result(WATCHDOG) for number in range(4)] == [0, 1, 2, 3]
    stats = pool.stats()
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.submitted == stats.succeeded + stats.failed + stats.cancelled


def test_a_starter_that_hangs_holds_up_nobody_else() -> None:
    """As in an exec on a drive that is gone: the next commands start by another one, and no worker dies."""
    with poolkit.Pool(3) as pool:
        assert pool.run(["true"]).result(WATCHDOG).exitcode == 0
        worker = pool.submit(os.getpid).result(WATCHDOG)
        [hanging] = owner.programs().lasting()[0]
        os.kill(hanging, signal.SIGSTOP)
        try:
            stuck = pool.run(["echo", "late"])
            assert pool.run(["echo", "here"]).result(WATCHDOG).stdout == b"here\n"
            assert pool.submit(os.getpid).result(WATCHDOG) == worker
            assert not stuck.done()
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert stuck.result(WATCHDOG).stdout == b"late\n"
