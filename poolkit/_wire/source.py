"""Source: the statements of a script module, by the names that they define, each as code of its own.

A class, and what decorators made of a function, are made in a worker by their own statement, so that an Enum is an Enum
and a dataclass a dataclass. The statement is taken from the source only if it agrees with the live object: the code
objects of its functions are equal. Compiled alone, a statement's code is that of the whole module if the compiler knows
which names are imported (it compiles calls on those differently), so the imports are put before it, never to be run.
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
        tree = ast.parse(text, filename)
        self._read(tree.body, is_top=True)

    def _read(self, body: list[ast.stmt], *, is_top: bool) -> None:  # noqa: C901 -- one kind of statement after another
        if not is_top:
            self.inner.update(body)
        for node in body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._read_import(node)
            elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                self.definitions.setdefault(node.name, []).append(node)
                for decorator in node.decorator_list:
                    name = _root_of(decorator)
                    if name is not None and not isinstance(decorator, ast.Name):
                        self.acting.setdefault(name, []).append(node)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                self._read_assignment(node, is_top=is_top)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self._read_call(node, node.value)
            elif type(node).__name__ == "TypeAlias":
                alias: Any = node
                self.definitions.setdefault(alias.name.id, []).append(node)
            elif type(node).__name__ in _BLOCKS:
                for part in ("body", "handlers", "orelse", "finalbody"):
                    for inner in getattr(node, part, ()):
                        self._read(inner.body if isinstance(inner, ast.ExceptHandler) else [inner], is_top=False)

    def _read_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                self._flags |= getattr(__future__, alias.name).compiler_flag
            return
        self._imports.append(node)
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self.definitions.setdefault(name, []).append(node)

    def _read_assignment(self, node: ast.Assign | ast.AnnAssign, *, is_top: bool) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:
            return
        for target in targets:
            if isinstance(target, ast.Name):
                self.definitions.setdefault(target.id, []).append(node)
                if is_top and len(targets) == 1:
                    self.plain.add(node)
            elif isinstance(target, (ast.Attribute, ast.Subscript)) and (name := _root_of(target)) is not None:
                self.acting.setdefault(name, []).append(node)

    def _read_call(self, node: ast.Expr, call: ast.Call) -> None:
        """Note `X.register(...)` as acting on X, `copyreg.pickle(X, ...)` as acting on X."""
        if not isinstance(call.func, ast.Attribute):
            return
        name = _root_of(call.func)
        if name == "copyreg" and call.func.attr == "pickle" and call.args:
            name = _root_of(call.args[0])
        elif call.func.attr != "register":
            return
        if name is not None:
            self.acting.setdefault(name, []).append(node)

    def code_of(self, node: ast.stmt, without: frozenset[int] = frozenset()) -> types.CodeType:
        """Compile one statement, without the decorators of these places."""
        if without and isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            kept = [each for place, each in enumerate(node.decorator_list) if place not in without]
            fields = {**{name: getattr(node, name) for name in node._fields if hasattr(node, name)}}
            node = ast.copy_location(type(node)(**{**fields, "decorator_list": kept}), node)
        never = ast.If(test=ast.Constant(value=False), body=self._imports or [ast.Pass()], orelse=[])
        tree = ast.fix_missing_locations(ast.Module(body=[never, node], type_ignores=[]))
        return compile(tree, self.filename, "exec", flags=self._flags, dont_inherit=True)  # type: ignore[no-any-return]

    def decorators_on(self, node: ast.stmt, is_wanted: Callable[[str], bool]) -> frozenset[int]:
        """The places of a definition's decorators whose first name is one of these."""
        roots = enumerate(map(_root_of, getattr(node, "decorator_list", ())))
        return frozenset(place for place, name in roots if name is not None and is_wanted(name))


def _root_of(node: ast.AST) -> str | None:
    """The name that an expression such as `a.b[c].d(e)` begins with."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


root_of = _root_of


def sets_item(node: Any) -> bool:
    """Return True for `x[...] = ...`."""
    return any(isinstance(each, ast.Subscript) for each in getattr(node, "targets", ()))


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
    """All code objects inside one."""
    found: set[types.CodeType] = set()
    pending = [code]
    for current in pending:  # grows while we go through it
        inner = [const for const in current.co_consts if isinstance(const, types.CodeType)]
        found.update(inner)
        pending += inner
    return found


_sources: dict[str, tuple[list[str], Source | None]] = {}  # one atomic operation at a time, from any thread


def _lines_of(filename: str, namespace: dict[str, Any] | None) -> list[str]:
    try:
        lines = linecache.getlines(filename, namespace)
        if not lines and filename in TYPED:
            remember_text(filename, typed_text(filename))
            lines = linecache.getlines(filename)
    except Exception:  # noqa: BLE001 -- loaders are anybody's
        return []
    return lines


def source_for(filename: str, namespace: dict[str, Any] | None = None) -> Source | None:
    """The statements of a file, or of what stands for one in `linecache`; None where there is no source."""
    lines = _lines_of(filename, namespace)
    known = _sources.get(filename)
    if known is not None and known[0] == lines:
        return known[1]
    source = None
    if lines:
        try:
            source = Source(filename, "".join(lines))
        except (SyntaxError, ValueError, RecursionError):
            source = None
    _sources[filename] = lines, source
    return source


_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # options of Python with a value behind them


def typed_text(filename: str) -> str:
    """The program that was given by `python -c`, or on a standard input that can be read again, if there is one."""
    if filename == "<string>":
        options = iter(sys.orig_argv[1:])
        for option in options:
            if option == "-c":
                return next(options, "")
            if not option.startswith("-") or option == "-":
                break
            if option in _WITH_VALUE:
                next(options, "")
    if (
        filename == "<stdin>"
        and not sys.flags.interactive
        and not hasattr(sys, "ps1")
        and stat.S_ISREG(os.fstat(0).st_mode)
    ):
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
    """What stands for files in `linecache`: the inputs of a session, the newest first."""
    names = [name for name in list(linecache.cache) if name.startswith("<") or "ipykernel" in name]
    return names[::-1]


def is_definition(node: ast.stmt) -> bool:
    """Return True for what may be made from its source alone: definitions, and imports."""
    return isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Import, ast.ImportFrom))


def is_import(node: ast.stmt) -> bool:
    """Return True for an import, of which several for one name are tried in turn."""
    return isinstance(node, (ast.Import, ast.ImportFrom))


def is_constant(node: ast.stmt) -> bool:
    """Return True for the assignment of a value that is written out."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def names_in_annotations(node: ast.stmt) -> list[str]:
    """The names in the annotations of a class body, which may be text that a decorator or metaclass looks into."""
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


def attributes_set(node: Any) -> frozenset[str]:
    """The attributes that an assignment such as `X.a = X.b = ...` sets on what it begins with."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return frozenset(
        each.attr for each in targets if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name)
    )


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
    """Return True if a call is given what it would be given at any time: names bound once, results of pure functions.

    Imports may be several: `import ctypes, ctypes.util`.
    """
    for value in (*call.args, *(keyword.value for keyword in call.keywords)):
        for each in ast.walk(value):
            if isinstance(each, ast.Call) and not is_pure(each.func):
                return False
            made = names.get(each.id, ()) if isinstance(each, ast.Name) else ()
            if len(made) > 1 and not all(map(is_import, made)):
                return False
    return True
