"""Modules: which ones another process imports by name, and which it has to be given.

A *script module* is one that a worker cannot import: the script itself, and whatever else is in `sys.modules` without
being found by the finders that a worker has (run by `runpy`, loaded from a path, made in memory, collected by pytest in
`importlib` mode). What such a module defines travels once and is then referred to by name; see `namespace.py`.
Modules that other machines do not have (`add_by_value`) are script modules too; workers of this machine, which can
import them, do that (`_child/script.py`).
Thread safety: `_seen` and `scripts` only grow, by one atomic operation at a time; to look twice does no harm.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from poolkit._typing import Any

MAIN = ("__main__", "__mp_main__")  # what the script is called: itself, and in children of multiprocessing
scripts: set[str] = set(MAIN)  # the names of all script modules
marks: list[bytes] = [b"_main__"]  # one of these stands in every plain pickle that names something of a script module
count, newest = 0, ""  # how many modules were loaded when they were last looked at, and the newest of them
_MISSING = object()
_seen: set[str] = set(MAIN)
_by_value: set[str] = set()  # modules, and packages with all in them, that other machines do not have
when_more: list[Callable[[tuple[str, ...]], object]] = []
"""Called with the names of modules that are script modules from now on and were not; what is kept of them goes."""

are_others_known: Callable[[str, str], bool] | None = None
"""In a worker: whether the owner has this name of that module. None where this process is the owner."""


def add_script(name: str) -> None:
    """Have a module count as one that other processes cannot import."""
    _seen.add(name)
    if name not in scripts:
        scripts.add(name)
        marks.append(name.encode("utf-8", "surrogatepass"))


def add_by_value(name: str) -> None:
    """Have a module, and all that is in it if it is a package, count as ones that other machines cannot import."""
    _by_value.add(name)
    new = tuple(each for each in sys.modules.copy() if each not in scripts and goes_by_value(each))
    for each in new:
        add_script(each)
    for forget in when_more if new else ():
        forget(new)


def goes_by_value(name: str) -> bool:
    """Return True for what other machines do not have, as the user says."""
    return any(name == each or name.startswith(each + ".") for each in _by_value)


def look() -> None:
    """Look at the modules that were loaded since the last call. Costs 2 us for each new one, else 0.1 us."""
    global count, newest
    loaded, last = len(sys.modules), newest_name()
    if loaded != count or last is not newest:
        from poolkit._wire.finding import is_importable  # noqa: PLC0415 -- only where something is sent

        seen: Any = {}
        for name in [name for name in sys.modules.copy() if name not in _seen]:
            if (_by_value and goes_by_value(name)) or not is_importable(name, seen):
                add_script(name)
            _seen.add(name)
        count, newest = loaded, last


def newest_name() -> str:
    """Return the name of the module that was loaded last; "" while another thread loads one."""
    try:
        return next(reversed(sys.modules), "")
    except RuntimeError:  # it came between `reversed` and `next`
        return ""


def is_registered() -> bool:
    """Return True if the user registered modules with cloudpickle to go by value, other than script modules."""
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False
    list_registered = getattr(cloudpickle, "list_registry_pickle_by_value", None)  # None: it is half imported
    return list_registered is not None and not list_registered().issubset(scripts)


def cloudpickle_module() -> Any:
    """Return cloudpickle, all of it. Waits for another thread that imports it just now.

    Where a signal handler submits while its own thread imports that, what is there of the module is put aside.
    """
    import cloudpickle  # noqa: PLC0415 -- costs a worker tens of milliseconds, and many never need it

    if getattr(cloudpickle.__spec__, "_initializing", False):  # by this thread, else it would have been waited for
        for name in [name for name in sys.modules.copy() if name.partition(".")[0] == "cloudpickle"]:
            del sys.modules[name]
        import cloudpickle  # noqa: PLC0415 -- see above
    return cloudpickle


def named_at_top(obj: Any, module_name: Any) -> str | None:
    """Return the name at the top of its module under which an object, or the class it is in, is found; else None."""
    qualname = getattr(obj, "__qualname__", None)
    if type(qualname) is not str:
        return None
    found: Any = sys.modules.get(module_name)
    top, *rest = qualname.split(".")
    if found is None or rest[:1] == ["<locals>"]:
        return None
    try:
        for part in (top, *rest):
            found = getattr(found, part, _MISSING) if type(found) is not Script else vars(found).get(part, _MISSING)
    except Exception:  # noqa: BLE001 -- a module's or metaclass's own `__getattr__`
        return None
    return top if found is obj else None


def meaning(module_name: str, name: str, default: Any = None) -> Any:
    """Return what a name at the top of a module is bound to now; the default if there is none."""
    return getattr(sys.modules.get(module_name), "__dict__", {}).get(name, default)


def home_of(namespace: dict[str, Any]) -> str | None:
    """Return the name of the module that has these globals; None if it is not in `sys.modules`."""
    name = namespace.get("__name__")
    module = sys.modules.get(name) if type(name) is str else None
    return name if module is not None and getattr(module, "__dict__", None) is namespace else None


def module_of(cls: type) -> str:
    """Return what a class says its module is; "" for one that says something else, as a property for its instances."""
    try:
        name: Any = cls.__module__
    except Exception:  # noqa: BLE001 -- a metaclass may do anything
        return ""
    return name if isinstance(name, str) else ""


def is_package(value: Any) -> bool:
    """Return True for a package, without asking what only looks like one."""
    try:
        return issubclass(type(value), ModuleType) and hasattr(value, "__path__") and type(value.__name__) is str
    except Exception:  # noqa: BLE001 -- a lazy module's own hooks
        return False


class Script(ModuleType):
    """A script module in a worker; see `_child/script.py`."""

    make: Callable[[ModuleType, str], Any]

    def __getattr__(self, name: str) -> Any:
        """Make what the script defines under a name that nothing has needed here so far."""
        if not name.startswith("__"):
            type(self).make(self, name)
            if name in vars(self):
                return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
