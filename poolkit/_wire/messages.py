"""Messages: everything that crosses a process border, all kinds and layouts in one place.

Owner to worker, on the worker's link      FRAME_TO_WORKER header + payload
    BOOT    payload: pickled dict, see `_child/boot.py`      first frame, once
    CALLS   `count` calls, each CALL header + name + fn + body; one token a call was added before
    DEFINE  payload: what a call that follows needs of the script, see `_wire/plans.py`
    DROP    what stands before it was reclaimed: drop the rest of it and say DRAINED
    FORGET  the next record on the descriptor channel that says so tells what is gone in the owner
    STOP    leave
    CREDIT  the owner has taken so many items of a stream, in all: payload SIGNAL
    END     the task is to end by itself: payload SIGNAL
    MAIL    a message for the task that asked for it: payload MAIL_HEAD + fn + body, packed as a call
Worker to owner, on the worker's link      FRAME_TO_OWNER header + payload
    READY        booted and initialised; the task field holds the process id
    BOOT_FAILED  payload: the pickled exception of the initializer
    BEGUN        a task began; sent only where the call asked for it
    VALUE        a task's pickled value          ERROR    a task's pickled exception
    OUT_OF_BAND  a task's value, whose large parts lie in shared memory: see `_memory/out_of_band.py`
    CLOSED       the outcome of a task that ended as it was told to; payload: where its coroutine was
    ITEM         an item of a stream, pickled; the rss field: its size       ITEM_OUT_OF_BAND   as OUT_OF_BAND
    MESSAGE      a message of a task, as ITEM                                MESSAGE_OUT_OF_BAND   the same
    HEAR         a task asks for what was sent to it
    FORGOTTEN    as FORGET, of what is gone in the worker
    DRAINED      all that was reclaimed is dropped
    TRACKER      payload: the id of a socket on the descriptor channel, to which the resource tracker is to be sent
    PROGRESS     what a task has reported last, its two numbers as times; in one write with its outcome, before that
    LOG          payload: a log record's pickled attributes; the task field: which task logged it, 0 for none
Either way, beside the link, on the descriptor channel  records with descriptors: see `_memory/channel.py`
Owner to template, on its root socket      FORK records, each with descriptors attached: the control socket of a new
                                           worker, the owner's standard output and error as the flags say, its own ones,
                                           the lease page
Template to owner, on its root socket      one byte, when it has imported what it was to: PREPARED or UNPREPARED
Owner to template, on a control socket     bytes: the number of a signal for that worker, or KILL
Template to owner, on a control socket     NOTICE records
    FORKED       the worker is there: its process id
    FORK_FAILED  no process could be had: the status holds the errno
    SIGNALLED    an order was carried out; an owner that hears nothing gives the template process up
    EXITED       the worker ended: its wait status and peak memory; nothing follows

A new message takes its number and its line here; to a worker, a place that writes it (`_kinds/process.py`, with a
method of `Workforce` where the scheduler orders it) and a branch of `Loop._receive` (`_child/loop.py`); to an owner, a
call of `Loop.say` or, from another thread or a signal handler, `Outbox.leave`, a branch of `_report_of`
(`_kinds/links.py`), and where the scheduler is to know, a report (`_core/workforce.py`) and a branch of
`Scheduler._handle`.
"""

from __future__ import annotations

import struct

from poolkit._typing import Any

Call = tuple[int, int, int, bytes, float, int, bytes, "Any"]
"""One call as a worker sees it: task, attempt, flags, name, timeout (0: none), manifest, function and body."""

BOOT, CALLS, DROP, STOP, FORGET, DEFINE, CREDIT, END, MAIL = range(1, 10)
READY, BOOT_FAILED, BEGUN, VALUE, ERROR, DRAINED, OUT_OF_BAND, LOG, TRACKER, FORGOTTEN = range(11, 21)
ITEM, ITEM_OUT_OF_BAND, MESSAGE, MESSAGE_OUT_OF_BAND, HEAR, PROGRESS, CLOSED = range(21, 28)
FORKED, FORK_FAILED, SIGNALLED, EXITED = 31, 32, 33, 34

FRAME_TO_WORKER = struct.Struct("<BxxxIQ")  # kind, count, payload bytes
FRAME_TO_OWNER = struct.Struct("<BxxxxxxxQddQQ")  # kind, task, started, ended, rss, payload bytes
# task, attempt, flags, name bytes, timeout (0: none), number of the manifest (0: none), fn bytes, body bytes
CALL = struct.Struct("<QHHIdQQQ")
FORK = struct.Struct("<BxH")  # flags, descriptors
SIGNAL = struct.Struct("<QQ")  # task, number: of the items of a stream that were taken
MAIL_HEAD = struct.Struct("<QQQ")  # task, number of the manifest (0: none), fn bytes
NOTICE = struct.Struct("<BxxxiQQ")  # kind, status, pid, peak rss

# Flags of a call.
FLAG_ANNOUNCE = 1  # say BEGUN
FLAG_OUT_OF_BAND = 2  # the body is an out-of-band message
FLAG_COPIES = 4  # of which the worker is to make copies, as the call may have to run again
KILL = 0  # instead of a signal: kill the worker with its group and all that descends from it
# Flags of a FORK: which standard streams are open in the owner; that the worker is a dedicated one; that the last
# descriptor is the lease page of all workers of this template.
HAS_OUTPUT, HAS_ERRORS, HAS_CHANNEL, HAS_LEASE = 1, 2, 4, 8
MOST_FDS = 65  # descriptors of one FORK, those of `initargs` included
PREPARED, UNPREPARED = b"\1", b"\0"


def unpack_calls(payload: bytes | bytearray, count: int) -> list[Call]:
    """Return the calls of a CALLS frame. The body of a large one is a view."""
    # Slices of a view cost more than copies of the few bytes that a small call is.
    view = payload if type(payload) is bytes else memoryview(payload)
    calls, start = [], 0
    for _ in range(count):
        task_id, attempt, flags, name_size, timeout, manifest, fn_size, body_size = _unpack_call(payload, start)
        name = start + CALL.size
        fn = name + name_size
        body = fn + fn_size
        start = body + body_size
        calls.append(
            (task_id, attempt, flags, bytes(view[name:fn]), timeout, manifest, bytes(view[fn:body]), view[body:start])
        )
    return calls


_unpack_call = CALL.unpack_from


def decode_name(name: bytes) -> str:
    """Return the name of a task as text."""
    return name.decode("utf-8", "surrogatepass")
