"""Items: one version of one name of a script module, in the form in which it travels.

    VALUE       a pickle: data, and functions by their code objects
    STATEMENT   the code of its own statement: classes, what has no pickle
    IMPORT      the name of a module, or of what has it
    ABSENT      why it cannot be had

Beside the names of a module there are `Class.attribute` for attributes of a class that are data, `name#line` for
statements that act on a definition, and `*`: every plain function, for code that looks names up by itself.
"""

from __future__ import annotations

import pickle
from _weakref import ref
from operator import is_
from types import FunctionType, ModuleType
from typing import Any

from poolkit._wire.hooks import raise_interrupt
from poolkit._wire.pickles import PROTOCOL
from poolkit._wire.regions import Region

__all__ = [
    "ABSENT", "ATOMS", "IMPORT", "MISSING", "RESERVED", "STATEMENT", "VALUE", "Item", "Ref", "is_fixed", "parts_of",
]  # fmt: skip

VALUE, STATEMENT, IMPORT, ABSENT = 1, 2, 3, 4

Ref = tuple[str, str]  # module, name

MISSING = object()
RESERVED = frozenset({
    "__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__", "__builtins__",
    "__annotations__", "__path__", "__annotate__", "__conditional_annotations__",
})  # fmt: skip
ATOMS = frozenset({int, str, bytes, float, complex, bool, type(None), type(...), type(NotImplemented)})


class Item:
    """One version of one name. Frozen once it is published, but for `weak` and `basis`.

    Attributes:
        serial: larger than that of any version before; names in a worker never go back.
        now: what has to be there before it is made; `later`: what is needed when it is used.
        shell: an empty container that stands under the name from the first, for what fills it while it is made.
        line: of a statement; those that may come in any order come in the script's.
        bound: names that the pickle refers to, and the ids of what they are bound to; `basis`: the versions of them
            that it was first used with, where it `refers`: a new version of one is a new version of it.
        circle: the names that are pickled together, as they refer to each other.
    """

    __slots__ = (
        "assigned", "basis", "bound", "circle", "code", "codes", "digest", "is_followed", "kind", "later", "length",
        "line", "module", "name", "now", "parts", "payload", "reaches", "refers", "region", "serial", "shell",
        "snapshot", "strong", "submodules", "weak",
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
        self.line = 0
        self.code: object = None
        self.codes: set[Any] = set()
        self.is_followed = False  # whether changes in place are looked for
        self.parts: tuple[object, ...] = ()  # of a function that has any; see `parts_of`
        self.assigned: frozenset[str] = frozenset()  # attributes that the script assigns to a class
        self.digest: bytes | None = None
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
        """The object that it was made of; `MISSING` if that is gone."""
        if self.weak is None:
            return self.strong
        value = self.weak()
        return MISSING if value is None else value

    def is_current(self, value: object) -> bool:
        """Return True if it still is what the name means."""
        if self.get() is not value:
            return False
        if type(value) is FunctionType and value.__code__ is not self.code:
            return False
        return not self.has_changed()

    def has_changed(self) -> bool:
        """Return True if the value was changed in place, as far as that is followed."""
        if not self.is_followed:
            return False
        value: Any = self.get()
        if type(value) is FunctionType:
            return not all(map(is_, parts_of(value), self.parts)) or len(value.__dict__) + 2 != len(self.parts)
        try:
            if self.digest is not None:
                return pickle.dumps(value, PROTOCOL) != self.digest
            return len(value) != self.length
        except BaseException as error:  # noqa: BLE001 -- the user's own hooks; it cannot be followed
            raise_interrupt(error)
            return False

    def record(self) -> tuple[Any, ...]:
        """What travels."""
        number = None if self.region is None else self.region.number
        return self.serial, self.module, self.name, self.kind, self.payload, number, self.shell, self.submodules


def parts_of(function: FunctionType) -> tuple[object, ...]:
    """Defaults and attributes of a function."""
    return (function.__defaults__, function.__kwdefaults__, *function.__dict__.values())


def is_fixed(value: Any) -> bool:
    """Return True if a value cannot change."""
    kind = type(value)
    return kind in ATOMS or ((kind is tuple or kind is frozenset) and all(map(is_fixed, value)))
