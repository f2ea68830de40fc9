"""Small programs print the same in a notebook, an interactive session and pytest, and on threads.

Many run in one process, as a kernel or a run of pytest takes long to start. What differs stands in `DIFFERENCES`, with
its reason.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from dropin import sessions
from dropin.agreement import PROGRAMS

pytestmark = pytest.mark.slow

# what it defines replaces builtins for all that come after it
NAMES = sorted(PROGRAMS, key=lambda name: name == "names_from_modules")

Session = Callable[[list[str], Path], dict[str, str]]

# session -> how it is run, the session that it is compared with, and one in how many programs it runs
SESSIONS: dict[str, tuple[Session, str, int]] = {
    "standard-process": (functools.partial(sessions.in_a_script, "standard-process"), "", 1),
    "standard-thread": (functools.partial(sessions.in_a_script, "standard-thread"), "", 1),
    "thread": (functools.partial(sessions.in_a_script, "thread"), "standard-thread", 1),
    "notebook": (sessions.in_a_notebook, "standard-process", 4),
    "terminal": (sessions.in_a_terminal, "standard-process", 3),
    "pytest-prepend": (functools.partial(sessions.in_pytest, "prepend"), "standard-process", 4),
    "pytest-append": (functools.partial(sessions.in_pytest, "append"), "standard-process", 4),
    "pytest-importlib": (functools.partial(sessions.in_pytest, "importlib"), "standard-process", 4),
}

SLOW_TO_START = {"pytest-prepend", "pytest-append"}  # one run of pytest inside a short run is enough

_NO_FILE = "`__file__` is not set there"
_NOT_MAIN = "a module of tests is not `__main__`"
_NO_SOURCE = "what is typed has no source before CPython 3.13: what only its statement could make is not there"

_CONTEXT = "a task on a thread has its submitter's context, and the decimal context is a part of it"

DIFFERENCES = {
    ("thread", "settings_of_the_process"): _CONTEXT,
    ("notebook", "names_looked_up"): _NO_FILE,
    ("notebook", "open_files"): _NO_FILE,
    ("terminal", "names_looked_up"): _NO_FILE,
    ("terminal", "open_files"): _NO_FILE,
    ("pytest-prepend", "names_looked_up"): _NOT_MAIN,
    ("pytest-append", "names_looked_up"): _NOT_MAIN,
    ("pytest-importlib", "names_looked_up"): _NOT_MAIN,
}
if sys.version_info < (3, 13):
    DIFFERENCES["terminal", "metaclasses_and_registries"] = _NO_SOURCE
    DIFFERENCES["terminal", "ctypes_and_properties"] = _NO_SOURCE
    DIFFERENCES["terminal", "sentinels_and_module_getattr"] = _NO_SOURCE
    DIFFERENCES["terminal", "weak_dictionaries_and_iterators"] = _NO_SOURCE


def names_of(session: str) -> list[str]:
    """The programs of a session, all where everything is run."""
    _, _, every = SESSIONS[session]
    if int(os.environ.get("POOLKIT_CHAOS_SCALE", "1")) > 1:
        every = 1
    return NAMES[list(SESSIONS).index(session) % every :: every]


@functools.cache
def printed(session: str, names: tuple[str, ...]) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return SESSIONS[session][0](list(names), Path(folder))
        except (subprocess.TimeoutExpired, ValueError) as error:  # once for all tests
            return dict.fromkeys(NAMES, str(error))


def to_run(request: pytest.FixtureRequest, session: str) -> tuple[str, ...]:
    """The programs that tests of this run look at in a session."""
    cases = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    asked = {case["name"] for case in cases if session in (case["session"], SESSIONS[case["session"]][1])}
    return tuple(name for name in NAMES if name in asked)


def _cases() -> list[object]:
    compared = [session for session in SESSIONS if not session.startswith("standard-")]
    return [
        pytest.param(
            name, session, id=f"{session}-{name}", marks=[pytest.mark.long] if session in SLOW_TO_START else []
        )
        for session in compared
        for name in names_of(session)
    ]


@pytest.mark.every_nth(18)
@pytest.mark.parametrize(("name", "session"), _cases())
def test_a_program_prints_the_same_in_every_session(name: str, session: str, request: pytest.FixtureRequest) -> None:
    if session == "notebook":
        for module in ("nbclient", "ipykernel"):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
    standard = SESSIONS[session][1]
    found = printed(session, to_run(request, session)).get(name)
    expected = printed(standard, to_run(request, standard))[name]
    if (session, name) in DIFFERENCES:
        assert found != expected, f"this difference is none any more: {DIFFERENCES[session, name]}"
    else:
        assert found == expected
