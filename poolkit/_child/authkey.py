"""Authkey: gives this process the owner's multiprocessing key, without importing multiprocessing before it is used.

That takes 5 ms, and every first result would wait for it. So where it is not there yet, a finder waits in front of all
others for its import, has them find the module, and sets the key once the module has run, before anybody can use it.
Owner: the worker's main thread sets it up; afterwards whoever imports the module, under the import system's own lock.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_MODULE = "multiprocessing.process"


def set_authkey(key: bytes) -> None:
    """Have multiprocessing use this key, now or when it is imported."""
    module: Any = sys.modules.get(_MODULE)
    if module is not None:
        module.current_process().authkey = key
    else:
        sys.meta_path.insert(0, _Finder(key))


class _Finder:
    """Finds one module, once."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find it as it would be found without this."""
        if name != _MODULE:
            return None
        for finder in sys.meta_path:
            find: Any = getattr(finder, "find_spec", None)  # very old ones have something else
            spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                loader: Any = _Loader(spec.loader, self._key)
                spec.loader = loader
                return spec
        return None


class _Loader:
    """Loads the module as its own loader does, which then takes its place again, and sets the key."""

    def __init__(self, loader: Any, key: bytes) -> None:
        self._loader = loader
        self._key = key

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make it."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: Any) -> None:
        """Run it."""
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        module.current_process().authkey = self._key
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
