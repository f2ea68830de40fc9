"""Numbering: pickles in which exceptions are numbers, so that each exception of a graph is packed once and apart."""

from __future__ import annotations

import io
import pickle

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
        buffer = io.BytesIO()
        try:
            _Numbering(buffer, number_of).dump(value)
        except Exception:  # noqa: BLE001, S110 -- cloudpickle has the last word
            pass
        else:
            data = buffer.getvalue()
            if SCRIPT_MARK not in data:
                return data
    buffer = io.BytesIO()
    _numbering_by_value()(buffer, number_of).dump(value)
    buffer.write(BY_VALUE)
    return buffer.getvalue()


def loads_numbered(data: bytes, error_at: Callable[[int], BaseException]) -> Any:
    """Unpickle with `error_at(number)` in place of each number."""
    return _Numbered(io.BytesIO(data), error_at).load()


class _Numbering(pickle.Pickler):
    def __init__(self, file: io.BytesIO, number_of: NumberOf) -> None:
        super().__init__(file, PROTOCOL)
        self._number_of = number_of

    def persistent_id(self, found: object) -> int | None:
        return self._number_of(found)


class _Numbered(ClassKeepingUnpickler):
    def __init__(self, file: io.BytesIO, error_at: Callable[[int], BaseException]) -> None:
        super().__init__(file)
        self._error_at = error_at

    def persistent_load(self, number: int) -> BaseException:
        return self._error_at(number)


def _numbering_by_value() -> Callable[[io.BytesIO, NumberOf], Any]:
    """Return `_Numbering` over cloudpickle's pickler; a class made late, since cloudpickle is slow to import."""
    import cloudpickle  # noqa: PLC0415 -- see above

    class NumberingByValue(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        def __init__(self, file: io.BytesIO, number_of: NumberOf) -> None:
            super().__init__(file, PROTOCOL)
            self._number_of = number_of

        def persistent_id(self, found: object) -> int | None:
            return self._number_of(found)

    return NumberingByValue
