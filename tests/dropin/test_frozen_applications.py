"""Applications whose interpreter is not an interpreter: none is started in a chain, and the error says what was."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

import poolkit
from lifecycle.scripts import run, running, text_of

pytestmark = pytest.mark.slow

APPLICATION = """\
#!{python}
import os, sys
with open({starts!r}, "a") as file:
    file.write("started\\n")
sys.executable = {path!r}
{before}
import poolkit
with poolkit.Pool(1{options}) as pool:
    task = pool.submit(abs, -1)
    print(task.exception(30) or task.result())
"""


def application(folder: Path, before: str = "", options: str = "") -> tuple[str, int]:
    """What an application prints that says that it is its own interpreter, and how often it was started."""
    path, starts = folder / "application", folder / "starts"
    text = APPLICATION.format(python=sys.executable, starts=str(starts), path=str(path), before=before, options=options)
    path.write_text(text, encoding="utf-8")
    path.chmod(stat.S_IRWXU)
    with running("import os, sys; os.execv(sys.argv[1], sys.argv[1:])", str(path)) as script:
        ended = script.finish()
        assert (ended.code, ended.err) == (0, ""), ended.err
        script.wait_until_gone()
    return ended.out, len(starts.read_text(encoding="utf-8").splitlines())


def test_a_frozen_application_is_not_started_again(tmp_path: Path) -> None:
    out, starts = application(tmp_path, "sys.frozen = True")
    assert starts == 1
    assert f"frozen application: '{tmp_path / 'application'}' would start all of it once more" in out
    assert "multiprocessing.set_executable()" in out
    assert "start_method='fork'" in out


def test_a_frozen_application_may_name_an_interpreter(tmp_path: Path) -> None:
    before = f"sys.frozen = True; import multiprocessing; multiprocessing.set_executable({sys.executable!r})"
    assert application(tmp_path, before) == ("1\n", 1)


def test_a_frozen_application_may_fork(tmp_path: Path) -> None:
    assert application(tmp_path, "sys.frozen = True", ", start_method='fork'") == ("1\n", 1)


def test_an_application_that_embeds_python_is_not_started_again(tmp_path: Path) -> None:
    out, starts = application(tmp_path, "sys.orig_argv = []")
    assert starts == 1
    assert f"embedded in another program, and '{tmp_path / 'application'}' is no Python" in out


def test_an_application_that_says_nothing_is_not_started_in_a_chain(tmp_path: Path) -> None:
    """Those that were started as templates refuse to start others, and what they print is told."""
    out, starts = application(tmp_path)
    assert 1 < starts < 9
    assert f"'{tmp_path / 'application'}' was started for it, and the last that it printed" in out
    assert "this process is itself what was started as a template process" in out


@pytest.mark.parametrize("stream", [1, 2])
def test_the_error_has_the_program_and_what_it_printed(tmp_path: Path, stream: int) -> None:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\necho 'unrecognized argument' >&{stream}\nexit 3\n", encoding="utf-8")
    path.chmod(stat.S_IRWXU)
    lines = run(
        f"""
        import sys
        import poolkit

        sys.executable = {str(path)!r}
        with poolkit.Pool(1) as pool:
            print(pool.submit(abs, -1).exception(30))
        """
    )
    text = "\n".join(lines)
    assert "exited with code 3" in text
    assert f"'{path}' was started for it, and the last that it printed: 'unrecognized argument'" in text
    assert "multiprocessing.set_executable()" in text


@pytest.mark.parametrize("exists", [False, True])
def test_the_error_has_the_program_that_cannot_be_started(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "program"
    if exists:
        path.write_bytes(b"\0")
    lines = run(
        f"""
        import sys
        import poolkit

        sys.executable = {str(path)!r}
        with poolkit.Pool(1) as pool:
            print(pool.submit(abs, -1).exception(30))
        """
    )
    assert f"'{path}' cannot be started ({'Permission denied' if exists else 'No such file or directory'})" in lines[0]
    assert "multiprocessing.set_executable()" in lines[0]


def test_what_an_interpreter_prints_as_it_starts_is_printed_by_the_owner(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        text_of(
            """
            import os, sys
            if "POOLKIT_TEMPLATE" in os.environ:
                print("to stdout")
                print("to stderr", file=sys.stderr)
            """
        ),
        encoding="utf-8",
    )
    source = """
        import os
        import poolkit
        with poolkit.Pool(1) as pool:
            print(pool.submit(eval, "'POOLKIT_TEMPLATE' in __import__('os').environ").result())
        """
    root = Path(poolkit.__file__).parents[1]
    with running(source, env={"PYTHONPATH": f"{tmp_path}:{root}"}) as script:
        ended = script.finish()
        assert ended.code == 0
        assert "to stdout" in ended.out + ended.err
        assert "to stderr" in ended.err
        assert "False" in ended.out
