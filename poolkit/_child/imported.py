"""Imported: does something to a module as soon as it is imported.

To import it for that would take milliseconds of each first result. So a finder waits in front of all others for its
import, has them find the module, and calls once the module has run, before anybody can use it.
Owner: the worker's main thread sets it up; afterwards who imports the module, under the import system's own lock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from poolkit._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


def when_imported(name: str, call: Callable[[Any], object]) -> None:
    """Call with this module, now or when it is imported."""
    if name in sys.modules:
        call(sys.modules[name])
        return
    for finder in sys.meta_path:  # two would ask each other without end
        if isinstance(finder, _Watch) and finder.name == name:
            finder.calls.append(call)
            return
    sys.meta_path.insert(0, _Watch(name, call))


class _Watch:
    """Finds one module, once. Loads it as its own loader does, which then takes its place again, and calls."""

    def __init__(self, name: str, call: Callable[[Any], object]) -> None:
        self.name = name
        self.calls = [call]  # in this order
        self._loader: Any = None  # its own

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find it as it would be found without this."""
        if name != self.name:
            return None
        for finder in sys.meta_path:
            find: Any = getattr(finder, "find_spec", None)  # very old ones have something else
            spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                loader: Any = self
                if spec.loader is not loader:  # a finder may have handed out the same one before
                    self._loader, spec.loader = spec.loader, loader
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make it."""
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: Any) -> None:
        """Run it."""
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        for call in self.calls:
            call(module)
