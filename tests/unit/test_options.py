"""Options are checked where they are given."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

import poolkit
from poolkit._core import options
from poolkit._core.options import UNSET, CallOptions


class Index:
    """A whole number by protocol, as NumPy's are."""

    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize("value", [None, math.inf, 10**400])
def test_no_limit_has_several_names(value: Any) -> None:
    """None, infinity, and numbers beyond all floats mean no limit."""
    assert options.seconds("timeout", value) is None
    assert options.wait_seconds("timeout", value) is None


@pytest.mark.parametrize("value", [0.5, 2])
def test_a_number_of_seconds_becomes_a_float(value: float) -> None:
    """Whole or not."""
    assert options.seconds("timeout", value) == value
    assert type(options.seconds("timeout", value)) is float
    assert options.wait_seconds("timeout", 0) == 0.0


@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, -math.inf, -(10**400)])
def test_limits_that_are_not_positive_are_refused(value: Any) -> None:
    """The message names the option and the value."""
    with pytest.raises(ValueError, match=r"timeout must be greater than 0 .* was "):
        options.seconds("timeout", value)


@pytest.mark.parametrize("value", [-1, math.nan, -math.inf])
def test_waits_that_are_negative_are_refused(value: float) -> None:
    """Zero is fine: it means to look and not to wait."""
    with pytest.raises(ValueError, match=r"timeout must be at least 0 .* was "):
        options.wait_seconds("timeout", value)


@pytest.mark.parametrize("value", ["1", True, [], 1j])
def test_limits_that_are_no_numbers_are_refused(value: Any) -> None:
    """True is not one second."""
    for check in (options.seconds, options.wait_seconds):
        with pytest.raises(TypeError, match="timeout must be a number of seconds or None, was "):
            check("timeout", value)


def test_whole_numbers_have_a_least_value() -> None:
    """Anything with `__index__` is one; True and floats are not."""
    assert options.whole("size", Index()) == 3
    assert options.whole("size", 0, least=0) == 0
    assert options.whole_or_none("size", None) is None
    assert options.whole_or_none("size", 2) == 2
    with pytest.raises(ValueError, match="size must be at least 1, was 0"):
        options.whole("size", 0)
    for value in (True, 1.0, "1"):
        with pytest.raises(TypeError, match="size must be a whole number, was"):
            options.whole("size", value)


def test_exception_types_are_a_tuple_of_them() -> None:
    """One alone is taken as a tuple of it."""
    assert options.exception_types("retry_on", OSError) == (OSError,)
    assert options.exception_types("retry_on", (OSError, KeyError)) == (OSError, KeyError)
    for value in ([OSError], OSError(), (int,), None):
        with pytest.raises(TypeError, match="retry_on must be a tuple of exception types"):
            options.exception_types("retry_on", value)


def test_a_name_is_text() -> None:
    """Or not given."""
    assert options.text_or_none("name", "a") == "a"
    assert options.text_or_none("name", None) is None
    with pytest.raises(TypeError, match="name must be a string or None, was 1"):
        options.text_or_none("name", 1)


def test_a_changed_copy_keeps_what_is_not_given() -> None:
    """Views chain."""
    first = CallOptions().changed(timeout=2, priority=Index(), retries=0, name="a", queue_timeout=UNSET)
    second = first.changed(deadline=5, retry_on=OSError, block=False, timeout=UNSET)
    assert second == CallOptions(
        timeout=2.0, priority=3, deadline=5.0, retry_on=(OSError,), block=False, name="a", retries=0
    )
    assert first.changed(timeout=None).timeout is None


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("priority", 1.5, TypeError),
        ("priority", True, TypeError),
        ("retries", -1, ValueError),
        ("block", 1, TypeError),
        ("deadline", 0, ValueError),
        ("queue_timeout", "1", TypeError),
    ],
)
def test_each_option_is_checked(option: str, value: Any, error: type[Exception]) -> None:
    """With its own name in the message."""
    with pytest.raises(error, match=option):
        CallOptions().changed(**{option: value})


@pytest.mark.parametrize("taker", [poolkit.Pool.options, poolkit.offload], ids=["Pool.options", "offload"])
def test_whoever_asks_for_help_sees_every_option(taker: Any) -> None:
    assert {*CallOptions.NAMES} <= inspect.signature(taker).parameters.keys()
