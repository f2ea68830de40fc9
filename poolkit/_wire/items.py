"""Items: one version of one name of a script module, in the form in which it travels.

    VALUE       a pickle: data, and functions by their code objects
    STATEMENT   the code of its own statement: classes, what has no pickle
    IMPORT      the name of a module, or of what has it
    ABSENT      why it cannot be had; nothing for a name that is not bound
    DEFINITION  what a VALUE is called where it travels, if of its versions the newest counts
    INHERITED   what any of them is called where a worker has it, as it is a copy of this process

Beside the names of a module there are `Class.attribute` for attributes of a class that are data, `name#place` for
statements that act on a definition, and `*`: every plain function, for code that looks names up by itself.
"""

from __future__ import annotations

import io
import pickle
import threading
from _weakref import ref
from collections.abc import Iterable
from contextvars import ContextVar
from operator import is_
from types import FunctionType, ModuleType
from typing import Any

from poolkit._wire.hooks import raise_interrupt
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.process_wide import is_random_generator
from poolkit._wire.regions import Region

__all__ = [
    "ABSENT", "ATOMS", "FOLLOWED", "IMPORT", "MISSING", "RESERVED", "STATEMENT", "VALUE", "Item", "Ref", "are_same",
    "digest_of", "is_fixed", "length_of", "parts_of", "reference",
]  # fmt: skip

FOLLOWED = 1024  # bytes of the pickle of a value whose changes in place are followed

VALUE, STATEMENT, IMPORT, ABSENT, DEFINITION, INHERITED = range(1, 7)

Ref = tuple[str, str]  # module, name

MISSING = object()
_GONE = object()
RESERVED = frozenset({
    "__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__", "__builtins__",
    "__annotations__", "__path__", "__annotate__", "__conditional_annotations__",
})  # fmt: skip
ATOMS = frozenset({int, str, bytes, float, complex, bool, type(None), type(...), type(NotImplemented)})


class Item:
    """One version of one name. Frozen once it is published, but for `weak` and `basis`.

    Attributes:
        serial: larger than that of any version before.
        now: what has to be there before it is made; `later`: what is needed when it is used.
        shell: an empty container that stands under the name from the first, for what fills it while it is made.
        line: of a statement, behind the number of its input; those that may come in any order come in the script's.
        bound: names that the pickle refers to, and the ids of what they are bound to; `basis`: the versions of them
            that it was first used with, where it `refers`: a new version of one is a new version of it.
        circle: the names that are pickled together, as they refer to each other.
    """

    __slots__ = (
        "assigned", "basis", "bound", "circle", "codes", "digest", "is_definition", "is_followed", "kind", "later",
        "length", "line", "met", "module", "name", "now", "parts", "payload", "reaches", "refers", "region", "serial",
        "shell", "snapshot", "strong", "submodules", "weak",
    )  # fmt: skip

    def __init__(self, module: str, name: str, kind: int, payload: bytes, value: object) -> None:
        self.module = module
        self.name = name
        self.kind = kind
        self.payload = payload
        self.serial = 0
        self.region: Region | None = None
        self.shell: bytes | None = None
        self.now: tuple[Ref, ...] = ()
        self.later: tuple[Ref, ...] = ()
        self.bound: tuple[tuple[Ref, int], ...] = ()
        self.basis: tuple[int, ...] | None = None
        self.refers = False
        self.circle: tuple[Ref, ...] = ()
        self.submodules: tuple[str, ...] = ()
        self.reaches = False  # whether its code names packages, of which submodules may be imported later
        self.line = 0, 0
        self.codes: set[Any] = set()
        self.is_definition = False  # see `is_definition` in `functions.py`
        self.is_followed = False  # whether changes in place are looked for
        self.parts = parts_of(value) if type(value) is FunctionType else ()
        self.assigned: frozenset[str] = frozenset()  # attributes that the script assigns to a class
        self.digest: bytes | None = None
        self.met: tuple[Any, ...] = ()  # what its digest tells by identity
        self.length = -1
        self.snapshot: dict[str, object] | None = None  # of a class: its attributes when it was first needed
        self.strong: object = None
        self.weak: Any = None  # only a weak reference is kept of what may be large
        if issubclass(type(value), (FunctionType, type, ModuleType)):
            self.strong = value
        else:
            try:
                self.weak = ref(value)
            except TypeError:
                self.strong = value

    def get(self) -> object:
        """The object that it was made of; another one if that is gone."""
        if self.weak is None:
            return self.strong
        value = self.weak()
        return _GONE if value is None else value

    def is_current(self, value: object) -> bool:
        """Return True if it still is what the name means."""
        return self.get() is value and not self.has_changed()

    def has_changed(self) -> bool:
        """Return True if the value was changed in place, as far as that is followed."""
        value: Any = self.get()
        if self.parts:
            return not are_same(parts_of(value), self.parts)
        if not self.is_followed:
            return False
        try:
            if self.digest is None:
                return len(value) != self.length
            if self.met:
                file = io.BytesIO()
                _Tracer(file, PROTOCOL).dump(value)
                return file.getvalue() != self.digest or not _is_alive(self.met)
            return pickle.dumps(value, PROTOCOL) != self.digest
        except BaseException as error:  # noqa: BLE001 -- the user's own hooks; it was possible before
            raise_interrupt(error)
            return True

    def record(self, *, is_inherited: bool = False) -> tuple[Any, ...]:
        """What travels."""
        if is_inherited:
            return self.serial, self.module, self.name, INHERITED, b"", None, None, ()
        kind = DEFINITION if self.kind == VALUE and self.is_definition else self.kind
        number = None if self.region is None else self.region.number
        return self.serial, self.module, self.name, kind, self.payload, number, self.shell, self.submodules


def parts_of(function: FunctionType) -> tuple[object, ...]:
    """What a function has: its code, defaults and attributes."""
    own, defaults = function.__dict__, function.__kwdefaults__
    parts = (function.__code__, function.__defaults__, defaults, *own, *own.values())
    return (*parts, *defaults.values()) if defaults else parts


def are_same(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """Return True if these are the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


# ===== changes in place =====


class _TooLargeError(Exception):
    """The pickle of a value is too large for it to be followed."""


class _Bounded:
    """A file that takes little."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: Any) -> int:
        if len(self.written) + len(data) > FOLLOWED:
            raise _TooLargeError
        self.written += data
        return len(data)


class _Tracer(pickle.Pickler):
    """Pickles in order to compare: what plain pickle refuses, such as lambdas and locks, is told by identity."""

    def persistent_id(self, obj: Any) -> int | None:
        return id(obj) if type(obj) in _BY_IDENTITY or issubclass(type(obj), type) else None


class _Collector(_Tracer):
    def __init__(self, file: _Bounded) -> None:
        super().__init__(file, PROTOCOL)
        self.met: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        found = super().persistent_id(obj)
        if found is not None:
            self.met.append(reference(obj))
        return found


_DEFINITIONS = (FunctionType, type, ModuleType)
_BY_IDENTITY = frozenset({
    *_DEFINITIONS, type(threading.Lock()), type(threading.RLock()), threading.local, ContextVar, io.TextIOWrapper,
    io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO,
})  # fmt: skip


def reference(value: Any) -> Any:
    """A weak reference to a value, or what looks like one."""
    try:
        return ref(value)
    except TypeError:
        return lambda: value


def _is_alive(references: Iterable[Any]) -> bool:
    """Return True if all of these are, so that nothing else has the identity of one."""
    return None not in [each() for each in references]


def digest_of(value: object) -> tuple[bytes, tuple[Any, ...]] | None:
    """What tells whether a value was changed in place: its pickle, and what has none; None if that is not followed.

    Runs pickling hooks of the user's.
    """
    file = _Bounded()
    try:
        if issubclass(type(value), _DEFINITIONS) or is_fixed(value) or is_random_generator(value):
            return None
        try:
            pickle.Pickler(file, PROTOCOL).dump(value)
        except _TooLargeError:
            return None
        except Exception:  # noqa: BLE001 -- what plain pickle refuses
            collector = _Collector(file := _Bounded())
            collector.dump(value)
            met = tuple(collector.met)
            return (file.written, met) if _is_alive(met) else None  # hooks may make other objects each time
    except BaseException as error:  # noqa: BLE001 -- the user's own hooks
        raise_interrupt(error)
        return None
    return file.written, ()


def length_of(value: Any) -> int:
    """How long a value is that can change; -1 if it has no length."""
    try:
        if issubclass(type(value), _DEFINITIONS) or is_fixed(value) or not hasattr(type(value), "__len__"):
            return -1
        return len(value)
    except BaseException as error:  # noqa: BLE001 -- the user's own hooks
        raise_interrupt(error)
        return -1


def is_fixed(value: Any) -> bool:
    """Return True if a value cannot change."""
    kind = type(value)
    return kind in ATOMS or ((kind is tuple or kind is frozenset) and all(map(is_fixed, value)))
