"""Source: the statements of a script module, by the names that they define, each as code of its own.

A class, and what decorators made of a function, are made in a worker by their own statement, if its code agrees with
that of the live object. Compiled alone, a statement's code is that of the whole module if the compiler knows what is
imported, so the imports are put before it, never to be run.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import linecache
import os
import re
import stat
import sys
import types
from collections.abc import Callable
from typing import Any

TYPED = ("<string>", "<stdin>")  # what Python calls a program that is in no file
IMPORTS = (ast.Import, ast.ImportFrom)
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ASSIGNMENTS = (ast.Assign, ast.AnnAssign)
_BLOCKS = ("If", "Try", "TryStar", "With")


class Source:
    """The statements of one file. Frozen after __init__.

    Attributes:
        definitions: by name, the statements that define it, in order.
        acting: by name, the statements that act on what it names: `X.attribute = ...`, `X.register(...)`.
        plain: the assignments to one name outside any block.
        inner: the statements within a block, of which some branches did not run.
    """

    def __init__(self, filename: str, text: str) -> None:
        """Read a text. Raises SyntaxError, or ValueError for one that no compiler takes."""
        self.filename = filename
        self.definitions: dict[str, list[Any]] = {}
        self.acting: dict[str, list[Any]] = {}
        self.plain: set[ast.stmt] = set()
        self.inner: set[ast.stmt] = set()
        self._imports: list[ast.stmt] = []
        self._flags = 0
        self._read(ast.parse(text, filename).body, is_top=True)

    def _read(self, body: list[Any], *, is_top: bool) -> None:  # noqa: C901 -- one kind of statement after another
        if not is_top:
            self.inner.update(body)
        for node in body:
            if isinstance(node, IMPORTS):
                self._read_import(node)
            elif isinstance(node, DEFINITIONS):
                self.definitions.setdefault(node.name, []).append(node)
                for decorator in node.decorator_list:
                    if not isinstance(decorator, ast.Name):
                        self._note_acting(decorator, node)
            elif isinstance(node, ASSIGNMENTS) and node.value is not None:
                self._read_assignment(node, is_top=is_top)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self._read_call(node, node.value)
            elif type(node).__name__ == "TypeAlias":
                self.definitions.setdefault(node.name.id, []).append(node)
            elif type(node).__name__ in _BLOCKS:
                for part in ("body", "handlers", "orelse", "finalbody"):
                    for inner in getattr(node, part, ()):
                        self._read(inner.body if isinstance(inner, ast.ExceptHandler) else [inner], is_top=False)

    def _note_acting(self, expression: ast.expr, node: ast.stmt) -> None:
        if (name := root_of(expression)) is not None:
            self.acting.setdefault(name, []).append(node)

    def _read_assignment(self, node: Any, *, is_top: bool) -> None:
        targets = targets_of(node)
        for target in targets:
            if not isinstance(target, ast.Name):
                self._note_acting(target, node)
                continue
            self.definitions.setdefault(target.id, []).append(node)
            if is_top and len(targets) == 1:
                self.plain.add(node)

    def _read_call(self, node: ast.stmt, call: ast.Call) -> None:
        attribute = getattr(call.func, "attr", None)
        if attribute == "pickle" and root_of(call.func) == "copyreg" and call.args:
            self._note_acting(call.args[0], node)
        elif attribute == "register":
            self._note_acting(call.func, node)

    def _read_import(self, node: Any) -> None:
        for alias in node.names:
            if getattr(node, "module", None) == "__future__":
                self._flags |= getattr(__future__, alias.name).compiler_flag
            else:
                self.definitions.setdefault(alias.asname or alias.name.partition(".")[0], []).append(node)
                self._imports.append(node)

    def code_of(self, node: Any, without: list[Any] | None = None) -> types.CodeType:
        """Compile one statement, without some of its decorators."""
        if without:
            fields = {name: getattr(node, name) for name in node._fields if hasattr(node, name)}
            fields["decorator_list"] = [each for each in node.decorator_list if each not in without]
            node = ast.copy_location(type(node)(**fields), node)
        never = ast.If(test=ast.Constant(value=False), body=self._imports or [ast.Pass()], orelse=[])
        tree = ast.fix_missing_locations(ast.Module(body=[never, node], type_ignores=[]))
        return compile(tree, self.filename, "exec", flags=self._flags, dont_inherit=True)  # type: ignore[no-any-return]


def root_of(node: ast.AST) -> str | None:
    """Return the name that an expression such as `a.b[c].d(e)` begins with."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def targets_of(node: Any) -> list[Any]:
    """Return what a statement assigns to; nothing for any other."""
    return node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []


def makes_no_call(node: ast.stmt) -> bool:
    """Return True if the right side of an assignment calls nothing when it is run; a lambda may."""
    value = getattr(node, "value", None)
    pending: list[Any] = [value]
    for each in pending:
        if isinstance(each, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)):
            return False
        if isinstance(each, ast.AST):
            pending += ast.iter_child_nodes(each.args if isinstance(each, ast.Lambda) else each)
    return True


def codes_in(code: types.CodeType) -> set[types.CodeType]:
    """Return all code objects inside one."""
    found: set[types.CodeType] = set()
    pending = [code]
    for current in pending:  # grows while we go through it
        inner = [const for const in current.co_consts if isinstance(const, types.CodeType)]
        found.update(inner)
        pending += inner
    return found


_sources: dict[str, tuple[list[str], Source | None]] = {}  # one atomic operation at a time, from any thread


def _lines_of(filename: str, namespace: dict[str, Any] | None) -> list[str]:
    with contextlib.suppress(Exception):  # loaders are anybody's
        if not linecache.getlines(filename, namespace) and filename in TYPED:
            remember_text(filename, typed_text(filename))
        return linecache.getlines(filename, namespace)
    return []


def source_for(filename: str, namespace: dict[str, Any] | None = None) -> Source | None:
    """Return the statements of a file, or of what stands for one in `linecache`; None where there is no source."""
    lines = _lines_of(filename, namespace)
    known = _sources.get(filename)
    if known is None or known[0] != lines:
        known = lines, None
        with contextlib.suppress(SyntaxError, ValueError, RecursionError):
            known = lines, Source(filename, "".join(lines)) if lines else None
        _sources[filename] = known
    return known[1]


_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # options of Python with a value behind them


def typed_text(filename: str) -> str:
    """Return the program that was given by `python -c`, or on a standard input that can be read again, if any."""
    if filename == "<string>":
        options = iter(sys.orig_argv[1:])
        for option in options:
            if option == "-c":
                return next(options, "")
            if not option.startswith("-") or option == "-":
                break
            if option in _WITH_VALUE:
                next(options, "")
        return ""
    with contextlib.suppress(OSError):  # it is closed
        if not (sys.flags.interactive or hasattr(sys, "ps1")) and stat.S_ISREG(os.fstat(0).st_mode):
            return os.pread(0, os.fstat(0).st_size, 0).decode()
    return ""


def remember_text(filename: str, text: str) -> None:
    """Have `linecache` know a text, which tracebacks then show lines of."""
    if text:
        linecache.cache[filename] = len(text), None, text.splitlines(keepends=True), filename


def may_act_on(filename: str, namespace: dict[str, Any], name: str) -> bool:
    """Return True if a file may assign to an attribute or item of what a name means; told without parsing."""
    pattern = rf"(?m)(?:^|;|=)[ \t]*{re.escape(name)}(?:\.\w+|\[[^\]\n]*\])+[ \t]*(?::[^=\n]*)?=(?!=)"
    return re.search(pattern, "".join(_lines_of(filename, namespace))) is not None


def interactive_files() -> list[str]:
    """Return what stands for files in `linecache`: the inputs of a session, the newest first."""
    names = [name for name in list(linecache.cache) if name.startswith("<") or "ipykernel" in name]
    return names[::-1]


def is_constant(node: ast.stmt) -> bool:
    """Return True for the assignment of a value that is written out."""
    with contextlib.suppress(ValueError, TypeError, SyntaxError):
        if isinstance(node, ASSIGNMENTS) and node.value is not None:
            ast.literal_eval(node.value)
            return True
    return False


def names_in_annotations(node: ast.stmt) -> list[str]:
    """Return the names in the annotations of a class body, which may be text that a decorator looks into."""
    pending: list[Any] = [each.annotation for each in getattr(node, "body", ()) if isinstance(each, ast.AnnAssign)]
    names = []
    for each in pending:  # grows while we go through it
        if isinstance(each, ast.Name):
            names.append(each.id)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            with contextlib.suppress(SyntaxError, ValueError):
                pending.append(ast.parse(each.value, mode="eval"))
        else:
            pending += ast.iter_child_nodes(each)
    return names


def may_write(code: types.CodeType) -> bool:
    """Return True if running code itself, not the functions in it, may open a file to write to it."""
    parts = [code]
    for each in parts:  # grows while we go through it
        parts += [const for const in each.co_consts if isinstance(const, types.CodeType) and not const.co_flags & 0x1]
    names = [name for each in parts for name in each.co_names]
    texts = [const for each in parts for const in each.co_consts if isinstance(const, str)]
    opens = any(map(_OPENS.search, names)) and any(map(_WRITES.fullmatch, texts))
    return opens or any(map(_CREATES.search, names))


_OPENS = re.compile("open|file|memmap|writer|handler", re.IGNORECASE)
_CREATES = re.compile("^(write_text|write_bytes|touch|NamedTemporaryFile)$")
_WRITES = re.compile(r"(?=.*[wxa+])[rwxabtU+]{1,4}")


def has_simple_arguments(call: ast.Call, names: dict[str, list[Any]], is_pure: Callable[[ast.expr], bool]) -> bool:
    """Return True if a call is given the same at any time: names bound once, results of pure functions."""
    for value in (*call.args, *(keyword.value for keyword in call.keywords)):
        for each in ast.walk(value):
            if isinstance(each, ast.Call) and not is_pure(each.func):
                return False
            made = names.get(each.id, ()) if isinstance(each, ast.Name) else ()
            if len(made) > 1 and not all(isinstance(node, IMPORTS) for node in made):  # `import ctypes, ctypes.util`
                return False
    return True
