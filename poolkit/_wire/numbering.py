"""Numbering: pickles in which exceptions are numbers, so that each exception of a graph is packed once and apart."""

from __future__ import annotations

import io
import pickle

from poolkit._wire import handover
from poolkit._wire.pickles import BY_VALUE, PROTOCOL, SCRIPT_MARK, ClassKeepingUnpickler, is_by_value_requested

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    NumberOf = Callable[[object], "int | None"]

__all__ = ["dumps_numbered", "loads_numbered"]


def dumps_numbered(value: object, number_of: NumberOf) -> bytes:
    """Pickle plainly if possible, else by value; `number_of` gives an exception's number, None for anything else."""
    if not is_by_value_requested():
        try:
            data = _dump(_Pickler, value, number_of, handover.plain_table())
        except Exception:  # noqa: BLE001, S110 -- cloudpickle has the last word
            pass
        else:
            if SCRIPT_MARK not in data:
                return data
    import cloudpickle  # noqa: PLC0415 -- slow to import

    return _dump(handover.by_value_pickler(cloudpickle.Pickler), value, number_of) + BY_VALUE


def loads_numbered(data: bytes, error_at: Callable[[int], BaseException]) -> Any:
    """Unpickle with `error_at(number)` in place of each number."""
    unpickler: Any = ClassKeepingUnpickler(io.BytesIO(data))
    unpickler.persistent_load = error_at
    return unpickler.load()


class _Pickler(pickle.Pickler):
    """One that can be given a `persistent_id`, as cloudpickle's can."""


def _dump(make_pickler: Any, value: object, number_of: NumberOf, table: Any = None) -> bytes:
    buffer = io.BytesIO()
    pickler = make_pickler(buffer, protocol=PROTOCOL)
    pickler.persistent_id = number_of
    if table is not None:
        pickler.dispatch_table = table
    with handover.Guard():
        pickler.dump(value)
    return buffer.getvalue()
