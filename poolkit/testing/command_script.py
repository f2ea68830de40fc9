"""Command script: what a test has decided about the programs that a fake pool is asked to run.

    pool.when_command("ffmpeg", ...).prints("frame=1", "frame=2", every=0.5).exits(1, stderr=b"no such codec")

A run of a matching command prints what is to be printed, in that order, and then ends. See `script.py` for the rest.
Owner: the thread that uses the pool.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit._core import options as checks
from poolkit.testing.script import HANGS, RUNS, Step, Timed, known_signal

if TYPE_CHECKING:
    from typing_extensions import Self

ENDS, EXITS, MISSING = "ends", "exits", "missing"


@dataclass
class Act(Step):
    """What one run of a program does; it ends with the return code `payload`, or when its input ends, with 0."""

    what: str = ENDS
    writes: list[tuple[float, str, bytes]] = field(default_factory=list)  # after so many seconds, to which stream, what
    last: bytes = b""  # to stderr, just before it ends
    ignores_stop: bool = False


class WhenCommand(Timed):
    """What happens to some commands; made by `FakePool.when_command`. Each method returns the same object.

    What makes no sense raises TypeError or ValueError.
    """

    _make = Act
    _steps: list[Act]  # type: ignore[assignment]

    def __init__(self, argv: tuple[Any, ...]) -> None:
        super().__init__()
        self._argv = pattern(argv)

    def prints(self, *lines: str | bytes, every: float = 0.0, to: str = "stdout") -> Self:
        """Write these lines, with line feeds added: one each `every` seconds of virtual time, or all at once."""
        if to not in {"stdout", "stderr"}:
            raise ValueError(f"to must be 'stdout' or 'stderr', was {to!r}")
        seconds = checks.wait_seconds("every", every) or 0.0
        data = [_encoded("a line", line) + b"\n" for line in lines]
        self._steps[-1].writes += [(seconds, to, line) for line in data] if seconds else [(0.0, to, b"".join(data))]
        return self

    def returns(self, stdout: str | bytes = b"", stderr: str | bytes = b"") -> Self:
        """Write this, and exit with code 0."""
        for to, data in (("stdout", _encoded("stdout", stdout)), ("stderr", _encoded("stderr", stderr))):
            if data:
                self._steps[-1].writes.append((0.0, to, data))
        return self

    def exits(self, code: int, stderr: str | bytes = b"") -> Self:
        """Write this at its end, and exit with this code."""
        self._steps[-1].last = _encoded("stderr", stderr)
        return self._do(EXITS, checks.whole("code", code, least=0))

    def killed(self, signal: str = "SIGKILL") -> Self:
        """Be killed by a signal that was not sent by poolkit."""
        return self._do(EXITS, -signals.Signals[known_signal(signal)])

    def not_found(self) -> Self:
        """Not be there: FileNotFoundError, as of a program that is in no directory of the PATH."""
        return self._do(MISSING, None)

    def hangs(self, *, ignores_stop: bool = False) -> Self:
        """Never end: a limit, a cancel, a stop or a shutdown has to end it; with `ignores_stop` by SIGKILL alone."""
        self._steps[-1].ignores_stop = checks.flag("ignores_stop", ignores_stop)
        return self._do(HANGS, None)

    def runs(self) -> Self:
        """Really run the program, at its end, which takes no virtual time: the pool waits until it has ended."""
        return self._do(RUNS, None)

    def matches(self, argv: tuple[str, ...]) -> bool:
        """Whether this is about such a command."""
        return self._argv(argv)

    def next_act(self, argv: tuple[str, ...]) -> Act | None:
        """Use up a turn for a run of this command; None when this is about others, or no turn is left."""
        act: Act | None = self._turn() if self._argv(argv) else None
        return act


def pattern(argv: tuple[Any, ...]) -> Callable[[tuple[str, ...]], bool]:
    """What tells whether a command is meant; `...` at the end stands for any rest, `unittest.mock.ANY` for one."""
    if not argv:
        raise TypeError("say which command: its program and arguments, ... for any rest, or a function of them")
    if len(argv) == 1 and callable(argv[0]):
        return lambda given: bool(argv[0](given))
    *words, last = map(_word, argv)
    if any(word is ... for word in words):
        raise ValueError(f"... stands for any rest, so nothing can come after it, was {argv!r}")
    if last is ...:
        return lambda given: len(given) >= len(words) and [*given[: len(words)]] == words
    return lambda given: [*given] == [*words, last]


def _word(word: Any) -> Any:
    """An argument as commands have it, or what is compared with it."""
    if isinstance(word, (str, bytes, os.PathLike)):
        return os.fsdecode(word)
    if callable(word) or isinstance(word, (int, float)):
        raise TypeError(f"an argument of a command is text, a path, ANY, or ... for any rest, was {word!r}")
    return word


def _encoded(name: str, data: object) -> bytes:
    if isinstance(data, str):
        return data.encode()
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"{name} must be bytes or str, was {data!r}")
    return bytes(data)
