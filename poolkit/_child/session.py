"""Session: one pool, as the template process has it. Nothing here waits for the pool.

Owner: the template process's one thread.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all its constants, which takes 2.5 ms
import os

from poolkit import _os
from poolkit._wire import messages

MOST_FDS = 64  # descriptors with one order: the link's six and those of `initargs`


class Session:
    """One pool: its control socket, its standard streams, its workers."""

    def __init__(self, control: _socket.socket, streams: dict[int, int]) -> None:
        control.setblocking(False)
        self.control = control
        self.streams = streams  # 1 and 2 -> the owner's; empty: those of this process
        self.pids: dict[int, int] = {}  # worker id -> process id
        self.inbox = b""  # half an order
        self.fds: list[int] = []  # that came with it
        self.unsent = b""  # notices that the socket did not take yet
        # No order of the pool is taken: it is not served, and closed once it is told why, or is gone and its workers
        # killed, and closed once they are reaped.
        self.is_over = False

    def send(self, data: bytes) -> bool:
        """Send what is left and this, as far as it goes; True when nothing is left."""
        self.unsent += data
        try:
            while self.unsent:
                self.unsent = self.unsent[self.control.send(self.unsent) :]
        except BlockingIOError:
            return False
        except OSError:  # it is gone, and its end-of-file tells
            self.unsent = b""
        return True

    def receive(self) -> bool:
        """Receive more of an order; False when the pool is gone."""
        try:
            missing = messages.ORDER.size - len(self.inbox)
            data, fds = _os.receive_fds(self.control, missing, MOST_FDS)
        except BlockingIOError:
            return True
        except ConnectionResetError:  # it left notices unread
            return False
        self.inbox += data
        self.fds += fds
        return bool(data)

    def close(self) -> None:
        """Close everything."""
        self.control.close()
        for fd in (*self.fds, *self.streams.values()):
            os.close(fd)
        self.fds, self.streams = [], {}
