"""Globals: what a value among the globals of a script is in a worker, where it cannot simply be copied there.

What each process has for itself (locks, thread-local data, context variables, open files) is made anew; as arguments of
a call they are errors.
"""

from __future__ import annotations

import functools
import importlib
import operator
import os
import pickle
import sys
import threading
from contextvars import Context, ContextVar
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from poolkit._wire.modules import module_of, scripts
from poolkit._wire.reseed import reduce_generator

_ATOMS = (int, str, bytes, float, complex, type(None), tuple, frozenset)
_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_LRU = type(functools.lru_cache(lambda: None))
_DISPATCH = ("registry", "dispatch", "register", "_clear_cache")
_DATA_BASES = frozenset({"shelve", "dbm", "_dbm", "_gdbm"})
_FILES = _DATA_BASES | {"zipfile", "tarfile", "wave"}
_OF_IMPORTS = frozenset({"__builtins__", "__loader__", "__spec__"})
_NEVER = frozenset({"concurrent", "multiprocessing", "poolkit", "socket", "subprocess", "threading"})
_REFUSED = frozenset({
    ("subprocess", "Popen"), ("threading", "Thread"), ("concurrent.futures._base", "Executor"),
    ("concurrent.futures._base", "Future"), ("os", "_wrap_close"), ("tempfile", "_TemporaryFileWrapper"),
    ("tempfile", "_TemporaryFileCloser"),
})  # fmt: skip
_STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
_STANDARD = {0: "stdin", 1: "stdout", 2: "stderr", "<stdin>": "stdin", "<stdout>": "stdout", "<stderr>": "stderr"}
_LAYERS = ("raw", "buffer")  # of a stream, from the inside
_variables: dict[tuple[int, str], ContextVar[Any]] = {}  # a worker's own, by the owner's id and name


def reduce_global(obj: Any) -> Any:  # noqa: C901, PLR0911 -- one kind of object after another
    """Return how to make an object anew, for a pickler's `reducer_override`; NotImplemented if it is not of these."""
    kind = type(obj)
    if (reduced := reduce_generator(obj)) is not NotImplemented:
        return reduced
    if _is_refused(kind):
        raise pickle.PicklingError(f"{kind.__name__} objects belong to the process that made them")
    if not _FILES.isdisjoint(_homes(kind)) and writes_to_file(obj):  # two that do would spoil it
        raise pickle.PicklingError(f"{kind.__name__} objects that write to a file belong to one process")
    if kind is _LOCK or kind is _RLOCK or issubclass(kind, threading.local):
        return {_LOCK: threading.Lock, _RLOCK: threading.RLock}.get(kind, kind), ()
    if kind is _LRU:
        return _cached, (obj.__wrapped__, obj.cache_parameters(), obj.__dict__)
    if kind is FunctionType:
        if obj.__globals__ is vars(functools) and type(getattr(obj, "registry", None)) is MappingProxyType:
            return _dispatching, (dict(obj.registry), {k: v for k, v in vars(obj).copy().items() if k not in _DISPATCH})
        return NotImplemented
    if kind is ContextVar:
        try:
            return _context_variable, (id(obj), obj.name, Context().run(obj.get))
        except LookupError:  # it has no default
            return _context_variable, (id(obj), obj.name)
    reduced = _attribute_of(sys, obj, _STREAMS)
    if reduced is NotImplemented and kind.__module__ == "_io" and hasattr(obj, "name"):
        return _reduce_file(obj)
    if reduced is NotImplemented and kind.__module__ in ("dataclasses", "os", "sys"):
        return _attribute_of(sys.modules[kind.__module__], obj)
    return reduced


def _attribute_of(module: ModuleType, obj: Any, names: tuple[str, ...] = ()) -> Any:
    found = [name for name in names or list(vars(module)) if vars(module).get(name) is obj]
    return (getattr, (module, found[0])) if found else NotImplemented


def _is_refused(kind: type) -> bool:
    return any((cls.__module__, cls.__name__) in _REFUSED for cls in kind.__mro__)


def reduce_named(obj: Any, *, is_itself: bool) -> Any:
    """Return how to make a module, a NewType or a type variable that its own name does not mean, or is to mean."""
    if isinstance(obj, ModuleType):
        if sys.modules.get(obj.__name__) is obj:
            return importlib.import_module, (obj.__name__,)
        parts = {name: value for name, value in vars(obj).copy().items() if name not in _OF_IMPORTS}
        return _new_module, (() if type(obj) is ModuleType else (type(obj),)), parts
    kind, name, home = type(obj).__name__, getattr(obj, "__name__", ""), getattr(obj, "__module__", "")
    if not is_itself and vars(sys.modules.get(home, sys)).get(name) is obj:
        return NotImplemented
    args, options = [name], {}
    if kind == "NewType":
        args.append(obj.__supertype__)
    elif kind in ("TypeVar", "ParamSpec"):
        names = ("covariant", "contravariant", "bound", "infer_variance")
        options = {each: found for each in names if (found := getattr(obj, f"__{each}__", None))}
        args += getattr(obj, "__constraints__", ())
    elif kind != "TypeVarTuple":
        return NotImplemented
    if sys.version_info >= (3, 13) and kind != "NewType" and obj.has_default():
        options["default"] = obj.__default__
    return _typing, (kind, home, args, options)


def reduce_c_type(cls: Any) -> Any:
    """Return how to make a type that ctypes has derived from another, which has no name of its own."""
    import ctypes  # noqa: PLC0415 -- who has one of these has imported it

    kind = type(cls).__name__
    if kind == "PyCArrayType" and cls._type_ * cls._length_ is cls:
        return operator.mul, (cls._type_, cls._length_)
    if kind == "PyCPointerType" and ctypes.POINTER(cls._type_) is cls:
        return ctypes.POINTER, (cls._type_,)
    if kind == "PyCFuncPtrType":
        raise pickle.PicklingError(f"{cls!r} belongs to the process that made it")
    return NotImplemented


# ===== how things are made in a worker =====


def _new_module(kind: type[ModuleType] = ModuleType) -> ModuleType:
    made = kind.__new__(kind)
    ModuleType.__init__(made, "")  # up to CPython 3.10 it has no dict before; a subclass may ask for anything
    return made


def _typing(kind: str, module: str, args: list[Any], options: dict[str, Any]) -> Any:
    made = getattr(importlib.import_module("typing"), kind)(*args, **options)
    made.__module__ = module
    return made


def _cached(function: Any, parameters: dict[str, Any], attributes: dict[str, Any]) -> Any:
    made = functools.lru_cache(**parameters)(function)
    vars(made).update(attributes)
    return made


def _dispatching(registry: dict[type, Any], attributes: dict[str, Any]) -> Any:
    made: Any = functools.singledispatch(registry.pop(object))
    for kind, function in registry.items():
        made.register(kind, function)
    vars(made).update(attributes)
    return made


def _context_variable(key: int, name: str, *default: Any) -> ContextVar[Any]:
    made: ContextVar[Any] = ContextVar(name, default=default[0]) if default else ContextVar(name)
    return _variables.setdefault((key, name), made)


def _reduce_file(file: Any) -> Any:
    path, is_text = file.name, hasattr(file, "encoding")
    if not file.closed and path in _STANDARD:
        return _stream, (_STANDARD[path], () if is_text else _LAYERS[hasattr(file, "raw") :])
    if not isinstance(path, (str, bytes)) or file.closed:
        return NotImplemented
    options = {"encoding": file.encoding, "errors": file.errors} if is_text else {}
    return _open_again, (os.path.abspath(path), file.mode, options)  # noqa: PTH100 -- bytes too


def _stream(name: str, layers: tuple[str, ...]) -> Any:
    """Return this process's own standard stream, or what is below it."""
    found = getattr(sys, name)
    for layer in reversed(layers):
        found = getattr(found, layer, found)
    return found


def _open_again(path: Any, mode: str, options: dict[str, str]) -> Any:
    """Open a file of the owner's by its path: to read it from its start, to append to it; never to create or cut it."""
    kind, plus = "" if options else "b", "+" if "+" in mode else ""
    if not set(mode) & set("wax+"):
        return open(path, "r" + kind, **options)  # type: ignore[call-overload] # noqa: PTH123
    fd = os.open(path, (os.O_RDWR if plus else os.O_WRONLY) | os.O_APPEND | os.O_CLOEXEC)
    return os.fdopen(fd, "a" + plus + kind, **options)  # type: ignore[call-overload]


# ===== what is imported, or made by its own call =====


def imported_from(name: str, value: Any) -> tuple[str, str] | None:
    """Return the module that has this very object under this name (empty: under any), and the name."""
    kind = type(value)
    if (name and issubclass(kind, (FunctionType, type, ModuleType, *_ATOMS))) or kind.__module__ in scripts:
        return None
    for home, module in sys.modules.copy().items():
        if type(module) is ModuleType and home not in scripts:
            for each in (name,) if name else list(vars(module)):
                if vars(module).get(each) is value:
                    return home, each
    return None


def is_made_anew(value: Any, callee: Any) -> bool:
    """Return True if a worker may make a value by the call that made it here.

    What is called is imported, not a function of the script; the value is no process, program, thread or socket.
    """
    home = callee.__name__ if issubclass(type(callee), ModuleType) else getattr(callee, "__module__", None)
    if home is None or home in scripts or _is_refused(type(value)):
        return False
    return _NEVER.isdisjoint(_homes(type(value))) and not writes_to_file(value)


def writes_to_file(value: Any) -> bool:
    """Return True for an object that has a file, or a data base of `dbm`, to write to it."""
    if type(value).__name__ == "Wave_write" or not _DATA_BASES.isdisjoint(_homes(type(value))):
        return True
    try:
        mode, is_writable = getattr(value, "mode", None), getattr(value, "writable", None)
        if isinstance(mode, str):
            return not set(mode).isdisjoint("wxa+")
        return callable(is_writable) and is_writable() is True
    except Exception:  # noqa: BLE001 -- a closed file, or whatever else it is
        return False


def _homes(kind: type) -> set[str]:
    return {module_of(cls).partition(".")[0] for cls in kind.__mro__}
