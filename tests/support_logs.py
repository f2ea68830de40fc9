"""Tasks that log, and a handler that keeps what it gets. Imported by workers too."""

from __future__ import annotations

import enum
import logging
import logging.config
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger("support.logs")
PATIENCE = 20.0  # seconds that outcomes wait for records on a machine that is busy with something else


class Keeper(logging.Handler):
    """Keeps the records that reach it, and does something with each."""

    def __init__(self, action: Callable[[logging.LogRecord], object] | None = None) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.action = action

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if self.action is not None:
            self.action(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


def say(message: str, *args: object, level: int = logging.WARNING, name: str = log.name, **more: Any) -> int:
    logging.getLogger(name).log(level, message, *args, **more)
    return os.getpid()


def say_many(count: int, size: int = 0) -> int:
    for number in range(count):
        log.warning("%d%s", number, " " * size)
    return count


def say_an_exception(text: str) -> None:
    try:
        raise ZeroDivisionError(text)
    except ZeroDivisionError:
        log.exception("it failed", stack_info=True)


def say_what_does_not_pickle() -> None:
    log.warning("a %s", "lock", extra={"lock": threading.Lock(), "number": 7})


class Unloadable(Exception):
    """It pickles, and cannot be made again."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Level(enum.IntEnum):
    HIGH = 45


def say_what_cannot_be_loaded() -> None:
    log.log(Level.HIGH, "order %d failed", 7, extra={"error": Unloadable(1, "no room"), "flag": True})


def say_in_threads(threads: int, count: int) -> None:
    def run(name: int) -> None:
        for number in range(count):
            log.warning("%d %d", name, number)

    running = [threading.Thread(target=run, args=(name,)) for name in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def say_in_a_fork(message: str) -> int:
    """The code with which a forked child ends that logs."""
    pid = os.fork()
    if pid == 0:
        log.warning(message)
        log.info("not this")
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def say_with_wrong_arguments() -> None:
    log.warning("%d", "no number")


def say_and_die(count: int) -> None:
    say_many(count)
    os.kill(os.getpid(), signal.SIGKILL)


def say_until_killed(count: int, size: int) -> None:
    """Killed by a timer, wherever it is."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    say_many(count, size)
    signal.pause()


class Late(OSError):
    """What a handler raises."""


def say_while_interrupted(count: int, size: int) -> int:
    """A signal handler logs and raises all the time, also in the midst of logging; returns how often it did."""
    times = 0
    inside = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal times, inside
        times += 1
        log.error("interrupted")
        if inside:
            inside = False
            raise Late

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    for number in range(count):
        try:
            inside = True
            log.warning("%d%s", number, " " * size)
            inside = False
        except Late:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    return times


class LogsItsEnd:
    """In a cycle, so that a collection ends it, wherever that comes."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        log.info("gone")


def say_in_finalizers(count: int) -> None:
    import gc

    gc.set_threshold(5)
    try:
        for number in range(count):
            LogsItsEnd()
            log.warning("%d", number)
    finally:
        gc.set_threshold(700, 10, 10)


def configure_own(path: str) -> None:
    handler = {"class": "logging.FileHandler", "filename": path}
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "handlers": {"own": handler}, "root": {"handlers": ["own"]}}
    )


def levels(*names: str) -> list[int]:
    return [logging.getLogger(name).getEffectiveLevel() for name in names]


def count_handlers() -> int:
    loggers = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    return sum(len(each.handlers) for each in (logging.root, *loggers))
