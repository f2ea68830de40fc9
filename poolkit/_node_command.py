"""Commands on nodes: a program that a worker of a node runs and waits for, in a call like any other.

Its limits are kept there, and it ends with its worker: by SIGKILL when it is cancelled. Its outcome comes as a call's
does; nothing of it can be read before, and it takes neither more input nor signals.
Owner: whoever made it; every method is thread-safe.
"""

from __future__ import annotations

from typing import Any, NoReturn

from poolkit._command_line import run_here
from poolkit._engine.supervisor import Supervisor
from poolkit._spawn.output import Output
from poolkit.command import Command
from poolkit.task import Task

_LIMITS = ("timeout", "memory_limit")


class NodeCommand(Command[Any]):
    """A program on a node: a task whose result is a `CompletedCommand`."""

    def __init__(self, engine: Supervisor, made: Command[Any], argv: Any, options: dict[str, Any]) -> None:
        """Take what was checked, by making a command of it that could run here.

        Raises:
            RuntimeError: it cannot be had on a node.
            SerializationError: as of a call.
        """
        recipe = made.call.recipe
        outputs = recipe.stdout, recipe.stderr
        if (
            recipe.stdin in {"pipe", "inherit"}
            or any(type(stream) is int for stream in (recipe.stdin, *outputs))
            or any(isinstance(stream, Output) and stream.kept is None for stream in outputs)
            or any(options.get(name) is not None for name in ("on_stdout", "on_stderr"))
        ):
            msg = (
                "a program on a node has its input from the beginning, and what it writes comes with its result: give "
                "input= bytes or text, and of stdout and stderr 'capture', 'null', 'inherit' or a path on the node"
            )
            raise RuntimeError(msg)
        given = {name: value for name, value in options.items() if name not in _LIMITS}
        if isinstance(recipe.stdin, bytes):
            given["input"] = recipe.stdin
        limits = {name: getattr(made.options, name) for name in _LIMITS}
        call, nbytes = engine.workforce.pack(run_here, (argv, given, {**limits, "name": made.name}), {})
        rest: Any = made.options.changed(**dict.fromkeys(_LIMITS))
        Task.__init__(self, engine, made.name, call, rest, nbytes)
        self.argv = made.argv

    pid = None

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        """Refuse: it is elsewhere."""
        msg = f"{self!r} is for a node to run: ask for its result(), and cancel() it to end it"
        raise RuntimeError(msg)

    lines = chunks = write = write_async = close_stdin = send_signal = _refuse

    def stop(self, grace: float | None = None) -> None:
        """Cancel it: what it did does not come here."""
        del grace
        self.cancel()

    leave_parent = Task.leave_parent  # it has no output here

    def is_taken(self) -> bool:
        """Nothing of it is."""
        return False
