"""What `submit` and `map` make of what they are given."""

from __future__ import annotations

from array import array
from typing import Any
from unittest import mock

import numpy as np
import pytest

from poolkit._given import LARGE, MOST_LOOKED_AT, has_large

BYTES = bytes(LARGE + 1)


class Odd:
    @property
    def nbytes(self) -> int:
        raise OSError


@pytest.mark.parametrize(
    "value",
    [
        BYTES,
        bytearray(BYTES),
        "x" * (LARGE + 1),
        memoryview(BYTES),
        np.zeros(LARGE),
        [np.zeros(LARGE)],
        ({"deep": [1, (BYTES,)]},),
        [*range(5), BYTES],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_large_is_found_where_it_may_stand(value: Any) -> None:
    assert has_large((1, value), {})
    assert has_large((), {"value": value, "other": 1})


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "x",
        bytes(LARGE),
        np.zeros(3),
        np.float64(1),
        [1, 2],
        {},
        Odd(),
        mock.MagicMock(),
        np.ndarray,
        array("d"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_small_or_odd_is_not_large(value: Any) -> None:
    assert not has_large((value, [value]), {"value": value})


def test_no_more_than_a_few_values_are_looked_at() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert not has_large((loop,), {})
    assert not has_large((list(range(MOST_LOOKED_AT)), {"beyond": [BYTES]}), {})
    assert has_large((list(range(10**6)), BYTES), {}), "each argument is looked at"
