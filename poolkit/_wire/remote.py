"""Exceptions across processes: the same exception, with all that hangs on it.

Causes, contexts, members of groups, and exceptions among arguments and attributes make a graph. It travels as a list
of records that refer to each other by index, so chains may be circular, and each exception stands or falls alone. Each
is made anew in the worker, before it is sent, as the receiver will do it. One whose recipe fails is made without a call
of its `__init__`; one whose class cannot be found becomes a `RemoteError` built from the text; an argument or attribute
that cannot travel is replaced by a string that says so. What belongs to every exception is read and set through the
descriptors of `BaseException`, as a frozen dataclass refuses to be assigned to.

Nothing here raises, whatever the user's classes do, so BaseException is caught around each use of a user's code.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # without the enums of `signal`
import contextlib
import copyreg
import io
import pickle
import sys
import types
from collections import namedtuple
from collections.abc import Callable

from poolkit._typing import Any
from poolkit._wire import handover
from poolkit._wire.modules import cloudpickle_module, is_registered, module_of
from poolkit._wire.pickles import BY_VALUE, PROTOCOL, ClassKeepingUnpickler, Needs, pickler_of
from poolkit._wire.tracebacks import capture, format_frames, rebuild
from poolkit.errors import RemoteError

# One exception, packed as a plain tuple of: type_name: str, message: str, notes: list[str] | None,
#     frames: list[FrameRecord], makers: bytes | None, state: bytes | None, reason: str, cause: int | None,
#     context: int | None, suppress_context: bool
_Record = namedtuple(  # noqa: PYI024 -- importing typing would cost each template process 6 ms
    "_Record", "type_name message notes frames makers state reason cause context suppress_context"
)


def pack_error(error: BaseException) -> bytes:
    """Return `error`, and every exception that it leads to, as bytes. Never raises."""
    try:
        graph = _Graph(error)
        return pickle.dumps([tuple(graph.record(each)) for each in graph.errors], PROTOCOL)  # grows meanwhile
    except BaseException as failure:  # noqa: BLE001 -- out of memory or of stack: the worker goes on all the same
        text = f"not sent: {type_name(failure)}"
        record = _Record(type_name(error), text, None, [], None, None, "", None, None, False)
        return pickle.dumps([tuple(record)], PROTOCOL)


def load_error(data: bytes | bytearray | memoryview) -> BaseException:
    """Return the exception that `pack_error` packed, or a `RemoteError` in its place. Never raises."""
    try:
        records = [_Record(*fields) for fields in pickle.loads(data)]
        return _Receiver(records).run()
    except BaseException as failure:  # noqa: BLE001 -- an outcome must not be lost
        return RemoteError(f"an exception arrived that cannot be read ({describe_error(failure)})")


def _loads(data: bytes, error_at: Callable[[int], BaseException]) -> Any:
    unpickler: Any = ClassKeepingUnpickler(io.BytesIO(data))
    unpickler.persistent_load = error_at
    return unpickler.load()


def packed_name(data: bytes | bytearray | memoryview) -> str:
    """Return the full name of the type of the exception that `pack_error` packed, without making that exception."""
    try:
        return str(pickle.loads(data)[0][0])
    except Exception:  # noqa: BLE001 -- a worker may send anything
        return "an exception that cannot be read"


def _reducers() -> dict[type, Any]:
    """Return `copyreg`'s reducers, without those that tblib has registered for exceptions: causes go apart here.

    Importing Dask's `distributed` has it do so.
    """
    if "tblib.pickling_support" not in sys.modules:
        return copyreg.dispatch_table
    known = copyreg.dispatch_table.copy()
    return {kind: each for kind, each in known.items() if getattr(each, "__module__", "") != "tblib.pickling_support"}


class _Graph:
    """The sender's half. Local to one call."""

    def __init__(self, error: BaseException) -> None:
        self.errors: list[BaseException] = []
        self._index: dict[int, int] = {}
        self.index_of(error)

    def index_of(self, error: object) -> int | None:
        """Return the number of an exception, giving it one if it has none."""
        if not isinstance(error, BaseException):
            return None
        index = self._index.setdefault(id(error), len(self.errors))
        if index == len(self.errors):
            self.errors.append(error)
        return index

    def record(self, error: BaseException) -> _Record:
        makers = state = None
        reason = ""
        try:
            makers, state = self._pack_bare(error)
        except BaseException as failure:  # noqa: BLE001 -- whatever a user's class does
            try:
                makers, state = self._pack_uncalled(error)
            except BaseException:  # noqa: BLE001 -- its class cannot travel, as the first failure says best
                reason = describe_error(failure)
        return _Record(
            type_name=type_name(error),
            message=_message_of(error),
            notes=_notes_of(error),
            frames=capture(_get_own(error, "__traceback__")),
            makers=makers,
            state=state,
            reason=reason,
            cause=self.index_of(_get_own(error, "__cause__")),
            context=self.index_of(_get_own(error, "__context__")),
            suppress_context=_get_own(error, "__suppress_context__"),
        )

    def _pack_bare(self, error: BaseException) -> tuple[bytes, bytes | None]:
        """Return the exception without what hangs on it, having made it anew once. Raises what that raises."""
        reducer: Callable[[BaseException], object] | None = _reducers().get(type(error))
        reduced: Any = error.__reduce_ex__(PROTOCOL) if reducer is None else reducer(error)
        state: dict[str, object] = {}
        if type(error).__setstate__ is BaseException.__setstate__ and type(reduced) is tuple:
            # The state goes apart, so that an attribute may lead back to the exception itself,
            # and one bad attribute does not take the exception with it.
            makers = self._dumps(reduced[:2])
            state.update(*filter(None, reduced[2:]))
        else:
            makers = self._dumps(error, root=error)
        made = _make(self._loads(makers))
        for name, value in _attributes_of(error):
            if name not in state:
                found = getattr(made, name, _MISSING)
                if found is _MISSING or not self._is_same(found, value):
                    state[name] = value
        # a class whose __init__ passes on something else than it was given would gain or lose arguments
        args = _get_own(error, "args")
        if not self._is_same(_get_own(made, "args"), args):
            state["args"] = args
        return makers, self._pack_state(state) if state else None

    def _pack_uncalled(self, error: BaseException) -> tuple[bytes, bytes | None]:
        """Return the exception without what hangs on it, to be made without its own recipe, which fails."""
        args = tuple(map(self._or_words, _get_own(error, "args")))
        makers = self._dumps((make_uncalled, (type(error), args)))
        _make(self._loads(makers))
        state: dict[str, object] = {**dict(_attributes_of(error)), "args": args}
        return makers, self._pack_state(state)

    def _pack_state(self, state: dict[str, object]) -> bytes:
        return self._survivor(state) or self._dumps({name: self._or_words(value) for name, value in state.items()})

    def _or_words(self, value: object) -> object:
        """Return `value`, or what is sent in its place when it cannot travel."""
        return value if self._survivor(value) is not None else f"<{type_name(value)} that cannot be pickled>"

    def _survivor(self, value: object) -> bytes | None:
        """Return the pickle of `value` if it can be loaded again."""
        try:
            packed = self._dumps(value)
            self._loads(packed)
        except BaseException:  # noqa: BLE001 -- whatever a user's class does
            return None
        return packed

    def _is_same(self, one: object, other: object) -> bool:
        with contextlib.suppress(Exception):  # arguments that __reduce__ leaves out, and that cannot travel
            return one is other or self._dumps(one) == self._dumps(other)
        return True

    def _dumps(self, value: object, root: BaseException | None = None) -> bytes:
        """Pickle plainly if possible, else by value, with every exception but `root` replaced by its number."""
        if not is_registered():
            with contextlib.suppress(Exception):  # cloudpickle has the last word
                return self._dumps_with(pickle.Pickler, value, root)
        return self._dumps_with(cloudpickle_module().Pickler, value, root) + BY_VALUE

    def _dumps_with(self, base: Any, value: object, root: BaseException | None) -> bytes:
        file = io.BytesIO()
        pickler = pickler_of(base)(file, None, Needs())
        pickler.persistent_id = lambda found: None if found is root else self.index_of(found)
        if root is not None:
            pickler.dispatch_table = _reducers()
        with handover.guard():
            pickler.dump(value)
        return file.getvalue()

    def _loads(self, packed: bytes) -> Any:
        return _loads(packed, self.errors.__getitem__)


class _Receiver:
    """The receiver's half. Local to one call."""

    def __init__(self, records: list[_Record]) -> None:
        self._records = records
        self._made: dict[int, BaseException] = {}
        self._making: set[int] = set()

    def run(self) -> BaseException:
        # what an exception is made of was numbered after it, so going backwards seldom has to recurse
        for index in reversed(range(len(self._records))):
            self._get(index)
        for index, record in enumerate(self._records):
            error = self._get(index)
            with contextlib.suppress(
                BaseException
            ):  # an attribute's class is missing here; the exception itself stands
                for name, value in _loads(record.state, self._get).items() if record.state is not None else ():
                    _set(error, name, value)
            _OWN["__traceback__"].__set__(error, rebuild(record.frames))
            _OWN["__cause__"].__set__(error, None if record.cause is None else self._get(record.cause))
            _OWN["__context__"].__set__(error, None if record.context is None else self._get(record.context))
            _OWN["__suppress_context__"].__set__(error, record.suppress_context)  # last: setting a cause sets it too
        return self._get(0)

    def _get(self, index: int) -> BaseException:
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def _make(self, index: int) -> BaseException:
        record = self._records[index]
        reason = record.reason
        if index in self._making:
            raise ValueError("it contains itself")
        if record.makers is not None:
            self._making.add(index)
            try:
                return _make(_loads(record.makers, self._get))
            except BaseException as failure:  # noqa: BLE001 -- whatever a user's class does
                reason = describe_error(failure)
        self._records[index] = record._replace(state=None)
        return _stand_in(record, reason)


_MISSING = object()


def _make(loaded: Any) -> BaseException:
    """Return the exception, made by a call unless it is complete."""
    if type(loaded) is tuple:
        function, arguments = loaded
        try:
            loaded = function(*arguments)
        except BaseException:
            if not (isinstance(function, type) and issubclass(function, BaseException)):
                raise
            loaded = make_uncalled(function, arguments)
    if not isinstance(loaded, BaseException):
        raise TypeError(f"its pickle makes {type_name(loaded)}, not an exception")
    return loaded


def make_uncalled(kind: type[BaseException], arguments: tuple[object, ...]) -> BaseException:
    """Return an exception of this class with these `args`, without a call of anything that the class defines."""
    for base in kind.__mro__:
        new = vars(base).get("__new__")
        if type(new) is types.BuiltinFunctionType:
            try:
                made: BaseException = new(kind, *arguments)
            except TypeError:  # it is for another layout: of several bases, another one decides
                continue
            _set(made, "args", arguments)
            return made
    raise TypeError(f"{kind.__qualname__} cannot be made without its own recipe")


def _attributes_of(error: BaseException) -> list[tuple[str, object]]:
    """Return what is in `__dict__` and in slots, those of exceptions written in C included."""
    attributes = list(_get_own(error, "__dict__").items())
    for kind in type(error).__mro__:
        for name, member in vars(kind).items():
            # the object of an AttributeError may be anything, of any size; CPython does not pickle it either
            if type(member) is types.MemberDescriptorType and not name.startswith("__") and name != "obj":
                with contextlib.suppress(AttributeError):  # a slot that was never set
                    attributes.append((name, member.__get__(error)))
    return attributes


_OWN = vars(BaseException)


def _get_own(error: BaseException, name: str) -> Any:
    return _OWN[name].__get__(error)


def _set(error: BaseException, name: str, value: object) -> None:
    with contextlib.suppress(BaseException):  # read-only: it stays as made
        if name == "args":
            _OWN[name].__set__(error, value)
        else:
            BaseException.__setattr__(error, name, value)


def _stand_in(record: _Record, reason: str) -> RemoteError:
    last_line = f"{record.type_name}: {record.message}"
    text = format_frames(record.frames, "\n".join([last_line, *(record.notes or ())]))
    told = f"{last_line} [cannot be rebuilt: {reason}]"
    error = RemoteError(told, type_name=record.type_name, message=record.message, traceback_text=text)
    if record.notes:
        error.__notes__ = record.notes  # type: ignore[attr-defined,unused-ignore]  # not declared before 3.11
    return error


def type_name(value: object) -> str:
    """Return the full name of a value's type, or a substitute; whatever a metaclass does, it never raises."""
    return full_name(type(value))


def full_name(kind: type) -> str:
    """Do the same for a class."""
    try:
        name, module = f"{kind.__qualname__}", f"{kind.__module__}"
    except BaseException:  # noqa: BLE001 -- a metaclass may do anything
        return "an exception whose type has no name"
    return name if module == "builtins" else f"{module}.{name}"


def _message_of(error: BaseException) -> str:
    try:
        return str.__str__(str(error))  # a plain str, whatever subclass came back
    except BaseException:  # noqa: BLE001 -- a user's __str__ may raise anything
        return "(its message cannot be shown)"


def describe_error(failure: BaseException) -> str:
    """Return type and message of an exception; whatever its own hooks do, it never raises."""
    return f"{type_name(failure)}: {_message_of(failure)}"


def _notes_of(error: BaseException) -> list[str] | None:
    notes = _get_own(error, "__dict__").get("__notes__")
    if not isinstance(notes, (list, tuple)):
        return None
    return [str.__str__(note) for note in notes if isinstance(note, str)]


# ===== what hooks raise, and what only comes meanwhile =====


def raise_interrupt(error: BaseException) -> None:
    """Raise an exception again, unless an object's own hook raised it.

    A hook may raise SystemExit or anything. Ctrl-C, what a signal handler raises, what stops the task of a thread, and
    a lack of memory are not its.
    """
    is_of_hook = isinstance(error, Exception) and not isinstance(error, MemoryError)
    own = (KeyboardInterrupt, MemoryError)
    if not is_of_hook and (isinstance(error, own) or module_of(type(error))[:8] == "poolkit." or is_of_handler(error)):
        raise error


def is_of_handler(error: BaseException) -> bool:
    """Return True if a signal handler in Python raised an exception."""
    handlers = {getattr(_signal.getsignal(number), "__code__", None) for number in _signal.valid_signals()}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False
