"""Programs that tasks start end with their worker, in whatever session they hide; those of others live on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import poolkit
import support
from lifecycle.scripts import Script, python, run, running, text_of

pytestmark = pytest.mark.slow

METHODS = ["forkserver", "spawn", "fork"]

# Programs in a session of their own, in a group of their own, and one whose parent is gone: daemons.
TASKS = """
import os, signal, subprocess, sys, time
import poolkit

SLEEP = ["sleep", "3600"]

def start_programs():
    subprocess.Popen(SLEEP)
    subprocess.Popen(SLEEP, start_new_session=True)
    subprocess.Popen(SLEEP, preexec_fn=os.setpgrp)
    subprocess.run(["sh", "-c", "setsid sleep 3600 & setsid sh -c 'sleep 3600 & sleep 3600' &"], close_fds=True)

def start_and_sleep():
    start_programs()
    os.write(1, b"up\\n")
    time.sleep(3600)

def start_and_crash():
    start_programs()
    os.kill(os.getpid(), signal.SIGSEGV)

def programs():
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and mine(pid)]

def mine(pid):
    try:
        with open(f"/proc/{pid}/environ") as environ, open(f"/proc/{pid}/cmdline") as command:
            return os.environ["POOLKIT_TEST_FAMILY"] in environ.read() and command.read().startswith("sleep")
    except OSError:
        return False

def ended():
    give_up = time.monotonic() + 30
    while programs() and time.monotonic() < give_up:
        time.sleep(0.01)
    return not programs()
"""
ENDS = {
    "cancel": "task = pool.submit(start_and_sleep); input(); task.cancel()",
    "timeout": "task = pool.options(timeout=1).submit(start_and_sleep); task.exception()",
    "crash": "pool.submit(start_and_crash).exception()",
    "recycled": "pool.submit(start_programs).result(); pool.submit(abs, 1).result()",
    "kill": "pool.submit(start_and_sleep); input(); pool.shutdown(kill=True)",
    "graceful": "pool.submit(start_programs).result(); pool.shutdown()",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.every_nth(5)
def test_they_end_with_their_worker(method: str, end: str) -> None:
    tasks = 1 if end == "recycled" else None
    source = f"pool = poolkit.Pool(1, start_method={method!r}, max_tasks_per_child={tasks})\n"
    source += f"{ENDS[end]}\nprint(ended())\npool.shutdown()\n"
    with running(TASKS + source) as script:
        if "sleep" in ENDS[end]:
            script.read_lines(1)
        ended = script.finish("\n")
        assert ended.out.splitlines()[-1] == "True", ended.err
        script.wait_until_gone()


@pytest.mark.parametrize("method", METHODS)
def test_they_end_with_an_owner_that_is_killed(method: str) -> None:
    source = f"pool = poolkit.Pool(2, start_method={method!r})\ntask = pool.submit(start_and_sleep)\nsignal.pause()\n"
    with running(TASKS + source) as script:
        script.read_lines(1)
        support.wait_until(lambda: len(script.family()) >= 9, "all programs to be there")
        script.kill()
        script.wait_until_gone()


def test_a_program_that_starts_others_without_end_ends() -> None:
    """Each of them in a session of its own, whose parent is gone. The 3,000th starts no other, and does not end."""
    source = """
        program = "import os, signal\\nfor _ in range(3000):\\n  if os.fork(): os._exit(0)\\n  os.setsid()\\n"
        program += "signal.pause()"
        pool = poolkit.Pool(1)

        def start():
            subprocess.Popen([sys.executable, "-S", "-c", program])
            os.write(1, b"up\\n")
            time.sleep(3600)

        task = pool.submit(start)
        input()
        print(task.cancel())
        pool.shutdown()
        """
    with running(TASKS + text_of(source)) as script:
        script.read_lines(1)
        assert script.finish("\n").out == "True\n"
        script.wait_until_gone()


def test_those_of_another_worker_and_of_the_template_live_on(tmp_path: Path) -> None:
    (tmp_path / "helped.py").write_text(
        "import subprocess\nhelper = subprocess.Popen(['sleep', '3600'], start_new_session=True).pid\n",
        encoding="utf-8",
    )
    source = f"""
        sys.path.insert(0, {str(tmp_path)!r})

        def start(gate):
            pid = subprocess.Popen(SLEEP, start_new_session=True).pid
            with open(gate, "w") as file:
                file.write(str(pid))
            time.sleep(3600)

        with poolkit.Pool(2, preload=["helped"]) as pool:
            tasks = [pool.submit(start, {str(tmp_path)!r} + f"/{{number}}") for number in range(2)]
            input()
            tasks[0].cancel()
            pool.submit(abs, 1).result()
            pids = [open({str(tmp_path)!r} + f"/{{number}}").read() for number in range(2)]
            helper = pool.submit(eval, "__import__('helped').helper").result()
            while pids[0] in programs():  # it was killed, and may need a moment to be gone
                pass
            print(pids[1] in programs(), str(helper) in programs())
            tasks[1].cancel()
            os.kill(helper, signal.SIGKILL)
        """
    with running(TASKS + text_of(source)) as script:
        support.wait_until(
            lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("0", "1")), "programs"
        )
        assert script.finish("\n").out == "True True\n"


def test_without_proc_the_group_of_the_worker_ends() -> None:
    source = """
        with poolkit.Pool(1) as pool:
            pid = pool.submit(lambda: subprocess.Popen(SLEEP).pid).result()
        print(ended())
        """
    with running(TASKS + text_of(source), env={"POOLKIT_PORTABLE": "1"}) as script:
        assert script.finish().check() == ["True"]
        script.wait_until_gone()


def test_a_long_lived_worker_does_not_collect_what_its_tasks_left_behind() -> None:
    """What ended and was adopted is reaped; what the task itself started may still be waited for."""
    lines = run(
        """
        import builtins, os, subprocess
        import poolkit

        def leave_some_behind():
            for _ in range(5):
                if not (child := os.fork()):
                    os.fork()
                    os._exit(0)
                os.waitpid(child, 0)

        def start():
            builtins.program = subprocess.Popen(["sh", "-c", "exit 7"])

        def wait():
            return builtins.program.wait()

        def count():
            me, found = os.getpid(), 0
            for pid in os.listdir("/proc"):
                try:
                    with open(f"/proc/{pid}/stat") as file:
                        words = file.read().rpartition(")")[2].split()
                except OSError:
                    continue
                found += words[0] == "Z" and int(words[1]) == me
            return found

        with poolkit.Pool(1) as pool:
            for _ in range(30):
                pool.submit(leave_some_behind).result()
            pool.submit(start).result()
            before = pool.submit(count).result()
            for _ in range(600):
                pool.submit(abs, 1).result()
            print(before > 100, pool.submit(count).result() <= 100, pool.submit(wait).result())
        """
    )
    assert lines == ["True True 7"]


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_a_foreign_proc_is_not_believed() -> None:
    """In a pid namespace whose /proc is the outer one, a number there is somebody else's."""
    source = """
        import poolkit
        with poolkit.Pool(1) as pool:
            print(pool.submit(abs, -1).result(), {worker.rss for worker in pool.workers()})
            try:
                pool.options(memory_limit=10**9).submit(abs, -1).result()
            except ValueError:
                print("refused")
            task = pool.submit(__import__("time").sleep, 3600)
            while task.state != "running":
                pass
            print(task.cancel())
        """
    argv = ["unshare", "-pf", *python("-c", text_of(source))]
    root = Path(poolkit.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=support.WATCHDOG, check=False, env=env)
    assert done.stdout.splitlines() == ["1 {None}", "refused", "True"], done.stderr


TERMINAL = """
import errno, os, signal, subprocess, sys
import poolkit

def use_terminal():
    with open("/dev/tty", "w") as terminal:
        terminal.write("written\\n")
    fd = os.open("/dev/tty", os.O_RDWR)
    try:
        os.read(fd, 1)
    except OSError as exc:
        return os.getsid(0), os.getpgrp() == os.getpid(), errno.errorcode[exc.errno]
    finally:
        os.close(fd)
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_has_the_owners_terminal_and_may_not_read_it(method: str) -> None:
    """As a process in the background; one that reads is told so, and not stopped. Also where it must not write."""
    source = f"""
        os.system("stty tostop")
        with poolkit.Pool(1, start_method={method!r}) as pool:
            session, leads, error = pool.submit(use_terminal).result(30)
            print(session == os.getsid(0), leads, error)
        """
    with Script(python("-c", TERMINAL + text_of(source)), terminal=True) as script:
        ended = script.finish()
        assert ended.out.splitlines() == ["written", "True True EIO"]
        script.wait_until_gone()
