"""Docstrings: what `help` and editors show of all that is public says what it does, and what it costs to call it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import poolkit

REFERENCE = (Path(__file__).parents[2] / "docs/reference.md").read_text()


def documented() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Every function and method that the reference names, with the docstring of its class."""
    for name in poolkit.__all__:
        value = getattr(poolkit, name)
        if not isinstance(value, type):
            yield name, value, ""
            continue
        assert value.__doc__, name
        about = "".join(each.__doc__ or "" for each in value.__mro__ if each.__module__.startswith("poolkit"))
        for inner, member in inspect.getmembers(value):
            function = getattr(member, "__func__", member)
            is_ours = inspect.isfunction(function) and (function.__module__ or "").startswith("poolkit")
            if is_ours and not inner.startswith("_") and re.search(rf"`[^`\n]*\b{inner}\(", REFERENCE):
                yield f"{name}.{inner}", function, about


def test_all_that_can_be_called_says_what_it_does_and_whether_it_blocks() -> None:
    found = list(documented())
    assert len(found) > 80
    silent = [
        name
        for name, function, _ in found
        if not re.search(r"block|wait|refuse|frozen", inspect.getdoc(function) or "", re.IGNORECASE)
        and not inspect.iscoroutinefunction(function)
    ]
    assert silent == []


def test_all_that_can_be_called_or_its_class_says_whether_threads_may_share_it() -> None:
    silent = [name for name, function, about in documented() if "hread" not in f"{inspect.getdoc(function)}{about}"]
    assert silent == []


def test_help_of_a_pool_shows_what_each_argument_is() -> None:
    about = inspect.getdoc(poolkit.Pool.__init__) or ""
    for name in inspect.signature(poolkit.Pool.__init__).parameters:
        assert name == "self" or re.search(rf"^ +{name}: ", about, re.MULTILINE), name
    options = inspect.getdoc(poolkit.Pool.options) or ""
    parameters = inspect.signature(poolkit.Pool.options).parameters
    for name in parameters:
        assert name == "self" or re.search(rf"^ +{name}: ", options, re.MULTILINE), name
    of_offloaded = inspect.signature(poolkit.Offloaded.options).parameters
    assert of_offloaded.keys() == parameters.keys() < inspect.signature(poolkit.offload).parameters.keys() | {"self"}
