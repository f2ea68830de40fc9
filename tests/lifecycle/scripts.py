"""Scripts as users run them: started as processes of their own, watched, and followed with all their family.

Every process that a script starts, in whatever session it hides, has the mark of its script in its environment, so
`family` finds it even when its parents are gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pytest

import poolkit
import support

if TYPE_CHECKING:
    from typing_extensions import Self

_MARK = "POOLKIT_TEST_FAMILY"
_ROOT = Path(poolkit.__file__).resolve().parents[1]


class Script:
    """One running script. Leaving the `with` kills whatever is left of its family."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        terminal: bool = False,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._terminal = -1
        self.screen = b""  # what the terminal showed so far
        path = os.pathsep.join(filter(None, [os.fspath(_ROOT), os.environ.get("PYTHONPATH")]))
        full_env = {**os.environ, "PYTHONPATH": path, _MARK: self.mark, "NO_COLOR": "1", **(env or {})}
        full_env.pop("PYTHONWARNINGS", None)
        if not terminal:
            self.process = subprocess.Popen(
                argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=full_env
            )
            return
        self._terminal, theirs = os.openpty()
        # A shell in between would be one more process: this one makes the terminal its own, then becomes the script.
        take_terminal = (
            "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", take_terminal, *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=full_env
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._terminal >= 0:
            os.close(self._terminal)

    # ===== talking =====

    def read_lines(self, count: int) -> list[str]:
        """The next lines of its standard output, in any order that they come."""
        assert self.process.stdout is not None
        lines = []
        for _ in range(count):
            line = self.process.stdout.readline()
            if not line:
                _, err = self.process.communicate()
                raise AssertionError(f"the script ended early, after {lines}: {err.decode()}")
            lines.append(line.decode().rstrip("\n"))
        return lines

    def write_line(self, line: str = "") -> None:
        """Give it a line on standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def finish(self, stdin: str | None = None) -> Ended:
        """Wait for its end; give it `stdin` first. The family may live on."""
        if self._terminal >= 0:
            self._show_until(None)
            return Ended(self.process.wait(support.WATCHDOG), self.screen.decode().replace("\r\n", "\n"), "")
        try:
            out, err = self.process.communicate(stdin.encode() if stdin is not None else None, support.WATCHDOG)
        except subprocess.TimeoutExpired as exc:
            stacks = "\n".join(support.describe_process(pid) for pid in self.family())
            raise AssertionError(f"the script hangs; out: {exc.stdout!r}; err: {exc.stderr!r}\n{stacks}") from None
        return Ended(self.process.returncode, out.decode(), err.decode())

    def press_ctrl_c(self) -> None:
        """What the terminal makes of it goes to the whole foreground process group."""
        os.write(self._terminal, b"\x03")

    def wait_for_text(self, text: str, count: int = 1) -> None:
        """Wait until its terminal has shown a text so often."""
        self._show_until((text.encode(), count))

    def _show_until(self, wanted: tuple[bytes, int] | None) -> None:
        give_up = time.monotonic() + support.WATCHDOG
        while wanted is None or self.screen.count(wanted[0]) < wanted[1]:
            if not select.select([self._terminal], [], [], give_up - time.monotonic())[0]:
                raise AssertionError(f"the terminal shows nothing more: {self.screen.decode()}")
            try:
                shown = os.read(self._terminal, 65536)
            except OSError:  # the last process on it has gone
                shown = b""
            if not shown:
                assert wanted is None, f"the script ended early: {self.screen.decode()}"
                return
            self.screen += shown

    # ===== its family =====

    def family(self) -> list[int]:
        """Every process that it started and that still runs, itself included."""
        mark = f"{_MARK}={self.mark}".encode()
        found = []
        for path in list(Path("/proc").iterdir()):  # not `glob`: a process that ends just now breaks it
            with contextlib.suppress(OSError, ValueError):
                pid = int(path.name)
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return [pid for pid in found if support.is_alive(pid)]

    def wait_until_gone(self, *but: int) -> None:
        """Wait until nobody of its family is left, but for those given."""
        support.wait_until(lambda: set(self.family()) <= set(but), "the family of a script to end")

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(support.WATCHDOG)


class Ended:
    """How a script ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def check(self) -> list[str]:
        """The lines that it printed; it must have ended well, without a word on stderr."""
        assert (self.code, self.err) == (0, ""), f"exit code {self.code}\n{self.out}\n{self.err}"
        return self.out.splitlines()


def python(*args: str) -> list[str]:
    """A command line of this interpreter. A hang explains itself after a while."""
    return [sys.executable, "-X", "faulthandler", *args]


def text_of(source: str) -> str:
    """A script as it stands in a test, without its indentation."""
    return textwrap.dedent(source)


@contextlib.contextmanager
def running(source: str, *args: str, terminal: bool = False, env: Mapping[str, str] | None = None) -> Iterator[Script]:
    """Start a script given as text."""
    with Script(python("-c", text_of(source), *args), terminal=terminal, env=env) as script:
        yield script


def run(source: str, *args: str, env: Mapping[str, str] | None = None) -> list[str]:
    """Run a script given as text; the lines that it printed. It must end well, silently, and leave nobody behind."""
    with running(source, *args, env=env) as script:
        lines = script.finish().check()
        script.wait_until_gone()
        return lines


def in_tiny_shared_memory(
    argv: Sequence[str], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a mount namespace with one MiB of shared memory; skips the test without such."""
    return _with_mount("-o size=1m tmpfs /dev/shm", argv, env)


def without_proc(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The same with nothing in /proc."""
    return _with_mount("tmpfs /proc", argv, None)


def _with_mount(what: str, argv: Sequence[str], env: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    mount = f'mount -t tmpfs {what} && exec "$0" "$@"'
    enter = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", mount]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace of its own")
    path = os.pathsep.join(filter(None, [os.fspath(_ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [*enter, *argv],
        capture_output=True,
        text=True,
        timeout=support.WATCHDOG,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
    )
