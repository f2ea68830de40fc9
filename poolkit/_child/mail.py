"""Mail: the messages of the task that runs in a process worker, from it and to it.

Mail is pulled: what is sent to a task stays in the owner until the task asks, so nothing has to be taken back.
Owner: the worker's main thread: all but `send`, which is for any.
"""

from __future__ import annotations

import os
from _thread import get_ident
from collections import deque

from poolkit._child import script
from poolkit._clock import monotonic
from poolkit._typing import Any
from poolkit._wire import codec, messages


class Mail:
    """The messages of one worker's tasks."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._task_id = 0  # that has asked for mail
        self._asked = False  # and has not got any since
        self._box: deque[bytes | bytearray] = deque()

    def is_here(self) -> bool:
        """Whether this is the thread that runs the worker's tasks."""
        home: tuple[int, int] = self._loop.home
        return (os.getpid(), get_ident()) == home

    def send(self, task_id: int, message: object) -> None:
        """Send a message to the owner; it is written when this returns. Blocks while the link is full."""
        loop, is_here = self._loop, self.is_here()
        payload: Any = loop.transport.pack_value(message) if is_here else codec.pack_value(message)
        kind, nbytes = messages.MESSAGE, len(payload) if type(payload) is bytes else 0
        if type(payload) is not bytes:
            kind, nbytes, payload = messages.MESSAGE_OUT_OF_BAND, payload.nbytes + len(payload.body), payload.body
            loop.board.stamp_memory(loop.transport.arena.reserved)
        header = messages.FRAME_TO_OWNER.pack(kind, task_id, 0.0, 0.0, nbytes, len(payload))
        if is_here:
            loop.outbox.send(header, payload)
        else:
            loop.outbox.leave(header + payload)
            loop.outbox.wait()

    def came(self, payload: bytes | bytearray) -> None:
        """Keep what came for the task that asked."""
        if messages.MAIL_HEAD.unpack_from(payload)[0] == self._task_id:
            self._box.append(payload)
            self._asked = False

    def receive(self, task_id: int, seconds: float | None) -> Any:
        """Return the next message to a task. TimeoutError: there is none after so many seconds."""
        self._ask(task_id)
        give_up = None if seconds is None else monotonic() + seconds
        self._loop.look()
        while not self._box:
            left = None if give_up is None else give_up - monotonic()
            if left is not None and left <= 0.0:
                msg = f"no message came within {seconds} s"
                raise TimeoutError(msg)
            self._loop.receive(left)
        return self._load()

    async def receive_async(self, task_id: int) -> Any:
        """Do the same in a coroutine, for ever, without blocking its event loop."""
        self._ask(task_id)
        await self._loop.until(lambda: bool(self._box))
        return self._load()

    def _ask(self, task_id: int) -> None:
        if not self.is_here():
            msg = "receive() is for the thread that runs the task: pass on what comes from there"
            raise RuntimeError(msg)
        if self._task_id != task_id:
            self._task_id, self._asked = task_id, False
            self._box.clear()
        if not self._box and not self._asked:
            self._asked = True
            self._loop.say(messages.HEAR, task_id)

    def _load(self) -> Any:
        payload = self._box.popleft()
        _, manifest, size = messages.MAIL_HEAD.unpack_from(payload)
        start = messages.MAIL_HEAD.size
        if manifest and manifest not in script.ready:
            script.prepare(manifest)
        return codec.load_call(bytes(payload[start : start + size]), bytes(payload[start + size :]))[1][0]
