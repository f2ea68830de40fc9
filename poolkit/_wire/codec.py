"""Codec: how calls and outcomes become bytes, and back.

A call is two pieces of bytes. The first is the function when it travels alone, so that the worker can keep it; empty
when the whole call is one pickle.

    function bytes    body
    b""               (fn, args, kwargs)
    by name           (args, kwargs)      a function at the top of a module, the script included
    by value          (args, kwargs)      a lambda, a closure

Only plain functions travel alone. A bound method, a partial or a callable instance may share objects with the
arguments, and has state that one call must not leave to the next.
With the call goes its manifest: what it needs of the script (`plans.py`).
An outcome is a result (`pack_value`) or an exception (`pack_error`).
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from _weakref import ref  # the module weakref would be one more import in every worker
from collections.abc import Callable, Iterable

from poolkit._typing import TYPE_CHECKING, Any
from poolkit._wire import modules
from poolkit._wire.buffers import PLAIN, Found
from poolkit._wire.functions import is_reusable
from poolkit._wire.handover import guard
from poolkit._wire.modules import meaning, scripts
from poolkit._wire.pickles import BY_VALUE, PROTOCOL, REUSABLE, Needs, dumps, dumps_plainly, loads, pickler_of
from poolkit._wire.remote import load_error, pack_error

if TYPE_CHECKING:
    from poolkit._wire.plans import Manifest


__all__ = ["load_call", "load_error", "load_value", "pack_call", "pack_error", "pack_value"]

_REUSABLE = REUSABLE[0]
NONE = pickle.dumps(None, PROTOCOL)
_NO_ARGUMENTS = pickle.dumps(((), {}), PROTOCOL)
_KEPT_FUNCTIONS = 256
_KEPT_NBYTES = 64 * 1024


# Functions that were loaded, oldest first; one that went by name has module and name, which must still mean it.
# Owner: the worker's task loop, the only caller of load_call.
_functions: dict[bytes, tuple[Callable[..., Any], str, str]] = {}
# Of each of the others, one atomic operation at a time, from any thread.
# Calls without arguments of functions by module and name.
_names: dict[tuple[str, str], tuple[bytes, bytes, None]] = {}
# Functions by value whose bytes can be used again: code and defaults that they had, the bytes, and the names needed.
_values: dict[Any, tuple[Any, Any, bytes, frozenset[tuple[str, str]]]] = {}


def _forget(_new: object) -> None:
    """Pack anew what may have gone by the name of a module."""
    _names.clear()
    _values.clear()


modules.when_more.append(_forget)


in_worker = False  # this process is a worker; set at its boot


def pack_call(  # noqa: C901, PLR0912 -- on the way of every task
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], found: Found | None = None
) -> tuple[bytes, Any, Manifest | None]:
    """Return the function bytes, the body and the manifest of a call; what is large is in `found` (`buffers.py`).

    Thread-safe. Runs the pickling hooks of the user's objects, on the caller's thread.

    Raises:
        SerializationError: something in the call cannot be pickled; the message names it.
        RuntimeError: this is a worker that just imports the module of the function.
    """
    if in_worker:
        _refuse_while_imported(fn, *args[:2])  # the second is what `map`, or a stream, calls; the third a target
    try:
        try:  # as `modules.newest_name` has it
            is_known = len(sys.modules) == modules.count and next(reversed(sys.modules), "") is modules.newest
        except RuntimeError:
            is_known = False
        if not is_known:
            modules.look()
        root: tuple[str, str] | None = None
        content: Any
        if type(fn) is types.FunctionType and (by_name := _by_name(fn)) is not None:
            fn_bytes, content = by_name[0], (args, kwargs)
            if (module := fn.__module__) in scripts:
                root = module, fn.__name__
                if not args and not kwargs:
                    return fn_bytes, _NO_ARGUMENTS, _manifest_for(root, _NO_NAMES)
            elif not args and not kwargs:
                return by_name
            names = _NO_NAMES
        elif type(fn) is types.FunctionType and (packed := _pack_function(fn)) is not None:
            fn_bytes, names = packed
            content = (args, kwargs)
        else:
            fn_bytes, names, content = b"", _NO_NAMES, (fn, args, kwargs)
        body = None
        if not _are_of_script(args) and (fn_bytes or type(fn) is not types.FunctionType):
            body = dumps_plainly(content, found)
        if body is None:
            needs = Needs()
            body = dumps(content, found, needs, plainly=False)
            names = names.union(needs.now, needs.later)
        if found is not None and found.names:
            names = names.union(found.names)
        return fn_bytes, body, _manifest_for(root, names) if root is not None or names else None
    except (Exception, GeneratorExit, SystemExit) as error:
        from poolkit._wire.unpicklable import (  # noqa: PLC0415 -- only failures need it
            HOOKS_RAISE,
            roots_of_call,
            serialization_error,
        )

        raise serialization_error(*roots_of_call(fn, args, kwargs), error, HOOKS_RAISE) from error


_NO_NAMES: frozenset[tuple[str, str]] = frozenset()


def _refuse_while_imported(*functions: object) -> None:
    """Without this, each worker would import the module, and so start another that does."""
    for each in functions:
        fn: Any = each
        while type(fn) in (functools.partial, types.MethodType):
            fn = fn.func if type(fn) is functools.partial else fn.__func__
        if type(fn) is types.FunctionType:
            name = str(fn.__module__)
            while name and not getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False):
                name = name.rpartition(".")[0]  # its package: that is imported before it
            if name:
                msg = (
                    f"{name} submits calls of its own {fn.__qualname__}() while it is imported, and each "
                    "worker that is to run one imports it, too: put what uses the pool into a function, or behind "
                    "`if __name__ == '__main__':`"
                )
                raise RuntimeError(msg)


def _are_of_script(values: Iterable[object]) -> bool:
    """Return True if pickle's own pickler is tried in vain, as one of these is of a script module."""
    for value in values:
        home = value.__module__ if type(value) is types.FunctionType else type(value).__module__
        if home in scripts or home not in sys.modules:
            return True
    return False


def _manifest_for(root: tuple[str, str] | None, names: frozenset[tuple[str, str]]) -> Manifest | None:
    global _planner  # noqa: PLW0603 -- an import each time would cost each call 1 us
    if _planner is None:
        from poolkit._wire.plans import manifest_for  # noqa: PLC0415 -- only senders need it

        _planner = manifest_for
    return _planner(root, names)


_planner: Callable[..., Manifest | None] | None = None


def _pack_function(function: types.FunctionType) -> tuple[bytes, frozenset[tuple[str, str]]] | None:
    """Return the bytes of a function by value, and the names that it needs; None if it has to go with its arguments."""
    if modules.is_registered():
        return None
    known = _values.get(ref(function))
    if (
        known is not None
        and known[0] is function.__code__
        and known[1] is function.__defaults__
        and not function.__dict__
        and not function.__kwdefaults__
    ):
        return known[2:]
    needs, file = Needs(), io.BytesIO()
    state = function.__code__, function.__defaults__
    reusable = is_reusable(function)
    try:
        with guard():  # descriptors cannot go with a function that is kept
            pickler_of(pickle.Pickler)(file, None, needs).dump(function)
    except Exception:  # noqa: BLE001 -- cloudpickle has the last word
        return None
    file.write(REUSABLE if reusable else BY_VALUE)
    packed, names = file.getvalue(), frozenset(needs.now | needs.later)
    if reusable and not function.__closure__ and not function.__kwdefaults__ and len(packed) <= _KEPT_NBYTES:
        _values[ref(function, lambda reference: _values.pop(reference, None))] = (*state, packed, names)
    return packed, names


def load_call(
    fn_bytes: bytes, body: bytes | bytearray | memoryview, buffers: Iterable[Any] = ()
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return function, arguments and keyword arguments of a packed call; exceptions propagate as they are.

    Not thread-safe: called by the one thread of a worker that loads calls.
    """
    if not fn_bytes:
        fn, args, kwargs = pickle.loads(body, buffers=buffers)
        return fn, args, kwargs
    kept = _functions.get(fn_bytes)
    if kept is not None and (not kept[2] or meaning(kept[1], kept[2]) is kept[0]):
        fn = kept[0]
    else:
        fn = pickle.loads(fn_bytes)
        _keep(fn_bytes, fn)
    if body == _NO_ARGUMENTS:
        return fn, (), {}
    args, kwargs = pickle.loads(body, buffers=buffers) if buffers else pickle.loads(body)
    return fn, args, kwargs


def _keep(fn_bytes: bytes, fn: Callable[..., Any]) -> None:
    """Keep a function for the next call: one that is reusable, or one by name for as long as the name means it."""
    module = name = ""
    if fn_bytes[-1] != _REUSABLE:
        module, name = getattr(fn, "__module__", ""), getattr(fn, "__name__", "")
        if not name or meaning(module, name) is not fn:
            return
    if len(fn_bytes) <= _KEPT_NBYTES:
        if len(_functions) >= _KEPT_FUNCTIONS:
            del _functions[next(iter(_functions))]
        _functions[fn_bytes] = fn, module, name


def _by_name(fn: types.FunctionType) -> tuple[bytes, bytes, None] | None:
    """Return the call without arguments of a function that is what its name means at the top of its module."""
    module, name = fn.__module__, fn.__name__
    if fn.__qualname__ != name or ("cloudpickle" in sys.modules and modules.is_registered()):
        return None
    namespace = getattr(sys.modules.get(module), "__dict__", None)
    if namespace is None or namespace.get(name) is not fn:
        return None
    call = _names.get((module, name))
    if call is None:
        call = dumps(fn), _NO_ARGUMENTS, None
        if len(_names) >= _KEPT_FUNCTIONS:
            _names.clear()
        _names[module, name] = call
    return call


def pack_value(value: object, found: Found | None = None) -> Any:
    """Return a result as bytes, with what is large in `found`.

    Raises:
        SerializationError: the result cannot be pickled, whatever its own hooks raise; the message names the part.
    """
    if value is None:  # the most frequent one
        return NONE
    try:
        return pickle.dumps(value, PROTOCOL) if type(value) in PLAIN else dumps(value, found)
    except BaseException as error:
        from poolkit._wire.unpicklable import serialization_error  # noqa: PLC0415 -- only failures need it

        raise serialization_error("the result", [("result", value)], error, BaseException) from error


load_value = loads  # exceptions propagate as they are
