"""Items: one version of one name of a script module, in the form in which it travels.

    VALUE       a pickle: data, and functions by their code objects
    STATEMENT   the code of its own statement: classes, what has no pickle
    IMPORT      the name of a module, or of what has it
    ABSENT      why it cannot be had; nothing for a name that is not bound
    DEFINITION  a VALUE of whose versions the newest counts, where it travels
    INHERITED   any of them, where a worker has it, as it is a copy of this process

Beside the names of a module there are `Class.attribute` for attributes of a class that are data, `name#place` for
statements that act on a definition, and `*`: every plain function, for code that looks names up by itself.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
from _weakref import ref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import InitVar, dataclass, field
from operator import is_
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from poolkit._wire.functions import is_fixed
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.remote import raise_interrupt
from poolkit._wire.reseed import kinds

FOLLOWED = 1024  # bytes of the pickle of a value whose changes in place are followed

VALUE, STATEMENT, IMPORT, ABSENT, DEFINITION, INHERITED = range(1, 7)

Ref = tuple[str, str]  # module, name
T = TypeVar("T")

MISSING = object()
_GONE = object()
RESERVED = frozenset({
    "__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__", "__builtins__",
    "__annotations__", "__path__", "__annotate__", "__conditional_annotations__",
})  # fmt: skip


class Looks:
    """How a value looked, by which changes in place are told, as far as they are followed. Frozen after __init__."""

    __slots__ = ("digest", "is_followed", "length", "parts")

    def __init__(self, value: object) -> None:
        """Look at a value. Runs pickling hooks of the user's."""
        self.parts = parts_of(value) if type(value) is FunctionType else ()
        self.digest: tuple[bytes, tuple[Any, ...]] | None = None  # of what is small, its pickle, and what that names
        self.length: int | None = None  # of what is not, if it has one
        if not (issubclass(type(value), _DEFINITIONS) or _tried(is_fixed, value)):
            self.digest = _tried(_digest_of, value)
            if self.digest is None and hasattr(type(value), "__len__"):
                self.length = _tried(len, value)
        self.is_followed = (  # nearly all functions have neither defaults nor attributes
            self.parts[1:] != (None, None) if self.parts else (self.digest, self.length) != (None, None)
        )

    def agree(self, other: Looks) -> bool:
        """Return True if a value that looked like this looked like that."""
        return self.digest == other.digest and self.length == other.length and are_same(self.parts, other.parts)

    def are_those_of(self, value: Any) -> bool:
        """Return True if a value looks like this now."""
        if self.parts:
            return are_same(parts_of(value), self.parts)
        return not self.is_followed or bool(_tried(self._has_stayed, value))  # if that fails now, it has changed

    def _has_stayed(self, value: Any) -> bool:
        if self.digest is None:
            return len(value) == self.length
        data, met = self.digest
        if not met:
            return pickle.dumps(value, PROTOCOL) == data
        file = io.BytesIO()
        _Tracer(file, PROTOCOL).dump(value)
        return file.getvalue() == data and _is_alive(met)


def parts_of(function: FunctionType) -> tuple[object, ...]:
    """Return what a function has: its code, defaults and attributes."""
    own, defaults = function.__dict__, function.__kwdefaults__
    parts = (function.__code__, function.__defaults__, defaults, *own, *own.values())
    return (*parts, *defaults.values()) if defaults else parts


def are_same(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """Return True if these are the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


# ===== changes in place =====


class _TooLargeError(Exception):
    """The pickle of a value is too large for it to be followed."""


class _Bounded(io.BytesIO):
    """A file that takes little."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > FOLLOWED:
            raise _TooLargeError
        return super().write(data)


def _is_small(buffer: pickle.PickleBuffer) -> bool:
    if buffer.raw().nbytes > FOLLOWED:
        raise _TooLargeError
    return True


class _Tracer(pickle.Pickler):
    """Pickles in order to compare: what plain pickle refuses, such as lambdas and locks, is told by identity."""

    met: list[Any] | None = None

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) not in _BY_IDENTITY and not issubclass(type(obj), type):
            return None
        if self.met is not None:
            self.met.append(reference(obj))
        return id(obj)


_DEFINITIONS = (FunctionType, type, ModuleType)
_BY_IDENTITY = frozenset({
    *_DEFINITIONS, type(threading.Lock()), type(threading.RLock()), threading.local, ContextVar, io.TextIOWrapper,
    io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO,
})  # fmt: skip


def reference(value: Any) -> Any:
    """Return a weak reference to a value, or what looks like one."""
    try:
        return ref(value)
    except TypeError:
        return lambda: value


def _is_alive(references: Iterable[Any]) -> bool:
    """Return True if all of these are, so that nothing else has the identity of one."""
    return None not in [each() for each in references]


def _digest_of(value: object) -> tuple[bytes, tuple[Any, ...]] | None:
    """Return a pickle to compare with later ones, and what that tells by identity; None for what is large."""
    nbytes = getattr(value, "nbytes", 0) if hasattr(type(value), "nbytes") else 0
    if issubclass(type(value), kinds()) or (type(nbytes) is int and nbytes > FOLLOWED):
        return None  # a generator goes on in a worker from what was sent
    file = _Bounded()
    try:
        pickle.Pickler(file, PROTOCOL, buffer_callback=_is_small).dump(value)
    except _TooLargeError:
        return None
    except Exception:  # noqa: BLE001 -- what plain pickle refuses
        tracer = _Tracer(file := _Bounded(), PROTOCOL, buffer_callback=_is_small)
        tracer.met = []
        tracer.dump(value)
        met = tuple(tracer.met)
        return (file.getvalue(), met) if _is_alive(met) else None  # hooks may make other objects each time
    return file.getvalue(), ()


def _tried(function: Callable[[Any], T], value: Any) -> T | None:
    """Call what runs the user's own hooks; return None if those raise."""
    try:
        return function(value)
    except BaseException as error:  # noqa: BLE001 -- the user's own hooks
        raise_interrupt(error)
        return None


_UNFOLLOWED = Looks(None)


# ===== versions =====


@dataclass(eq=False, slots=True)
class Item:
    """One version of one name. Frozen once it is published, but for `weak` and `basis`."""

    module: str
    name: str
    kind: int
    payload: bytes
    value: InitVar[object]
    serial: int = 0  # larger than that of any version before
    looks: Looks = _UNFOLLOWED  # of its value, where changes in place count
    region: Any = None  # the shared memory that the payload lies in
    shell: bytes | None = None  # an empty container, under the name from the first, for what fills it while it is made
    now: tuple[Ref, ...] = ()  # what has to be there before it is made
    later: tuple[Ref, ...] = ()  # what is needed when it is used
    bound: tuple[tuple[Ref, int], ...] = ()  # names that the pickle refers to, and the ids of what they are bound to
    refers: bool = False  # whether a new version of one of these is a new version of it
    basis: tuple[int, ...] | None = None  # the versions of these that it was first used with
    circle: tuple[Ref, ...] = ()  # the names that are pickled together, as they refer to each other
    submodules: tuple[str, ...] = ()  # that its code reaches through packages
    line: tuple[int, int] = (0, 0)  # of a statement, behind the number of its input
    codes: set[Any] = field(default_factory=set)  # of a statement
    is_definition: bool = False  # see there
    assigned: frozenset[str] = frozenset()  # attributes that the script assigns to a class
    snapshot: dict[str, object] | None = None  # of a class: its attributes when it was first needed
    strong: object = None
    weak: Any = None  # only a weak reference is kept of what may be large

    def __post_init__(self, value: object) -> None:
        """Refer to the value."""
        self.strong = value
        if not issubclass(type(value), _DEFINITIONS):
            with contextlib.suppress(TypeError):
                self.weak, self.strong = ref(value), None

    def get(self) -> object:
        """Return the object that it was made of; another one if that is gone."""
        value = self.strong if self.weak is None else self.weak()
        return value if value is not None or self.weak is None else _GONE

    def is_current(self, value: object) -> bool:
        """Return True if it still is what the name means."""
        return self.get() is value and self.looks.are_those_of(value)

    def record(self, *, is_inherited: bool = False) -> tuple[Any, ...]:
        """Return what travels."""
        if is_inherited:
            return self.serial, self.module, self.name, INHERITED, b"", None, None, ()
        kind = DEFINITION if self.kind == VALUE and self.is_definition else self.kind
        number = None if self.region is None else self.region.id
        return self.serial, self.module, self.name, kind, self.payload, number, self.shell, self.submodules
