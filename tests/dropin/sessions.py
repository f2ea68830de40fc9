"""Many of the programs in one process: a notebook, an interactive session, a run of pytest, a plain script.

Each session starts one interpreter and gives back what each program printed there.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from dropin.agreement import PROGRAMS

import support

ROOT = Path(__file__).parents[2]

_MARK = "===== begins: "

_OURS = """
import poolkit as _poolkit
def make(n, **options):
    return _poolkit.Pool(n, {how}, **options)
"""
_STANDARD = """
import concurrent.futures as _futures, multiprocessing as _multiprocessing
def make(n, **options):
    return _futures.{how}, **options)
"""
POOLS = {
    "process": _OURS.format(how="kind='process'"),
    "thread": _OURS.format(how="kind='thread'"),
    "standard-process": _STANDARD.format(how="ProcessPoolExecutor(n, mp_context=_multiprocessing.get_context('fork')"),
    "standard-thread": _STANDARD.format(how="ThreadPoolExecutor(n"),
}


def start(argv: list[str], folder: Path, text: str = "") -> str:
    """Run Python in a folder; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *argv],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={
            **{key: value for key, value in os.environ.items() if key != "LOG_OF_TEST"},
            "PYTHONPATH": str(ROOT),
            "IPYTHONDIR": str(folder),
            "JUPYTER_RUNTIME_DIR": str(folder),
            "PYTHON_BASIC_REPL": "1",
        },
        timeout=4 * support.WATCHDOG,
    )
    return done.stdout if not done.returncode else f"{done.stdout}\n{done.stderr[-2000:]}"


def _split(printed: str) -> dict[str, str]:
    parts = [part.partition("\n") for part in printed.split(_MARK)[1:]]
    return {name.strip(): text for name, _, text in parts}


# ===== a script that runs one after the other =====

_SCRIPT = """
import contextlib as _contextlib, io as _io, json as _json, sys as _sys, traceback as _traceback
_found = {}
for _name, *_parts in _json.load(open("programs.json")):
    _out = _io.StringIO()
    with _contextlib.redirect_stdout(_out):
        try:
            for _part in _parts:
                exec(compile(_part, __file__, "exec"), globals())
        except Exception:
            _traceback.print_exc(file=_out)
    _found[_name] = _out.getvalue()
print(_json.dumps(_found))
"""


def in_a_script(pool: str, names: Iterable[str], folder: Path) -> dict[str, str]:
    """Each program run by `exec` in the script's own globals."""
    Path(folder, "programs.json").write_text(json.dumps([(name, *PROGRAMS[name]) for name in names]), encoding="utf-8")
    Path(folder, "script.py").write_text(POOLS[pool] + _SCRIPT, encoding="utf-8")
    found: dict[str, str] = json.loads(start(["script.py"], folder))
    return found


# ===== interactive =====

_NOTEBOOK = """
import json, sys, nbclient, nbformat.v4 as v4
cells = [v4.new_code_cell(source) for source in json.load(open("cells.json"))]
notebook = v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=None).execute()
for cell in notebook.cells:
    for output in cell.outputs:
        if output.get("name") != "stderr":
            sys.stdout.write(output.get("text") or "\\n".join(output.get("traceback", [])))
"""


def in_a_notebook(names: Iterable[str], folder: Path) -> dict[str, str]:
    """One kernel; the definitions of a program and its main part are a cell each."""
    cells = [POOLS["process"]]
    for name in names:
        definitions, main = PROGRAMS[name]
        cells += [f"print({_MARK + name!r})\n{definitions}", main]
    Path(folder, "cells.json").write_text(json.dumps(cells), encoding="utf-8")
    Path(folder, "run.py").write_text(_NOTEBOOK, encoding="utf-8")
    return _split(start(["run.py"], folder))


def _typed(source: str) -> str:
    """A source as it is typed: a blank line behind each compound statement, none within."""
    lines, typed = source.splitlines(), []
    done = 0
    for node in ast.parse(source).body:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        if first <= done:
            continue  # behind a semicolon
        done = node.end_lineno or first
        typed += [line for line in lines[first - 1 : done] if line.strip()]
        typed.append("")
    return "\n".join(typed) + "\n"


def in_a_terminal(names: Iterable[str], folder: Path) -> dict[str, str]:
    """One interactive interpreter, which reads what is typed from a pipe."""
    text = [_typed(POOLS["process"])]
    for name in names:
        text += [f"print({_MARK + name!r})\n", *map(_typed, PROGRAMS[name])]
    return _split(
        start(["-i", "-q", "-c", "import sys; sys.displayhook = id; sys.ps1 = sys.ps2 = ''"], folder, "".join(text))
    )


# ===== pytest =====

_TEST = """
def test_it(capsys):
    try:
        exec(compile({main!r}, __file__, "exec"), globals())
    finally:
        open({file!r}, "w").write(capsys.readouterr().out)
"""


def in_pytest(mode: str, names: Iterable[str], folder: Path) -> dict[str, str]:
    """One run, with a module of tests for each program."""
    names = list(names)
    for name in names:
        definitions, main = PROGRAMS[name]
        test = _TEST.format(main=main, file=str(folder / f"{name}.txt"))
        source = f"{POOLS['process']}\n{definitions}\n{textwrap.dedent(test)}"
        Path(folder, f"test_{name}.py").write_text(source, encoding="utf-8")
    printed = start(["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}", "."], folder)
    files = {name: folder / f"{name}.txt" for name in names}
    return {name: file.read_text(encoding="utf-8") if file.exists() else printed for name, file in files.items()}
