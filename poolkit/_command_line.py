"""Command line: what a user asks to have run, checked where it is given, and made a command of."""

from __future__ import annotations

import codecs
import fcntl
import functools
import io
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from poolkit import _os
from poolkit._core import options as checks
from poolkit._core.options import UNSET, CallOptions
from poolkit._engine.interface import PoolEngine
from poolkit._kinds.commands import Call, CompletedCommand, ProgramForce, checker, signal_number
from poolkit._spawn.entrance import Entrance
from poolkit._spawn.output import Output, text_decoder
from poolkit._spawn.program import Recipe
from poolkit.command import Command
from poolkit.reading import Caller

Argument = str | bytes | os.PathLike[Any]

_NAMED = 40  # characters of a command for the shell in the name of its task
_MEANT = {  # by the numbers of `subprocess`
    -1: " (subprocess.PIPE): 'capture' keeps it, 'lines' has it read meanwhile",
    -2: " (subprocess.STDOUT): for standard error that is 'stdout'",
    -3: " (subprocess.DEVNULL): that is 'null'",
}


def command(called: str, engine: PoolEngine, view: CallOptions, argv: Any, options: dict[str, Any]) -> Command[Any]:
    """Make a command, to be submitted, for a function that is called so. See `Pool.run`, which says what it raises."""
    known = _command.__kwdefaults__ or {}
    for name in options:
        if name not in known:
            msg = f"{called}() got an unexpected keyword argument {name!r}; there are {', '.join(known)}"
            raise TypeError(msg)
    return _command(engine, view, argv, **options)


def run_here(argv: Any, options: dict[str, Any], view: dict[str, Any]) -> CompletedCommand[Any]:
    """Run a program at once, and wait for it; on a node, in a worker there."""
    from poolkit._engine import spawned  # noqa: PLC0415 -- for nodes

    engine = spawned.pool()
    made = command("Pool.run", engine, CallOptions().changed(**view), argv, options)
    engine.submit(made)
    return made.result()


def _command(  # noqa: PLR0913 -- all that can be said of a program, by keyword
    engine: PoolEngine,
    view: CallOptions,
    argv: Sequence[Argument] | str,
    *,
    input: Any = None,  # noqa: A002 -- as subprocess has it
    stdin: str = "null",
    stdout: Any = "capture",
    stderr: Any = "capture",
    cwd: Any = None,
    env: Mapping[str, str | None] | None = None,
    shell: bool = False,
    text: bool = False,
    encoding: str = "utf-8",
    errors: str = "backslashreplace",
    check: bool | Collection[int] = True,
    timeout: float | None = UNSET,
    on_stdout: Callable[[Any], object] | None = None,
    on_stderr: Callable[[Any], object] | None = None,
    max_output: int = 64 << 20,
    grace: float = 2.0,
    stop_signal: str = "SIGTERM",
) -> Command[Any]:
    words = _words(argv, shell=checks.flag("shell", shell))
    options = view.changed(timeout=timeout)
    options.check_memory_limit(ProgramForce.why_memory_unknown)
    recipe = Recipe(words, _environment(env), _directory(cwd), _os.umask())
    recipe.grace = _grace(grace)
    recipe.stop_signal = signal_number("stop_signal", stop_signal)
    most = checks.whole("max_output", max_output)
    is_text = checks.flag("text", text)
    _check_codec(encoding, errors)
    decoder = functools.partial(text_decoder, encoding, errors)
    callbacks: dict[str, Any] = {"stdout": on_stdout, "stderr": on_stderr}
    for name, given in (("stdout", stdout), ("stderr", stderr)):
        callback = callbacks[name]
        if callback is not None and not callable(callback):
            msg = f"on_{name} must be something to call or None, was {callback!r}"
            raise TypeError(msg)
        stream = _stream(recipe, name, given)
        if isinstance(given, str) and given in {"capture", "lines"}:
            stream = Output(name, most if given == "capture" else None, decoder if is_text else _no_decoder)
        elif callback is not None:
            msg = f"on_{name} needs {name}='capture' or 'lines', not {given!r}"
            raise ValueError(msg)
        setattr(recipe, name, stream)
    recipe.stdin = _input(recipe, input, stdin, encoding)
    if stdin == "pipe":
        recipe.entrance = Entrance(functools.partial(str.encode, encoding=encoding))
    shown = tuple(map(os.fsdecode, words))
    name = options.name or (shown[-1][:_NAMED] if shell else os.path.basename(shown[0]))  # noqa: PTH119 -- of text
    call = Call(shown, recipe, _whole(decoder) if is_text else bytes, checker(check))
    engine.open_programs()
    made: Command[Any] = Command(engine, name, call, options.for_program(recipe.grace), makes_text=is_text)
    for output in recipe.outputs():
        callback = callbacks[output.name]
        if callback is not None:
            Caller(made, output, callback)
    return made


def _grace(value: object) -> float:
    if value is None:
        msg = "grace must be a number of seconds, was None; 0 is SIGKILL at once, math.inf none at all"
        raise TypeError(msg)
    seconds = checks.wait_seconds("grace", value)
    return math.inf if seconds is None else seconds


def _words(argv: object, *, shell: bool) -> list[bytes]:
    if shell:
        if not isinstance(argv, str):
            msg = f"shell=True takes one string for /bin/sh, was given {argv!r:.200}; leave it out for a list"
            raise TypeError(msg)
        if not argv:
            msg = "argv is empty: there is nothing to run"
            raise ValueError(msg)
        return [b"/bin/sh", b"-c", _encoded("argv", argv)]
    if isinstance(argv, (str, bytes, os.PathLike)) or not isinstance(argv, Sequence):
        msg = (
            f"argv must be a list of the program and its arguments, was {argv!r:.200}; "
            "give [program, argument, ...], or shell=True for a command line that /bin/sh is to read"
        )
        raise TypeError(msg)
    words = [_encoded(f"argv[{place}]", word) for place, word in enumerate(argv)]
    if not words or not words[0]:
        msg = f"argv must begin with a program, was {argv!r:.200}"
        raise ValueError(msg)
    return words


def _encoded(name: str, value: object) -> bytes:
    if not isinstance(value, (str, bytes, os.PathLike)):
        msg = f"{name} must be str, bytes or a path, was {value!r:.200}"
        raise TypeError(msg)
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError as exc:
        msg = f"{name} cannot be encoded, was {value!r:.200}: {exc}"
        raise ValueError(msg) from exc
    if b"\0" in data:
        msg = f"{name} must not have a NUL character in it, was {value!r:.200}"
        raise ValueError(msg)
    return data


def _environment(given: Mapping[str, str | None] | None) -> dict[bytes, bytes]:
    env = dict(os.environb)
    if given is None:
        return env
    if not isinstance(given, Mapping):
        msg = f"env must be a mapping of names to values, was {given!r:.200}"
        raise TypeError(msg)
    for name, value in given.items():
        key = _encoded("a name in env", name)
        if not key or b"=" in key:
            msg = f"a name in env must not be empty or have '=' in it, was {name!r:.200}"
            raise ValueError(msg)
        if value is None:
            env.pop(key, None)
        else:
            env[key] = _encoded(f"env[{name!r}]", value)
    return env


def _directory(given: object) -> bytes:
    try:
        here = os.getcwdb()  # noqa: PTH109 -- as bytes
    except OSError:  # it is gone, and still one can be there
        here = b"/proc/%d/cwd" % os.getpid()
    if given is None:
        return here
    directory = _encoded("cwd", given)
    if not directory:
        msg = "cwd must not be empty"
        raise ValueError(msg)
    return os.path.join(here, directory)  # noqa: PTH118 -- of bytes


def _stream(recipe: Recipe, name: str, given: Any) -> Any:
    """What is to become of its output: a word, a path, or a descriptor."""
    words = ("capture", "lines", "null", "inherit", *(("stdout",) if name == "stderr" else ()))
    wanted = f"{name} must be one of {', '.join(map(repr, words))}, a pathlib.Path or an open file"
    if isinstance(given, str):
        if given not in words:
            msg = f"{wanted}, was {given!r}"
            raise ValueError(msg)
        return given
    if isinstance(given, os.PathLike):
        return os.path.abspath(_encoded(name, given))  # noqa: PTH100 -- of bytes
    return recipe.keep(_descriptor(name, wanted, given, writes=True))


def _descriptor(name: str, wanted: str, file: Any, *, writes: bool) -> int:
    """The descriptor of a file object that is open for that. `wanted` says what should have been given."""
    try:
        if callable(getattr(file, "flush", None)) and getattr(file, "writable", bool)():
            file.flush()
        fd = int(file.fileno())
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except (AttributeError, TypeError, OSError) as exc:
        its = _MEANT.get(file) if type(file) is int else None
        msg = f"{wanted}, was {file!r:.200}{its or ''}"
        raise TypeError(msg) from exc
    except ValueError as exc:  # it is closed
        msg = f"{name}: {exc}, was {file!r:.200}"
        raise ValueError(msg) from exc
    if mode == (os.O_RDONLY if writes else os.O_WRONLY):
        msg = f"{name} must be a file that is open for {'writing' if writes else 'reading'}, was {file!r:.200}"
        raise ValueError(msg)
    return fd


def _input(recipe: Recipe, data: Any, stdin: Any, encoding: str) -> Any:
    words = ("null", "pipe", "inherit")
    if not isinstance(stdin, str) or stdin not in words:
        msg = f"stdin must be one of {', '.join(map(repr, words))}, was {stdin!r:.200}; give data, or a file, as input"
        raise (ValueError if isinstance(stdin, str) else TypeError)(msg)
    if data is None:
        return stdin
    if stdin != "null":
        msg = f"input and stdin={stdin!r} exclude each other"
        raise ValueError(msg)
    if isinstance(data, str):
        return data.encode(encoding)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    wanted = "input must be bytes, text or an open file"
    if callable(getattr(data, "read", None)):
        try:
            fd = _descriptor("input", wanted, data, writes=False)
        except TypeError:
            return _input(recipe, data.read(), stdin, encoding)
        return recipe.keep(fd)
    how = "; for what is in a file, open it" if isinstance(data, os.PathLike) else ""
    msg = f"{wanted}, was {data!r:.200}{how}"
    raise TypeError(msg)


def _check_codec(encoding: str, errors: str) -> None:
    for name, value in (("encoding", encoding), ("errors", errors)):
        if not isinstance(value, str):
            msg = f"{name} must be a string, was {value!r}"
            raise TypeError(msg)
    try:
        "".encode(encoding)  # which knows what is no encoding of text
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as exc:
        msg = f"encoding must be one of text, was {encoding!r}: {exc}"
        raise ValueError(msg) from exc
    try:
        codecs.lookup_error(errors)
    except (LookupError, ValueError) as exc:
        msg = f"errors: {exc}"
        raise ValueError(msg) from exc


def _no_decoder() -> None:
    """Lines stay bytes."""


def _whole(decoder: Callable[[], io.IncrementalNewlineDecoder]) -> Callable[[bytes], str]:
    return lambda data: decoder().decode(data, final=True)
