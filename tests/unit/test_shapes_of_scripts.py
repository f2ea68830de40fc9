"""Whatever is defined at the top of a script is the same in a worker."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.shapes_of_definitions import DEFINITIONS
from unit.shapes_of_scripts import SHAPES

from support_scripts import WorkerHalf

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def json_as_before() -> Iterator[None]:
    """Scripts change it."""
    before = vars(json).copy()
    yield
    for name in set(vars(json)) - set(before):
        delattr(json, name)


@pytest.mark.parametrize("name", [*SHAPES, *DEFINITIONS])
def test_a_shape_is_right_in_a_worker(worker: WorkerHalf, new_script: Callable[..., Any], name: str) -> None:
    """The worker comes first, as the call here may change what it would be sent."""
    source = SHAPES[name] if name in SHAPES else DEFINITIONS[name]
    script = new_script(source, name=f"shape_{next(_numbers)}")
    found = worker.call(script.f)
    assert found == script.f()
