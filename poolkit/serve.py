"""Serve: the command line of `python -m poolkit serve`, which makes a cluster of an application and runs it.

Exit codes: 0 stopped, 2 usage, 3 the application did not start, 4 no worker comes up any more.
Guarantees: what is wrong with an option is said before anything starts. The application is imported by workers, not
here, but for `--check`; where only the application says which server it needs, and that decides what is usage, a worker
of its own looks at it first.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from poolkit._servers.application import INTERFACES, SERVES, Application, ServerMissing, application, is_installed

if TYPE_CHECKING:
    from poolkit.cluster import Cluster

USAGE, NOT_STARTED = 2, 3

log = logging.getLogger("poolkit.serve")


def main(argv: Sequence[str]) -> int:
    """Serve until a signal stops it; return the exit code."""
    line = _parser()
    given = line.parse_args(argv)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        options = dict(given.option)
        target = _application(given, given.interface, options)
        target.extend_path()
        if given.check:
            return _check(target, given.preload)
        if target.server == "auto" and (options or not is_installed("uvicorn")):
            if (interface := _look_at(target)) is None:
                return NOT_STARTED
            target = _application(given, interface, options)
        cluster = _cluster(given, target)
    except ServerMissing as exc:
        return _say(str(exc), USAGE)
    except OSError as exc:  # the address is taken, or is none of ours
        return _say(str(exc), NOT_STARTED)
    except (TypeError, ValueError) as exc:
        line.error(str(exc))
    with _pid_file(given.pid) as error:
        if error is not None:
            cluster.stop()
            return _say(f"cannot write the file for the process id: {error}", USAGE)
        log.info("serving %s at %s (pid %d)", target.path, cluster.url or cluster.address, os.getpid())
        return int(cluster.run())


def _say(message: str, code: int) -> int:
    sys.stderr.write(f"python -m poolkit serve: {message}\n")
    return code


# ===== the command line =====


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where help is; the usage is longer than a screen."""
        self.exit(USAGE, f"{self.prog}: {message}\n(--help shows the options)\n")


def _parser() -> argparse.ArgumentParser:
    line = _Parser(
        prog="python -m poolkit serve", description="Serve an ASGI or WSGI application by several processes."
    )
    line.add_argument("app", metavar="MODULE:APP", help="the application, for example shop.web:app")
    add = line.add_argument
    add("--bind", metavar="ADDR", action="append", help="HOST:PORT, [V6]:PORT, :PORT or unix:PATH; may be repeated")
    add("--workers", metavar="N", type=_number(int), help="processes (default: $WEB_CONCURRENCY, else the CPUs)")
    add("--server", choices=("auto", *SERVES), default="auto", help="default: what is installed and fits")
    add("--interface", choices=INTERFACES, default="auto", help="default: as the application looks")
    add("--factory", action="store_true", help="call APP to get the application")
    add("--app-dir", metavar="DIR", help="comes first on sys.path (default: here)")
    add("--preload", action="store_true", help="import the application once, and fork the workers from that")
    add("--schedule", choices=("kernel", "round_robin", "least_busy", "sticky"), default="kernel")
    add("--grace", metavar="S", type=_number(float), default=30.0, help="seconds to finish what runs (30)")
    add("--boot-timeout", metavar="S", type=_number(float), default=60.0, help="seconds to start in (60)")
    add("--liveness", metavar="S", type=_number(float), default=30.0, help="kill a worker stuck so long (30; 0: never)")
    add("--max-requests", metavar="N", type=_number(int), help="replace a worker after so many")
    add("--max-memory", metavar="SIZE", type=_size, help="replace a worker that takes more, for example 512M")
    add("--pid", metavar="FILE", type=Path, help="write the process id there; removed at the end")
    add("--access-log", action="store_true", help="log each request")
    levels = ("critical", "error", "warning", "info", "debug")
    add("--log-level", metavar="LEVEL", type=str.lower, choices=levels, default="info", help="default: info")
    add("--option", metavar="KEY=VALUE", action="append", type=_option, default=[], help="a setting of the server")
    add("--check", action="store_true", help="import the application, say what it is, and exit")
    return line


def _number(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if (value := kind(text)) >= 0 and math.isfinite(value):
                return value
        msg = f"{'a whole number' if kind is int else 'seconds'} from 0 on, not {text!r}"
        raise argparse.ArgumentTypeError(msg)

    return read


def _size(text: str) -> int:
    digits, unit = text.upper().removesuffix("B"), 0
    if digits[-1:] and digits[-1:] in "KMGT":
        digits, unit = digits[:-1], "KMGT".index(digits[-1]) + 1
    if not digits.isascii() or not digits.isdigit() or not int(digits):
        msg = f"a size in bytes, or with K, M, G or T, such as 512M; not {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(digits) << 10 * unit


def _option(text: str) -> tuple[str, str]:
    name, is_set, value = text.partition("=")
    if not is_set or not name:
        msg = f"KEY=VALUE, not {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return name.strip().replace("-", "_"), value


def _from_environment(name: str) -> int | None:
    """The number in an environment variable.

    Raises:
        ValueError: there is something else in it.
    """
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        msg = f"${name} must be a whole number, is {text!r}"
        raise ValueError(msg)
    return int(text) if text else None


# ===== what it makes of that =====


def _application(given: argparse.Namespace, interface: str, options: dict[str, str]) -> Application:
    return application(given.app, given.server, interface, given.factory, given.app_dir, given.access_log, **options)


def _cluster(given: argparse.Namespace, target: Application) -> Cluster:
    workers = given.workers if given.workers is not None else _from_environment("WEB_CONCURRENCY")
    port = None if given.bind else _from_environment("PORT")
    bind = given.bind or ["127.0.0.1:8000" if port is None else f"0.0.0.0:{port}"]
    preload = [f"poolkit._servers.{name}" for name in target.candidates()]
    if given.preload:
        preload += [target.module, "poolkit._servers.preloaded"]  # which looks at what the application has left
    from poolkit.cluster import Cluster  # noqa: PLC0415 -- the command line is checked first

    return Cluster(
        target,
        workers,
        bind,
        schedule=given.schedule,
        grace=given.grace,
        name=target.path,
        preload=preload,
        boot_timeout=given.boot_timeout,
        liveness=given.liveness or None,
        max_requests=given.max_requests,
        max_memory=given.max_memory,
    )


def _check(target: Application, is_preloaded: bool) -> int:
    """Import the application here, and say what it is."""
    from poolkit._servers import preloaded  # noqa: PLC0415 -- there only

    try:
        _, interface = target.load()
    except Exception:  # noqa: BLE001 -- whatever the application raises
        traceback.print_exc()
        return NOT_STARTED
    server = target.settle(interface)
    if is_preloaded and (found := preloaded.remains()):
        return _say(f"--preload: {target.path} has left what does not survive a fork: {'; '.join(found)}", NOT_STARTED)
    sys.stdout.write(f"{target.path}: {interface.upper()} application, served by {server}\n")
    return 0


def _look_at(target: Application) -> str | None:
    """Have a worker import the application; return its interface, None where that failed, which is shown."""
    from poolkit.worker import Worker  # noqa: PLC0415 -- rarely needed

    try:
        with Worker(_tell_interface, target) as worker:
            return worker.task.result()
    except Exception:  # noqa: BLE001 -- whatever the application raises
        traceback.print_exc()
        return None


def _tell_interface(_: object, target: Application) -> str:
    return target.load()[1]


@contextlib.contextmanager
def _pid_file(path: Path | None) -> Iterator[OSError | None]:
    """Have the process id in a file, and what made that impossible as the value; the file is removed if it is ours."""
    text, error = f"{os.getpid()}\n", None
    try:
        if path is not None:
            path.write_text(text)
    except OSError as exc:
        error = exc
    try:
        yield error
    finally:
        with contextlib.suppress(OSError):
            if path is not None and error is None and path.read_text() == text:
                path.unlink()
