"""Programs as they are written for `ProcessPoolExecutor` run with poolkit; `docs/comparison.md` has others' columns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow


def _load() -> ModuleType:
    """The module beside this one: tests are not imported by name."""
    spec = importlib.util.spec_from_file_location("dropin_programs", Path(__file__).with_name("programs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


programs = _load()


@pytest.mark.every_nth(9)
@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_a_program_is_right(name: str, tmp_path: Path) -> None:
    assert programs.run(name, "poolkit", tmp_path) == "right"


def test_the_comparison_names_every_program() -> None:
    page = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text(encoding="utf-8")
    for program in programs.PROGRAMS.values():
        assert f"| {program.title} |" in page
