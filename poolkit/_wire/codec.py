"""Codec: how calls and outcomes become bytes, and back.

A call is two pieces of bytes. The first is the function when it travels alone, so that the bytes of a by-value
function are reused by the sender and its loaded form by the worker; empty when the whole call is one pickle.

    function bytes    body
    b""               (fn, args, kwargs)
    by name           (args, kwargs)      a function at the top of a module that the worker can import
    by value          (args, kwargs)      a function of `__main__`, a lambda, a closure

Only plain functions travel alone. A bound method, a partial or a callable instance may share objects with the
arguments, which only one pickle of all of it keeps the same, and has state that one call must not leave to the next.
A name is looked up for each call on both sides, as pickle does it, but without pickle: 2 us a call instead of 4.

An outcome is a result (`pack_value`) or an exception (`pack_error`). No header is ever put before a payload: that
would copy it.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections import namedtuple

from poolkit._wire.buffers import Found
from poolkit._wire.pickles import PROTOCOL, REUSABLE, SCRIPTS, dumps, dumps_plainly, is_by_value_requested, loads
from poolkit._wire.remote import load_error, pack_error

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


__all__ = ["load_call", "load_error", "load_value", "pack_call", "pack_error", "pack_value"]

_REUSABLE = REUSABLE[0]
_NONE = pickle.dumps(None, PROTOCOL)
_NO_ARGUMENTS = pickle.dumps(((), {}), PROTOCOL)
_KEPT_FUNCTIONS = 256
_KEPT_NBYTES = 64 * 1024


# A function that was loaded; one that went by name has module and name, which must still mean it.
_Kept = namedtuple("_Kept", "fn module name")  # noqa: PYI024

# owner: the worker's task loop, the only caller of load_call. Oldest first; bounded to 16 MiB of keys.
_functions: dict[bytes, _Kept] = {}

# Pickles of functions by module and name. One atomic operation at a time, from any thread.
_names: dict[tuple[str, str], bytes] = {}


def pack_call(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], found: Found | None = None
) -> tuple[bytes, Any]:
    """Return the function bytes and the body of a call, which has what is large in `found` (see `_wire/buffers.py`).

    Thread-safe. Runs the pickling hooks of the user's objects, on the caller's thread.

    Raises:
        SerializationError: something in the call cannot be pickled; the message names it.
    """
    try:
        if type(fn) is not types.FunctionType:
            return b"", dumps((fn, args, kwargs), found)
        name = _name_bytes(fn)
        if name is not None:
            return name, dumps((args, kwargs), found) if args or kwargs else _NO_ARGUMENTS
        # what is known to belong to the script is not worth pickling large arguments for in vain
        body = None if fn.__module__ in SCRIPTS else dumps_plainly((fn, args, kwargs), found)
        if body is not None:
            return b"", body
        from poolkit._wire.functions import pack_function  # noqa: PLC0415 -- only senders need it

        if found is not None:
            found.again()
        body = dumps((args, kwargs), found)  # first, as it may forget what was found before
        return pack_function(fn), body
    except Exception as error:
        from poolkit._wire.culprit import serialization_error  # noqa: PLC0415 -- only failures need it

        roots: list[tuple[str, object]] = [("fn", fn)]
        roots += [(f"args[{index}]", value) for index, value in enumerate(args)]
        roots += [(f'kwargs["{name}"]', value) for name, value in kwargs.items()]
        raise serialization_error("the call", roots, error) from error


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
    if kept is not None and (not kept.name or getattr(sys.modules.get(kept.module), kept.name, None) is kept.fn):
        fn = kept.fn
    else:
        fn = pickle.loads(fn_bytes)
        _keep(fn_bytes, fn)
    args, kwargs = pickle.loads(body, buffers=buffers)
    return fn, args, kwargs


def _keep(fn_bytes: bytes, fn: Callable[..., Any]) -> None:
    """Keep a function for the next call: one that is reusable, or one by name for as long as the name means it."""
    module = name = ""
    if fn_bytes[-1] != _REUSABLE:
        module, name = getattr(fn, "__module__", ""), getattr(fn, "__name__", "")
        if not name or getattr(sys.modules.get(module), name, None) is not fn:
            return
    if len(fn_bytes) <= _KEPT_NBYTES:
        if len(_functions) >= _KEPT_FUNCTIONS:
            del _functions[next(iter(_functions))]
        _functions[fn_bytes] = _Kept(fn, module, name)


def _name_bytes(fn: types.FunctionType) -> bytes | None:
    """The pickle of a function that is what its name means at the top of a module that a worker can import."""
    module, name = fn.__module__, fn.__name__
    if module in SCRIPTS or fn.__qualname__ != name or is_by_value_requested():
        return None
    namespace = getattr(sys.modules.get(module), "__dict__", None)
    if namespace is None or namespace.get(name) is not fn:
        return None
    data = _names.get((module, name))
    if data is None:
        data = pickle.dumps(fn, PROTOCOL)
        if len(_names) >= _KEPT_FUNCTIONS:
            _names.clear()
        _names[module, name] = data
    return data


def pack_value(value: object, found: Found | None = None) -> Any:
    """Return a result as bytes, with what is large in `found`.

    Raises:
        SerializationError: the result cannot be pickled; the message names the offending part. Nothing else escapes,
            not even a SystemExit raised by the result's own hooks: the worker goes on.
    """
    if value is None:  # the most frequent one
        return _NONE
    try:
        return dumps(value, found)
    except BaseException as error:
        from poolkit._wire.culprit import serialization_error  # noqa: PLC0415 -- only failures need it

        raise serialization_error("the result", [("result", value)], error, BaseException) from error


load_value = loads  # exceptions propagate as they are
