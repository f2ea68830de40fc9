"""Commands of fake pools: the rows of their failure table that a fake can show, and what a test says and asks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

import poolkit
import support_functions as work
from poolkit import (
    ChannelClosed,
    CommandFailed,
    MemoryLimitExceeded,
    OutputLimitExceeded,
    PoolkitError,
    QueueFull,
    TaskTimeout,
)
from poolkit.testing import FakePool


@pytest.fixture(params=["eager", "manual"])
def pool(request: pytest.FixtureRequest) -> Iterator[FakePool]:
    """A fake pool with two places, used as the pool of calls that name none."""
    made = FakePool(request.param, max_workers=2)
    with poolkit.use_pool(made):
        yield made
    made.shutdown(cancel_futures=True, kill=True)


@pytest.fixture
def manual() -> Iterator[FakePool]:
    """A fake pool with one place that runs nothing until it is told to."""
    made = FakePool("manual")
    yield made
    made.shutdown(cancel_futures=True, kill=True)


# ===== the rows of the failure table =====


def test_its_result_is_what_it_did(pool: FakePool) -> None:
    pool.when_command("sh", ...).returns(stdout=b"out\n", stderr=b"err\n").takes(3)
    command = pool.run(["sh", "-c", "echo out; echo err >&2"])
    done = command.result()
    assert (done.stdout, done.stderr, done.returncode, done.exitcode, done.signal) == (b"out\n", b"err\n", 0, 0, None)
    assert done.argv == command.argv == ("sh", "-c", "echo out; echo err >&2")
    assert (done.dropped, done.cut_off, done.run_time, done.pid) == (0, False, 3.0, command.pid)
    assert command.state == "succeeded"
    with pytest.raises(ProcessLookupError):  # a number that is nobody's
        os.kill(done.pid, 0)


def test_another_code_is_a_failure_that_says_what_happened(pool: FakePool) -> None:
    pool.when_command("convert", ...).exits(3, stderr="no good\n")
    with pytest.raises(CommandFailed, match=r"convert a exited with code 3 after .*: no good") as failed:
        pool.run(["convert", "a"], text=True).result()
    error = failed.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.exitcode, error.signal, error.stderr) == (3, 3, None, "no good\n")
    assert pool.run(["convert", "a"], check={0, 3}).result().exitcode == 3


def test_a_signal_that_somebody_else_sent_is_a_failure(pool: FakePool) -> None:
    pool.when_command("sh", ...).killed("SIGSEGV")
    with pytest.raises(CommandFailed, match="was killed by SIGSEGV") as failed:
        pool.run(["sh", "-c", "..."]).result()
    assert (failed.value.returncode, failed.value.exitcode, failed.value.signal) == (-11, None, "SIGSEGV")


def test_no_such_program(pool: FakePool) -> None:
    pool.when_command("ffmpeg", ...).not_found()
    with pytest.raises(FileNotFoundError, match=r"searched in PATH=/a") as failed:
        pool.run(["ffmpeg", "-i"], env={"PATH": "/a"}).result()
    assert failed.value.filename == "ffmpeg"
    with pytest.raises(AssertionError, match="ffmpeg -i did not run"):
        pool.assert_ran("ffmpeg", "-i")


def test_a_limit_takes_the_grace_where_its_signal_is_ignored(pool: FakePool) -> None:
    pool.when_command("polite").prints("begun").hangs()
    pool.when_command("stubborn").prints("begun").hangs(ignores_stop=True)
    for name, how, ended_at in (("polite", "SIGTERM", 1.0), ("stubborn", "SIGKILL", 1.0 + 1.0 + 2.5)):
        with pytest.raises(TaskTimeout) as failed:
            pool.run([name], timeout=1, grace=2.5).result()
        assert (failed.value.completed.stdout, failed.value.completed.signal) == (b"begun\n", how)
        assert pool.now == ended_at


def test_a_limit_on_memory(pool: FakePool) -> None:
    pool.when_command("sort").uses(2**31).hangs()
    with pytest.raises(MemoryLimitExceeded, match=r"grown, with its children, to 2147.5 MB"):
        pool.options(memory_limit=2**30).run(["sort"]).result()


def test_what_hangs_below_its_limit_on_memory_does_not_hold_up_the_test() -> None:
    pool = FakePool()
    pool.when_command("sort").uses(10).hangs()
    pool.when(work.square).hangs()
    command = pool.options(memory_limit=2**30).run(["sort"])
    task = pool.options(memory_limit=2**30).submit(work.square, 3)
    assert (command.state, task.state) == ("running", "queued")
    pool.shutdown(kill=True)


def test_a_cancelled_one_is_told_at_once_and_its_place_is_free_when_it_is_gone(manual: FakePool) -> None:
    manual.when_command("stubborn").hangs(ignores_stop=True)
    command = manual.run(["stubborn"], grace=2.0)
    manual.run_next()
    behind = manual.submit(work.square, 3)
    assert command.cancel()
    with pytest.raises(CancelledError):
        command.result()
    manual.advance(1.9)
    assert behind.state == "queued"
    manual.advance(0.1)
    assert behind.result() == 9


def test_one_that_is_queued_never_runs(manual: FakePool) -> None:
    manual.when_command(...)
    first, second, third = (manual.run(["true"]) for _ in range(3))
    assert second.cancel()
    third.stop()
    manual.run_all()
    assert first.result().exitcode == 0
    assert second.cancelled()
    assert third.cancelled()
    manual.assert_ran("true", times=1)
    assert [call.attempts for call in manual.commands] == [1, 0, 0]


def test_stop_delivers_what_it_did(pool: FakePool) -> None:
    pool.when_command("server").prints("begun").hangs()
    command = pool.run(["server"], text=True)
    assert next(command.lines()) == "begun"
    command.stop()
    done = command.result()
    assert (done.signal, done.stdout) == ("SIGTERM", "begun\n")


def test_a_grace_of_nothing_is_a_kill(pool: FakePool) -> None:
    pool.when_command("server").prints("begun").hangs(ignores_stop=True)
    with pool.run(["server"], stdout="lines") as command:
        assert next(command.lines()) == b"begun"
        command.stop(grace=0)
    assert command.result().signal == "SIGKILL"


def test_more_output_than_is_kept_is_never_a_short_result(pool: FakePool) -> None:
    pool.when_command("yes").prints(*["y"] * 1000).hangs()
    with pytest.raises(OutputLimitExceeded, match="max_output=1000") as failed:
        pool.run(["yes"], max_output=1000).result()
    assert (failed.value.limit, failed.value.stdout) == (1000, b"y\n" * 500)


def test_a_diagnosis_loses_its_middle(pool: FakePool) -> None:
    pool.when_command("seq").prints(*map(str, range(1, 1001)), to="stderr")
    done = pool.run(["seq"], max_output=100).result()
    assert done.dropped > 1000
    assert done.stderr.startswith(b"1\n2\n")
    assert done.stderr.endswith(b"\n1000\n")


def test_places_are_shared_with_tasks(manual: FakePool) -> None:
    manual.when_command("sleep", ANY).takes(5)
    commands = [manual.run(["sleep", "5"]) for _ in range(2)]
    task = manual.submit(work.square, 3)
    manual.advance(7)
    assert [command.state for command in commands] == ["succeeded", "running"]
    assert not task.done()
    assert manual.stats().running == 1
    assert task.result() == 9
    assert manual.now == 10


@pytest.mark.parametrize("size", [1, 2])
def test_a_worker_lends_its_place(size: int) -> None:
    with FakePool("manual", max_workers=size) as pool:
        pool.when_command("sleep").takes(1)
        assert pool.submit(work.square, 3).result() == 9
        [*commands] = (pool.run(["sleep"]) for _ in range(4))
        pool.run_all()
        assert all(command.done() for command in commands)
        assert pool.now == 4 / size
        assert pool.submit(work.square, 3).result() == 9
        assert [info.id for info in pool.workers()] == [1]


def test_a_full_queue(manual: FakePool) -> None:
    with FakePool("manual", max_queue=1) as pool:
        pool.when_command("sleep").takes(1)
        impatient = pool.options(block=False)
        first, _ = impatient.run(["sleep"]), impatient.run(["sleep"])
        with pytest.raises(QueueFull):
            impatient.run(["sleep"])
        pool.run(["sleep"])  # which waits until there is room
        assert first.done()
        assert len(pool.commands) == 3


def test_shutdown_waits_for_it_or_kills_it() -> None:
    pool = FakePool("manual")
    pool.when_command("sleep").takes(3)
    command = pool.run(["sleep"])
    pool.shutdown()
    assert command.result().run_time == 3
    pool = FakePool("manual", max_workers=2)
    pool.when_command("sleep").hangs()
    pool.when_command("stubborn").hangs(ignores_stop=True)
    commands = pool.run(["sleep"]), pool.run(["stubborn"])
    while pool.run_next():
        pass
    with pytest.raises(PoolkitError, match="would wait for ever"):
        pool.shutdown()
    pool.shutdown(kill=True)
    assert [command.state for command in commands] == ["cancelled", "cancelled"]
    assert [command.program.returncode for command in commands] == [-signal.SIGTERM, -signal.SIGKILL]


def test_a_conversation(pool: FakePool) -> None:
    pool.when_command("cat").prints("one", "two")
    with pool.run(["cat"], stdin="pipe", stdout="lines", text=True) as command:
        for word in ("one", "two"):
            command.write(f"{word}\n")
            assert next(command.lines()) == word
        assert not command.done()
        command.close_stdin()
        assert list(command) == []
        assert command.result().exitcode == 0
        with pytest.raises(ChannelClosed):
            command.write("three\n")
    assert pool.commands[0].written == b"one\ntwo\n"


def test_one_that_says_how_it_ends_does_not_wait_for_the_end_of_its_input(pool: FakePool) -> None:
    pool.when_command("cat").exits(0)
    assert pool.run(["cat"], stdin="pipe").result().exitcode == 0


def test_one_that_waits_for_its_input_meets_its_limit(pool: FakePool) -> None:
    pool.when_command("cat").prints("ready")
    command = pool.run(["cat"], stdin="pipe", timeout=5)
    command.write(b"x")
    assert pool.now == 0
    with pytest.raises(TaskTimeout):
        command.result()
    assert pool.now == 5


def test_what_would_never_come_is_an_error_with_the_timeline(pool: FakePool) -> None:
    pool.when_command("cat").prints("ready")
    command = pool.run(["cat"], stdin="pipe", stdout="lines")
    assert next(command.lines()) == b"ready"
    with pytest.raises(PoolkitError, match=r"the output of .* would never be done(.|\n)*submitted: cat"):
        next(command.lines())
    command.close_stdin()
    assert command.result().exitcode == 0


def test_lines_of_both_streams_come_in_their_time(pool: FakePool) -> None:
    pool.when_command("sh").prints("a", "b", every=1).prints("c", to="stderr", every=0.5).exits(1)
    command = pool.run(["sh"], stdout="lines", stderr="lines", text=True)
    found: list[tuple[str, str]] = []
    with pytest.raises(CommandFailed):
        found.extend(command.lines("both"))
    assert sorted(found) == [("stderr", "c"), ("stdout", "a"), ("stdout", "b")]
    assert pool.now == 2.5


def test_time_between_lines(manual: FakePool) -> None:
    manual.when_command("ffmpeg").prints("1", "2", "3", every=2.0).takes(10)
    command = manual.run(["ffmpeg"], text=True)
    lines = command.lines()
    for when in (2.0, 4.0, 6.0):
        next(lines)
        assert manual.now == when
    assert command.result().run_time == 10


def test_who_reads_gives_the_pace(pool: FakePool) -> None:
    line = "x" * 99_999
    pool.when_command("yes").prints(*[line] * 8, every=1e-9)
    command = pool.run(["yes"], stdout="lines", text=True)
    lines = command.lines()
    assert next(lines) == line
    assert not command.done()
    assert list(lines) == [line] * 7
    assert command.result().exitcode == 0
    command = pool.run(["yes"], stdout="lines")
    with pytest.raises(PoolkitError, match="waits for its reader"):
        command.result()
    command.cancel()


def test_callbacks_have_returned_when_the_outcome_is_there(pool: FakePool) -> None:
    lines: list[bytes] = []
    pool.when_command("seq").prints("1", "2").prints("3", every=1)
    pool.run(["seq"], on_stdout=lines.append).result()
    assert lines == [b"1", b"2", b"3"]


def test_a_callback_may_stop_it(manual: FakePool) -> None:
    manual.when_command("seq").prints("1", "2", "3", every=1).hangs()
    lines: list[bytes] = []

    def stop(line: bytes) -> None:
        lines.append(line)
        if line == b"2":
            command.stop()

    command = manual.run(["seq"], on_stdout=stop)
    assert command.result().signal == "SIGTERM"
    assert lines == [b"1", b"2"]
    assert manual.now == 2


def test_coroutines_read_it_without_driving_an_eager_pool() -> None:
    async def main() -> None:
        with FakePool() as pool:
            pool.when_command("seq").prints("1", "2", every=1)
            command = await pool.run_async(["seq"], stdout="lines")
            assert [line async for line in command] == [b"1", b"2"]
            assert (await command).exitcode == 0

    asyncio.run(main())


def test_the_end_of_an_asynchronous_with_stops_it(pool: FakePool) -> None:
    async def main() -> poolkit.Command[bytes]:
        pool.when_command("cat").hangs(ignores_stop=True)
        async with await pool.run_async(["cat"], stdin="pipe", stdout="lines") as command:
            await command.write_async(b"x")
        return command

    assert asyncio.run(main()).result().signal == "SIGKILL"
    assert pool.commands[0].written == b"x"


def test_a_failed_command_is_run_again_where_that_is_asked_for(pool: FakePool) -> None:
    pool.when_command("curl", ...).exits(7).times(2).then.returns(stdout="page")
    again = pool.options(retries=2, retry_on=(CommandFailed,))
    command = again.run(["curl", "a"], text=True)
    assert command.result().stdout == "page"
    assert command.attempts == 3
    pool.assert_ran("curl", ..., times=1)
    pool.when_command("curl", "b").prints("once").exits(1)
    command = again.run(["curl", "b"], stdout="lines", text=True)
    if command.done():  # an eager pool has run it three times, before anybody could take a line
        assert command.attempts == 3
        return
    assert next(command.lines()) == "once"
    with pytest.raises(CommandFailed):
        command.result()
    assert command.attempts == 1


def test_signals_end_it_unless_they_are_harmless(pool: FakePool) -> None:
    pool.when_command("server").hangs()
    command = pool.run(["server"])
    command.send_signal("SIGWINCH")
    if command.pid is None:
        pool.run_next()
    assert command.send_signal("SIGCONT", group=True)
    assert not command.done()
    assert command.send_signal("SIGHUP")
    with pytest.raises(CommandFailed, match="SIGHUP"):
        command.result()
    assert not command.send_signal("SIGHUP")


def test_what_is_written_to_a_file(pool: FakePool, tmp_path: Path) -> None:
    pool.when_command("dump").returns(stdout="rows\n", stderr="notes\n")
    pool.run(["dump"], stdout=tmp_path / "out", stderr="stdout").result()
    assert (tmp_path / "out").read_text() == "rows\nnotes\n"
    with pytest.raises(FileNotFoundError):
        pool.run(["dump"], stdout=tmp_path / "no" / "out").result()
    assert pool.run(["dump"], stdout="null", stderr="null").result().stdout == b""


def test_spawn_is_in_no_queue(pool: FakePool) -> None:
    pool.when_command("server").prints("ready").hangs()
    pool.when_command("sleep").takes(4)
    held = [pool.run(["server"]) for _ in range(2)]
    with poolkit.spawn(["server"], text=True) as command:
        assert next(command.lines()) == "ready"
    assert command.result().signal == "SIGTERM"
    assert poolkit.spawn(["sleep"]).result().run_time == 4
    assert pool.now == 4
    assert poolkit.run(["sleep"]) in pool.pending  # behind the two
    pool.assert_ran("server", times=3 if held[0].state == "running" else 1)
    pool.cancel_all()


# ===== what a test says =====


def test_what_was_said_last_comes_first(pool: FakePool) -> None:
    pool.when_command("git", ...).exits(1)
    pool.when_command("git", "log", ANY, ...).returns(stdout="some")
    pool.when_command("git", "log").returns(stdout="all")
    pool.when_command(lambda argv: argv[-1] == "-v").returns(stdout="2.0")
    pool.when_command(Path("git"), b"log", "once").returns(stdout="once").times(1)

    def output(*argv: str) -> Any:
        return pool.run(["git", *argv], text=True, check=False).result().stdout

    assert [output("log", "once"), output("log", "once")] == ["once", "some"]
    assert [output("log"), output("log", "a", "b"), output("log", "-v"), output("gc")] == ["all", "some", "2.0", ""]


def test_a_command_of_which_nothing_was_said_is_refused(pool: FakePool) -> None:
    pool.when_command("git", "log").times(1)
    with pytest.raises(PoolkitError, match=r"nothing was said of git gc(.|\n)*pool.when_command\('git', 'gc'\)"):
        pool.run(["git", "gc"])
    assert pool.commands == []
    pool.run(["git", "log"]).result()
    with pytest.raises(PoolkitError, match="nothing was said"):  # of a second run
        pool.run(["git", "log"]).result()


def test_one_that_really_runs(pool: FakePool, tmp_path: Path) -> None:
    pool.when_command("sh", ...).runs()
    pool.when_command("cat").runs()
    script = "cat; pwd; echo $A; echo err >&2; exit 3"
    command = pool.run(["sh", "-c", script], input="in\n", text=True, cwd=tmp_path, env={"A": "a"}, check=False)
    done = command.result()
    assert (done.stdout, done.stderr, done.exitcode) == (f"in\n{tmp_path}\na\n", "err\n", 3)
    with pool.run(["cat"], stdin="pipe") as command:
        command.write(b"one, ")
        command.write(b"two")
        command.close_stdin()
        assert command.result().stdout == b"one, two"
    pool.when_command("no-such-program").runs()
    with pytest.raises(FileNotFoundError):
        pool.run(["no-such-program"]).result()


@pytest.mark.parametrize(
    ("error", "say"),
    [
        (TypeError, lambda pool: pool.when_command()),
        (TypeError, lambda pool: pool.when_command("sleep", 5)),
        (TypeError, lambda pool: pool.when_command("sleep", len)),
        (ValueError, lambda pool: pool.when_command("a", ..., "b")),
        (ValueError, lambda pool: pool.when_command("a").prints("x", to="stdin")),
        (TypeError, lambda pool: pool.when_command("a").prints(5)),
        (ValueError, lambda pool: pool.when_command("a").prints("x", every=-1)),
        (TypeError, lambda pool: pool.when_command("a").exits("1")),
        (ValueError, lambda pool: pool.when_command("a").exits(-1)),
        (ValueError, lambda pool: pool.when_command("a").killed("SIGFOO")),
        (ValueError, lambda pool: pool.when_command("a").takes(-1)),
        (ValueError, lambda pool: pool.when_command("a").times(0)),
        (TypeError, lambda pool: pool.when_command("a").hangs(ignores_stop=1)),
        (ValueError, lambda pool: pool.run([])),
        (TypeError, lambda pool: pool.run("a b")),
    ],
)
def test_what_makes_no_sense(error: type[Exception], say: Any, manual: FakePool) -> None:
    with pytest.raises(error):
        say(manual)


# ===== what a test asks =====


def test_what_was_asked_for_and_when(manual: FakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD", "1")
    manual.when_command("sort").takes(2).exits(2)
    command = manual.run(["sort"], input="b\na\n", cwd=tmp_path, env={"A": "a", "OLD": None}, text=True, timeout=9)
    [call] = manual.commands
    assert (call.outcome, call.has_run, call.returncode, call.error) == ("queued", False, None, None)
    manual.advance(1)
    assert (call.outcome, call.has_run) == ("running", True)
    assert isinstance(command.exception(), CommandFailed)
    assert (call.argv, call.cwd, call.input, call.name) == (("sort",), os.fspath(tmp_path), b"b\na\n", "sort")
    assert call.env["A"] == "a"
    assert "OLD" not in call.env
    assert (call.outcome, call.returncode, call.attempts, call.options.timeout) == ("failed", 2, 1, 9)
    assert (call.submitted_at, call.started_at, call.ended_at) == (0, 0, 2)
    assert isinstance(call.error, CommandFailed)
    assert manual.calls == []
    with pytest.raises(AssertionError, match=r"sort -r did not run(.|\n)*<CommandCall sort failed>(.|\n)*begins"):
        manual.assert_ran("sort", "-r")
    with pytest.raises(AssertionError, match=r"sort \.\.\. ran 1 times, not 2 times"):
        manual.assert_ran("sort", ..., times=2)
    manual.assert_ran("sort")
    manual.assert_ran(times=1)


def test_the_seed_picks_who_begins_first() -> None:
    begun = set()
    for seed in range(6):
        with FakePool("manual", max_workers=2, seed=seed) as pool:
            pool.when_command(...).takes(1)
            commands = [pool.run(["a"]), pool.run(["b"])]
            pool.run_next()
            begun.add(tuple(command.pid is not None for command in commands))
    assert begun == {(True, False), (False, True)}
