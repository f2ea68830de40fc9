"""The owner is killed, in whatever way: no worker, template process or program of a task outlives it."""

from __future__ import annotations

import os
import signal

import pytest

import support
from lifecycle.scripts import running

pytestmark = pytest.mark.slow

# Workers that cannot hear anything: in C code that holds the interpreter's lock, asleep, stopped, and with a program.
OWNER = """
import ctypes, os, signal, subprocess, sys, time, threading
import poolkit

def hold_the_gil():
    os.write(1, b"up\\n")
    ctypes.PyDLL(None).sleep(3600)

def sleep():
    os.write(1, b"up\\n")
    time.sleep(3600)

def stop():
    os.write(1, b"stopping %d\\n" % os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)

def start_program():
    program = "import os, signal; os.write(1, b'up\\\\n'); signal.pause()"
    subprocess.run([sys.executable, "-S", "-c", program])

pool = poolkit.Pool(4, start_method=sys.argv[1])
tasks = [pool.submit(work) for work in (hold_the_gil, sleep, stop, start_program)]
"""
LIVE = "signal.pause()"


def busy(lines: list[str]) -> None:
    """Wait until the one worker that stops itself has stopped."""
    pid = next(int(line.split()[1]) for line in lines if line.startswith("stopping"))
    support.wait_until(lambda: " state=T" in support.describe_process(pid), "a worker to stop")


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_an_owner_that_is_killed(method: str, number: int) -> None:
    with running(OWNER + LIVE, method) as owner:
        busy(owner.read_lines(4))
        assert len(owner.family()) >= 7  # owner, template, four workers, a program
        assert owner.kill(number) == -number
        owner.wait_until_gone()


def test_nobody_outlives_an_owner_that_leaves_by_os_exit() -> None:
    with running(OWNER + "input(); os._exit(3)", "forkserver") as owner:
        busy(owner.read_lines(4))
        owner.write_line()
        assert owner.process.wait(support.WATCHDOG) == 3
        owner.wait_until_gone()


def test_nobody_outlives_an_owner_that_is_killed_while_its_pool_starts() -> None:
    for _ in range(5):
        with running("import os, poolkit\npool = poolkit.Pool(4)\npool.submit(int)\nos.kill(os.getpid(), 9)") as owner:
            assert owner.process.wait(support.WATCHDOG) == -signal.SIGKILL
            owner.wait_until_gone()


def test_nobody_outlives_an_owner_whose_template_process_was_killed_too() -> None:
    find_template = "template = pool._supervisor.workforce._template.pid; os.kill(template, 9); os.kill(os.getpid(), 9)"
    # What the task's program did is not reached here: nobody is left to tell it, so there is none in this test.
    source = OWNER.replace("(hold_the_gil, sleep, stop, start_program)", "(hold_the_gil, sleep, sleep, stop)")
    with running(source + "input()\n" + find_template, "forkserver") as owner:
        busy(owner.read_lines(4))
        owner.write_line()
        assert owner.process.wait(support.WATCHDOG) == -signal.SIGKILL
        owner.wait_until_gone()


FORKED = """
import os, signal, sys, time
import poolkit

def work():
    os.write(1, b"up\\n")
    time.sleep(3600)

def fork_a_child():
    if os.fork() == 0:
        os.write(1, b"child %d\\n" % os.getpid())
        while True:
            signal.pause()

"""


def kill_but_for_the_child(source: str) -> None:
    with running(FORKED + source) as owner:
        lines = owner.read_lines(2)
        child = next(int(line.split()[1]) for line in lines if line.startswith("child"))
        owner.kill()
        owner.wait_until_gone(child)
        os.kill(child, signal.SIGKILL)
        owner.wait_until_gone()


def test_a_forked_child_that_lives_on_keeps_no_worker_alive() -> None:
    kill_but_for_the_child(
        """
pool = poolkit.Pool(1)
task = pool.submit(work)
while task.state != "running":
    pass
fork_a_child()
signal.pause()
"""
    )


def test_a_child_forked_from_a_pool_that_was_not_used_yet_keeps_no_worker_alive() -> None:
    for method in ("forkserver", "fork"):
        kill_but_for_the_child(
            f"""
pool = poolkit.Pool(1, start_method={method!r})
fork_a_child()
task = pool.submit(work)
signal.pause()
"""
        )


@pytest.mark.long
def test_a_child_forked_while_the_pool_starts_keeps_no_worker_alive() -> None:
    for _ in range(4):
        kill_but_for_the_child(
            """
pool = poolkit.Pool(1)
task = pool.submit(work)
fork_a_child()
signal.pause()
"""
        )


def test_a_fork_while_the_template_is_started_keeps_nothing_of_it_alive() -> None:
    """The child would have a copy of the root socket, by whose end the template knows the owner's."""
    with running(
        """
import os, signal, sys, threading
import poolkit

starting, forked = threading.Event(), threading.Event()
spawn = os.posix_spawnp

def be_overtaken_and_spawn(*args, **kwargs):
    starting.set()
    forked.wait(0.3)  # a fork that waits for its turn comes later
    return spawn(*args, **kwargs)

def fork():
    starting.wait()
    child = os.fork()
    if child == 0:
        signal.pause()
    forked.set()
    os.write(1, b"child %d\\n" % child)

os.posix_spawnp = be_overtaken_and_spawn
threading.Thread(target=fork).start()
pool = poolkit.Pool(1)
os.write(1, b"%d\\n" % pool.submit(lambda: 7).result())
signal.pause()
"""
    ) as owner:
        lines = owner.read_lines(2)
        assert "7" in lines
        child = next(int(line.split()[1]) for line in lines if line.startswith("child"))
        owner.kill()
        owner.wait_until_gone(child)
