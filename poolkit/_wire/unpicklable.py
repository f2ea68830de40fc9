"""Unpicklable: which part of a call or a result cannot be pickled, and where it stands.

The value is pickled once more, to see which of its parts is met last; then that part, its last part, and so on down,
and the last one that fails is named: `args[1]["lock"]: _thread.lock`.
"""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any

from poolkit._wire.buffers import Found
from poolkit._wire.functions import scan_code
from poolkit._wire.modules import cloudpickle_module
from poolkit._wire.pickles import PROTOCOL, Needs, pickler_of
from poolkit._wire.remote import is_of_handler, type_name
from poolkit.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Caught = type[BaseException] | tuple[type[BaseException], ...]
    # Things that stand side by side in a value, and how to write the way to each.
    Parts = tuple[Sequence[object], Callable[[int], str]]

_MAX_DEPTH = 24
_MOST_UNSEEN = 8
_UNSEEN = (-1, None)
_MAX_REPR = 60
_GENERATORS = types.GeneratorType, types.AsyncGeneratorType
_MESSAGES = {(f"poolkit.{home}", "_given") for home in ("_kinds.process", "_child.socket_channel", "testing.workforce")}
_ELSEWHERE = (
    "; make it in the worker, in the function or by an initializer, or use kind='thread', which pickles nothing"
)
_ADVICE = {
    "the call": _ELSEWHERE,
    "the initializer or its arguments": "; make it in the initializer, or use kind='thread', which pickles nothing",
    "the target or its arguments": _ELSEWHERE.replace(" or by an initializer,", ""),
    "the result": "; return something that can be, such as its data, or use kind='thread', which pickles nothing",
}
HOOKS_RAISE = (Exception, GeneratorExit, SystemExit)  # what a pickling hook may raise; the rest is for the program
_HARMLESS = frozenset({int, str, bytes, float, complex, bool, type(None)})
_HAVE = {types.MethodType: ("__self__", "__func__"), functools.partial: ("func", "args", "keywords")}


def serialization_error(
    subject: str, roots: Sequence[tuple[str, object]], error: BaseException, caught: Caught = Exception
) -> SerializationError:
    """Return the error that says which part of `roots`, each with the path that it goes by, cannot be pickled.

    And what to do instead. `error` is what pickling raised, `caught` what trial pickles may raise. Raises the
    SystemExit of a signal handler.
    """
    if caught is HOOKS_RAISE and isinstance(error, SystemExit) and is_of_handler(error):
        raise error
    reason, place, value = error, "", None
    is_too_deep = isinstance(error, RecursionError) or isinstance(error.__cause__ or error.__context__, RecursionError)
    if not is_too_deep:  # every level would fail alike, and the deepest one tried says nothing
        try:
            path, value, reason = _search([*roots], error, caught)
            place = f"{path}: {type_name(value)} " if path else ""
        except caught:  # an object so odd that even looking at it raises
            reason = error
    try:
        text = str(reason)
    except caught:
        text = "its message cannot be shown"
    hint = _ADVICE.get(subject, "")
    if subject == "the result" and isinstance(roots[0][1], _GENERATORS):
        hint = "; pool.stream() gives the items of a generator as they are made"
    elif isinstance(value, _GENERATORS):
        hint = "; make a list of it first"
    elif is_too_deep or type(value).__module__.startswith("poolkit."):  # whose own text says what to do
        hint = ""
    return SerializationError(f"cannot pickle {subject}: {place}({type(reason).__name__}: {text}){hint}")


def roots_of_call(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, list[tuple[str, object]]]:
    """Return what is packed, and its parts, each with the path that its user knows it by."""
    wrapper = _name(fn)
    if wrapper in _MESSAGES:
        return "the message", [("message", args[0])]
    if wrapper == ("poolkit._child.chunk", "run_chunk"):
        return "the call", [("fn", args[0]), *(("item", item) for item in args[1])]
    if wrapper == ("poolkit._child.stream", "run_stream"):
        return roots_of_call(*args[:3])
    label = "fn"
    if wrapper == ("poolkit._child.port", "run_target"):
        label, fn, args, kwargs = "target", args[1], args[2], {}
        target = _name(fn)
        if target == ("poolkit._child.serving", "serve"):
            fn, args = args[1], ()
        elif target == ("poolkit._child.hosting", "host"):
            label, fn, args = "factory", args[0], args[1:]
    roots: list[tuple[str, object]] = [(label, fn)]
    roots += [(f"args[{index}]", value) for index, value in enumerate(args)]
    roots += [(f'kwargs["{name}"]', value) for name, value in kwargs.items()]
    return "the call" if label == "fn" else f"the {label} or its arguments", roots


def _name(fn: Any) -> tuple[str, str] | None:
    """Module and name of a function; None of another object, whose attributes may be anything."""
    return (fn.__module__, fn.__name__) if type(fn) is types.FunctionType else None


class _Nowhere:
    write = staticmethod(len)


def _search(roots: list[tuple[str, object]], error: BaseException, caught: Caught) -> tuple[str, object, BaseException]:
    """Return path, value and error of the innermost part that fails; the path is "" when none does."""
    path, value, seen = "", None, dict[int, tuple[int, object]]()
    groups: Iterable[Parts] = [([each for _, each in roots], lambda index: roots[index][0])]
    _try([each for _, each in roots], caught, seen)
    for _ in range(_MAX_DEPTH):
        parts = [
            (seen.get(id(part), _UNSEEN)[0], part, label, at) for of, label in groups for at, part in enumerate(of)
        ]
        # of those that were met, the last one fails; what is made anew each time was not met
        likely = sorted(parts, key=lambda each: -each[0])[:1] + [each for each in parts if each[0] < 0][:_MOST_UNSEEN]
        failing = ((each, failure) for each in likely if (failure := _try(each[1], caught)) is not None)
        if (found := next(failing, None)) is None:
            break
        (_, value, label, at), error = found
        path += label(at)
        groups = _parts_of(value, caught)
    return path, value, error


def _try(value: object, caught: Caught, seen: dict[int, tuple[int, object]] | None = None) -> BaseException | None:
    """Return what pickling a value raises, or None; note in which order objects are met, and keep them.

    Else what is made anew in each pickling could have the id of one that is gone.
    """
    pickler = pickler_of(cloudpickle_module().Pickler)(_Nowhere(), None, Needs())
    if seen is not None:
        pickler.persistent_id = lambda obj: (seen.setdefault(id(obj), (len(seen), obj)), None)[1]
    try:
        with Found():  # a descriptor in it is handed over to nobody
            pickler.dump(value)
    except caught as error:
        return error.with_traceback(None)  # which would keep the frames of this search alive
    return None


def _parts_of(value: Any, caught: Caught) -> Iterator[Parts]:
    kind = type(value)
    if kind is list or kind is tuple:
        yield value, "[{}]".format
    elif kind is set or kind is frozenset:
        yield list(value), lambda _: " item"
    elif kind is dict:
        yield from _parts_of_mapping(value)
    elif kind is types.FunctionType:
        yield from _parts_of_function(value)
    elif kind in _HAVE:
        yield _named({name: getattr(value, name) for name in _HAVE[kind]})
    elif isinstance(value, type):
        yield _named(vars(value))
    else:
        yield from _parts_of_reduced(value, caught)


def _parts_of_reduced(value: Any, caught: Caught) -> Iterator[Parts]:
    """Ask the object itself what pickle would write; this covers attributes, slots and containers' children."""
    try:
        reduced = value.__reduce_ex__(PROTOCOL)
    except caught:  # then it is the object itself
        return
    if not isinstance(reduced, tuple):
        return
    arguments, state, items, pairs = (*reduced, None, None, None, None)[1:5]
    names = {id(part): f".{name}" for name, part in getattr(value, "__dict__", {}).items()}
    if isinstance(value, tuple):  # a named tuple's arguments are its class, then its items
        yield arguments, lambda index: f"[{index - 1}]" if index else " part 0"
    elif isinstance(value, BaseException):
        yield arguments, ".args[{}]".format
    else:
        yield arguments, lambda index: names.get(id(arguments[index]), f" part {index}")
    for mapping in state if type(state) is tuple else (state,):  # (of __dict__, of __slots__)
        yield _named(mapping) if type(mapping) is dict else ([mapping], lambda _: " state")
    yield list(items or ()), "[{}]".format
    yield from _parts_of_mapping(dict(pairs or ()))


def _named(parts: Mapping[Any, object], label: str = ".{}") -> Parts:
    return list(parts.values()), [label.format(name) for name in parts].__getitem__


def _parts_of_mapping(mapping: dict[Any, Any]) -> Iterator[Parts]:
    keys = list(mapping)
    yield list(mapping.values()), lambda index: _label_of(keys[index])
    yield keys, lambda _: " key"


def _label_of(key: Any) -> str:
    if type(key) is str:
        return f'["{key[:_MAX_REPR]}"]'
    return f"[{key!r}]" if type(key) in _HARMLESS else f"[{type_name(key)}]"


def _parts_of_function(function: types.FunctionType) -> Iterator[Parts]:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    yield _named(
        {name: each.cell_contents for name, each in cells.items() if each != types.CellType()}, ' closure "{}"'
    )
    yield function.__defaults__ or (), " default {}".format
    yield _named(function.__kwdefaults__ or {}, ' default "{}"')
    namespace, scan = function.__globals__, scan_code(function.__code__)
    yield _named({each: namespace[each] for each in (*scan.now, *scan.later) if each in namespace}, ' global "{}"')
    yield _named(function.__dict__)
