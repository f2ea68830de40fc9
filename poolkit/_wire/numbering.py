"""Numbering: pickles in which exceptions are numbers, so that each exception of a graph is packed once and apart."""

from __future__ import annotations

import io
import pickle

from poolkit._wire import handover
from poolkit._wire.cloud import cloudpickle_module
from poolkit._wire.modules import is_registered
from poolkit._wire.pickles import BY_VALUE, ClassKeepingUnpickler, Needs, pickler_of

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    NumberOf = Callable[[object], "int | None"]


def dumps_numbered(value: object, number_of: NumberOf) -> bytes:
    """Pickle plainly if possible, else by value; `number_of` gives an exception's number, None for anything else."""
    if not is_registered():
        try:
            return _dump(pickle.Pickler, value, number_of)
        except Exception:  # noqa: BLE001, S110 -- cloudpickle has the last word
            pass
    return _dump(handover.by_value_pickler(cloudpickle_module().Pickler), value, number_of) + BY_VALUE


def loads_numbered(data: bytes, error_at: Callable[[int], BaseException]) -> Any:
    """Unpickle with `error_at(number)` in place of each number."""
    unpickler: Any = ClassKeepingUnpickler(io.BytesIO(data))
    unpickler.persistent_load = error_at
    return unpickler.load()


def _dump(base: Any, value: object, number_of: NumberOf) -> bytes:
    buffer = io.BytesIO()
    pickler = pickler_of(base)(buffer, None, Needs())
    pickler.persistent_id = number_of
    if base is pickle.Pickler and (table := handover.plain_table()) is not None:
        pickler.dispatch_table = table
    with handover.Guard():
        pickler.dump(value)
    return buffer.getvalue()
