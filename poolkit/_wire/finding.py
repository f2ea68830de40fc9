"""Finding: whether a worker would find a module, by its name, where this process has it from."""

from __future__ import annotations

import os
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, all_suffixes
from types import ModuleType
from typing import Any

_SUFFIXES = frozenset(all_suffixes())
Places = dict[str, "tuple[str, frozenset[str] | None]"]
"""Of each place on a path: its absolute form, and the names there."""


def is_importable(name: str, seen: Places | None = None) -> bool:  # noqa: PLR0911 -- one kind of module after another
    """Return True if the finders that each interpreter has find the module of this name that is loaded here.

    Args:
        name: the name in `sys.modules`.
        seen: keeps what was read of folders, for a look at many modules at once.
    """
    seen = {} if seen is None else seen
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
            if not is_importable(parent, seen):
                return False
            path = getattr(sys.modules.get(parent), "__path__", None)
            if spec is None or spec.origin is None or path is None:
                return True  # importing its parent makes it
        origin = getattr(spec, "origin", None)
        if origin in ("built-in", "frozen"):
            return True
        if origin is not None and _is_below(origin, spec, sys.path if path is None else path, seen):
            return True
        return _is_found(name, path, origin)
    except Exception:  # noqa: BLE001 -- modules and finders are anybody's; what is odd is left to the import system
        return True


def _is_below(origin: str, spec: Any, places: Any, seen: Places) -> bool:
    """Return True if a file lies where the path finder looks first, under the name that it looks for."""
    folder, file = os.path.split(origin)
    last = spec.name.rpartition(".")[2]
    if file.partition(".")[0] == "__init__":
        folder, file = os.path.split(folder)
        file += ".py"
    if not file.startswith(last) or file[len(last) :] not in _SUFFIXES:
        return False
    for place in places:
        known = seen.get(place)
        if known is None:
            path = os.path.abspath(place or ".")  # noqa: PTH100 -- strings
            known = seen[place] = path, _names_in(path)
        path, names = known
        if path == folder:
            return True
        if names is None or not names.isdisjoint((last, *(last + suffix for suffix in _SUFFIXES))):
            return False  # another may come first
    return False


_listed: dict[str, tuple[int, frozenset[str]]] = {}  # one atomic operation at a time, from any thread


def _names_in(folder: str) -> frozenset[str] | None:
    """The names in a folder, which is read again when it has changed; None for an archive."""
    try:
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116 -- strings
        known = _listed.get(folder)
        if known is None or known[0] != changed:
            known = _listed[folder] = changed, frozenset(os.listdir(folder))  # noqa: PTH208 -- strings
    except NotADirectoryError:
        return None
    except OSError:
        return frozenset()
    return known[1]


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
