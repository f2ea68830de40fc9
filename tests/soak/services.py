"""Who runs commands, and keeps dedicated workers, in the soak: actors, as those of `actors.py`.

How a command has to end follows from what it does and what is done to it; anything else is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import CancelledError
from time import monotonic
from typing import TYPE_CHECKING, Any

import poolkit
from support import WATCHDOG

if TYPE_CHECKING:
    from soak.stage import Stage

Actor = Callable[["Stage", random.Random], None]
WINDOW = 6  # commands that one actor has under way
ENDLESS = WATCHDOG / 3  # seconds: the limit of what has no end, which others may have to wait for

SCRIPTS = {  # what a shell is to do, and how that ends
    "quick": ("echo one; echo two >&2", "two lines"),
    "failing": ("echo one; echo no >&2; exit 3", "code 3"),
    "killed": ("kill -9 $$", "SIGKILL"),
    "long": ("echo one; sleep 20", "ended"),
    "stubborn": ("trap '' TERM; sleep 20 & sleep 20", "ended"),
    "forsaken": ("sleep 20 & echo one", "one line"),
    "loud": ("seq 20000", "many lines"),
    "flooding": ("yes", "ended"),
}


class _Running:
    """A command, and what was done to it."""

    def __init__(self, name: str, command: poolkit.Command[bytes], *, keeps: bool) -> None:
        self.name, self.command, self.keeps = name, command, keeps
        self.meddled: set[str] = set()
        self.stopped_at = math.inf

    def stop(self) -> None:
        self.meddled.add("stop")
        self.stopped_at = min(self.stopped_at, monotonic())
        self.command.stop()

    def check(self, stage: Stage) -> None:
        """Wait for its end, and see whether it may have ended so."""
        try:
            found: Any = self.command.result(WATCHDOG)
        except (Exception, CancelledError) as exc:
            found = exc
        how = type(found).__name__
        stage.ledger.count(f"commands: {how}")
        if not self._is_right(found) and not (isinstance(found, BaseException) and stage.is_excused(found)):
            stage.ledger.blame(f"{self.command!r}, {self.name} {self.meddled}: {found!r}")

    def _is_right(self, found: Any) -> bool:
        if isinstance(found, CancelledError):
            return bool({"cancel", "stop"} & self.meddled)
        if isinstance(found, poolkit.TaskTimeout):
            in_time = "timeout" in self.meddled or monotonic() < self.stopped_at + ENDLESS / 2
            return in_time and found.completed is not None
        if isinstance(found, poolkit.OutputLimitExceeded):
            return self.name == "flooding" and self.keeps
        wanted = SCRIPTS[self.name][1]
        if isinstance(found, poolkit.CommandFailed):
            return (wanted, found.exitcode, found.signal) in {("code 3", 3, None), ("SIGKILL", None, "SIGKILL")}
        if "stop" in self.meddled or wanted == "ended" or not isinstance(found, poolkit.CompletedCommand):
            return "stop" in self.meddled and isinstance(found, poolkit.CompletedCommand)
        lines = {"two lines": b"one\n", "one line": b"one\n", "many lines": b"".join(b"%d\n" % n for n in NUMBERS)}
        return found.exitcode == 0 and found.stdout == (lines[wanted] if self.keeps else b"")


NUMBERS = range(1, 20001)


def run_commands(stage: Stage, rng: random.Random) -> None:
    """Commands of any sort; some are cancelled, stopped, limited, or read while they run."""
    window: list[_Running] = []
    while not stage.over.is_set():
        name = rng.choice([*SCRIPTS])
        running = _begin(stage, rng, name)
        if running is None:
            break
        window.append(running)
        _meddle(rng, rng.choice(window))
        while len(window) > rng.randint(0, WINDOW):
            running = window.pop(0)
            _end(rng, running)
            running.check(stage)
    for running in window:
        _end(rng, running)
        running.check(stage)


def _is_endless(name: str, *, keeps: bool) -> bool:
    """Whether it may run on until somebody ends it."""
    return SCRIPTS[name][1] == "ended" or not keeps  # what nobody reads may wait for ever


def _begin(stage: Stage, rng: random.Random, name: str) -> _Running | None:
    options: dict[str, Any] = {"stdout": rng.choice(["capture", "lines"]), "grace": rng.choice([0, 0.05, 0.5])}
    timeout = rng.choice([None, None, 0.01, 0.2])
    keeps = options["stdout"] == "capture"
    limit = ENDLESS if timeout is None and _is_endless(name, keeps=keeps) else timeout
    if keeps:
        options["max_output"] = 1_000_000
    elif rng.random() < 0.5:
        options["on_stdout"] = len
    try:
        command = stage.pool.options(timeout=limit, priority=rng.randint(-1, 1)).run(
            ["sh", "-c", SCRIPTS[name][0]], **options
        )
    except poolkit.PoolClosed as exc:
        if not stage.closing:
            stage.ledger.blame(f"command {name}: {exc!r}, but nobody has closed the pool")
        return None
    running = _Running(name, command, keeps=keeps)
    running.meddled |= {"timeout"} if timeout is not None else set()
    if not keeps and "on_stdout" not in options:
        _read_a_little(rng, running)
    return running


def _read_a_little(rng: random.Random, running: _Running) -> None:
    """Some take a line; what nobody reads waits, and is to be ended."""
    if rng.random() < 0.5 and running.name in {"quick", "loud", "flooding"} and "timeout" not in running.meddled:
        with contextlib.suppress(poolkit.TaskTimeout):  # seen at its end
            next(running.command.lines(), None)


def _meddle(rng: random.Random, running: _Running) -> None:
    how = rng.choice(["", "", "cancel", "stop", "signal"])
    if how == "cancel":
        running.meddled.add("cancel")
        running.command.cancel()
    elif how == "stop":
        running.stop()
    elif how == "signal":
        running.command.send_signal("SIGCONT")


def _end(rng: random.Random, running: _Running) -> None:
    """See to it that it ends."""
    if _is_endless(running.name, keeps=running.keeps):
        running.stop()
        if rng.random() < 0.5:
            with running.command:
                pass


def run_commands_in_loop(stage: Stage, rng: random.Random) -> None:
    """Coroutines that run commands; waits are cancelled now and then, and with them the programs."""

    async def run() -> None:
        name = rng.choice(["quick", "long", "loud"])
        command = await stage.pool.run_async(["sh", "-c", SCRIPTS[name][0]])
        try:
            found = await asyncio.wait_for(command, rng.choice([0.001, 0.02, 0.1]))
            if name == "long" or found.exitcode != 0:
                stage.ledger.blame(f"command {name} in a loop: {found!r:.200}")
        except asyncio.TimeoutError:
            stage.ledger.count("commands: cancelled by a wait")
            for _ in range(500):  # it was just settled, perhaps, and somebody is about to publish that
                if command.done():
                    return
                await asyncio.sleep(0.01)
            stage.ledger.blame(f"command {name}: its wait was cancelled, and it goes on")

    async def run_all() -> None:
        while not stage.over.is_set():
            await asyncio.gather(*[run() for _ in range(rng.randint(1, 3))])

    asyncio.run(run_all())


def _echo(port: poolkit.Port) -> int:
    count = 0
    for message in port:
        count += 1
        port.send(message)
        if message == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return count


def keep_workers(stage: Stage, rng: random.Random) -> None:
    """Dedicated workers that echo; closed, terminated, or killed."""
    kind = stage.pool.kind
    while not stage.over.is_set():
        with poolkit.Worker(_echo, kind=kind) as worker:
            messages = [bytes(rng.choice([1, 1000, 100_000])) for _ in range(rng.randint(0, 20))]
            for message in messages:
                worker.send(message)
                if worker.recv(WATCHDOG) != message:
                    stage.ledger.blame(f"{worker!r}: another message came back")
            stage.ledger.count("messages of workers", len(messages))
            if kind == "process" and rng.random() < 0.3:
                worker.send("die")
                if not isinstance(worker.task.exception(WATCHDOG), poolkit.WorkerCrashed):
                    stage.ledger.blame(f"{worker!r} was killed, and its task says {worker.task!r}")
            elif rng.random() < 0.5:
                worker.close()
                if worker.task.result(WATCHDOG) != len(messages):
                    stage.ledger.blame(f"{worker!r} has counted {worker.task.result()}, not {len(messages)}")


ACTORS: dict[str, list[Actor]] = {"services": [run_commands, run_commands_in_loop, keep_workers]}
