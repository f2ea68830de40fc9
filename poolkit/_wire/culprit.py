"""Culprit search: which part of a call or a result cannot be pickled, and where it stands.

Pickle says only "cannot pickle '_thread.lock' object". The search pickles parts of the value, then parts of the first
part that fails, and so on down, and names the last one: `args[1]["lock"]: _thread.lock`.

Bounds: at most `_MAX_PROBES` trial pickles and `_MAX_DEPTH` levels, so the search may stop early, at a part that only
contains the culprit. Long containers are halved, not walked. Trial pickles are written to nowhere, so that a large
value costs no memory. An object that is its own descendant is entered once.
"""

from __future__ import annotations

import functools
import signal
import types
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit._wire import handover
from poolkit._wire.buffers import Found
from poolkit._wire.functions import scan_code
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.remote import type_name
from poolkit.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Caught = type[BaseException] | tuple[type[BaseException], ...]


_MAX_PROBES = 200
_MAX_DEPTH = 24
_MAX_REPR = 60
HOOKS_RAISE = (Exception, GeneratorExit, SystemExit)  # what a pickling hook may raise; the rest is for the program


class _Parts(NamedTuple):
    """Things that stand side by side in a value, and how to write the way to each."""

    values: Sequence[object]
    label: Callable[[int], str]


def serialization_error(
    subject: str,
    roots: Iterable[tuple[str, object]],
    error: BaseException,
    caught: Caught = Exception,
) -> SerializationError:
    """Return the error that says which part of `roots` cannot be pickled.

    Args:
        subject: what was being pickled, for the message.
        roots: the parts to search, each with the path that it goes by.
        error: what pickling raised.
        caught: what trial pickles may raise; BaseException where nothing may escape.

    Raises:
        SystemExit: it is no error of the call.
    """
    if caught is HOOKS_RAISE and _is_of_handler(error):
        raise error
    reason = error
    place = ""
    if not _is_too_deep(error):  # every level would fail alike, and the deepest one tried says nothing
        try:
            path, value, reason = _Search(caught).run(list(roots), error)
        except caught:  # an object so odd that even looking at it raises
            pass
        else:
            place = f"{path}: {type_name(value)} " if path else ""
    return SerializationError(f"cannot pickle {subject}: {place}({type(reason).__name__}: {_text_of(reason, caught)})")


def _is_too_deep(error: BaseException) -> bool:
    return isinstance(error, RecursionError) or isinstance(error.__cause__ or error.__context__, RecursionError)


def _is_of_handler(error: BaseException) -> bool:
    """Return True if the handler of a signal raised this, as one that exits does: it is meant for the program."""
    handlers = [getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()]
    trace = error.__traceback__ if isinstance(error, SystemExit) else None
    while trace is not None and trace.tb_frame.f_code not in handlers:
        trace = trace.tb_next
    return trace is not None


def _text_of(error: BaseException, caught: Caught) -> str:
    try:
        return str(error)
    except caught:
        return "its message cannot be shown"


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


class _Search:
    """One search. Local to one call."""

    def __init__(self, caught: Caught) -> None:
        self._caught = caught
        self._probes_left = _MAX_PROBES

    def run(self, roots: Sequence[tuple[str, object]], error: BaseException) -> tuple[str, object, BaseException]:
        """Return path, value and error of the innermost part that fails; the path is "" when none does."""
        path, value = "", None
        groups = [_Parts([value for _, value in roots], lambda index: roots[index][0])]
        entered: set[int] = set()
        for _ in range(_MAX_DEPTH):
            step = self._first_failure(groups, entered)
            if step is None:
                break
            label, value, error = step
            path += label
            entered.add(id(value))
            groups = list(self._parts_of(value))
        return path, value, error

    def _first_failure(self, groups: Iterable[_Parts], entered: set[int]) -> tuple[str, object, BaseException] | None:
        for values, label in groups:
            low, high = 0, len(values)
            while high - low > 8:  # noqa: PLR2004 -- below, one by one is as quick
                middle = (low + high) // 2
                if self._probe(list(values[low:middle])) is not None:
                    high = middle
                else:
                    low = middle
            for index in range(low, high):
                value = values[index]
                if id(value) in entered:
                    continue
                error = self._probe(value)
                if error is not None:
                    return label(index), value, error
        return None

    def _probe(self, value: object) -> BaseException | None:
        """Return what pickling `value` raises, or None when it works or the probes are used up."""
        if type(value) in _HARMLESS or not self._probes_left:
            return None
        self._probes_left -= 1
        import cloudpickle  # noqa: PLC0415 -- loaded by now: it failed just before

        try:
            with Found():  # a descriptor in it is handed over to nobody
                handover.by_value_pickler(cloudpickle.Pickler)(_Nowhere(), protocol=PROTOCOL).dump(value)
        except self._caught as error:
            # its traceback would keep the frames of this search, and the values in them, alive
            return error.with_traceback(None)
        return None

    def _parts_of(self, value: Any) -> Iterable[_Parts]:
        if isinstance(value, type):
            return [_named(vars(value))]
        split = _SPLITTERS.get(type(value))
        return self._parts_of_reduced(value) if split is None else split(value)

    def _parts_of_reduced(self, value: Any) -> Iterable[_Parts]:
        """Ask the object itself what pickle would write; this covers attributes, slots and containers' children."""
        try:
            reduced = value.__reduce_ex__(PROTOCOL)
        except self._caught:
            return []  # then the object is the culprit
        if not isinstance(reduced, tuple):
            return []
        arguments, state, items, pairs = (*reduced, None, None, None, None)[1:5]
        attributes = getattr(value, "__dict__", {})
        names = {id(part): name for name, part in attributes.items()}
        offset = 1 if isinstance(value, tuple) else 0  # a named tuple's arguments are its class, then its items

        def label_argument(index: int) -> str:
            part = arguments[index]
            if offset and index >= offset:
                return f"[{index - offset}]"
            if isinstance(value, BaseException):
                return f".args[{index}]"
            return f".{names[id(part)]}" if id(part) in names else f" part {index}"

        groups = [_Parts(arguments, label_argument)]
        for mapping in state if type(state) is tuple else (state,):  # (of __dict__, of __slots__)
            if type(mapping) is dict:
                groups.append(_named(mapping))
            else:
                groups.append(_Parts([mapping], lambda _: " state"))
        groups.append(_Parts(list(items or ()), "[{}]".format))
        groups.extend(_parts_of_mapping(dict(pairs or ())))
        return groups


_HARMLESS = frozenset({int, str, bytes, float, complex, bool, type(None)})


def _named(parts: Mapping[Any, object], label: str = ".{}") -> _Parts:
    return _Parts(list(parts.values()), [label.format(name) for name in parts].__getitem__)


def _parts_of_mapping(mapping: dict[Any, Any]) -> list[_Parts]:
    keys = list(mapping)

    def label(index: int) -> str:
        key = keys[index]
        if type(key) is str:
            return f'["{key[:_MAX_REPR]}"]'
        return f"[{key!r}]" if type(key) in _HARMLESS else f"[{type_name(key)}]"

    return [_Parts(list(mapping.values()), label), _Parts(keys, lambda _: " key")]


def _parts_of_function(function: types.FunctionType) -> list[_Parts]:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    contents = {name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()}  # not the empty
    namespace = function.__globals__
    scan = scan_code(function.__code__)
    names = (*scan.now, *scan.later)
    return [
        _named(contents, ' closure "{}"'),
        _Parts(function.__defaults__ or (), " default {}".format),
        _named(function.__kwdefaults__ or {}, ' default "{}"'),
        _named({name: namespace[name] for name in names if name in namespace}, ' global "{}"'),
        _named(function.__dict__),
    ]


_SPLITTERS: dict[type, Callable[[Any], list[_Parts]]] = {
    list: lambda value: [_Parts(value, "[{}]".format)],
    tuple: lambda value: [_Parts(value, "[{}]".format)],
    set: lambda value: [_Parts(list(value), lambda _: " item")],
    frozenset: lambda value: [_Parts(list(value), lambda _: " item")],
    dict: _parts_of_mapping,
    types.FunctionType: _parts_of_function,
    types.MethodType: lambda value: [_named({"__self__": value.__self__, "__func__": value.__func__})],
    functools.partial: lambda value: [_named({"func": value.func, "args": value.args, "keywords": value.keywords})],
}
