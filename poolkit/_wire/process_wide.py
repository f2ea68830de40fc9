"""Globals: what a value among the globals of a script is in a worker, where it cannot simply be copied there.

Each process has its own of what belongs to a process: locks, thread-local data, context variables, open files. They are
made anew; only among globals, as arguments of a call they are errors.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import threading
from contextvars import Context, ContextVar
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from poolkit._wire.modules import scripts
from poolkit._wire.reseed import reduce_generator

__all__ = ["imported_from", "is_made_anew", "is_random_generator", "reduce_global"]

_ATOMS = (int, str, bytes, float, complex, type(None), tuple, frozenset)
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_LRU = type(functools.lru_cache(lambda: None))
_DISPATCH = ("registry", "dispatch", "register", "_clear_cache")
_NEVER = frozenset({"concurrent", "multiprocessing", "poolkit", "socket", "subprocess", "threading"})
_REFUSED = frozenset({
    ("subprocess", "Popen"), ("threading", "Thread"), ("concurrent.futures._base", "Executor"),
    ("concurrent.futures._base", "Future"), ("os", "_wrap_close"), ("tempfile", "_TemporaryFileWrapper"),
    ("tempfile", "_TemporaryFileCloser"),
})  # fmt: skip
_streams = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
_variables: dict[tuple[int, str], ContextVar[Any]] = {}  # a worker's own, by the owner's id and name


def reduce_global(obj: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 -- one kind of object after another
    """Return how to make an object anew, for a pickler's `reducer_override`; NotImplemented if it is not of these."""
    kind = type(obj)
    if (reduced := reduce_generator(obj)) is not NotImplemented:
        return reduced
    if any((cls.__module__, cls.__name__) in _REFUSED for cls in kind.__mro__):
        raise pickle.PicklingError(f"{kind.__name__} objects belong to the process that made them")
    if kind is _LOCK:
        return threading.Lock, ()
    if kind is _RLOCK:
        return threading.RLock, ()
    if issubclass(kind, threading.local):
        return kind, ()
    if kind.__module__ == "typing" and kind.__name__ == "NewType":
        return _new_type, (obj.__name__, obj.__supertype__, obj.__module__)
    if kind is _LRU:
        parameters = obj.cache_parameters()
        return _cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"], obj.__dict__)
    if kind is FunctionType:
        if obj.__globals__ is vars(functools) and type(getattr(obj, "registry", None)) is MappingProxyType:
            return _dispatching, (dict(obj.registry), {k: v for k, v in vars(obj).items() if k not in _DISPATCH})
        return NotImplemented
    if kind is ContextVar:
        try:
            return _context_variable, (id(obj), obj.name, True, Context().run(obj.get))
        except LookupError:
            return _context_variable, (id(obj), obj.name, False, None)
    for name in _streams:
        if obj is vars(sys).get(name):
            return getattr, (sys, name)
    if kind.__module__ == "_io" and hasattr(obj, "name"):
        return _reduce_file(obj)
    if kind.__module__ in ("os", "sys"):
        module = sys.modules[kind.__module__]
        for name, value in vars(module).items():
            if value is obj:
                return getattr, (module, name)
    return NotImplemented


def _new_type(name: str, supertype: Any, module: str) -> Any:
    import typing  # noqa: PLC0415 -- who has one of these has imported it

    make: Any = typing.NewType
    made = make(name, supertype)
    made.__module__ = module
    return made


def _cached(function: Any, maxsize: int | None, typed: bool, attributes: dict[str, Any]) -> Any:
    """An `lru_cache` of the function, empty."""
    made = functools.lru_cache(maxsize, typed)(function)
    vars(made).update(attributes)
    return made


def _dispatching(registry: dict[type, Any], attributes: dict[str, Any]) -> Any:
    """A `singledispatch` function with the same implementations."""
    made: Any = functools.singledispatch(registry.pop(object))
    for kind, function in registry.items():
        made.register(kind, function)
    vars(made).update(attributes)
    return made


def _context_variable(key: int, name: str, has_default: bool, default: Any) -> ContextVar[Any]:
    known = _variables.get((key, name))
    if known is None:
        made: ContextVar[Any] = ContextVar(name, default=default) if has_default else ContextVar(name)
        known = _variables.setdefault((key, name), made)
    return known


def _reduce_file(file: Any) -> Any:
    path = file.name
    if not file.closed and path in _STANDARD:
        return _stream, (_STANDARD[path], () if hasattr(file, "encoding") else _LAYERS[hasattr(file, "raw") :])
    if not isinstance(path, (str, bytes)) or file.closed:
        return NotImplemented
    text = (file.encoding, file.errors, None) if hasattr(file, "encoding") else None
    return _open_again, (os.path.abspath(path), file.mode, text)  # noqa: PTH100 -- bytes too


_STANDARD = {0: "stdin", 1: "stdout", 2: "stderr", "<stdin>": "stdin", "<stdout>": "stdout", "<stderr>": "stderr"}
_LAYERS = ("raw", "buffer")  # of a stream, from the inside


def _stream(name: str, layers: tuple[str, ...]) -> Any:
    """This process's own standard stream, or what is below it."""
    found = getattr(sys, name)
    for layer in reversed(layers):
        found = getattr(found, layer, found)
    return found


def _open_again(path: Any, mode: str, text: tuple[Any, ...] | None) -> Any:
    """Open a file of the owner's by its path: to read it from its start, to append to it; never to create or cut it."""
    kind = "" if text is not None else "b"
    encoding, errors, newline = text or (None, None, None)
    if not set(mode) & set("wax+"):
        return open(path, "r" + kind, encoding=encoding, errors=errors, newline=newline)  # noqa: PTH123
    plus = "+" if "+" in mode else ""
    fd = os.open(path, (os.O_RDWR if plus else os.O_WRONLY) | os.O_APPEND | os.O_CLOEXEC)
    return os.fdopen(fd, "a" + plus + kind, encoding=encoding, errors=errors, newline=newline)


def imported_from(name: str, value: Any) -> tuple[str, str] | None:
    """Return the module that has this very object under this name, as `from module import name` takes it, and the name.

    An empty name stands for any, as does any name of an object that stands for another, such as `flask.request`.
    """
    if (name and issubclass(type(value), (FunctionType, type, ModuleType, *_ATOMS))) or type(
        value
    ).__module__ in scripts:
        return None
    homes = [(home, vars(module)) for home, module in sys.modules.copy().items() if type(module) is ModuleType]
    for home, names in homes:
        if name and home not in scripts and names.get(name) is value:
            return home, name
    if name and not _stands_for_another(value):
        return None
    for home, names in homes:
        for each, bound in names.copy().items() if home not in scripts else ():
            if bound is value:
                return home, each
    return None


def _stands_for_another(value: Any) -> bool:
    try:
        return value.__class__ is not type(value)
    except Exception:  # noqa: BLE001 -- what it stands for is not there
        return True


def is_made_anew(value: Any, callee: Any) -> bool:
    """Return True if a worker may make a value, which cannot be pickled, by the call that made it here.

    What is called is imported, not a function of the script; the value is no process, program, thread or socket.
    """
    home = callee.__name__ if issubclass(type(callee), ModuleType) else getattr(callee, "__module__", None)
    if home is None or home in scripts:
        return False
    if any((cls.__module__, cls.__name__) in _REFUSED for cls in type(value).__mro__):
        return False
    return not any(cls.__module__.partition(".")[0] in _NEVER for cls in type(value).__mro__)


def is_random_generator(value: Any) -> bool:
    """Return True for a generator of random numbers, which goes on in a worker from what was sent."""
    for cls in type(value).__mro__:
        if cls.__module__ == "random" and cls.__name__ == "Random":
            return True
        if cls.__module__.startswith("numpy.random") and cls.__name__ in ("Generator", "RandomState", "BitGenerator"):
            return True
    return False
