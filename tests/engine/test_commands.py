"""Programs that a pool on nodes runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool
from support import WATCHDOG, is_alive, wait_until
from support_scripts import run_script

pytestmark = pytest.mark.slow

FORK = """
import os
from poolkit._nodes.provider_local import LocalProvider
from poolkit.nodes import NodePool

with NodePool(LocalProvider(1, 1)) as pool:
    command = pool.run(["sleep", "60"])
    task = pool.submit(abs, -1)
    if not os.fork():
        try:
            for each in command, task:
                print(each.done() and type(each.exception()).__name__, flush=True)
        finally:
            os._exit(0)
    os.wait()
    command.cancel()
    print(task.result())
"""


@pytest.fixture
def pool() -> Iterator[NodePool]:
    """A pool on one node with one worker, whose environment says so."""
    with NodePool(LocalProvider(1, 1), env={"ON_NODE": "yes"}) as made:
        yield made


def test_a_program_runs_on_a_node(pool: NodePool, tmp_path: Path) -> None:
    command = pool.run(["/bin/sh", "-c", "cat; echo $ON_NODE $MORE; pwd; echo err >&2"], input="in\n", text=True,
                       cwd=tmp_path, env={"MORE": "too"})  # fmt: skip
    done = command.result(WATCHDOG)
    assert (done.stdout, done.stderr, done.returncode) == (f"in\nyes too\n{tmp_path}\n", "err\n", 0)
    assert command.argv[0] == done.argv[0] == "/bin/sh"
    assert command.node == pool.nodes()[0].address
    assert command.name == "sh"
    data = os.urandom(1 << 20)
    assert pool.run(["cat"], input=data, stderr="null").result(WATCHDOG).stdout == data
    pool.run(["echo", "there"], stdout=tmp_path / "file").result(WATCHDOG)
    assert (tmp_path / "file").read_text() == "there\n"
    with poolkit.use_pool(pool):
        assert poolkit.run("echo $ON_NODE", shell=True).result(WATCHDOG).stdout == b"yes\n"  # noqa: S604 -- to be tested

    async def main() -> bytes:
        return (await (await pool.run_async(["echo", "awaited"]))).stdout

    assert asyncio.run(main()) == b"awaited\n"


def test_how_a_program_fails_is_told(pool: NodePool) -> None:
    error: Any = pool.run(["/bin/sh", "-c", "echo why >&2; exit 3"]).exception(WATCHDOG)
    assert isinstance(error, poolkit.CommandFailed)
    assert (error.exitcode, error.stderr) == (3, b"why\n")
    assert pool.run(["/bin/sh", "-c", "exit 3"], check={3}).result(WATCHDOG).exitcode == 3
    assert isinstance(pool.run(["no-such-program"]).exception(WATCHDOG), FileNotFoundError)
    error = pool.run(["/bin/sh", "-c", "echo begun; exec sleep 60"], timeout=0.5).exception(WATCHDOG)
    assert isinstance(error, poolkit.TaskTimeout)
    assert error.timeout == 0.5
    assert error.completed.stdout == b"begun\n"
    error = pool.options(timeout=0.2).run(["sleep", "60"], text=True).exception(WATCHDOG)
    assert isinstance(error, poolkit.TaskTimeout)
    error = pool.run(["yes"], max_output=1000).exception(WATCHDOG)
    assert isinstance(error, poolkit.OutputLimitExceeded)
    hungry = "x = bytearray(1 << 30); x[::4096] = b'x' * (1 << 18); import time; time.sleep(60)"
    error = pool.options(memory_limit=200 << 20).run([sys.executable, "-c", hungry]).exception(WATCHDOG)
    assert isinstance(error, poolkit.MemoryLimitExceeded)


@pytest.mark.parametrize("how", ["cancel", "with", "shutdown"])
def test_a_program_ends_with_its_task(pool: NodePool, tmp_path: Path, how: str) -> None:
    noted = tmp_path / "pid"
    command = pool.run(["/bin/sh", "-c", f"echo $$ > {noted}; exec sleep 60"])
    wait_until(lambda: noted.exists() and noted.read_text(), "the program to run")
    program = int(noted.read_text())
    if how == "cancel":
        assert command.cancel()
    elif how == "with":
        with command:
            pass
    else:
        pool.shutdown(kill=True)
    assert command.cancelled()
    wait_until(lambda: not is_alive(program), "the program to end")


def test_in_a_forked_child_a_program_and_what_was_submitted_after_it_are_closed() -> None:
    assert run_script(FORK, options=("-W", "ignore")).split() == ["PoolClosed", "PoolClosed", "1"]


def test_what_a_program_prints_may_go_where_prints_go(pool: NodePool, capfd: pytest.CaptureFixture[str]) -> None:
    pool.run(["echo", "hello"], stdout="inherit").result(WATCHDOG)
    assert capfd.readouterr().out == "hello\n"


@pytest.mark.parametrize(
    "options",
    [{"stdin": "pipe"}, {"stdin": "inherit"}, {"stdout": "lines"}, {"stderr": "lines"}, {"on_stdout": print},
     {"stdout": sys.__stdout__}],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_what_takes_a_way_to_the_program_is_refused(pool: NodePool, options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="input from the beginning"):
        pool.run(["true"], **options)
    with pytest.raises(ValueError, match="cwd must not be empty"):
        pool.run(["true"], cwd="")
    command = pool.run(["true"])
    with pytest.raises(RuntimeError, match="is for a node to run"):
        command.send_signal("SIGHUP")
    with pytest.raises(RuntimeError, match="is for a node to run"):
        iter(command)
    command.result(WATCHDOG)
