"""Options of commands: what has no sense is refused by an error that says what to give; errors say what happened."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit import CommandFailed, DeadlineExceeded, MemoryLimitExceeded, Pool, TaskTimeout, WorkerCrashed
from poolkit._kinds.commands import ProgramForce
from poolkit._spawn.programs import programs
from support import WATCHDOG, wait_until

pytestmark = pytest.mark.needs("programs")


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2, kind="thread") as made:
        yield made
        made.shutdown(wait=True, kill=True)


# ===== what is refused =====


@pytest.mark.every_nth(1)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"on_stdout": 3}, TypeError, "on_stdout must be something to call or None, was 3"),
        ({"on_stderr": "print"}, TypeError, "on_stderr must be something to call"),
        ({"encoding": "hex", "text": True}, ValueError, "encoding must be one of text, was 'hex'"),
        ({"encoding": "rot13", "text": True}, ValueError, "encoding must be one of text, was 'rot13'"),
        ({"encoding": "klingon"}, ValueError, "encoding .*klingon"),
        ({"encoding": None}, TypeError, "encoding must be a string"),
        ({"errors": "loud"}, ValueError, "errors: .*'loud'"),
        ({"grace": None}, TypeError, "grace must be a number of seconds, was None"),
        ({"grace": -1}, ValueError, "grace"),
        ({"grace": math.nan}, ValueError, "grace"),
        ({"check": b"\0"}, TypeError, "check must be True, False or a collection of exit codes"),
        ({"check": bytearray(1)}, TypeError, "check must be True, False or a collection of exit codes"),
        ({"check": {300}}, ValueError, "exit codes from 0 to 255, or negative numbers of signals"),
        ({"check": {256}}, ValueError, "exit codes from 0 to 255"),
        ({"check": {-65}}, ValueError, "a code in check must be at least -64"),
        ({"check": {"1"}}, TypeError, "a code in check"),
        ({"stdout": subprocess.PIPE}, TypeError, r"stdout must be one of .*, was -1 \(subprocess.PIPE\): 'capture'"),
        ({"stdout": subprocess.DEVNULL}, TypeError, r"was -3 \(subprocess.DEVNULL\): that is 'null'"),
        ({"stderr": subprocess.STDOUT}, TypeError, r"stderr must be .*, was -2 \(subprocess.STDOUT\): .* 'stdout'"),
        ({"stdout": None}, TypeError, "stdout must be one of 'capture', 'lines', 'null', 'inherit', a pathlib.Path"),
        ({"stdin": subprocess.PIPE}, TypeError, "stdin must be one of 'null', 'pipe', 'inherit', was -1"),
        ({"stdin": "pump"}, ValueError, "stdin must be one of"),
        ({"input": Path("/etc/passwd")}, TypeError, r"input must be .*, was PosixPath.*; for what is in a file, open"),
        ({"input": 3}, TypeError, "input must be bytes, text or an open file, was 3"),
    ],
    ids=str,
)
def test_options_without_sense_are_refused(
    pool: Pool, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        pool.run(["true"], **options)


def test_what_has_sense_is_taken(pool: Pool) -> None:
    assert pool.run(["sh", "-c", "kill -9 $$"], check={-9, 255}, grace=math.inf).result(WATCHDOG).returncode == -9
    assert pool.run(["echo", "\xe4"], text=True, encoding="utf-16-le", errors="replace").result(WATCHDOG).stdout


def test_files_must_be_open_for_what_is_done_with_them(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as file:
        for name in ("stdout", "stderr"):
            with pytest.raises(ValueError, match=f"{name} must be a file that is open for writing"):
                pool.run(["true"], **{name: file})
    with pytest.raises(ValueError, match=r"stdout: .*closed file"):
        pool.run(["true"], stdout=file)
    with path.open("wb") as file, pytest.raises(ValueError, match=r"input .*open for reading"):
        pool.run(["true"], input=file)
    with path.open("wb+") as file:
        pool.run(["echo", "new"], stdout=file).result(WATCHDOG)
        file.seek(0)
        assert pool.run(["cat"], input=file).result(WATCHDOG).stdout == b"new\n"


async def _run_async(pool: Pool, **options: Any) -> object:
    return await pool.run_async(["true"], **options)


def test_an_unknown_option_names_the_function_that_was_called(pool: Pool) -> None:
    import asyncio

    calls: list[tuple[str, Callable[..., Any]]] = [
        ("Pool.run", lambda **options: pool.run(["true"], **options)),
        ("Pool.run", lambda **options: pool.options(name="x").run(["true"], **options)),
        ("Pool.run_async", lambda **options: asyncio.run(_run_async(pool, **options))),
        ("poolkit.spawn", lambda **options: poolkit.spawn(["true"], **options)),
        ("poolkit.run", lambda **options: poolkit.run(["true"], **options)),
    ]
    for name, call in calls:
        with (
            poolkit.use_pool(pool),
            pytest.raises(TypeError, match=rf"^{name}\(\) got .* 'stdot'; there are .*stdout"),
        ):
            call(stdot="null")


@pytest.mark.every_nth(1)
@pytest.mark.parametrize("value", [5, [70, 71], None, 1.5])
def test_only_bytes_are_written(pool: Pool, value: Any) -> None:
    with pool.run(["cat"], stdin="pipe") as command:
        with pytest.raises(TypeError, match=r"write\(\) takes bytes"):
            command.write(value)
        for data in (b"a", bytearray(b"b"), memoryview(b"c")):
            command.write(data)  # type: ignore[arg-type]
        command.close_stdin()
        assert command.result(WATCHDOG).stdout == b"abc"


def test_only_text_is_written_where_it_is_text(pool: Pool) -> None:
    with pool.run(["cat"], stdin="pipe", text=True) as command:
        for value in (b"a", 5):
            with pytest.raises(TypeError, match=r"write\(\) takes str"):
                command.write(value)  # type: ignore[arg-type]


def test_streams_that_there_are_not_are_refused_by_those_that_there_are(pool: Pool) -> None:
    command = pool.run(["true"])
    for lines in ("foo", None, ("stdout",)):
        with pytest.raises(ValueError, match="must be one of 'stdout', 'stderr', 'both', was"):
            command.lines(lines)  # type: ignore[arg-type]
    for chunks in ("both", "foo"):
        with pytest.raises(ValueError, match="must be one of 'stdout', 'stderr', was"):
            command.chunks(chunks)  # type: ignore[arg-type]
    command.result(WATCHDOG)


# ===== a limit on memory =====


_GROWS = [sys.executable, "-c", "import time; kept = b'x' * 300_000_000; time.sleep(99)"]


def test_a_pool_of_threads_limits_the_memory_of_commands(pool: Pool) -> None:
    limited = pool.options(memory_limit=100_000_000)
    with pytest.raises(MemoryLimitExceeded, match=r"memory_limit of 100\.0 MB and was stopped") as failed:
        limited.run(_GROWS).result(WATCHDOG)
    assert failed.value.used > 100_000_000
    with pytest.raises(ValueError, match="threads share the memory of their process"):
        limited.submit(abs, -1)
    with pytest.raises(ValueError, match="threads share the memory of their process"):
        limited.map(abs, [])


def test_where_no_memory_is_told_a_command_with_a_limit_is_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgramForce, "why_memory_unknown", "no memory is told")
    with pytest.raises(ValueError, match="memory_limit=100 cannot be kept: no memory is told"):
        pool.options(memory_limit=100).run(["true"])
    assert pool.run(["true"]).result(WATCHDOG).exitcode == 0


# ===== text that cannot be decoded =====


def test_what_cannot_be_decoded_is_the_error_of_its_own_command(pool: Pool) -> None:
    with pytest.raises(UnicodeDecodeError):
        pool.run(["printf", r"\377"], text=True, errors="strict").result(WATCHDOG)
    again = pool.options(retries=1, retry_on=CommandFailed)  # so that the pool itself asks for its error
    with pytest.raises(UnicodeDecodeError):
        again.run(["sh", "-c", r"printf '\377'; exit 1"], text=True, errors="strict").result(WATCHDOG)
    assert pool.run(["printf", r"\377"], text=True).result(WATCHDOG).stdout == r"\xff"


def test_a_loop_over_what_cannot_be_decoded_never_ends_quietly(pool: Pool) -> None:
    command = pool.run(["printf", r"a\n\377\nb\n"], stdout="lines", text=True, errors="strict")
    for _ in range(3):
        with pytest.raises(UnicodeDecodeError):
            list(command.lines())


def test_a_callback_for_what_cannot_be_decoded_holds_nobody_up(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    script = r"printf '\377\n'; head -c 3000000 /dev/zero"
    lines: list[str] = []
    command = pool.run(
        ["sh", "-c", script], stdout="lines", text=True, errors="strict", on_stdout=lines.append, check=True
    )
    assert command.result(WATCHDOG).exitcode == 0
    assert lines == []
    assert "on_stdout of sh -c" in caplog.text


# ===== what errors say =====


def test_the_path_of_an_output_is_text(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "none" / "file"
    with pytest.raises(FileNotFoundError) as failed:
        pool.run(["true"], stdout=path).result(WATCHDOG)
    assert failed.value.filename == os.fspath(path)


def test_only_what_was_looked_for_lists_where(pool: Pool) -> None:
    with pytest.raises(OSError, match=r"^\[Errno \d+\] Argument list too long: 'echo'$") as failed:
        pool.run(["echo", "x" * 3_000_000]).result(WATCHDOG)
    assert failed.value.errno == errno.E2BIG


def test_a_failure_shows_what_was_last_said_wherever_it_went(pool: Pool) -> None:
    with pytest.raises(CommandFailed, match=r"exited with code 3 after .* \(pid \d+\): begun\nno good$"):
        pool.run(["sh", "-c", "echo begun; echo no good >&2; exit 3"], stderr="stdout").result(WATCHDOG)


@pytest.mark.every_nth(1)
@pytest.mark.parametrize(
    ("options", "limits", "error", "how"),
    [
        ({"timeout": 0.3}, {}, TaskTimeout, r"ran longer than its timeout of 0\.3 s"),
        ({}, {"deadline": 0.5}, DeadlineExceeded, r"was not done within its deadline of 0\.5 s"),
        (
            {},
            {"memory_limit": 100},
            MemoryLimitExceeded,
            r"had grown, with its children, to .* memory_limit of 0\.0 MB",
        ),
    ],
    ids=["timeout", "deadline", "memory"],
)
def test_a_limit_says_what_ran_and_what_it_said_last(
    pool: Pool, options: dict[str, Any], limits: dict[str, Any], error: type[Exception], how: str
) -> None:
    script = "trap 'echo on the last line >&2; exit' TERM; while read line; do :; done"
    command = pool.options(name="film", **limits).run(["sh", "-c", script], stdin="pipe", **options)
    with pytest.raises(error) as failed:
        command.result(WATCHDOG)
    text = str(failed.value)
    shown = re.escape("sh -c 'trap '")
    which = rf"{shown}.* \(pid {command.pid}\), task {command.id} \(film, attempt 1\), "
    assert re.match(rf"{which}{how} and was stopped(: on the last line)?$", text), text
    if error is not MemoryLimitExceeded:  # which may be seen before the shell has set its trap
        assert text.endswith(": on the last line")


def test_one_that_waited_too_long_says_what_it_was_to_be(pool: Pool) -> None:
    held = [pool.run(["sleep", "99"]) for _ in range(2)]
    command = pool.options(queue_timeout=0.05).run(["echo", "a b"])
    with pytest.raises(poolkit.QueueTimeout, match=r"^echo 'a b', task \d+ \(echo\), waited in the queue"):
        command.result(WATCHDOG)
    for each in held:
        each.cancel()


def test_a_crash_says_whether_the_program_ran(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    command = pool.run(["sleep", "99"])
    wait_until(lambda: command.pid is not None, "its start")
    os.kill(programs().lasting()[0][0], signal.SIGKILL)
    with pytest.raises(WorkerCrashed) as failed:
        command.result(WATCHDOG)
    which = rf"^sleep 99 \(pid {command.pid}\), task {command.id} \(sleep, attempt 1\), was killed by SIGKILL; "
    assert re.match(which, str(failed.value))
    pool.run(["true"]).result(WATCHDOG)  # there is a starter again
    [starter] = programs().lasting()[0]
    os.kill(starter, signal.SIGSTOP)
    command = pool.run(["sleep", "98"])
    wait_until(lambda: bool(programs()._programs), "its order")
    os.kill(starter, signal.SIGKILL)
    with pytest.raises(WorkerCrashed) as failed:
        command.result(WATCHDOG)
    assert re.match(
        r"^sleep 98, task \d+ \(sleep, attempt 1\), was lost while it was being started; ", str(failed.value)
    )
    assert (failed.value.signal, failed.value.pid) == (None, None)


def test_who_is_to_end_or_is_sent_a_signal_while_it_waits_for_its_starter_has_that_when_others_go_first() -> None:
    with Pool(2, kind="thread") as pool:
        pool.run(["true"]).result(WATCHDOG)
        [starter] = programs().lasting()[0]
        os.kill(starter, signal.SIGSTOP)
        first = pool.run(["true"])  # at the starter, as the next would be
        wait_until(lambda: bool(programs()._programs), "its order")
        stopped = pool.options(priority=-1).run(["sleep", "99"])
        stopped.stop()
        signalled = pool.options(priority=-1).run(["sleep", "98"], check=False)
        assert signalled.send_signal("SIGTERM")
        urgent = [pool.options(priority=1).run(["true"]) for _ in range(4)]  # they have its place
        os.kill(starter, signal.SIGCONT)
        assert [each.result(WATCHDOG).returncode for each in (first, *urgent)] == [0] * 5
        assert stopped.cancelled()
        assert signalled.result(WATCHDOG).signal == "SIGTERM"


def test_a_callback_that_raises_is_logged_with_its_command(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    def fail(line: bytes) -> None:
        raise LookupError(line)

    with caplog.at_level(logging.ERROR, "poolkit"):
        command = pool.run(["sh", "-c", "echo a >&2; echo b >&2"], on_stderr=fail)
        command.result(WATCHDOG)
    [record] = caplog.records
    assert record.getMessage() == (
        f"on_stderr of sh -c 'echo a >&2; echo b >&2' (pid {command.pid}), task {command.id} (sh), raised, and is not "
        "called again"
    )
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


# ===== other interpreters and systems =====


def test_bytes_are_never_compared_with_text(tmp_path: Path) -> None:
    """`python -bb` makes an error of that."""
    script = (
        "import pathlib, poolkit\n"
        "with poolkit.Pool(1, kind='thread') as pool:\n"
        "    path = pathlib.Path('out')\n"
        "    pool.run(['cat'], input=b'pipe', stdout=path, stderr=pathlib.Path('err')).result(20)\n"
        "    print(path.read_text(), pool.run(['cat'], input=b'a', stderr='stdout').result(20).stdout.decode())\n"
        "    try:\n"
        "        pool.run([b'sh', '-c', 'exit 3'], stderr=path).result(20)\n"
        "    except poolkit.CommandFailed as error:\n"
        "        print(error.exitcode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-bb", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("pipe a\n3\n", "")
