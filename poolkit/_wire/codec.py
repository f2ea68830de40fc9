"""Codec: how calls and outcomes become bytes, and back.

A call is two pieces of bytes. The first is the function when it travels alone, so that the bytes of a by-value
function are reused by the sender and its loaded form by the worker; empty when the whole call is one pickle.

    function bytes    body
    b""               (fn, args, kwargs)
    by name           (args, kwargs)      the function is importable, an argument is not
    by value          (args, kwargs)      a function of `__main__`, a lambda, a closure

Only plain functions travel alone. A bound method, a partial or a callable instance may share objects with the
arguments, which only one pickle of all of it keeps the same, and has state that one call must not leave to the next.

An outcome is a result (`pack_value`) or an exception (`pack_error`). No header is ever put before a payload: that
would copy it.
"""

from __future__ import annotations

import pickle
import types
from typing import TYPE_CHECKING, Any

from poolkit._wire.functions import REUSABLE, pack_function
from poolkit._wire.pickles import dumps, dumps_plainly, loads
from poolkit._wire.remote import load_error, pack_error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["load_call", "load_error", "load_value", "pack_call", "pack_error", "pack_value"]

_REUSABLE = REUSABLE[0]
_KEPT_FUNCTIONS = 256
_KEPT_NBYTES = 64 * 1024

# owner: the worker's task loop, the only caller of load_call. Oldest first; bounded to 16 MiB of keys.
_functions: dict[bytes, Callable[..., Any]] = {}


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return the function bytes and the body of a call.

    Thread-safe. Runs the pickling hooks of the user's objects, on the caller's thread.

    Raises:
        SerializationError: something in the call cannot be pickled; the message names it.
    """
    try:
        if type(fn) is not types.FunctionType:
            return b"", dumps((fn, args, kwargs))
        # what is known to belong to __main__ is not worth pickling large arguments for in vain
        body = None if fn.__module__ == "__main__" else dumps_plainly((fn, args, kwargs))
        if body is not None:
            return b"", body
        return pack_function(fn), dumps((args, kwargs))
    except Exception as error:
        from poolkit._wire.culprit import serialization_error  # noqa: PLC0415 -- only failures need it

        roots: list[tuple[str, object]] = [("fn", fn)]
        roots += [(f"args[{index}]", value) for index, value in enumerate(args)]
        roots += [(f'kwargs["{name}"]', value) for name, value in kwargs.items()]
        raise serialization_error("the call", roots, error) from error


def load_call(
    fn_bytes: bytes, body: bytes | bytearray | memoryview
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return function, arguments and keyword arguments of a packed call; exceptions propagate as they are.

    Not thread-safe: called by the one thread of a worker that loads calls.
    """
    if not fn_bytes:
        fn, args, kwargs = pickle.loads(body)
        return fn, args, kwargs
    fn = _functions.get(fn_bytes)
    if fn is None:
        fn = pickle.loads(fn_bytes)
        if fn_bytes[-1] == _REUSABLE and len(fn_bytes) <= _KEPT_NBYTES:
            if len(_functions) >= _KEPT_FUNCTIONS:
                del _functions[next(iter(_functions))]
            _functions[fn_bytes] = fn
    args, kwargs = pickle.loads(body)
    return fn, args, kwargs


def pack_value(value: object) -> bytes:
    """Return a result as bytes.

    Raises:
        SerializationError: the result cannot be pickled; the message names the offending part. Nothing else escapes,
            not even a SystemExit raised by the result's own hooks: the worker goes on.
    """
    try:
        return dumps(value)
    except BaseException as error:
        from poolkit._wire.culprit import serialization_error  # noqa: PLC0415 -- only failures need it

        raise serialization_error("the result", [("result", value)], error, BaseException) from error


def load_value(data: bytes | bytearray | memoryview) -> Any:
    """Return the result that `pack_value` packed; exceptions propagate as they are."""
    return loads(data)
