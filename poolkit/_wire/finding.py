"""Finding: whether a worker would find a module, by its name, where this process has it from."""

from __future__ import annotations

import os
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, all_suffixes
from types import ModuleType
from typing import Any

__all__ = ["is_importable"]

_SUFFIXES = frozenset(all_suffixes())


def is_importable(name: str) -> bool:  # noqa: PLR0911 -- one kind of module after another
    """Return True if the finders that each interpreter has find the module of this name that is loaded here."""
    if name not in sys.modules:
        return False
    module = sys.modules[name]
    if not issubclass(
        type(module), ModuleType
    ):  # something in a module's place; importing what put it there does it again
        return True
    try:
        spec: Any = module.__spec__
        parent = name.rpartition(".")[0]
        path: Any = None
        if parent:
            if not is_importable(parent):
                return False
            path = getattr(sys.modules.get(parent), "__path__", None)
            if spec is None or spec.origin is None or path is None:
                return True  # importing its parent makes it
        origin = getattr(spec, "origin", None)
        if origin in ("built-in", "frozen"):
            return True
        if origin is not None and _is_below(origin, spec, sys.path if path is None else path):
            return True
        return _is_found(name, path, origin)
    except Exception:  # noqa: BLE001 -- modules and finders are anybody's; what is odd is left to the import system
        return True


def _is_below(origin: str, spec: Any, places: Any) -> bool:
    """Return True if a file lies where the path finder looks, under the name that it looks for."""
    folder, file = os.path.split(origin)
    last = spec.name.rpartition(".")[2]
    if file.partition(".")[0] == "__init__":
        folder, file = os.path.split(folder)
        file += ".py"
    return (
        file.startswith(last)
        and file[len(last) :] in _SUFFIXES
        and folder in {os.path.abspath(place or ".") for place in places}  # noqa: PTH100 -- strings
    )


def _is_found(name: str, path: Any, origin: str | None) -> bool:
    for finder in sys.meta_path:
        kind: Any = finder if isinstance(finder, type) else type(finder)
        if kind not in (BuiltinImporter, FrozenImporter, PathFinder) and not _is_of_site(kind.__module__):
            continue
        found = finder.find_spec(name, path)
        if found is not None:
            own = getattr(sys.modules[name], "__path__", None)
            if origin is None and own is not None:  # a package without a file is where its parts are
                return set(own).issubset(found.submodule_search_locations or ())
            if origin is None or found.origin is None:
                return origin is found.origin is None
            return os.path.realpath(found.origin) == os.path.realpath(origin)
    return False


def _is_of_site(module_name: str) -> bool:
    """Return True for finders that are there in each interpreter: editable installs have them."""
    return module_name.startswith(("__editable__", "_editable", "editables", "_distutils_hack")) or module_name == "six"
