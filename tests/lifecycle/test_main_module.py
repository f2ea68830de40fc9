"""No `__main__` guard is needed: what a script or a REPL defines travels, and `__main__` is never run again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lifecycle.scripts import Script, python, text_of

SOURCE = text_of(
    """
    import poolkit

    print("main runs")

    class Point:
        def __init__(self, x):
            self.x = x

        def moved(self, by):
            return Point(self.x + by)

    class NotANumber(Exception):
        pass

    def adder(left):
        def add(right):
            return left + right
        return add

    def scaled(x):
        return x * FACTOR

    def check(x):
        raise NotANumber(x)

    FACTOR = 3
    METHOD = "forkserver"
    with poolkit.Pool(2, start_method=METHOD) as pool:
        print(pool.submit(lambda x: x * 2, 21).result())
        point = pool.submit(Point.moved, Point(1), 2).result()
        print(type(point) is Point, point.x)
        print(pool.submit(lambda point: isinstance(point, Point), Point(3)).result())
        print(pool.submit(adder(5), 6).result())
        print(list(pool.map(scaled, range(4))))
        FACTOR = 10
        print(pool.submit(scaled, 1).result())
        try:
            pool.submit(check, "x").result()
        except NotANumber as exc:
            print("caught", exc.args)
    """
)
EXPECTED = ["main runs", "42", "True 3", "True", "11", "[0, 3, 6, 9]", "10", "caught ('x',)"]

SESSION = """\
import poolkit
class Point: x = 4

pool = poolkit.Pool(2)
print("lambda", pool.submit(lambda x: x * 2, 21).result())
print("class", type(pool.submit(Point).result()) is Point)
print("instance", pool.submit(lambda point: isinstance(point, Point), Point()).result())
print("map", list(pool.map(lambda x: x + Point.x, range(3))))
pool.shutdown()
"""
SESSION_EXPECTED = ["lambda 42", "class True", "instance True", "map [4, 5, 6]"]


def finish(argv: list[str], stdin: str | None = None, env: dict[str, str] | None = None) -> list[str]:
    with Script(argv, env=env) as script:
        lines = script.finish(stdin).check()
        script.wait_until_gone()
        return lines


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_script_without_a_guard(tmp_path: Path, method: str) -> None:
    path = tmp_path / "script.py"
    path.write_text(SOURCE.replace('"forkserver"', repr(method)), encoding="utf-8")
    assert finish(python(str(path))) == EXPECTED


@pytest.mark.slow
def test_code_on_standard_input() -> None:
    assert finish(python("-"), SOURCE) == EXPECTED


@pytest.mark.slow
def test_code_on_the_command_line() -> None:
    assert finish(python("-c", SOURCE)) == EXPECTED


@pytest.mark.slow
def test_an_interactive_session() -> None:
    with Script(python("-i", "-q")) as script:
        ended = script.finish(SESSION)
        assert ended.code == 0
        assert ended.out.splitlines() == SESSION_EXPECTED
        assert "Traceback" not in ended.err  # the prompts are there
        script.wait_until_gone()


ipython = pytest.mark.skipif(importlib.util.find_spec("IPython") is None, reason="IPython is not installed")


@pytest.mark.slow
@ipython
def test_an_ipython_script(tmp_path: Path) -> None:
    with Script(python("-m", "IPython", "--colors=NoColor", "-c", SOURCE), env={"IPYTHONDIR": str(tmp_path)}) as script:
        ended = script.finish()
        assert (ended.code, ended.out.splitlines()) == (0, EXPECTED), ended.err
        script.wait_until_gone()


@pytest.mark.slow
@ipython
def test_an_ipython_session(tmp_path: Path) -> None:
    argv = python("-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor", "--no-confirm-exit")
    with Script(argv, env={"IPYTHONDIR": str(tmp_path)}) as script:
        ended = script.finish(SESSION + "exit\n")
        assert ended.code == 0, ended.err
        for expected in SESSION_EXPECTED:
            assert expected in ended.out
        script.wait_until_gone()


@pytest.mark.slow
def test_scripts_keep_their_arguments_and_are_not_run_again(tmp_path: Path) -> None:
    """A worker sees the owner's `sys.argv`, and nothing at the top of the script happens twice."""
    path = tmp_path / "script.py"
    path.write_text(
        text_of(
            """
            import sys
            import poolkit
            with open(sys.argv[1], "a") as file:
                file.write("ran\\n")
            with poolkit.Pool(2) as pool:
                print(pool.submit(lambda: __import__("sys").argv[1:]).result() == sys.argv[1:])
            """
        ),
        encoding="utf-8",
    )
    assert finish(python(str(path), str(tmp_path / "runs"))) == ["True"]
    assert (tmp_path / "runs").read_text(encoding="utf-8") == "ran\n"
