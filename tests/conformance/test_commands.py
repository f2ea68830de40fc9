"""Commands: each row of their failure table, on pools of processes and of threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

import poolkit
from poolkit import CommandFailed, CompletedCommand, OutputLimitExceeded, Pool, TaskTimeout
from support import WATCHDOG, is_alive, wait_for_exit, wait_until

pytestmark = pytest.mark.needs("programs")


@pytest.fixture(params=["process", "thread"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A pool with two places."""
    with Pool(2, kind=request.param) as made:
        yield made
        made.shutdown(wait=True, kill=True)


def test_its_result_is_what_it_did(pool: Pool) -> None:
    command = pool.run(["sh", "-c", "echo out; echo err >&2"])
    done = command.result(WATCHDOG)
    assert (done.stdout, done.stderr, done.returncode, done.exitcode, done.signal) == (b"out\n", b"err\n", 0, 0, None)
    assert done.argv == command.argv == ("sh", "-c", "echo out; echo err >&2")
    assert done.pid == command.pid
    assert (done.dropped, done.cut_off) == (0, False)
    assert done.peak_rss > 0
    assert 0 < done.run_time < WATCHDOG
    assert command.state == "succeeded"


def test_another_code_is_a_failure_that_says_what_happened(pool: Pool) -> None:
    with pytest.raises(CommandFailed, match=r"exited with code 3 after .*: no good") as failed:
        pool.run(["sh", "-c", "echo no good >&2; exit 3"], text=True).result(WATCHDOG)
    error = failed.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.exitcode, error.signal, error.stderr) == (3, 3, None, "no good\n")
    assert isinstance(error.completed, CompletedCommand)


@pytest.mark.parametrize("check", [False, {0, 3}, [3]])
def test_codes_that_were_asked_for_are_none(pool: Pool, check: bool | set[int]) -> None:
    assert pool.run(["sh", "-c", "exit 3"], check=check).result(WATCHDOG).exitcode == 3


def test_a_signal_that_somebody_else_sent_is_a_failure(pool: Pool) -> None:
    with pytest.raises(CommandFailed, match="was killed by SIGKILL") as failed:
        pool.run(["sh", "-c", "kill -9 $$"]).result(WATCHDOG)
    assert (failed.value.returncode, failed.value.exitcode, failed.value.signal) == (-9, None, "SIGKILL")


def test_no_such_program(pool: Pool) -> None:
    with pytest.raises(FileNotFoundError, match=r"searched in PATH=") as failed:
        pool.run(["no-such-program"]).result(WATCHDOG)
    assert failed.value.filename == "no-such-program"


def test_no_such_directory(pool: Pool) -> None:
    with pytest.raises(FileNotFoundError, match="working directory") as failed:
        pool.run(["true"], cwd="/no/such").result(WATCHDOG)
    assert failed.value.filename == "/no/such"


def test_no_permission(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(PermissionError) as failed:
        pool.run([tmp_path / "script"]).result(WATCHDOG)
    assert failed.value.filename == os.fspath(tmp_path / "script")


def test_a_limit_ends_the_whole_group(pool: Pool) -> None:
    script = "trap '' TERM; echo begun; (trap '' TERM; echo $$ $BASHPID; sleep 99) & sleep 99 & wait; sleep 99"
    began = time.monotonic()
    with pytest.raises(TaskTimeout) as failed:
        (command := pool.run(["bash", "-c", script], timeout=0.3, grace=0.3, text=True)).result(WATCHDOG)
    assert time.monotonic() - began < WATCHDOG / 2  # where nothing else runs, 0.6 s
    assert command.run_time is not None
    assert command.run_time >= 0.3
    assert failed.value.completed is not None
    group, child = map(int, failed.value.completed.stdout.split()[1:3])
    assert group == failed.value.completed.pid
    for pid in (group, child):
        wait_for_exit(pid)


def test_a_cancelled_one_is_told_at_once_and_its_place_is_free_when_it_is_gone() -> None:
    with Pool(1, kind="thread") as pool:
        command = pool.run(
            ["sh", "-c", "trap 'sleep 0.3; exit' TERM; echo x; while :; do sleep 0.01; done"], stdout="lines"
        )
        assert next(command.lines()) == b"x"
        assert command.cancel()
        assert command.cancelled()
        with pytest.raises(CancelledError):
            command.result()
        assert command.pid is not None
        assert is_alive(command.pid)
        assert pool.submit(is_alive, command.pid).result(WATCHDOG) is False
        command = pool.run(["sleep", "99"])
        queued = pool.run(["true"])
        assert queued.cancel()
        command.cancel()


def test_stop_delivers_what_it_did(pool: Pool) -> None:
    command = pool.run(["sh", "-c", "echo begun; sleep 99"], text=True)
    assert next(command.lines()) == "begun"
    command.stop()
    done = command.result(WATCHDOG)
    assert (done.signal, done.stdout) == ("SIGTERM", "begun\n")


def test_more_output_than_is_kept_is_never_a_short_result(pool: Pool) -> None:
    with pytest.raises(OutputLimitExceeded, match="max_output=1000") as failed:
        pool.run(["yes"], max_output=1000).result(WATCHDOG)
    assert (failed.value.limit, failed.value.stdout) == (1000, b"y\n" * 500)


def test_a_diagnosis_loses_its_middle(pool: Pool) -> None:
    done = pool.run(["sh", "-c", "seq 100000 >&2"], max_output=1000).result(WATCHDOG)
    assert done.dropped > 100_000
    assert done.stderr.startswith(b"1\n2\n")
    assert done.stderr.endswith(b"\n100000\n")


def test_who_is_left_behind_and_holds_the_output_is_killed(pool: Pool) -> None:
    began = time.monotonic()
    done = pool.run(["sh", "-c", "echo before; sleep 60 & echo $!"], text=True).result(WATCHDOG)
    assert 0.4 < time.monotonic() - began < WATCHDOG / 2  # of the minute that it would take to wait for it
    assert done.cut_off
    assert done.stdout.startswith("before\n")
    wait_for_exit(int(done.stdout.split()[1]))


def test_who_is_left_behind_and_holds_nothing_is_killed(pool: Pool) -> None:
    done = pool.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], text=True).result(WATCHDOG)
    assert not done.cut_off
    wait_for_exit(int(done.stdout))


def test_a_dead_starter_is_a_crash_and_the_next_command_has_another(pool: Pool) -> None:
    from poolkit._spawn.programs import programs

    command = pool.run(["sleep", "99"], stdout="lines")
    wait_until(lambda: command.pid is not None, "its start")
    [starter] = programs().lasting()[0]
    os.kill(starter, signal.SIGKILL)
    with pytest.raises(poolkit.WorkerCrashed, match="starter"):
        command.result(WATCHDOG)
    assert command.pid is not None
    wait_for_exit(command.pid)
    assert pool.run(["echo", "again"]).result(WATCHDOG).stdout == b"again\n"


def test_shutdown_waits_for_it_or_kills_it() -> None:
    pool = Pool(2, kind="thread")
    command = pool.run(["sh", "-c", "sleep 0.2; echo done"])
    pool.shutdown()
    assert command.done()
    assert command.result().stdout == b"done\n"
    pool = Pool(2, kind="thread")
    command = pool.run(["sleep", "99"])
    wait_until(lambda: command.pid is not None, "its start")
    pool.shutdown(kill=True)
    assert command.cancelled()
    assert command.pid is not None
    assert not is_alive(command.pid)


def test_places_are_shared_with_tasks(pool: Pool) -> None:
    assert pool.submit(abs, -1).result(WATCHDOG) == 1
    commands = [pool.run(["sleep", "99"]) for _ in range(3)]
    wait_until(lambda: sum(command.pid is not None for command in commands) == 2, "two starts")
    task = pool.submit(abs, -2)
    assert commands[2].pid is None
    assert pool.stats().running == 2
    assert pool.stats().queued == 2
    assert not task.done()
    for command in commands:
        command.cancel()
    assert task.result(WATCHDOG) == 2


def test_input_of_any_size(pool: Pool) -> None:
    data = b"0123456789" * 1_000_000
    assert pool.run(["cat"], input=data).result(WATCHDOG).stdout == data
    assert pool.run(["cat"], input="ä", text=True).result(WATCHDOG).stdout == "ä"
    with Path("/etc/passwd").open("rb") as file:
        assert pool.run(["cat"], input=file).result(WATCHDOG).stdout == Path("/etc/passwd").read_bytes()


def test_a_conversation(pool: Pool) -> None:
    with pool.run(["cat"], stdin="pipe", stdout="lines", text=True) as command:
        for word in ("one", "two"):
            command.write(f"{word}\n")
            assert next(command.lines()) == word
        command.close_stdin()
        assert list(command) == []
        assert command.result(WATCHDOG).exitcode == 0
        with pytest.raises(poolkit.ChannelClosed):
            command.write("three\n")


def test_lines_of_both_streams(pool: Pool) -> None:
    command = pool.run(["sh", "-c", "echo a; echo b >&2; exit 1"], stdout="lines", stderr="lines", text=True)
    found: list[tuple[str, str]] = []
    with pytest.raises(CommandFailed):
        found.extend(command.lines("both"))
    assert sorted(found) == [("stderr", "b"), ("stdout", "a")]


def test_callbacks_have_returned_when_the_outcome_is_there(pool: Pool) -> None:
    lines: list[bytes] = []
    pool.run(["seq", "1000"], on_stdout=lines.append).result(WATCHDOG)
    assert lines == [b"%d" % number for number in range(1, 1001)]


async def _read(command: poolkit.Command[bytes]) -> list[bytes]:
    return [line async for line in command]


def test_a_loop_reads_it_without_being_blocked(pool: Pool) -> None:
    import asyncio

    async def main() -> list[bytes]:
        command = await pool.run_async(["seq", "1000"], stdout="lines")
        lines = await _read(command)
        assert (await command).exitcode == 0
        return lines

    assert len(asyncio.run(main())) == 1000


def test_a_failed_command_is_run_again_where_that_is_asked_for(pool: Pool, tmp_path: Path) -> None:
    again = pool.options(retries=2, retry_on=(CommandFailed,))
    script = f"echo x >> {tmp_path}/runs; test $(wc -l < {tmp_path}/runs) = 3"
    assert again.run(["sh", "-c", script]).result(WATCHDOG).exitcode == 0
    command = again.run(["sh", "-c", "echo once; read word; exit 1"], stdout="lines", stdin="pipe")
    assert next(command.lines()) == b"once"
    command.write(b"taken\n")  # before that it may be run again
    with pytest.raises(CommandFailed):
        command.result(WATCHDOG)
    assert command.attempts == 1


def test_what_it_has_of_this_process(pool: Pool) -> None:
    code = "import os, signal; print(os.getsid(0) == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
    command = pool.run([sys.executable, "-c", code], env={"POOLKIT_A": "1", "PATH": None}, text=True)
    assert command.result(WATCHDOG).stdout == "True [0, 1, 2]\n"
    assert pool.run(["/bin/sh", "-c", "echo $POOLKIT_A"], env={"POOLKIT_A": "1"}).result(WATCHDOG).stdout == b"1\n"


def test_spawn_is_in_no_queue_and_its_with_stops_it() -> None:
    with poolkit.spawn(["yes"]) as command:
        assert next(command.lines()) == b"y"
    assert command.result().signal == "SIGTERM"
