"""Fixtures of all suites: a watchdog and a leak check around every test, gates, a journal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import support
import support_gates
import support_leaks
import support_scripts

# A run on a build machine is the same run every time; at a desk each one tries something new.
hypothesis.settings.register_profile("poolkit", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("poolkit")


def pytest_configure(config: pytest.Config) -> None:
    support.adopt_orphans()


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
