"""Settings of a program that its workers get: warning filters of what is not imported there yet."""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit._child.imported import when_imported
from poolkit._wire import habits

LIBRARY = "careful_library"


def filters() -> list[Any]:
    """The filters there are, readable."""
    return [(action, category.__name__) for action, _, category, *_ in warnings.filters]


def import_it() -> Any:
    """Import the library."""
    return importlib.import_module(LIBRARY)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What a worker is told by a process that has filters for a library, which this one has not imported."""
    (tmp_path / f"{LIBRARY}.py").write_text("class Careful(UserWarning): pass\nclass Careless(Careful): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    with warnings.catch_warnings():
        library = import_it()
        warnings.resetwarnings()
        warnings.simplefilter("default", library.Careful)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", library.Careless)
        found = habits.of_process()
        del library, sys.modules[LIBRARY]
    with warnings.catch_warnings():
        yield pickle.loads(pickle.dumps(found))
    sys.meta_path[:] = finders
    sys.modules.pop(LIBRARY, None)


def test_a_filter_for_a_library_does_not_import_it(told: dict[str, Any]) -> None:
    """To import some takes long, and a worker that replaces another is waited for."""
    habits.settle(told, when_imported)
    assert LIBRARY not in sys.modules
    assert filters() == [("ignore", "UserWarning")]


def test_filters_for_a_library_are_in_their_places_when_it_is_imported(told: dict[str, Any]) -> None:
    """The first that matches counts, so their order does."""
    habits.settle(told, when_imported)
    with warnings.catch_warnings():  # which puts back what there was
        library = import_it()
        with pytest.raises(library.Careless):
            warnings.warn("raised", library.Careless, stacklevel=1)
    assert filters() == [("error", "Careless"), ("ignore", "UserWarning"), ("default", "Careful")]


def test_a_library_that_is_another_one_in_the_worker_gets_no_filter(told: dict[str, Any], tmp_path: Path) -> None:
    """It lacks the class."""
    (tmp_path / f"{LIBRARY}.py").write_text("x = 1  # and another length\n")
    habits.settle(told, when_imported)
    import_it()
    assert filters() == [("ignore", "UserWarning")]
