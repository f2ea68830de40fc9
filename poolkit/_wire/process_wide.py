"""Globals: what a value among the globals of a script is in a worker, where it cannot simply be copied there.

Each process has its own of what belongs to a process: locks, thread-local data, context variables, open files. They are
made anew; only among globals, as arguments of a call they are errors.
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
_streams = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
_variables: dict[tuple[int, str], ContextVar[Any]] = {}  # a worker's own, by the owner's id and name


def reduce_global(obj: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 -- one kind of object after another
    """Return how to make an object anew, for a pickler's `reducer_override`; NotImplemented if it is not of these."""
    kind = type(obj)
    if (reduced := reduce_generator(obj)) is not NotImplemented:
        return reduced
    if any((cls.__module__, cls.__name__) in _REFUSED for cls in kind.__mro__):
        raise pickle.PicklingError(f"{kind.__name__} objects belong to the process that made them")
    refuse_archive(obj)
    if kind is _LOCK:
        return threading.Lock, ()
    if kind is _RLOCK:
        return threading.RLock, ()
    if issubclass(kind, threading.local):
        return kind, ()
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
    if kind.__module__ == "ctypes" and hasattr(obj, "_FuncPtr"):
        return _reduce_library(obj)
    if kind.__module__ in ("dataclasses", "os", "sys"):
        module = sys.modules[kind.__module__]
        for name, value in vars(module).items():
            if value is obj:
                return getattr, (module, name)
    return NotImplemented


def refuse_archive(value: Any) -> None:
    """Raise PicklingError for an archive or data base that is written to: two that do would spoil it."""
    if not _FILES.isdisjoint(_homes(type(value))) and writes_to_file(value):
        raise pickle.PicklingError(f"{type(value).__name__} objects that write to a file belong to one process")


def reduce_named(obj: Any, *, is_itself: bool) -> Any:
    """Return how to make a module, a NewType or a type variable that its own name does not mean, or is to mean."""
    if isinstance(obj, ModuleType):
        if sys.modules.get(obj.__name__) is obj:
            return importlib.import_module, (obj.__name__,)
        parts = {name: value for name, value in vars(obj).items() if name not in _OF_IMPORTS}
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


def _reduce_library(library: Any) -> Any:
    functions = {
        name: (each.restype, each.argtypes, each.errcheck)
        for name, each in vars(library).items()
        if isinstance(each, library._FuncPtr)  # noqa: SLF001 -- its only door
    }
    flags = library._FuncPtr._flags_  # noqa: SLF001 -- its only door
    return _library, (type(library), library._name, bool(flags & _USE_ERRNO), functions)  # noqa: SLF001 -- the same


_USE_ERRNO = 8  # as _ctypes.FUNCFLAG_USE_ERRNO


def _library(kind: Any, name: Any, use_errno: bool, functions: dict[str, Any]) -> Any:
    """Load a shared library, and give its functions the types that they had."""
    library = kind(name, use_errno=use_errno)
    for each, (restype, argtypes, errcheck) in functions.items():
        function = getattr(library, each)
        function.restype = restype
        if argtypes is not None:
            function.argtypes = argtypes
        if errcheck is not None:
            function.errcheck = errcheck
    return library


def _new_module(kind: type[ModuleType] = ModuleType) -> ModuleType:
    made = kind.__new__(kind)
    ModuleType.__init__(made, "")  # up to CPython 3.10 it has no dict before; a subclass may ask for anything
    return made


def _typing(kind: str, module: str, args: list[Any], options: dict[str, Any]) -> Any:
    import typing  # noqa: PLC0415 -- who has one of these has imported it

    made = getattr(typing, kind)(*args, **options)
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


def is_random_generator(value: Any) -> bool:
    """Return True for a generator of random numbers, which goes on in a worker from what was sent."""
    for cls in type(value).__mro__:
        if cls.__module__ == "random" and cls.__name__ == "Random":
            return True
        if module_of(cls).startswith("numpy.random") and cls.__name__ in ("Generator", "RandomState", "BitGenerator"):
            return True
    return False
