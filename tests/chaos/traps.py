"""Traps on the way of a worker. Preloaded there, it has something happen at a step that no task's code can reach.

A trap is a file in TRAPS named after its step, with the name of a fault in it. The worker that takes the file away has
the fault, so each trap catches one. Steps of a worker's own life catch whichever gets there first:

    boot  initialize  ready  idle  leave

A step of a task's way catches the worker that is at it with a task of that name ("send-victim"):

    claim   it has a token, and has not stamped that it begins
    send    half of the outcome's frame is written
    sent    all of it is, and that is not stamped
    item    half of an item's frame is written; of a stream, as is what follows
    yield   all of it is, and the generator has not gone on
    credit  no more may be made, and it waits
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from chaos import faults
from poolkit import _child
from poolkit._child import loop
from poolkit._os import Tokens
from poolkit._wire import messages
from poolkit._wire.board import Board
from poolkit._wire.link import Outbox
from support_gates import Journal


def set_trap(traps: Path, step: str, fault: str, count: int = 1) -> None:
    """Have something happen to the next so many that come to a step. In the test."""
    for number in range(count):
        hidden = traps / f".{step}"
        hidden.write_text(fault, encoding="utf-8")
        hidden.rename(traps / f"{step}.{number}")  # whole at once


def unsprung(traps: Path) -> list[str]:
    """The traps into which nobody went."""
    return sorted(path.name for path in traps.iterdir())


def spring(step: str) -> None:
    """Have happen what is prepared for this step."""
    traps = os.environ.get("POOLKIT_TEST_TRAPS")
    if traps is None:
        return
    for name in os.listdir(traps):  # noqa: PTH208 -- this is on the way of each task
        if name.rpartition(".")[0] == step:
            path = Path(traps, name)
            taken = path.with_name(f".{name}.{os.getpid()}")
            try:
                path.rename(taken)
            except FileNotFoundError:  # another one was faster
                continue
            fault = taken.read_text(encoding="utf-8")
            taken.unlink()
            faults.do(fault)


def initialize() -> None:
    spring("initialize")


LAST = 4


def stream_to(traps: Path, step: str, journal: Journal, nbytes: int) -> Iterator[Any]:
    """Numbers up to LAST, each written down when the generator goes on behind it; there, or later, it is killed."""
    import numpy as np

    try:
        for number in range(LAST + 1):
            item = number, np.zeros(nbytes, dtype=np.uint8), None
            if number == LAST and step == "before":
                faults.do("kill")
            elif number == LAST and step == "pack":
                item = *item[:2], faults.Trap("pickle", "kill", 0)  # type: ignore[assignment]
            elif number == LAST and step in {"item", "yield", "credit"}:
                set_trap(traps, f"{step}-victim", "kill")
            yield item
            journal.write(number)
        if step == "send":
            set_trap(traps, "send-victim", "kill")
    finally:
        if step == "finally":
            faults.do("kill")


async def stream_to_async(traps: Path, step: str, journal: Journal, nbytes: int) -> AsyncIterator[Any]:
    """The same of an asynchronous generator."""
    for item in stream_to(traps, step, journal, nbytes):
        yield item


_link: dict[str, int] = {}  # the descriptors of this worker


def spoil(which: str, how: str) -> str:
    """Close a descriptor that belongs to this worker, or make it one of nothing; or all of them."""
    for fd in range(3, 1000) if which == "all" else [_link[which]]:
        with contextlib.suppress(OSError):
            if how == "close":
                os.close(fd)
            elif os.fstat(fd):
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, fd)
                if nothing != fd:
                    os.close(nothing)
    return "done"


# ===== where the traps lie =====

STEPS = {  # what is written in two parts, and the step between them
    **dict.fromkeys([messages.VALUE, messages.ERROR, messages.OUT_OF_BAND, messages.CLOSED], "send"),
    **dict.fromkeys([messages.ITEM, messages.ITEM_OUT_OF_BAND], "item"),
}


def _know_the_link() -> None:
    """Have `_link` filled in when the loop of a worker is made."""
    make = loop.Loop.__init__

    def meddled(self: loop.Loop, calls: int, outcomes: int, tokens: Tokens, *others: Any) -> None:
        make(self, calls, outcomes, tokens, *others)
        channel = self.transport.channel._socket.fileno()
        # In the order of `Member.open`, where the last two stand side by side.
        _link.update(calls=calls, outcomes=outcomes, tokens=tokens.fileno(), evidence=channel - 1, channel=channel)

    loop.Loop.__init__ = meddled  # type: ignore[method-assign,assignment]


def _lay() -> None:  # noqa: C901 -- one thing after the other
    """Meddle with the loop of this worker, or of all that are forked from here. With `spawn`, too late for "boot"."""
    plain = loop.Loop
    receive_boot, run, receive, until, serve = plain.receive_boot, plain._run, plain.receive, plain.until, plain.serve
    send, stamp_done = Outbox.send, Board.done
    running = ""  # the name of the task that this worker runs

    def meddled_receive_boot(self: loop.Loop) -> bytes | bytearray:
        settings = receive_boot(self)
        spring("boot")
        return settings

    def meddled_run(self: loop.Loop, call: messages.Call) -> None:
        nonlocal running
        running = messages.decode_name(call[3])
        spring(f"claim-{running}")
        run(self, call)

    def meddled_receive(self: loop.Loop, *seconds: float) -> None:
        spring("idle" if self.running is None else f"credit-{running}")
        receive(self, *seconds)

    async def meddled_until(self: loop.Loop, condition: Callable[[], bool]) -> None:
        spring(f"credit-{running}")
        await until(self, condition)

    def meddled_serve(self: loop.Loop) -> None:
        serve(self)
        spring("leave")

    def meddled_send(self: Outbox, header: bytes, payload: bytes) -> None:
        kind = messages.FRAME_TO_OWNER.unpack(header)[0]
        if kind == messages.READY:
            spring("ready")
        step = STEPS.get(kind)
        if step is not None and running == "victim":
            frame = header + bytes(payload)
            half = len(frame) // 2
            send(self, frame[:half], b"")
            spring(f"{step}-victim")
            send(self, frame[half:], b"")
            if step == "item":
                spring("yield-victim")
        else:
            send(self, header, payload)

    def meddled_done(self: Board, task_id: int) -> None:
        spring(f"sent-{running}")
        stamp_done(self, task_id)

    for name, meddled in {
        "receive_boot": meddled_receive_boot,
        "_run": meddled_run,
        "receive": meddled_receive,
        "until": meddled_until,
        "serve": meddled_serve,
    }.items():
        setattr(loop.Loop, name, meddled)
    Outbox.send = meddled_send  # type: ignore[method-assign]
    Board.done = meddled_done  # type: ignore[method-assign]


if _child.is_here:
    _know_the_link()
    _lay()
