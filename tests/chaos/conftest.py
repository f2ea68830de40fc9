"""Fixtures of the chaos tests, and which of their many combinations are run by default."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos import faults


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one combination in n of a test that is marked so: a diagonal, on which each value of a parameter lies."""
    left_out = [item for item in items if not _is_on_the_diagonal(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_on_the_diagonal(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("every_nth")
    if mark is None or mark.args[0] <= faults.SCALE:
        return True
    return sum(item.callspec.indices.values()) % mark.args[0] == 0  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def _traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One for all, as workers hear of it by a variable: pools with the same variables share their template process.
    return tmp_path_factory.mktemp("traps")


@pytest.fixture
def traps(_traps: Path) -> Path:
    """An empty directory for traps."""
    for path in _traps.iterdir():
        path.unlink()
    return _traps
