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


def test_what_a_task_has_set_itself_stays_in_front(told: dict[str, Any]) -> None:
    """The first that matches counts."""
    habits.settle(told, when_imported)
    warnings.simplefilter("always", BytesWarning)
    import_it()
    others = [("error", "Careless"), ("ignore", "UserWarning"), ("default", "Careful")]
    assert filters() == [("always", "BytesWarning"), *others]


def test_filters_that_a_library_sets_when_it_is_imported_are_behind_those_of_the_program(
    told: dict[str, Any], tmp_path: Path
) -> None:
    """The program has them from its own import, and has set others since."""
    with (tmp_path / f"{LIBRARY}.py").open("a") as file:
        file.write("import warnings\nwarnings.simplefilter('ignore', UserWarning)\n")
    habits.settle(told, when_imported)
    import_it()
    assert filters() == [("error", "Careless"), ("ignore", "UserWarning"), ("default", "Careful")]


def test_many_filters_are_not_compared_with_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker starts with this, and waits for it."""
    looks: list[object] = []
    by_name = habits._by_name
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for number in range(100):
            warnings.filterwarnings("ignore", f"text {number}", UserWarning)
        told, wanted = habits.of_process(), list(warnings.filters)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        monkeypatch.setattr(habits, "_by_name", lambda found: (looks.append(found), by_name(found))[1])
        habits.settle(pickle.loads(pickle.dumps(told)), when_imported)
        assert list(warnings.filters) == wanted
    assert len(looks) < 100
