"""Annotations: `typing.get_type_hints` works for all that is public, before anything was used."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import poolkit


def annotated() -> Iterator[tuple[str, object]]:
    """Everything public that has annotations."""
    for name in poolkit.__all__:
        value = getattr(poolkit, name)
        yield name, value
        for inner, member in inspect.getmembers(value) if isinstance(value, type) else ():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            is_ours = inspect.isfunction(function) and (function.__module__ or "").startswith("poolkit")
            if is_ours and (not inner.startswith("_") or inner.endswith("__")):
                yield f"{name}.{inner}", function


def unresolved() -> dict[str, str]:
    """What is wrong with which annotations."""
    found = {}
    for name, value in annotated():
        try:
            typing.get_type_hints(value)
        except Exception as exc:  # whatever it is, it is told
            found[name] = repr(exc)
    return found


def test_all_that_is_public_has_annotations_that_can_be_looked_at() -> None:
    assert len(list(annotated())) > 100
    assert unresolved() == {}


def test_they_can_be_in_a_program_that_has_used_nothing_yet() -> None:
    code = "import test_annotations; assert not (bad := test_annotations.unresolved()), bad"
    path = os.pathsep.join([os.fspath(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)


def test_they_say_what_is_meant() -> None:
    hints = typing.get_type_hints(poolkit.Pool.stats)
    assert hints["return"] is poolkit.PoolStats
    assert typing.get_origin(typing.get_type_hints(poolkit.Pool.submit)["return"]) is poolkit.Task


def test_the_installed_package_says_that_it_has_them() -> None:
    assert (Path(poolkit.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in importlib.metadata.metadata("poolkit").get_all("Classifier", [])
