"""Standard library: what its modules are told in a worker, when somebody imports them.

`multiprocessing` and `logging`: who this process is. A worker is `PoolkitWorker-3`, number 3, a child of the owner; a
template is `PoolkitTemplate`, of no number. Neither is a daemon, so tasks may start processes.
`multiprocessing.spawn`: processes that a task spawns run the script only where it has a guard against that.
`multiprocessing.resource_tracker`: a worker asks for its owner's at the first use, as one of its own would remove, when
the worker ends, what others still use.
`atexit`, `weakref` and others: what was registered in the process that this one was forked from is that one's to run.
Owner: the worker's main thread sets it up; the tracker is asked for by any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import socket
import sys
from functools import partial

from poolkit import _os
from poolkit._child.imported import when_imported
from poolkit._memory.channel import DescriptorChannel
from poolkit._typing import Any
from poolkit._wire import messages
from poolkit._wire.link import Outbox

# ===== who this process is =====

TEMPLATE = "PoolkitTemplate"
_MAIN = "MainProcess"  # what both modules call a process that nobody named

_me: dict[str, Any] = {}  # what `assume` was told last; empty in other processes


def assume(
    number: int | None, *, parent: int, sentinel: int, parent_name: str = _MAIN, authkey: bytes | None = None
) -> None:
    """Be the worker of this number, or a template (None), from now on; the parent is the owner.

    `sentinel` is a descriptor that is readable, or broken, when the owner is gone; `authkey` multiprocessing's key.
    """
    first = not _me
    name, identity = (TEMPLATE, ()) if number is None else (f"PoolkitWorker-{number}", (number,))
    _me.update(name=name, identity=identity, parent=(parent_name, parent, sentinel), authkey=authkey)
    if first:  # else those that were set here, or in the template, are there still
        when_imported("multiprocessing.process", _tell_who)
        when_imported("logging", _name_records)
    elif "multiprocessing.process" in sys.modules:
        _tell_who(sys.modules["multiprocessing.process"])


def _tell_who(process: Any) -> None:
    me = process.BaseProcess(name=_me["name"], daemon=False)  # which has the configuration of the one that was
    me._identity = _me["identity"]  # noqa: SLF001 -- set by it for its own children alone
    me._parent_name, me._parent_pid, _ = _me["parent"]  # noqa: SLF001
    if _me["authkey"] is not None:
        me.authkey = _me["authkey"]
    process._current_process = me  # noqa: SLF001
    process._parent_process = process._ParentProcess(*_me["parent"])  # noqa: SLF001
    process._process_counter = itertools.count(1)  # noqa: SLF001
    process._children = set()  # noqa: SLF001 -- those of the process that this one was forked from


def _name_records(logging: Any) -> None:
    """Have records say the name where `multiprocessing`, which they ask otherwise, is not imported."""
    make = logging.getLogRecordFactory()

    def make_named(*args: Any, **kwargs: Any) -> Any:
        record = make(*args, **kwargs)
        if record.processName == _MAIN:
            record.processName = _me["name"]
        return record

    logging.setLogRecordFactory(make_named)


# ===== processes that a task spawns =====


def keep_from_running(spawn: Any) -> None:
    """Have the script run in children that a task spawns only where it has a main guard, which it needs for that."""
    prepare_data = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = prepare_data(name)
        if not _has_guard() and (data.pop("init_main_from_path", None) or data.pop("init_main_from_name", None)):
            import warnings  # noqa: PLC0415 -- there only

            warnings.warn(
                "a process that a task spawns does not have what the script defines, as the script has no "
                "`if __name__ == '__main__':` guard: put one around its main part, or use the context 'fork'",
                RuntimeWarning,
                stacklevel=2,
            )
        return data

    spawn.get_preparation_data = get_preparation_data


def _has_guard() -> bool:
    import re  # noqa: PLC0415 -- there only

    try:
        with open(sys.modules["__main__"].__file__ or "", encoding="utf-8") as file:  # noqa: PTH123 -- pathlib takes 6 ms
            return re.search(r"""^if\s+__name__\s*==\s*['"]__main__['"]""", file.read(), re.MULTILINE) is not None
    except (OSError, AttributeError, ValueError):
        return False


# ===== the resource tracker =====


def share_tracker(channel: DescriptorChannel, outbox: Outbox) -> None:
    """Have this process ask for the owner's tracker instead of starting one."""
    owner = os.getpid()

    def use(tracker: Any, ensure: Any, *args: Any) -> Any:
        # What a fork of the owner has inherited is the owner's; a child that a task forks has no link of its own.
        if tracker._fd is None and os.getpid() == owner:  # noqa: SLF001 -- as `multiprocessing.spawn` sets it
            fd = _ask(channel, outbox)
            if tracker._fd is None:  # noqa: SLF001 -- else another thread was first
                tracker._fd = fd  # noqa: SLF001
            else:
                _os.close_fd(fd or -1)
        return ensure(*args)

    def prepare(module: Any) -> None:
        tracker = module._resource_tracker  # noqa: SLF001
        for name in ("ensure_running", "_ensure_running_and_write"):  # the second one in later versions
            if (ensure := getattr(tracker, name, None)) is not None:
                setattr(tracker, name, partial(use, tracker, ensure))

    when_imported("multiprocessing.resource_tracker", prepare)


def _ask(channel: DescriptorChannel, outbox: Outbox) -> int | None:
    """Return a descriptor to write to the owner's tracker. Blocks until it is here; None if the owner cannot."""
    ours, theirs = socket.socketpair()
    with ours, contextlib.suppress(OSError):
        with theirs:
            payload = channel.send(theirs.fileno()).to_bytes(8, "little")
        outbox.leave(messages.FRAME_TO_OWNER.pack(messages.TRACKER, 0, 0.0, 0.0, 0, len(payload)) + payload)
        return next(iter(_os.receive_fds(ours, 1, 1)[1]), None)
    return None


# ===== the end of a worker =====

_kept: list[Any] = []  # finalizers that are not ours: let go of, their weak references would be dropped in odd places


def forget_exit_handlers() -> None:
    """Forget what another process is to do at its end. In a forked child, before anything of its own runs."""
    atexit._clear()  # noqa: SLF001
    loaded = sys.modules.get
    if (weakref := loaded("weakref")) is not None:
        finalize: Any = weakref.finalize
        _kept.append(dict(finalize._registry))  # noqa: SLF001
        finalize._registry.clear()  # noqa: SLF001
        finalize._registered_with_atexit = False  # noqa: SLF001 -- the next one is registered
    if (logging := loaded("logging")) is not None:
        del logging._handlerList[:]  # noqa: SLF001
        atexit.register(logging.shutdown)
    if (util := loaded("multiprocessing.util")) is not None:
        util._finalizer_registry.clear()  # noqa: SLF001
        util._run_after_forkers()  # noqa: SLF001 -- as its own children do
        atexit.register(util._exit_function)  # noqa: SLF001


def run_exit_handlers() -> None:
    """Join the threads that are no daemons, then run the exit handlers, as an interpreter does. The owner limits it."""
    try:
        if (threading := sys.modules.get("threading")) is not None:
            threading._shutdown()  # noqa: SLF001
    finally:
        atexit._run_exitfuncs()  # noqa: SLF001 -- os._exit does not, and a return would run the template's code
