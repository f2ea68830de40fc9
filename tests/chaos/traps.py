"""Traps on the way of a worker. Preloaded there, it has something happen at a step that no task's code can reach.

A trap is a file in TRAPS named after its step, with the name of a fault in it. The worker that takes the file away has
the fault, so each trap catches one. Steps of a worker's own life catch whichever gets there first:

    boot  initialize  ready  idle  leave

A step of a task's way catches the worker that is at it with a task of that name ("send-victim"):

    claim   it has a token, and has not stamped that it begins
    send    half of the outcome's frame is written
    sent    all of it is, and that is not stamped
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from chaos import faults
from poolkit import _child
from poolkit._child import loop
from poolkit._os import Tokens
from poolkit._wire import messages
from poolkit._wire.board import Board
from poolkit._wire.link import Outbox


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


def _know_the_link() -> None:
    """Have `_link` filled in when the loop of a worker is made."""
    make = loop.Loop.__init__

    def meddled(self: loop.Loop, calls: int, outcomes: int, tokens: Tokens, *others: Any) -> None:
        make(self, calls, outcomes, tokens, *others)
        channel = self.transport.channel._socket.fileno()
        # In the order of `Member.open`, where the last two stand side by side.
        _link.update(calls=calls, outcomes=outcomes, tokens=tokens.fileno(), evidence=channel - 1, channel=channel)

    loop.Loop.__init__ = meddled  # type: ignore[method-assign,assignment]


def _lay() -> None:
    """Meddle with the loop of this worker, or of all that are forked from here. With `spawn`, too late for "boot"."""
    plain = loop.Loop
    receive_boot, run, receive, serve = plain.receive_boot, plain._run, plain.receive, plain.serve
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

    def meddled_receive(self: loop.Loop) -> None:
        spring("idle")
        receive(self)

    def meddled_serve(self: loop.Loop) -> None:
        serve(self)
        spring("leave")

    def meddled_send(self: Outbox, header: bytes, payload: bytes) -> None:
        kind = messages.FRAME_TO_OWNER.unpack(header)[0]
        if kind == messages.READY:
            spring("ready")
        if kind in {messages.VALUE, messages.ERROR, messages.OUT_OF_BAND} and running == "victim":
            frame = header + bytes(payload)
            half = len(frame) // 2
            send(self, frame[:half], b"")
            spring("send-victim")
            send(self, frame[half:], b"")
        else:
            send(self, header, payload)

    def meddled_done(self: Board, task_id: int) -> None:
        spring(f"sent-{running}")
        stamp_done(self, task_id)

    for name, meddled in {
        "receive_boot": meddled_receive_boot,
        "_run": meddled_run,
        "receive": meddled_receive,
        "serve": meddled_serve,
    }.items():
        setattr(loop.Loop, name, meddled)
    Outbox.send = meddled_send  # type: ignore[method-assign]
    Board.done = meddled_done  # type: ignore[method-assign]


if _child.is_here:
    _know_the_link()
    _lay()
