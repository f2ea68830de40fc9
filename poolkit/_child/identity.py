"""Identity: who this process says it is, to `multiprocessing` and so to guards such as "am I the main process?".

A worker is `PoolkitWorker-3`, number 3, a child of the owner; a template is `PoolkitTemplate`, of no number. Neither is
a daemon, so tasks may start processes. `multiprocessing` is not imported for that: it is told when somebody does.
Owner: the main thread sets it; it is read when the modules are imported.
"""

from __future__ import annotations

import itertools
import sys

from poolkit._child.imported import when_imported

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any

TEMPLATE = "PoolkitTemplate"
_MAIN = "MainProcess"  # what both modules call a process that nobody named

_me: dict[str, Any] = {}  # what `assume` was told last; empty in other processes


def assume(
    number: int | None, *, parent: int, sentinel: int, parent_name: str = _MAIN, authkey: bytes | None = None
) -> None:
    """Be the worker of this number, or a template (None), from now on.

    Args:
        number: of the worker.
        parent: process id of the owner.
        sentinel: a descriptor that is readable, or broken, when the owner is gone.
        parent_name: what the owner is called.
        authkey: multiprocessing's key; None: what this process has.
    """
    first = not _me
    _me.update(
        name=TEMPLATE if number is None else f"PoolkitWorker-{number}",
        identity=() if number is None else (number,),
        parent=parent,
        parent_name=parent_name,
        sentinel=sentinel,
        authkey=authkey,
    )
    if first:  # else those that were set here, or in the template, are there still
        when_imported("multiprocessing.process", _told)
        when_imported("logging", _name_records)
    elif "multiprocessing.process" in sys.modules:
        _told(sys.modules["multiprocessing.process"])


def _told(process: Any) -> None:
    """Have `multiprocessing.process` know."""
    me = process.BaseProcess(name=_me["name"], daemon=False)  # which has the configuration of the one that was
    me._identity = _me["identity"]  # noqa: SLF001 -- set by it for its own children alone
    me._parent_pid, me._parent_name = _me["parent"], _me["parent_name"]  # noqa: SLF001
    if _me["authkey"] is not None:
        me.authkey = _me["authkey"]
    process._current_process = me  # noqa: SLF001
    process._parent_process = process._ParentProcess(_me["parent_name"], _me["parent"], _me["sentinel"])  # noqa: SLF001
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
