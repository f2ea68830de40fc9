"""Peer: one worker process as the owner holds it: its link, tokens, board and control socket.

Guarded by: the pool's one lock: the writer, the tokens and the sending half of the descriptor channel. By the reader's
lock: the reader, `pid` and the receiving half.
Owner: the supervisor thread: the rest.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections.abc import Sequence
from typing import Any

from poolkit import _os
from poolkit._kinds.loggers import log_levels
from poolkit._kinds.settings import PoolSettings
from poolkit._memory.memory import Memory
from poolkit._memory.owner import OwnerTransport, WorkerChannel
from poolkit._spawn import descriptors
from poolkit._spawn.key import own_path
from poolkit._spawn.launch import FORKING
from poolkit._spawn.templates import Child
from poolkit._wire import board as boards
from poolkit._wire import messages
from poolkit._wire.board import Board
from poolkit._wire.habits import of_process
from poolkit._wire.link import FrameReader, FrameWriter
from poolkit._wire.plans import Manifest, Sent, describe


class Peer:
    """One worker process, as the owner holds it."""

    def __init__(self, worker_id: int) -> None:
        self.id = worker_id
        self.pid: int | None = None  # once it is ready
        self.child: Child | None = None  # from its order to its end
        self.tokens: _os.Tokens | None = None
        self.board: Board | None = None
        self.reader: FrameReader | None = None
        self.writer: FrameWriter | None = None
        self.channel: WorkerChannel | None = None
        self.stream: tuple[int, Any] = (0, None)  # the task that sent items last, and where they go
        self.said: tuple[int, Any] = (0, None)  # the task that sent a message last, and its `Exchange`
        self.sent = Sent()  # what it has of the script
        self.transport: OwnerTransport | None = None
        self.is_being_killed = False  # to be killed by order; guarded by: the pool's one lock
        self.is_reaped = False  # its end was reported by whoever reaped it, or it never was
        self.calls_fd = self.calls_read_fd = self.outcomes_fd = -1
        self.stack: str | None = None  # what it wrote since it was asked where it is; None: it was not
        self.hint = ""  # why poolkit had to end it
        self.kill_at: float | None = None  # until then it may write its stack
        self.answers = 0  # that it had given to looks by then
        self.dump: tuple[object, int] | None = None  # see `looking.py`; guarded by: the pool's one lock

    def open(self, inherited: Sequence[int]) -> list[int]:
        """Make the link, tokens and board; returns the descriptors for the other side.

        They end with copies of `inherited`. Raises OSError; then what was made for the other side is closed.
        """
        theirs: list[int] = []
        try:
            fd, self.calls_fd = os.pipe()
            theirs.append(fd)
            # A copy of the reading end stays here: writing to a pipe that nobody can read would raise SIGPIPE, which
            # ends programs that left it at its default. That the worker died is reported by the template.
            self.calls_read_fd = os.dup(fd)
            self.outcomes_fd, fd = os.pipe()
            theirs.append(fd)
            self.tokens = _os.Tokens()
            theirs.append(os.dup(self.tokens.fileno()))
            fd = boards.page()
            theirs.append(fd)
            self.board = Board(fd)
            for fd in (self.calls_fd, self.outcomes_fd):
                os.set_blocking(fd, False)
            ours, other = socket.socketpair()
            theirs.append(other.detach())
            self.channel = WorkerChannel(ours.detach(), self.id)
            theirs += [os.dup(fd) for fd in inherited]
            self.reader = FrameReader(self.outcomes_fd, messages.FRAME_TO_OWNER)
        except BaseException:
            for fd in theirs:
                _os.close_fd(fd)
            raise
        return theirs

    def close(self) -> None:
        """Close everything. Idempotent."""
        if self.child is not None:
            self.child.close()
        for fd in (self.calls_fd, self.calls_read_fd, self.outcomes_fd):
            _os.close_fd(fd)
        self.calls_fd = self.calls_read_fd = self.outcomes_fd = -1
        if self.tokens is not None:
            self.tokens.close()
        if self.board is not None:
            self.board.close()
        if self.channel is not None:
            self.channel.close()
        self.child = self.tokens = self.board = self.channel = None


def boot_settings(
    settings: PoolSettings,
    peer: Peer,
    *,
    initializer: tuple[bytes, Manifest | None] | None,
    measure_rss: bool,
    shm_threshold: float,
    habits: dict[str, Any],
) -> tuple[bytes, list[Memory]]:
    """What a worker is told first, pickled, see `_child/boot.py`; and the memory that it refers to."""
    with FORKING:  # a child that is forked in the midst would wait for ever for whoever imports it
        from multiprocessing import process  # noqa: PLC0415 -- importing poolkit should not cost it

    me = process.current_process()
    try:
        cwd = os.getcwd()  # noqa: PTH109 -- a string is what travels
    except OSError:
        cwd = "/"
    env: dict[str, str | None] = {**settings.shares, **settings.env}
    umask = open_files = None
    if peer.child is not None:  # what it does not have of its template; of a fork of this process, only the last
        template = peer.child.template
        if settings.start_method != "fork":
            env = {**dict.fromkeys(template.env.keys() - os.environ.keys()), **os.environ, **env}
            umask = _os.umask()
        env = {name: value for name, value in env.items() if value != template.env.get(name)}
        if template.open_files != (limit := descriptors.soft_limit_before()):
            open_files = limit
    packed, manifest = initializer or (None, None)
    definitions: tuple[int, bytes] | None = None
    memories: list[Memory] = []
    if manifest is not None:
        data, memories = peer.sent.lacking(manifest)
        definitions = manifest.number, data
    told = pickle.dumps(
        {
            "number": peer.id,
            "main": describe("__main__"),
            "is_copy": settings.start_method == "fork",
            "definitions": definitions,
            "habits": {**of_process(), **habits},
            "sys_path": own_path(),
            "argv": list(sys.argv),
            "cwd": cwd,
            "authkey": bytes(me.authkey),
            "owner": os.getpid(),
            "owner_name": me.name,
            "env": env,
            "umask": umask,
            "measure_rss": measure_rss,
            "shm_threshold": shm_threshold,
            "preload": settings.preload,
            "initializer": packed,
            "open_files": open_files,
            "log_levels": log_levels(),
            "log_disabled": logging.root.manager.disable,
            **settings.given,
        }
    )
    return told, memories
