"""Tracking: workers share the resource tracker of their owner, as multiprocessing's own children do.

The tracker is a process that removes named blocks and semaphores which nobody has unlinked when all who use it have
ended. A worker that started one of its own would have it remove, when the worker ends, what others still use; or, as
the worker's programs end with it, remove nothing of what it left. So at its first use a worker asks for the owner's,
which starts then, unless it runs.
Owner: any thread of the worker. Two that ask at once get a descriptor each, and one is closed.
"""

from __future__ import annotations

import os
import socket

from poolkit import _os
from poolkit._child.imported import when_imported
from poolkit._memory.channel import DescriptorChannel
from poolkit._wire import messages
from poolkit._wire.link import Outbox

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any


def share_tracker(channel: DescriptorChannel, outbox: Outbox) -> None:
    """Have this process ask for the owner's tracker instead of starting one."""
    owner = os.getpid()

    def use(tracker: Any) -> None:
        # What a fork of the owner has inherited is the owner's; a child that a task forks has no link of its own.
        if tracker._fd is None and os.getpid() == owner:  # noqa: SLF001 -- as `multiprocessing.spawn` sets it
            fd = _ask(channel, outbox)
            if tracker._fd is None:  # noqa: SLF001 -- see above
                tracker._fd = fd  # noqa: SLF001 -- see above
            else:
                _os.close_fd(fd or -1)

    def prepare(module: Any) -> None:
        tracker = module._resource_tracker  # noqa: SLF001 -- see above
        for name in ("ensure_running", "_ensure_running_and_write"):  # the second one in later versions
            if (ensure := getattr(tracker, name, None)) is not None:
                setattr(tracker, name, _before(ensure, use, tracker))

    when_imported("multiprocessing.resource_tracker", prepare)


def _before(ensure: Any, use: Any, tracker: Any) -> Any:
    def ensure_running(*args: Any) -> Any:
        use(tracker)
        return ensure(*args)

    return ensure_running


def _ask(channel: DescriptorChannel, outbox: Outbox) -> int | None:
    """The owner's tracker: a descriptor to write to. Blocks until it is here; None if the owner cannot."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            try:
                number = channel.send(theirs.fileno())
            except OSError:
                return None
        payload = number.to_bytes(8, "little")
        outbox.leave(messages.FRAME_TO_OWNER.pack(messages.TRACKER, 0, 0.0, 0.0, 0, len(payload)) + payload)
        try:
            _, fds = _os.receive_fds(ours, 1, 1)
        except OSError:
            return None
    return fds[0] if fds else None
