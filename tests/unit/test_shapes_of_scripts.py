"""Whatever is defined at the top of a script is the same in a worker."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.shapes_of_scripts import FAULTS, SHAPES

from support_scripts import WorkerHalf

_numbers = itertools.count()


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHalf]:
    """One for all tests here: each script is a module of its own name."""
    worker = WorkerHalf()
    yield worker
    worker.close()


@pytest.fixture(autouse=True)
def json_as_before() -> Iterator[None]:
    """Scripts change it."""
    before = vars(json).copy()
    yield
    for name in set(vars(json)) - set(before):
        delattr(json, name)


def check(worker: WorkerHalf, new_script: Callable[..., Any], source: str) -> None:
    """The worker comes first, as the call here may change what it would be sent."""
    script = new_script(source, name=f"shape_{next(_numbers)}")
    found = worker.call(script.f)
    assert found == script.f()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_right_in_a_worker(worker: WorkerHalf, new_script: Callable[..., Any], name: str) -> None:
    check(worker, new_script, SHAPES[name])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=FAULTS[name][0])) for name in FAULTS]
)
def test_a_shape_is_not_right_yet(worker: WorkerHalf, new_script: Callable[..., Any], name: str) -> None:
    check(worker, new_script, FAULTS[name][1])
