"""Arguments and results with something about them: they pickle badly, or one wants to know how long they live."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, NoReturn

from support_functions import AttributedError, die, raise_value_error, spin

# ===== what pickles badly =====


class RaisesOnPickle:
    def __reduce__(self) -> NoReturn:
        raise ZeroDivisionError("cannot be pickled")


class RaisesOnUnpickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return raise_value_error, ("cannot be unpickled",)


class DiesOnUnpickle:
    """Kills the process that unpickles it, unless it is the one given."""

    def __init__(self, lease: int) -> None:
        self.lease = lease

    def __reduce__(self) -> tuple[Any, ...]:
        return _die_unless, (self.lease,)


def _die_unless(lease: int) -> DiesOnUnpickle:
    if os.getpid() != lease:
        die()
    return DiesOnUnpickle(lease)


class HangsOnUnpickle:
    def __reduce__(self) -> tuple[Any, ...]:
        return spin, ()


class BadHere:
    """Unpickles everywhere but in the process given."""

    def __init__(self, here: int) -> None:
        self.here = here

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise_in, (self.here,)


def _raise_in(here: int) -> None:
    if os.getpid() == here:
        raise LookupError("cannot be unpickled here")


def make_bad_here(here: int) -> BadHere:
    return BadHere(here)


def make_unpicklable() -> Any:
    return {"inner": [threading.Lock()]}


# ===== what is kept alive =====


class Payload:
    """Something a weak reference can point to."""

    def __init__(self, value: object = None) -> None:
        self.value = value


def make_payload(value: object = None) -> Payload:
    return Payload(value)


def value_of(payload: Payload) -> object:
    return payload.value


_remembered: dict[str, weakref.ref[Any]] = {}


def remember(payload: Payload, name: str) -> Payload:
    """Keep weak references to the argument and to the result."""
    _remembered[name] = weakref.ref(payload)
    result = Payload()
    _remembered["result"] = weakref.ref(result)
    return result


def remember_exception(text: str) -> NoReturn:
    error = AttributedError(text, code=1)
    _remembered["exception"] = weakref.ref(error)
    try:
        raise error
    finally:
        del error


def is_forgotten(name: str) -> bool:
    return _remembered.pop(name)() is None


def limit_memory(more: int) -> None:
    """Let this process have `more` bytes of memory beyond what it has mapped now."""
    import resource
    from pathlib import Path

    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))


# ===== what decorates =====


class Mapper:
    """Changes the classes that it is given, and keeps what no other process can have: as the registries of ORMs do."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def mapped(self, cls: Any) -> Any:
        cls.columns = property(lambda _: ["id"])
        return cls
