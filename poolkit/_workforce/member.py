"""Member: one worker process as the owner holds it: its link, tokens, board and evidence.

Guarded by: the pool's one lock: the writer and the tokens. Owner: the supervisor thread: the rest.
"""

from __future__ import annotations

from poolkit import _os
from poolkit._wire.board import Board
from poolkit._wire.link import FrameReader, FrameWriter


class Member:
    """One worker process, as the owner holds it."""

    __slots__ = (
        "board",
        "calls_fd",
        "calls_read_fd",
        "evidence_fd",
        "id",
        "kill_at",
        "outcomes_fd",
        "pid",
        "reader",
        "stack",
        "tokens",
        "writer",
    )

    def __init__(self, worker_id: int) -> None:
        self.id = worker_id
        self.pid: int | None = None
        self.tokens: _os.Tokens | None = None
        self.board: Board | None = None
        self.reader: FrameReader | None = None
        self.writer: FrameWriter | None = None
        self.calls_fd = self.calls_read_fd = self.outcomes_fd = self.evidence_fd = -1
        self.stack = ""
        self.kill_at: float | None = None  # until then it may write its stack

    def close(self) -> None:
        """Close everything. Idempotent."""
        for fd in (self.calls_fd, self.calls_read_fd, self.outcomes_fd, self.evidence_fd):
            _os.close_fd(fd)
        self.calls_fd = self.calls_read_fd = self.outcomes_fd = self.evidence_fd = -1
        if self.tokens is not None:
            self.tokens.close()
        if self.board is not None:
            self.board.close()
        self.tokens = self.board = None
