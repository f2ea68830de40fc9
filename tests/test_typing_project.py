"""A program of a user's: what type checkers, and so editors, know of it, and that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import poolkit
from support import WATCHDOG

PROJECT = Path(__file__).parent / "typing/project"
LIBRARY = Path(poolkit.__file__).parents[1]
IS_INSTALLED = LIBRARY.name == "site-packages"


def ran(*argv: str, **env: str) -> str:
    """What a command printed that ended well."""
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=10 * WATCHDOG,
        check=False,
        env={**os.environ, "PYTHONPATH": "" if IS_INSTALLED else os.fspath(LIBRARY), **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_runs() -> None:
    assert ran("orders").splitlines() == [
        "1.5 1.0 [0.0, 1.0, 2.0] 2.0 1.0",
        "3.0 [0.0, 2.0, 4.0] line 0",
        "3 3 ready b'raw\\n'",
        "101 closed",
        "as itself",
        "Order(number=4, items=8) [1.0, 2.0] 8 ['line']",
        "True",
    ]


@pytest.fixture(scope="module")
def of_mypy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it says; a fixture of the module's has no watchdog, as the first run takes a minute."""
    pytest.importorskip("mypy")
    cache = os.fspath(tmp_path_factory.mktemp("mypy"))
    options = "mypy", "--cache-dir", cache, "--follow-imports", "silent"  # as of what is installed
    return ran(*options, **({} if IS_INSTALLED else {"MYPYPATH": os.fspath(LIBRARY)}))


@pytest.fixture(scope="module")
def of_pyright() -> Any:
    """The same of the other."""
    pytest.importorskip("pyright")
    return json.loads(ran("pyright", "--outputjson", "--pythonpath", sys.executable))


@pytest.mark.long
def test_mypy_knows_the_types_of_all_of_it(of_mypy: str) -> None:
    assert "no issues found in 3 source files" in of_mypy


@pytest.mark.long
def test_pyright_knows_the_types_of_all_of_it(of_pyright: Any) -> None:
    """In its strict mode, in which nothing may be partly unknown."""
    summary = of_pyright["summary"]
    assert (summary["errorCount"], summary["warningCount"]) == (0, 0), of_pyright["generalDiagnostics"]
    assert summary["filesAnalyzed"] == 3
