"""Finding: whether a worker would find a module, by its name, where this process has it from."""

from __future__ import annotations

import os
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, all_suffixes
from types import ModuleType
from typing import Any

_STANDARD = os.path.join(os.path.dirname(getattr(os, "__file__", os.devnull)), "")  # noqa: PTH118, PTH120 -- strings


def is_importable(name: str, known: dict[str, bool] | None = None) -> bool:
    """Return True if the finders that each interpreter has find the module of this name that is loaded here.

    `known` keeps what was found, for a look at many modules at once.
    """
    known = {} if known is None else known
    if name not in known:
        try:
            known[name] = _look_for(name, known)
        except Exception:  # noqa: BLE001 -- modules and finders are anybody's; what is odd is left to the import system
            known[name] = True
    return known[name]


def _look_for(name: str, known: dict[str, bool]) -> bool:  # noqa: PLR0911 -- one kind of module after another
    if name not in sys.modules:
        return False
    module = sys.modules[name]
    if not issubclass(type(module), ModuleType):  # importing what put it there does it again
        return True
    spec: Any = module.__spec__
    parent, _, last = name.rpartition(".")
    origin = getattr(spec, "origin", None)
    path: Any = None
    if parent:
        if not is_importable(parent, known):
            return False
        path = getattr(sys.modules.get(parent), "__path__", None)
        if origin is None or path is None:
            return True  # importing its parent makes it
        if len(path) == 1 and _lies_in(next(iter(path)), last, origin):
            return True
    elif name in sys.stdlib_module_names and origin and origin.startswith(_STANDARD) and "-packages" not in origin:
        return True
    return origin in ("built-in", "frozen") or _is_found(name, path, origin)


def _lies_in(folder: str, name: str, origin: str) -> bool:
    """Return True for the file that the path finder finds in a folder; to ask it takes 50 us."""
    start = os.path.join(folder, name)  # noqa: PTH118 -- strings
    return any(origin in (start + suffix, os.path.join(start, "__init__") + suffix) for suffix in all_suffixes())  # noqa: PTH118


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
