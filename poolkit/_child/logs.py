"""Logs: what is logged in a worker goes to the owner, on the worker's link, before the outcome of its task.

`logging` is not imported for that: all this is done when somebody imports it.
A record goes to the owner where `Logger.callHandlers` finds no handler but NullHandlers, and would ask `lastResort`.
There is no handler of ours, so whatever an initializer or a task configures stands, and has no record twice.
At first no logger has a handler or filter, and levels are those that the owner had when the worker was started: what a
preloaded module or the forked owner configured is for the owner's records, which these become.
Owner: the worker's main thread sets it up; the rest is for any thread. It may wait for the owner to read, no more.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Callable

from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire import messages
from poolkit.context import current_task

if TYPE_CHECKING:
    from poolkit._wire.link import Outbox

_aside: list[Any] = []  # handlers that are not ours: kept, as to let go of an open file is worth a warning


def installer(outbox: Outbox, levels: dict[str, int], disabled: int) -> Callable[[Any], None]:
    """Return what is to be called with `logging`. Levels by the names of loggers, "" for the root."""

    def install(logging: Any) -> None:
        root = logging.root
        for logger in (root, *root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger):  # else it only keeps a name's place
                _aside.extend([logger.handlers, logger.filters])
                logger.handlers, logger.filters = [], []
                logger.propagate, logger.disabled, logger.level = True, False, logging.NOTSET
        for name, level in levels.items():
            (logging.getLogger(name) if name else root).level = level
        logging.disable(disabled)  # and the levels are looked at anew
        _forward(logging, outbox)

    return install


def _forward(logging: Any, outbox: Outbox) -> None:
    """Have records that find no handler sent; see the file's header."""
    formatter, pid = logging.Formatter(), os.getpid()
    call_handlers, configure = logging.Logger.callHandlers, logging.basicConfig

    def callHandlers(self: Any, record: Any) -> None:  # noqa: N802 -- the standard library's name
        """Pass the record to the handlers that there are for it; to the owner of the worker when there are none."""
        if _has_handler(logging, self) or os.getpid() != pid:  # in a fork of the task's, the link is not its own
            call_handlers(self, record)
        else:
            _send(record, outbox, formatter)

    def basicConfig(**options: Any) -> None:  # noqa: N802 -- the standard library's name
        """Configure the root logger; but not because of `logging.info()` and the like, where it has no handler."""
        if options or sys._getframe(1).f_globals is not vars(logging) or os.getpid() != pid:  # noqa: SLF001
            configure(**options)

    logging.Logger.callHandlers, logging.basicConfig = callHandlers, basicConfig


def _has_handler(logging: Any, logger: Any) -> bool:
    while logger:
        if not all(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _send(record: Any, outbox: Outbox, formatter: Any) -> None:
    """Send it. Raises nothing, but for what a signal handler raises."""
    try:
        payload = _pack(record, formatter)
    except Exception:  # noqa: BLE001 -- a message that does not take its arguments, a repr that raises
        sys.modules["logging"].NullHandler().handleError(record)
        return
    task = current_task()
    task_id = task.id if task is not None and not task.worker_id else 0  # else it is of a pool in this process
    outbox.leave(messages.FRAME_TO_OWNER.pack(messages.LOG, task_id, 0.0, 0.0, 0, len(payload)) + payload)


def _pack(record: Any, formatter: Any) -> bytes:
    """Return a record's attributes, the message with its arguments, the exception as text.

    By `marshal`, which knows plain values only, and runs no code of the user's here or in the owner.
    """
    fields = {**record.__dict__, "msg": record.getMessage(), "args": None, "exc_info": None}
    fields["name"], fields["levelno"] = str(record.name), int(record.levelno)  # may be enums
    fields.pop("message", None)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = formatter.formatException(record.exc_info)
    try:
        return marshal.dumps(fields)
    except ValueError:
        return marshal.dumps({str(name): _plain(value) for name, value in fields.items()})


def _plain(value: Any) -> Any:
    try:
        marshal.dumps(value)
    except ValueError:
        return repr(value)
    return value
