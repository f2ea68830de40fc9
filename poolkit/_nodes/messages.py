"""Messages between the owner and a node: a pickled list of orders or reports, and buffers beside it.

One message has all that had to be said by then. A name or function that stands in it several times is stored once.
What an entry has of buffers is told by a count, its last field; they stand beside the head in the order of the entries.

    to the node     RUN        slot, task, attempt, name, timeout, memory_limit, priority, announces, function, body,
                               manifest, numbers of memories, count of buffers
                    DEFINE     what a manifest has that the node lacks, numbers of the memories in it
                    MEMORY     number, 1: shared memory, as it is here, in one buffer
                    FORGET     number: that memory is gone here
                    KILL       slot, task, wants_stack
                    PACE       slot, reads: whether what its worker says is to be read
                    LEASED     stamp
                    SHOWN      nbytes: so much of what was printed is where it was to go
                    BYE        the agent is to end
    to the owner    DONE       slot, task, ok, body, run_time, memory, process, count of buffers
                    FAILED     slot, task, packed error, run_time: an error of the node's own pool
                    CANCELLED  slot, task, stack: it was stopped as was ordered, or ended so by itself
                    BACK       slot, task: it had to wait there, has not begun, and never will there
                    UP         how many workers of the node's pool are up
                    BEGUN      slot, task
                    AT         slot, task, process, memory: of one that takes long
                    PROGRESS   slot, task, done, total, is_last
                    LOGGED     slot, task, record
                    TOLD       slot, task, nbytes, body, count of buffers: a message of a task
                    PRINTED    stream, bytes, how many were dropped before: 0 the output, 1 the errors
                    BROKEN     packed error: the initializer raised
                    ASK        stamp
                    LEAVING    reason: send nothing more
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

RUN, DEFINE, MEMORY, FORGET, KILL, LEASED, BYE, PACE, SHOWN = range(9)
DONE, FAILED, CANCELLED, BACK, BEGUN, PROGRESS, LOGGED, TOLD, BROKEN, ASK, LEAVING, UP, AT, PRINTED = range(14)

MOST_BYTES = 4 << 20  # of buffers in one message; the next entry goes into the next


def pack(entries: Iterable[tuple[Any, ...]]) -> bytes:
    """Return the head of a message."""
    return pickle.dumps(list(entries), 5)


def unpack(head: bytes) -> list[tuple[Any, ...]]:
    """Return the entries of a message."""
    found: list[tuple[Any, ...]] = pickle.loads(head)
    return found
