"""Look: one worker process that was asked where it is; see `_child/looks.py`.

Guarded by: the pool's one lock, also `Peer.dump`.
"""

from __future__ import annotations

from poolkit import _os
from poolkit._kinds import evidence
from poolkit._kinds.peer import Peer
from poolkit._wire.board import Board


class Look:
    """What one worker was asked, by `signal`, and what it has answered."""

    def __init__(self, peer: Peer, board: Board) -> None:
        self.peer = peer
        self.signal = _os.LOOK_SIGNAL
        self._board = board
        self._since = board.answers()
        self._start: int | None = None  # where faulthandler writes, once it was asked

    def answer(self) -> str | None:
        """The frames of the user's code, most recent first; None while there is no answer."""
        text = self._board.answered(self._since)
        if text is None and self._start is not None:
            text = self._board.written_since(self._start)
        return evidence.tidy(text) if text is not None and evidence.is_complete(text) else None

    def insist(self) -> bool:
        """Whether faulthandler is to be asked: once, by whoever does it first, until the worker answers by itself.

        Meanwhile its main thread has not left what it was in, so what was written is true still, and no more of the
        little room is used.
        """
        if self._start is not None:
            return False
        board, peer = self._board, self.peer
        now = board.answers(), *board.read()[:2]
        if peer.dump is not None and peer.dump[0] == now:
            self._start = peer.dump[1]
            return False
        self.signal, self._start = _os.STACK_SIGNAL, board.written_to()
        peer.dump = now, self._start
        return True
