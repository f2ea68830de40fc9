"""Commands of a fake pool.

    FakeProgramForce   the real `ProgramForce`, over a stage (`programs.py`) in place of the programs thread
    FakeCommand        what a command becomes that is submitted to a fake pool

Owner: the thread whose turn it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from poolkit._core.workforce import AnyTask
from poolkit._kinds.commands import ProgramForce
from poolkit._owner import Arrivals
from poolkit._spawn.program import Recipe
from poolkit.command import Command
from poolkit.testing.programs import CommandCall, FakeEntrance, FakeProgram, Stage, refusal
from poolkit.testing.waits import Driven, FakeTask, Until


class FakeProgramForce(ProgramForce):
    """The programs of one fake pool, which it has done by a stage."""

    def __init__(self, driver: Driven) -> None:
        self.stage = stage = Stage(driver)
        self._driver = driver
        reports = driver.workforce.reports
        make = functools.partial(FakeProgram, stage)
        super().__init__(reports.extend, reports.append, driver.clock.note, make, lambda: stage)

    def send(self, worker_id: int, tasks: Sequence[AnyTask], written: list[Any], *, announce: bool) -> None:
        """Note what is to be started."""
        super().send(worker_id, tasks, written, announce=announce)
        for task in tasks:
            assert isinstance(task, FakeCommand)  # noqa: S101 -- it was adopted
            task.program.call = task.noted

    def reclaim(self, worker_id: int, taken: list[Any], told: list[Any]) -> None:
        """Take back a program that is not begun."""
        super().reclaim(worker_id, taken, told)
        self.stage.sweep()

    def memory(self, worker_id: int) -> int | None:
        """What the script says."""
        run = self._runs.get(worker_id)
        return run.program.act.nbytes if run is not None and isinstance(run.program, FakeProgram) else None

    # ===== what the driver asks =====

    def check(self, command: AnyTask) -> None:
        """Refuse a command of which nothing was said."""
        if not any(when.matches(command.call.argv) for when in self._driver.command_script):
            raise refusal(command.call.argv)

    def adopt(self, command: AnyTask) -> None:
        """Have a command drive the pool where it is waited for, and be noted."""
        FakeCommand.adopt(command, self._driver)
        assert isinstance(command, FakeCommand)  # noqa: S101 -- it is one now
        command.note(self._driver)

    @staticmethod
    def calls_of(command: AnyTask) -> list[CommandCall]:
        """The note that was made of a command that is accepted."""
        assert isinstance(command, FakeCommand)  # noqa: S101 -- it was adopted
        call = command.noted
        call.submitted_at, call.named = command.submitted_at, f"task {command.id} ({command.name})"
        return [call]

    def stalled(self) -> set[int]:
        """The commands that wait for who uses them."""
        waiting = {program.number for program in self.stage.running if program.due() == math.inf and program.waits()}
        return {run.task.id for run in self._runs.values() if run.program.number in waiting}


class FakeCommand(FakeTask, Command[Any]):
    """What a command becomes that is submitted to a fake pool."""

    noted: CommandCall

    def note(self, driver: Driven) -> None:
        """Make a note of it; what is written to it from now on is kept there."""
        recipe: Recipe = self.call.recipe
        if recipe.entrance is not None:
            self._entrance = recipe.entrance = FakeEntrance(recipe.entrance.encode, self, driver)
        self.noted = CommandCall(self)

    def wait_for_output(self, arrivals: Arrivals) -> None:
        """Drive the pool until this is rung."""
        self._engine.lead(Until(f"the output of {self!r}", arrivals.done), None)

    async def __aexit__(self, *exc: Any) -> None:  # noqa: PYI036 -- they are passed on
        """Stop it, and wait for its end, which takes no time."""
        self.__exit__(*exc)
