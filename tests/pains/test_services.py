"""Commands and dedicated workers: the pains that users of child programs and worker threads complain of most.

One test a row, named after what holds here. No test asserts a time that matters on a slow machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
from lifecycle.scripts import running
from poolkit import CommandFailed, TaskTimeout
from support import WATCHDOG, is_alive, wait_for_exit, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def pool() -> Iterator[poolkit.Pool]:
    with poolkit.Pool(2, kind="thread") as pool:
        yield pool
        pool.shutdown(kill=True)


def pids_in(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()]


def test_row_02_a_limit_is_told_though_a_grandchild_holds_the_pipe(pool: poolkit.Pool) -> None:
    began = time.monotonic()
    with pytest.raises(TaskTimeout) as failed:
        pool.run(["sh", "-c", "sleep 99 & echo $!; wait"], timeout=0.5, text=True).result(WATCHDOG)
    assert time.monotonic() - began < 20
    assert failed.value.completed is not None
    assert not is_alive(int(failed.value.completed.stdout))


def test_row_03_a_cancel_reaches_the_children_of_the_children(pool: poolkit.Pool, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    script = f"echo $$ >> {note}; sh -c 'echo $$ >> {note}; sh -c \"echo \\$\\$ >> {note}; sleep 99\"; true'; true"
    command = pool.run(["sh", "-c", script])
    wait_until(lambda: note.exists() and len(pids_in(note)) == 3, "three shells")
    command.cancel()
    for pid in pids_in(note):
        wait_for_exit(pid)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.long)])
def test_row_04_a_wait_that_is_cancelled_at_any_moment_ends_the_program(pool: poolkit.Pool, count: int) -> None:
    rng = random.Random(4)
    commands: list[poolkit.Command[bytes]] = []

    async def main() -> None:
        for _ in range(count):
            commands.append(pool.run(["sleep", "60"]))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(commands[-1], rng.random() * 0.01)

    asyncio.run(main())
    pool.shutdown()
    assert all(command.cancelled() for command in commands)
    assert not any(command.pid is not None and is_alive(command.pid) for command in commands)


def test_row_06_a_flood_of_errors_stops_no_program(pool: poolkit.Pool) -> None:
    script = "head -c 10000000 /dev/zero >&2; echo done"
    done = pool.run(["sh", "-c", script], max_output=100_000).result(WATCHDOG)
    assert done.stdout == b"done\n"
    assert done.dropped == 9_900_000
    command = pool.run(["sh", "-c", script], stdout="lines", max_output=100_000)
    assert list(command) == [b"done"]


def test_row_11_a_line_of_any_length_arrives(pool: poolkit.Pool) -> None:
    code = "import sys; sys.stdout.write('[' + '1,' * 10_000_000 + '1]\\n')"
    pieces = list(pool.run([sys.executable, "-c", code], stdout="lines", text=True))
    assert len(pieces) > 1
    assert "".join(pieces) == "[" + "1," * 10_000_000 + "1]"


def test_row_14_a_program_does_not_read_the_terminal_of_its_owner() -> None:
    source = """
import poolkit
with poolkit.Pool(1, kind="thread") as pool:
    print("read", pool.run(["cat"]).result(20).stdout, flush=True)
    print("kept" if pool.run(["sh", "-c", "stty -a < /dev/tty"], check=False).result(20).exitcode else "took")
"""
    with running(source, terminal=True) as script:
        ended = script.finish()
        assert "read b''" in ended.out
        assert "kept" in ended.out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_row_15_programs_and_workers_do_not_outlive_their_owner(number: int) -> None:
    source = """
import signal
import poolkit

def sleep(port):
    port.send(None)
    signal.pause()

pool = poolkit.Pool(20)
commands = [pool.run(["sh", "-c", "echo; sleep 99 & wait"], stdout="lines") for _ in range(20)]
for command in commands:
    next(command.lines())
workers = [poolkit.Worker(sleep) for _ in range(5)]
for worker in workers:
    worker.recv()
print("up", flush=True)
signal.pause()
"""
    with running(source) as script:
        assert script.read_lines(1) == ["up"]
        assert len(script.family()) > 40
        script.kill(number)
        script.wait_until_gone()


def test_row_24_output_that_is_no_text_hides_no_failure(pool: poolkit.Pool) -> None:
    with pytest.raises(CommandFailed) as failed:
        pool.run(["sh", "-c", r"printf '\377'; printf '\377' >&2; exit 3"], text=True).result(WATCHDOG)
    assert (failed.value.exitcode, failed.value.stdout, failed.value.stderr) == (3, "\\xff", "\\xff")


def test_row_25_the_error_names_what_is_missing(pool: poolkit.Pool) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        pool.run(["true"], cwd="/no").result(WATCHDOG)
    assert failed.value.filename == "/no"
    with pytest.raises(FileNotFoundError) as failed:
        pool.run(["no-such-program"], cwd="/", env={"PATH": "/bin:/opt/no"}).result(WATCHDOG)
    assert failed.value.filename == "no-such-program"
    assert "PATH=/bin:/opt/no" in str(failed.value)


def test_row_12_a_mailbox_that_nobody_reads_does_not_grow() -> None:
    with poolkit.Worker(_sleep) as worker:
        sent = 0
        with pytest.raises(TimeoutError):
            for sent in range(1_000_000):  # noqa: B007 -- how far it came
                worker.send(b"x" * 1000, timeout=0.2)
        assert 0 < sent < 10_000
        worker.terminate()


def _sleep(port: poolkit.Port) -> None:
    signal.pause()


def _die(port: poolkit.Port) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _send_and_leave(port: poolkit.Port, count: int) -> None:
    for number in range(count):
        port.send(number)
    os._exit(0)


def test_row_13_a_dead_worker_ends_the_wait_for_its_message() -> None:
    with poolkit.Worker(_die) as worker, pytest.raises(poolkit.WorkerCrashed, match="SIGKILL"):
        worker.recv(WATCHDOG)


def test_row_23_what_was_sent_before_the_end_is_received() -> None:
    with poolkit.Worker(_send_and_leave, 1000) as worker:
        found: list[Any] = []
        with pytest.raises(poolkit.WorkerCrashed):
            found.extend(worker)
        assert found == list(range(1000))


def test_row_27_a_program_that_does_not_die_is_told_in_time_and_keeps_its_place() -> None:
    """A zombie's leader is not what it is: a starter that is stopped reaps nobody, as if it sat in the kernel."""
    from poolkit._spawn.programs import programs

    with poolkit.Pool(1, kind="thread") as pool:
        command = pool.run(["sleep", "99"], timeout=0.2, grace=0.2)
        wait_until(lambda: command.pid is not None, "its start")
        for pid in programs().lasting()[0]:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TaskTimeout) as failed:
                command.result(WATCHDOG)
            assert failed.value.hint
            assert failed.value.completed is None
            behind = pool.run(["true"])
            assert not behind.done()
        finally:
            for pid in programs().lasting()[0]:
                os.kill(pid, signal.SIGCONT)
        assert behind.result(WATCHDOG).exitcode == 0


async def _flood(port: poolkit.Port) -> int:
    async def read() -> int:
        count = 0
        async for _ in port:
            count += 1
        return count

    reading = asyncio.ensure_future(read())
    for _ in range(300):
        await port.send_async(b"x" * 10_000)
    return await reading


def test_row_28_two_floods_that_are_read_meanwhile_do_not_stall() -> None:
    async def main() -> tuple[int, int]:
        async with poolkit.Worker(_flood) as worker:

            async def send() -> None:
                for _ in range(300):
                    await worker.send_async(b"x" * 10_000)
                worker.close()

            sending = asyncio.ensure_future(send())
            count = 0
            async for _ in worker:
                count += 1
            await sending
            return count, await worker.task

    assert asyncio.run(asyncio.wait_for(main(), WATCHDOG)) == (300, 300)


def test_an_interpreter_that_ends_waits_for_what_was_run_and_stops_what_was_spawned() -> None:
    source = """
import poolkit
pool = poolkit.Pool(1, kind="thread")
for number in range(3):
    pool.run(["sh", "-c", f"sleep 0.1; echo {number}"], stdout="inherit")
poolkit.spawn(["sleep", "99"])
"""
    with running(source) as script:
        ended = script.finish()
        assert ended.out.split() == ["0", "1", "2"]
        script.wait_until_gone()


def test_a_forked_child_of_the_owner_has_no_program() -> None:
    source = """
import os
import poolkit
pool = poolkit.Pool(1, kind="thread")
command = pool.run(["cat"], stdin="pipe", stdout="lines", text=True)
command.write("one\\n")
print(next(command.lines()), flush=True)
pid = os.fork()
if not pid:
    for call in (command.result, lambda: list(command), lambda: pool.run(["true"])):
        try:
            print("wrong", call(), flush=True)
        except poolkit.PoolClosed:
            print("closed", flush=True)
    command.cancel()
    with poolkit.Pool(1, kind="thread") as own:
        print(own.run(["echo", "own"], text=True).result(20).stdout, end="", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
command.write("two\\n")
print(next(command.lines()), flush=True)
command.close_stdin()
print(command.result(20).exitcode)
"""
    with running(source) as script:
        assert script.finish().out.split() == ["one", "closed", "closed", "closed", "own", "two", "0"]


def test_a_worker_runs_programs_of_its_own_and_they_end_with_it() -> None:
    source = """
import os, signal
import poolkit

def work(number):
    with poolkit.Pool(1, kind="thread") as pool:
        return pool.run(["echo", str(number)], text=True).result(20).stdout

def begin():
    poolkit.spawn(["sleep", "99"], stdout="null")
    return os.getpid()

with poolkit.Pool(2) as pool:
    print("".join(pool.map(work, range(3))), end="")
    pid = pool.submit(begin).result()
"""
    with running(source) as script:
        assert script.finish().out.split() == ["0", "1", "2"]
        script.wait_until_gone()


def test_a_fork_in_the_midst_of_a_spawn_leaves_its_child_one_of_its_own() -> None:
    source = """
import os, signal, threading
import poolkit
from poolkit._engine import spawned
held, over = threading.Event(), threading.Event()

def hold():
    with spawned._lock:
        held.set()
        over.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
pid = os.fork()
if not pid:
    signal.alarm(20)
    print(poolkit.spawn(["echo", "own"], stdout="capture", text=True).result(15).stdout, end="", flush=True)
    os._exit(0)
over.set()
thread.join()
print(os.waitpid(pid, 0)[1])
"""
    with running(source) as script:
        assert script.finish().out.split() == ["own", "0"]
