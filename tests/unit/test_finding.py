"""Which modules a worker would find by their names."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import runpy
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest

from poolkit._wire import finding, modules
from poolkit._wire.finding import is_importable


@pytest.fixture(autouse=True)
def modules_as_before() -> Iterator[None]:
    """Forget what a test has loaded."""
    before, cache = set(sys.modules), set(sys.path_importer_cache)
    known = modules.scripts.copy(), modules._seen.copy(), modules.marks[:]
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    for path in set(sys.path_importer_cache) - cache:
        del sys.path_importer_cache[path]
    modules.scripts.intersection_update(known[0])
    modules._seen.intersection_update(known[1])
    modules.marks[:] = known[2]
    modules.count = 0


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make folders of which each is put before the others on `sys.path`."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        return folder

    return make


def write(path: Path, source: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return path


def load(name: str, path: Path, **options: Any) -> types.ModuleType:
    """Load a file as a module of this name, whatever the path finder thinks of it."""
    spec = importlib.util.spec_from_file_location(name, path, **options)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# ===== found =====


@pytest.mark.parametrize(
    "name", ["sys", "builtins", "math", "os", "os.path", "zipimport", "json", "json.decoder", "pytest"]
)
def test_what_each_interpreter_has_is_importable(name: str) -> None:
    """Built in, frozen, compiled, of the standard library, of the site's packages."""
    importlib.import_module(name)
    assert is_importable(name)


def test_every_module_that_is_loaded_here_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the script, and what a test runner has collected."""
    import asyncio
    import concurrent.futures
    import multiprocessing
    import xml.etree.ElementTree as ET

    import hypothesis
    import numpy as np

    assert all((asyncio, concurrent.futures, multiprocessing, ET, hypothesis, np))
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    ours = [name for name in sys.modules.copy() if name.partition(".")[0] in ("tests", "unit", "conftest")]
    missed = [
        name
        for name, module in sys.modules.copy().items()  # those without a file are made by others, or by a test
        if name not in ours and getattr(module, "__file__", None) and not is_importable(name)
    ]
    assert set(missed) <= {
        "__main__",
        "__mp_main__",
        "py",
        "dropin_programs",
    }  # pytest puts `py` there where it is not installed


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["alone_1.py"], "alone_1"),
        (["pack_1/__init__.py", "pack_1/inner.py"], "pack_1"),
        (["pack_1/__init__.py", "pack_1/inner.py"], "pack_1.inner"),
        (["pack_1/__init__.py", "pack_1/deep/__init__.py", "pack_1/deep/er.py"], "pack_1.deep.er"),
        (["space_1/inner.py"], "space_1"),
        (["space_1/inner.py"], "space_1.inner"),
        (["space_1/deep/er.py"], "space_1.deep.er"),
    ],
)
def test_what_lies_on_the_path_is_importable(on_path: Callable[[str], Path], files: list[str], name: str) -> None:
    """Modules, packages, and packages without an `__init__`."""
    folder = on_path("folder")
    for each in files:
        write(folder / each)
    importlib.import_module(name)
    assert is_importable(name)


def test_a_package_without_init_in_two_folders_is_importable(on_path: Callable[[str], Path]) -> None:
    write(on_path("one") / "space_2/first.py")
    write(on_path("other") / "space_2/second.py")
    for name in ("space_2.first", "space_2.second"):
        importlib.import_module(name)
        assert is_importable(name)


@pytest.mark.parametrize("name", ["zipped_1", "zipped_pack", "zipped_pack.inner"])
def test_what_lies_in_an_archive_on_the_path_is_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    archive = tmp_path / "library.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for each in ("zipped_1.py", "zipped_pack/__init__.py", "zipped_pack/inner.py"):
            file.writestr(each, "")
    monkeypatch.syspath_prepend(archive)
    importlib.import_module(name)
    assert is_importable(name)


def test_an_empty_entry_of_the_path_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for `python -c` and `python -m`."""
    write(tmp_path / "here_1.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    importlib.import_module("here_1")
    assert is_importable("here_1")


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module was loaded under the one path, the finder has the other."""
    path = write(tmp_path / "real/linked_1.py")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    load("linked_1", path)
    monkeypatch.syspath_prepend(tmp_path / "link")
    assert is_importable("linked_1")


def test_what_was_loaded_from_its_place_on_the_path_is_importable(on_path: Callable[[str], Path]) -> None:
    """It does not matter how it was loaded."""
    load("placed_1", write(on_path("folder") / "placed_1.py"))
    assert is_importable("placed_1")


def test_what_its_parent_makes_is_importable(on_path: Callable[[str], Path]) -> None:
    """Importing the parent makes it there, too: as `os.path`, or six's moves."""
    source = "import sys, types\nmade = sys.modules['parent_1.made'] = types.ModuleType('parent_1.made')"
    write(on_path("folder") / "parent_1/__init__.py", source)
    importlib.import_module("parent_1")
    assert is_importable("parent_1.made")


class EditableFinder(importlib.abc.MetaPathFinder):
    """Finds as an editable install does: by a table."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path) if name == self.name else None


def install_finder(monkeypatch: pytest.MonkeyPatch, home: str, name: str, path: Path) -> None:
    finder = type("Finder", (EditableFinder,), {"__module__": home})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder(name, path)])


def test_an_editable_install_is_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finder is there in each interpreter."""
    path = write(tmp_path / "src/editable_1/__init__.py")
    install_finder(monkeypatch, "__editable___editable_1_0_finder", "editable_1", path)
    importlib.import_module("editable_1")
    assert is_importable("editable_1")


@pytest.mark.parametrize("home", ["editables.redirector", "_editable_2_editable", "_editable_2_editable_loader"])
def test_an_editable_install_by_another_tool_is_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """The finders of hatchling and pdm, scikit-build-core, meson-python are in each interpreter, too."""
    path = write(tmp_path / "src/editable_2/__init__.py")
    install_finder(monkeypatch, home, "editable_2", path)
    importlib.import_module("editable_2")
    assert is_importable("editable_2")


@pytest.mark.parametrize("odd", [None, object(), "text"])
def test_what_is_no_module_is_left_to_the_import_system(monkeypatch: pytest.MonkeyPatch, odd: object) -> None:
    monkeypatch.setitem(sys.modules, "odd_1", odd)  # type: ignore[arg-type]
    assert is_importable("odd_1")


def test_a_module_or_a_finder_that_raises_is_left_to_the_import_system(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raising(types.ModuleType):  # not by a property: CPython 3.14 may pass one by, once the code that asks is warm
        def __getattribute__(self, name: str) -> Any:
            if name == "__spec__":
                raise KeyError
            return super().__getattribute__(name)

    monkeypatch.setitem(sys.modules, "odd_2", Raising("odd_2"))
    assert is_importable("odd_2")


# ===== not found =====


def test_what_was_loaded_from_elsewhere_is_not_importable(tmp_path: Path) -> None:
    load("elsewhere_1", write(tmp_path / "elsewhere_1.py"))
    assert not is_importable("elsewhere_1")


def test_a_name_that_means_another_file_is_not_importable(tmp_path: Path, on_path: Callable[[str], Path]) -> None:
    """A worker would get the other one."""
    write(on_path("folder") / "twice_1.py")
    load("twice_1", write(tmp_path / "plugins/twice_1.py"))
    assert not is_importable("twice_1")


def test_a_name_that_another_folder_of_the_path_has_first_is_not_importable(on_path: Callable[[str], Path]) -> None:
    """A worker would get the other one, although this one lies on the path as well."""
    path = write(on_path("second") / "twice_2.py")
    write(on_path("first") / "twice_2.py")
    load("twice_2", path)
    assert not is_importable("twice_2")


def test_a_name_that_an_archive_on_the_path_has_first_is_not_importable(
    on_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(on_path("folder") / "twice_3.py")
    with zipfile.ZipFile(tmp_path / "first.zip", "w") as file:
        file.writestr("twice_3.py", "x = 2")
    monkeypatch.syspath_prepend(str(tmp_path / "first.zip"))
    load("twice_3", path)
    assert not is_importable("twice_3")


def test_a_folder_that_comes_first_is_read_again_when_it_has_changed(on_path: Callable[[str], Path]) -> None:
    path, first = write(on_path("second") / "twice_4.py"), on_path("first")
    load("twice_4", path)
    assert is_importable("twice_4")
    write(first / "twice_4.py")
    os.utime(first, ns=(0, 1))  # clocks of file systems are coarse
    sys.path_importer_cache.clear()
    assert not is_importable("twice_4")


@pytest.mark.parametrize("file", ["suffix_1.v2.py", "suffix_1.example.py"])
def test_a_file_with_another_suffix_than_the_finders_is_not_importable(
    on_path: Callable[[str], Path], file: str
) -> None:
    load("suffix_1", write(on_path("folder") / file))
    assert not is_importable("suffix_1")


def test_a_module_made_by_hand_under_a_name_that_a_file_has_is_not_importable(on_path: Callable[[str], Path]) -> None:
    """A worker would get the file."""
    write(on_path("folder") / "handmade_2.py")
    sys.modules["handmade_2"] = types.ModuleType("handmade_2")
    assert not is_importable("handmade_2")


def test_a_name_of_the_standard_library_with_another_file_is_not_importable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "colorsys", types.ModuleType("colorsys"))
    load("colorsys", write(tmp_path / "colorsys.py"))
    assert not is_importable("colorsys")


def test_what_stands_under_another_name_is_not_importable(on_path: Callable[[str], Path]) -> None:
    """Its file lies on the path, but under its own name."""
    path = write(on_path("folder") / "original_1.py")
    assert not is_importable(load("renamed_1", path).__name__)


def test_a_module_made_by_hand_is_not_importable() -> None:
    sys.modules["handmade_1"] = types.ModuleType("handmade_1")
    assert not is_importable("handmade_1")


def test_what_only_a_finder_of_this_process_has_is_not_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source kept in memory, a database, a notebook."""

    class Memory(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            return importlib.util.spec_from_loader(name, self) if name.startswith("memory_1") else None

        def get_source(self, fullname: str) -> str:
            return "value = 1"

        def is_package(self, fullname: str) -> bool:
            return fullname == "memory_1"

    monkeypatch.setattr(sys, "meta_path", [Memory(), *sys.meta_path])
    assert importlib.import_module("memory_1.inner").value == 1
    assert not is_importable("memory_1")
    assert not is_importable("memory_1.inner")


def test_a_module_below_one_that_is_not_found_is_not_importable(tmp_path: Path) -> None:
    path = write(tmp_path / "hidden_1/__init__.py")
    write(tmp_path / "hidden_1/inner.py")
    load("hidden_1", path, submodule_search_locations=[str(path.parent)])
    importlib.import_module("hidden_1.inner")
    assert not is_importable("hidden_1.inner")


def test_what_runpy_runs_is_not_importable(tmp_path: Path) -> None:
    """While it runs; then it is gone."""
    path = write(
        tmp_path / "run_1.py", "from poolkit._wire.finding import is_importable\nfound = is_importable(__name__)"
    )
    assert runpy.run_path(str(path), run_name="run_1")["found"] is False


def test_a_folder_that_is_not_on_the_path_any_more_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "left_1.py")
    with monkeypatch.context() as context:
        context.setattr(sys, "path", [str(tmp_path), *sys.path])
        importlib.import_module("left_1")
    assert not is_importable("left_1")


# ===== looking =====


def test_modules_are_looked_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those that were loaded since the last time; the names of scripts, and what their pickles contain, are noted."""
    modules.look()
    monkeypatch.setattr(PathFinder, "find_spec", lambda *_: pytest.fail("looked at a module again"))
    modules.look()
    monkeypatch.undo()
    module = load("looked_at_1", write(tmp_path / "looked_at_1.py", "class C: pass"))
    modules.look()
    assert "looked_at_1" in modules.scripts
    assert sum(mark in module.C.__module__.encode() for mark in modules.marks) == 1


def test_a_module_that_took_the_place_of_another_is_looked_at(tmp_path: Path) -> None:
    """There are as many modules as before."""
    load("before_1", write(tmp_path / "before_1.py"))
    modules.look()
    del sys.modules["before_1"]
    load("after_1", write(tmp_path / "after_1.py"))
    modules.look()
    assert "after_1" in modules.scripts


def test_threads_that_look_at_once_both_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is done while the other still looks at the module."""
    load("both_1", write(tmp_path / "both_1.py"))
    known: list[bool] = []
    real = finding.is_importable

    def look_in_another_thread(name: str, seen: Any) -> bool:
        if name == "both_1":
            monkeypatch.setattr(finding, "is_importable", real)
            other = threading.Thread(target=lambda: (modules.look(), known.append("both_1" in modules.scripts)))
            other.start()
            other.join(30)
        return real(name, seen)

    monkeypatch.setattr(finding, "is_importable", look_in_another_thread)
    modules.look()
    assert known == [True]
    assert "both_1" in modules.scripts


def test_a_script_module_stays_one(tmp_path: Path) -> None:
    """What was sent under its name is there."""
    load("stays_1", write(tmp_path / "stays_1.py"))
    modules.look()
    del sys.modules["stays_1"]
    modules.look()
    assert "stays_1" in modules.scripts


class Outer:
    class Inner:
        def method(self) -> None: ...


def make() -> Any:
    class Local:
        def method(self) -> None: ...

    return Local


@pytest.mark.parametrize(
    ("obj", "top"),
    [
        (make, "make"),
        (Outer, "Outer"),
        (Outer.Inner, "Outer"),
        (Outer.Inner.method, "Outer"),
        (make(), None),
        (make().method, None),
        (lambda: None, None),
        (types.SimpleNamespace(__qualname__="make"), None),  # another object
        (types.SimpleNamespace(__qualname__="no_such_name"), None),
        (types.SimpleNamespace(__qualname__=None), None),
        (3, None),
    ],
)
def test_a_name_at_the_top_is_one_that_means_the_object(obj: object, top: str | None) -> None:
    assert modules.named_at_top(obj, __name__) == top
    assert modules.named_at_top(obj, "no_such_module") is None


def test_home_is_the_module_that_has_these_globals() -> None:
    assert modules.home_of(vars(modules)) == "poolkit._wire.modules"
    assert modules.home_of(dict(vars(modules))) is None
    assert modules.home_of({"__name__": "no_such_module"}) is None
    assert modules.home_of({"__name__": None}) is None
    assert modules.home_of({}) is None
