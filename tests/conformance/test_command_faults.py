"""Commands: what could cost other commands something, or keep something: readers, retries, runs that end late."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit import CommandFailed, OutputLimitExceeded, Pool, TaskTimeout
from poolkit._spawn.programs import programs
from support import WATCHDOG, wait_for_exit, wait_until

pytestmark = pytest.mark.needs("programs")


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool with two places."""
    with Pool(2, kind="thread") as made:
        yield made
        made.shutdown(wait=True, kill=True)


def test_output_that_is_no_text_costs_no_other_command(pool: Pool) -> None:
    other = pool.run(["sh", "-c", "sleep 0.5; echo here"])
    with pytest.raises(TaskTimeout) as failed:
        pool.run(["sh", "-c", r"printf '\377'; sleep 99"], text=True, errors="strict", timeout=0.2).result(WATCHDOG)
    assert failed.value.completed is not None
    assert failed.value.completed.stdout == "\\xff"
    assert other.result(WATCHDOG).stdout == b"here\n"


@pytest.mark.slow
def test_a_path_that_nobody_reads_holds_up_nobody_else(pool: Pool, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    waiting = pool.run(["echo", "late"], stdout=fifo)
    assert pool.run(["true"]).result(WATCHDOG).exitcode == 0
    assert not waiting.done()
    assert fifo.read_bytes() == b"late\n"
    assert waiting.result(WATCHDOG).exitcode == 0


def test_output_goes_to_files_and_both_into_one(pool: Pool, tmp_path: Path) -> None:
    script = ["sh", "-c", "echo out; echo err >&2"]
    pool.run(script, stdout=tmp_path / "both", stderr="stdout").result(WATCHDOG)
    assert (tmp_path / "both").read_text() == "out\nerr\n"
    with (tmp_path / "out").open("w") as file:
        pool.run(script, stdout=file, stderr=tmp_path / "err").result(WATCHDOG)
    assert ((tmp_path / "out").read_text(), (tmp_path / "err").read_text()) == ("out\n", "err\n")
    assert pool.run(script, stderr="stdout").result(WATCHDOG).stdout == b"out\nerr\n"
    with pytest.raises(FileNotFoundError) as failed:
        pool.run(script, stdout=tmp_path / "no" / "file").result(WATCHDOG)
    assert failed.value.filename == os.fspath(tmp_path / "no" / "file")


def test_one_stream_that_has_ended_does_not_make_readers_of_both_spin(pool: Pool) -> None:
    async def main() -> tuple[list[Any], int]:
        command = await pool.run_async(["sh", "-c", "exec 2>&-; sleep 0.5; echo x"], stdout="lines", stderr="lines")
        turns = 0

        async def count() -> None:
            nonlocal turns
            while not command.done():
                turns += 1
                await asyncio.sleep(0.01)

        counting = asyncio.ensure_future(count())
        lines = [each async for each in command.lines("both")]
        await counting
        return lines, turns

    lines, turns = asyncio.run(main())
    assert lines == [("stdout", b"x")]
    assert turns > 3  # where nothing else runs, some 50; of a loop that spins, one


@pytest.mark.parametrize("stdout", ["lines", "capture"])
def test_a_reader_reads_the_run_that_counts(pool: Pool, tmp_path: Path, stdout: str) -> None:
    again = pool.options(retries=1, retry_on=(CommandFailed,))
    script = f"test -e {tmp_path}/ran && seq 100000 && exit; touch {tmp_path}/ran; exit 1"
    command = again.run(["sh", "-c", script], stdout=stdout)
    assert len(list(command)) == 100_000
    assert command.attempts == 2


def test_several_readers_get_all_lines_and_all_end(pool: Pool) -> None:
    for _ in range(20):
        command = pool.run(["sh", "-c", "for i in $(seq 40); do echo $i; done"], stdout="lines", text=True)
        found: list[str] = []

        def read(command: poolkit.Command[str] = command, found: list[str] = found) -> None:
            lines = command.lines()
            while (line := next(lines, None)) is not None:
                found.append(line)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WATCHDOG)
            assert not thread.is_alive()
        assert sorted(map(int, found)) == list(range(1, 41))


def test_what_is_to_stop_is_not_run_again(pool: Pool) -> None:
    again = pool.options(retries=3)
    command = again.run(["sh", "-c", "trap '' TERM; echo x; while :; do sleep 0.05; done"], stdout="lines", grace=60)
    assert next(command.lines()) == b"x"
    command.stop()
    os.kill(programs().lasting()[0][0], signal.SIGKILL)
    with pytest.raises((poolkit.WorkerCrashed, CancelledError)):
        command.result(WATCHDOG)
    assert command.attempts == 1


def test_what_is_beyond_the_bound_is_kept_for_no_callback(pool: Pool) -> None:
    release = threading.Event()
    come = 0

    def note(line: bytes) -> None:
        nonlocal come
        release.wait(WATCHDOG)
        come += len(line) + 1

    command = pool.run(["sh", "-c", "trap '' TERM; yes"], max_output=1_000_000, on_stdout=note, grace=0.5)
    wait_until(lambda: command.program is not None and command.program.is_too_long, "the bound")
    release.set()
    with pytest.raises(OutputLimitExceeded):
        command.result(WATCHDOG)
    assert come < 2_000_000


def test_a_command_that_was_dropped_keeps_no_output(pool: Pool) -> None:
    gc.collect()
    gc.disable()
    others = _commands()
    try:
        for how in ({}, {"on_stdout": len}, {"stdout": "lines"}):
            command = pool.run(["head", "-c", "5000000", "/dev/zero"], grace=60, **how)  # type: ignore[call-overload]
            for _ in command.chunks():
                pass
            command.result(WATCHDOG)
            del command
        wait_until(lambda: len(_commands()) <= len(others), "the commands to be gone")
    finally:
        gc.enable()


def _commands() -> list[object]:
    return [each for each in gc.get_objects() if isinstance(each, poolkit.Command)]


def test_a_starter_that_does_not_fit_any_more_is_let_go(pool: Pool) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert pool.run(["true"]).result(WATCHDOG).exitcode == 0
    try:
        for number in range(3):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1 - number % 2, hard))
            limit = pool.run(["sh", "-c", "ulimit -n"], text=True).result(WATCHDOG).stdout
            assert int(limit) == soft - 1 - number % 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: len(programs().lasting()[0]) == 1, "one starter")


def test_a_signal_handler_may_do_what_it_interrupts(pool: Pool) -> None:
    command = pool.run(["cat"], stdin="pipe", stdout="lines", text=True)
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        command.send_signal("SIGCONT")
        command.lines()
        command.write("handler\n")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        give_up = time.monotonic() + WATCHDOG / 2
        while handled <= 50 and time.monotonic() < give_up:
            command.send_signal("SIGCONT")
            command.write("here\n")
            next(command.lines())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 50
    command.stop()


def test_chunks_of_what_is_kept_are_never_empty(pool: Pool) -> None:
    assert list(pool.run(["echo", "x"]).chunks()) == [b"x\n"]
    done = pool.run(["echo", "x"])
    done.result(WATCHDOG)
    assert list(done.chunks()) == [b"x\n"]
    assert list(done) == []


@pytest.mark.parametrize("how", ["signal", "cancel", "limit"])
def test_a_program_that_has_closed_its_output_is_still_reached(pool: Pool, how: str) -> None:
    script = "trap 'exit 7' USR1; exec >&- 2>&-; while :; do sleep 0.02; done"
    command = pool.run(["sh", "-c", script], timeout=0.5 if how == "limit" else None)
    wait_until(lambda: command.program is not None and command.program.is_to_be_buried, "the end of its output")
    if how == "signal":
        assert command.send_signal("SIGUSR1")
        with pytest.raises(CommandFailed) as failed:
            command.result(WATCHDOG)
        assert failed.value.exitcode == 7
    elif how == "limit":
        with pytest.raises(TaskTimeout):
            command.result(WATCHDOG)
    else:
        command.cancel()
    assert command.pid is not None
    wait_for_exit(command.pid)
    assert not command.send_signal("SIGUSR1")


def test_a_flood_of_lines_leaves_other_callbacks_their_turn(pool: Pool) -> None:
    """There is always more to be called with: the callback is slower than its program."""
    never = threading.Event()
    with pool.run(["yes", "x" * 5000], stdout="lines", on_stdout=lambda _: never.wait(0.001)) as flooding:
        wait_until(lambda: flooding.is_taken(), "the first call")
        lines: list[bytes] = []
        assert pool.run(["seq", "1000"], on_stdout=lines.append).result(WATCHDOG).exitcode == 0
        assert len(lines) == 1000


def test_a_callback_is_not_called_once_its_command_was_cancelled(pool: Pool) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls = 0

    def note(_line: bytes) -> None:
        nonlocal calls
        calls += 1
        begun.set()
        go_on.wait(WATCHDOG)

    line = "x" * 5000
    command = pool.run(["sh", "-c", f"trap '' TERM; while :; do echo {line}; done"], on_stdout=note, grace=0.5)
    assert begun.wait(WATCHDOG)
    command.cancel()
    go_on.set()
    assert command.pid is not None
    wait_for_exit(command.pid)
    called = threading.Event()
    pool.submit(int).add_done_callback(lambda _: called.set())
    assert called.wait(WATCHDOG)
    assert calls <= 1 + 2 * (256 * 1024 // len(line))


@pytest.mark.slow
def test_the_grace_of_one_that_is_not_started_yet_is_kept(pool: Pool) -> None:
    """Its exec hangs, and it does not obey its stop signal; who waits behind it is cancelled."""
    assert pool.run(["true"]).result(WATCHDOG).exitcode == 0
    [hanging] = programs().lasting()[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        command = pool.run(["sleep", "99"], stop_signal="SIGCONT", grace=0.1)
        wait_until(lambda: bool(programs()._programs), "its order")
        behind = pool.run(["sleep", "98"], stop_signal="SIGCONT", grace=0.1)
        for each in (command, behind):
            each.stop()
        wait_until(lambda: signal.SIGKILL in command._call.recipe.early, "the end of its grace")
    finally:
        os.kill(hanging, signal.SIGCONT)
    assert command.result(WATCHDOG).signal == "SIGKILL"
    assert behind.cancelled()
