"""Small programs print the same under `ProcessPoolExecutor` and under `Pool`, however they are run.

What differs stands in `DIFFERENCES`, with its reason.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from dropin.agreement import PROGRAMS

import support

ROOT = Path(__file__).parents[2]

_STANDARD = """\
import concurrent.futures as _futures, multiprocessing as _multiprocessing
def make(n, **options):
    return _futures.ProcessPoolExecutor(n, mp_context=_multiprocessing.get_context({method!r}), **options)
"""
_OURS = """\
import poolkit as _poolkit
def make(n, **options):
    return _poolkit.Pool(n, start_method={method!r}, **options)
"""

# form -> what makes the pool, the start method, how the program is given to Python
FORMS = {
    "standard-fork": (_STANDARD, "fork", "file"),
    "standard-spawn": (_STANDARD, "spawn", "file"),
    "forkserver": (_OURS, "forkserver", "file"),
    "spawn": (_OURS, "spawn", "file"),
    "fork": (_OURS, "fork", "file"),
    "command-line": (_OURS, "forkserver", "-c"),
    "standard-input": (_OURS, "forkserver", "-"),
    "module": (_OURS, "forkserver", "-m"),
    "runpy": (_OURS, "forkserver", "runpy"),
    "ipython": (_OURS, "forkserver", "ipython"),
}

_NO_FILE = "`__file__` is not set, or names no file"
_NO_SOURCE = "a program on a pipe has no source: what only its statement could make is not there, and the error says so"

DIFFERENCES = {
    ("command-line", "names_looked_up"): _NO_FILE,
    ("command-line", "open_files"): _NO_FILE,
    ("ipython", "names_looked_up"): _NO_FILE,
    ("ipython", "open_files"): _NO_FILE,
    ("standard-input", "open_files"): _NO_FILE,
    ("standard-input", "ctypes_and_properties"): _NO_SOURCE,
    ("standard-input", "sentinels_and_module_getattr"): _NO_SOURCE,
    ("standard-input", "weak_dictionaries_and_iterators"): _NO_SOURCE,
    ("standard-input", "metaclasses_and_registries"): _NO_SOURCE,
}


def run(name: str, form: str) -> str:
    """What a program prints; with the end of its complaint, if it fails."""
    head, method, how = FORMS[form]
    definitions, main = PROGRAMS[name]
    source = head.format(method=method) + definitions + '\nif __name__ == "__main__":\n' + textwrap.indent(main, "    ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prog.py")
        path.write_text(source, encoding="utf-8")
        argv = {
            "file": [str(path)],
            "-c": ["-c", source],
            "-": ["-"],
            "-m": ["-m", "prog"],
            "runpy": ["-c", f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"],
            "ipython": ["-m", "IPython", "--colors=NoColor", "--quick", "-c", source],
        }[how]
        environment = {
            **{key: value for key, value in os.environ.items() if key != "LOG_OF_TEST"},
            "PYTHONPATH": str(ROOT),
            "IPYTHONDIR": folder,
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *argv],
            input=source if how == "-" else "",
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=environment,
            timeout=support.WATCHDOG,
        )
    return done.stdout if not done.returncode else f"{done.stdout}\n{done.stderr[-2000:]}"


@functools.cache
def expected(name: str) -> str:
    return run(name, "standard-fork")


def _cases() -> list[object]:
    """Each program as a file by the usual start method; the other forms by turns, all where everything is run."""
    everything = int(os.environ.get("POOLKIT_CHAOS_SCALE", "1")) > 1
    cases = []
    for index, name in enumerate(PROGRAMS):
        for place, form in enumerate(list(FORMS)[1:]):
            if everything or form == "forkserver" or (index + place) % 8 == 0:
                cases.append(pytest.param(name, form, id=f"{form}-{name}"))
    return cases


@pytest.mark.every_nth(18)
@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), _cases())
def test_a_program_prints_the_same_under_every_pool(name: str, form: str) -> None:
    if form == "ipython" and importlib.util.find_spec("IPython") is None:
        pytest.skip("IPython is not installed")
    found = run(name, form)
    if (form, name) in DIFFERENCES:
        assert found != expected(name), f"this difference is none any more: {DIFFERENCES[form, name]}"
    else:
        assert found == expected(name)
