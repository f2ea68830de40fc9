"""Logs: what is logged in a worker goes to the owner, on the worker's link, before the outcome of its task.

`logging` is not imported for that, as it takes milliseconds: the handler is installed when somebody imports it.
Installed means that the root logger has this handler, and no other logger has any, nor filters, at the levels that the
owner had when the worker was started: loggers which a preloaded module or the forked owner configured have those there,
and that is where the records go. What an initializer or a task configures afterwards stands.
Owner: the worker's main thread sets it up; `handle` is for any thread. It may wait for the owner to read, no more.
"""

from __future__ import annotations

import marshal
import os

from poolkit._wire import messages
from poolkit.context import current_task

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from poolkit._wire.link import Outbox

MOST = 1 << 20  # bytes of a record
MOST_TEXT = MOST // 4  # characters of each text of a record that has more
MOST_VALUE = 1000  # bytes of each other value of such a record


def installer(outbox: Outbox, levels: dict[str, int], disabled: int) -> Callable[[Any], None]:
    """What is to be called with `logging`. Levels by the names of loggers, "" for the root; see `boot_settings`."""

    def install(logging: Any) -> None:
        root = logging.root
        aside = []  # kept, as to let go of an open file is worth a warning
        for logger in (root, *root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger):  # else it only keeps a name's place
                aside += [logger.handlers, logger.filters]
                logger.handlers, logger.filters = [], []
                logger.propagate, logger.disabled, logger.level = True, False, logging.NOTSET
        for name, level in levels.items():
            (logging.getLogger(name) if name else root).level = level
        logging.disable(disabled)  # and the levels are looked at anew
        root.addHandler(_make_handler(logging, outbox, aside))

    return install


def _make_handler(logging: Any, outbox: Outbox, aside: list[Any]) -> Any:
    formatter, pid = logging.Formatter(), os.getpid()

    class OwnersHandler(logging.Handler):  # type: ignore[misc]
        """Sends records to the owner of the worker."""

        kept = aside

        def createLock(self) -> None:  # noqa: N802 -- the standard library's name
            """None is needed, and one would have those who log wait for each other."""
            self.lock = None

        def handle(self, record: Any) -> Any:
            """Send it. Raises nothing, but for what a signal handler raises."""
            if os.getpid() != pid:  # a fork of the task's: the link is not its own
                last = logging.lastResort
                if last is not None and record.levelno >= last.level:
                    last.handle(record)
                return True
            passed = self.filter(record)
            if not passed:
                return passed
            try:
                payload = _pack(record if passed is True else passed, formatter)
            except Exception:  # noqa: BLE001 -- a message that does not take its arguments, a repr that raises
                self.handleError(record)
                return passed
            task = current_task()
            task_id = task.id if task is not None and not task.worker_id else 0  # else it is of a pool in this process
            outbox.leave(messages.FRAME_TO_OWNER.pack(messages.LOG, task_id, 0.0, 0.0, 0, len(payload)) + payload)
            return passed

    return OwnersHandler()


def _pack(record: Any, formatter: Any) -> bytes:
    """A record's attributes: the message with its arguments, the exception as text, what else there is.

    By `marshal`, which knows plain values only, and runs no code of the user's here or in the owner.
    """
    fields = {**record.__dict__, "msg": record.getMessage(), "args": None, "exc_info": None}
    fields["name"], fields["levelno"] = str(record.name), int(record.levelno)  # may be enums
    fields.pop("message", None)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = formatter.formatException(record.exc_info)
    try:
        payload = marshal.dumps(fields)
    except ValueError:
        payload = marshal.dumps({str(name): _plain(value) for name, value in fields.items()})
    if len(payload) > MOST:
        note = f" [a log record of {len(payload)} bytes, cut by poolkit]"
        fields = {str(name): _short(_plain(value)) for name, value in fields.items()}
        fields["msg"] += note
        payload = marshal.dumps(fields)
    return payload


def _plain(value: Any) -> Any:
    try:
        marshal.dumps(value)
    except ValueError:
        return repr(value)
    return value


def _short(value: Any) -> Any:
    """What is small, and the beginning of a text; nothing of what else a record may carry."""
    if isinstance(value, str):
        return value[:MOST_TEXT]
    return value if len(marshal.dumps(value)) <= MOST_VALUE else "..."
