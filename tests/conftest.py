"""Fixtures of all suites: a watchdog and a leak check around every test, gates, a journal; and which tests are run.

`long` tests are left out, unless `-m` speaks of that marker or the command line names the test: `pytest -m long` runs
what `pytest` leaves out. Of the combinations of a test's parameters, `every_nth(n)` makes long all but one in n; in the
folders of `FEWER`, that is so with n = 5 without a mark.
"""

from __future__ import annotations

import collections
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import poolkit
import support
import support_gates
import support_leaks
import support_scripts

# A run on a build machine is the same run every time; at a desk each one tries something new.
hypothesis.settings.register_profile("poolkit", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("poolkit")

FEWER = {"chaos", "conformance", "dropin", "lifecycle", "pains"}
SCALE = float(os.environ.get("POOLKIT_CHAOS_SCALE", "1"))


def pytest_configure() -> None:
    if interval := os.environ.get("POOLKIT_SWITCH_INTERVAL"):  # seconds; a small one finds what relies on the GIL
        sys.setswitchinterval(float(interval))
    support.adopt_orphans()
    support.heed_ctrl_c()
    if sys.dont_write_bytecode:  # each of a thousand programs would compile the library and these modules otherwise
        folders = [Path(poolkit.__file__).parent, Path(__file__).parent]
        subprocess.run([sys.executable, "-m", "compileall", "-q", *folders], check=False, stderr=subprocess.DEVNULL)


@pytest.hookimpl(tryfirst=True)  # before `-m` and `-k` are looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places, tests = Places(), collections.defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            tests[item.nodeid.partition("[")[0]].append(item)
    for name, combinations in tests.items():
        mark = combinations[0].get_closest_marker("every_nth")
        n = mark.args[0] if mark is not None else min(len(combinations), 5 if name.split("/")[1] in FEWER else 1)
        if n > SCALE:
            left_out = [item for item in combinations if places.of(item) % n]
            for item in left_out[len(left_out) == len(combinations) :]:  # one is always run
                item.add_marker(pytest.mark.long)
    for item in items:
        if item.get_closest_marker("long") is not None:
            item.add_marker(pytest.mark.slow)
    if "long" in config.option.markexpr or any("::" in arg for arg in config.args):
        return
    left_out = [item for item in items if item.get_closest_marker("long") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("long") is None]


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # thousands of items, through which each of the tests' own collections would go, a quarter of a second


class Places:
    """Numbers of combinations of parameters: every n-th diagonal of them goes through each value of each parameter."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], dict[str, int]] = {}

    def of(self, item: pytest.Item) -> int:
        """The sum of the numbers of its values, and of its test in the file: one of two tests without others is kept.

        Not from `callspec.indices`: pytest may have the number of the combination there, for each parameter.
        """
        file, name = item.nodeid.partition("::")[0], item.nodeid.partition("[")[0]
        values = item.callspec.params.items()  # type: ignore[attr-defined]
        return self._number(name, file) + sum(self._number(repr(value), name, which) for which, value in values)

    def _number(self, what: str, *where: str) -> int:
        seen = self._seen.setdefault(where, {})
        return seen.setdefault(what, len(seen))


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that hangs, or leaves a thread, process, descriptor, shared memory or signal handler behind."""
    before = support_leaks.snapshot()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with support.watchdog():
        yield
    leaks = support_leaks.find_leaks(before)
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            leaks.append(f"handler of {number.name}: {signal.getsignal(number)}")
            signal.signal(number, handler)
    if leaks:
        pytest.fail("left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[], support_gates.Gate]]:
    """Make gates; all are closed after the test."""
    gates: list[support_gates.Gate] = []

    def make() -> support_gates.Gate:
        gates.append(support_gates.Gate.create(tmp_path / f"gate-{len(gates)}"))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()


@pytest.fixture
def journal(tmp_path: Path) -> support_gates.Journal:
    """Lines that tasks write."""
    return support_gates.Journal(tmp_path / "journal")


@pytest.fixture
def new_script(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Load source as a module that no worker can import; it is gone after the test."""
    modules = support_scripts.ScriptModules(tmp_path)
    yield modules.load
    modules.close()


@pytest.fixture
def new_worker() -> Iterator[Callable[..., support_scripts.WorkerHalf]]:
    """Start halves of workers; all end with the test."""
    workers: list[support_scripts.WorkerHalf] = []

    def start(number: int = 1) -> support_scripts.WorkerHalf:
        workers.append(support_scripts.WorkerHalf(number))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()
