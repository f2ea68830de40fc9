"""Origins: which statement of a script made what a name means now, as far as that can be told.

A name may have several statements: in branches, of which some did not run, or one after the other, of which some did
not run yet. They are told apart by what the live object has of them: code objects, or, of a class without functions,
its line, names, constants and bases. What has nothing of them is not guessed at.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copyreg
import functools
import types
from typing import Any

from poolkit._wire.functions import ATOMS
from poolkit._wire.modules import scripts
from poolkit._wire.source import Source, codes_in, is_constant, makes_no_call, root_of

_MOST_WRAPPERS = 20
_MOST_BEHIND = 100  # objects that are looked at for functions behind one


def has_run(source: Source, node: Any, namespace: dict[str, Any]) -> bool:
    """Return True if the effect of an acting statement within a block is to be seen: its branch must have run."""
    codes = codes_in(source.code_of(node))

    def has_left(live: Any, expression: ast.expr) -> bool:
        if getattr(live, "__code__", None) in codes:
            return True
        made = _evaluated(expression, namespace)
        return made is live or (type(made) is type(live) and bool(made == live))

    try:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return any(each.__code__ in codes for each in functions_behind(namespace.get(node.name)))
        if isinstance(node, ast.Expr):
            call: Any = node.value
            subject = _evaluated(call.args[0], namespace)
            if call.func.attr == "register":  # of an abstract base class
                return issubclass(subject, _evaluated(call.func.value, namespace))
            return has_left(copyreg.dispatch_table.get(subject), call.args[1])
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(has_left(_evaluated(each, namespace), node.value) for each in targets)
    except Exception:  # noqa: BLE001 -- whatever the script's objects raise
        return False


def _evaluated(expression: ast.expr, namespace: dict[str, Any]) -> Any:
    """What an expression gives now. Raises ValueError for one that calls something."""
    if not makes_no_call(ast.Expr(expression)):
        raise ValueError(expression)
    return eval(ast.unparse(expression), namespace.copy())  # noqa: S307 -- the script's own expression


def functions_of(cls: type) -> list[types.FunctionType]:
    """The functions that a class was given by its own statement, or that were set on it."""
    found: list[types.FunctionType] = []
    for value in list(vars(cls).values()):  # to look at one may add others
        inner: Any = value.__func__ if issubclass(type(value), (classmethod, staticmethod)) else value
        is_property = issubclass(type(inner), property)
        parts: tuple[Any, ...] = (inner.fget, inner.fset, inner.fdel) if is_property else (inner,)
        for part in parts:
            function: Any = part.func if type(part).__name__ == "cached_property" else part
            for _ in range(_MOST_WRAPPERS):
                if type(function) is types.FunctionType and "__wrapped__" not in vars(function):
                    break
                function = _wrapped_in(function)
            if type(function) is types.FunctionType:
                found.append(function)
    return found


def _wrapped_in(value: Any) -> Any:
    try:
        return value.__dict__.get("__wrapped__")
    except Exception:  # noqa: BLE001 -- it may be anything
        return None


def functions_behind(value: Any) -> list[types.FunctionType]:
    """The functions that decorators have put into an object: as an attribute, or a variable of a closure."""
    found: list[types.FunctionType] = []
    pending = [value]
    for each in pending:  # grows while we go through it
        with contextlib.suppress(AttributeError):
            pending += object.__getattribute__(each, "__dict__").values()
        for slot in [vars(cls)[name] for cls in type(each).__mro__ for name in _slots_of(cls) if name in vars(cls)]:
            with contextlib.suppress(Exception):
                pending.append(slot.__get__(each))
        if issubclass(type(each), functools.partial):
            pending.append(each.func)
        elif type(each) is types.MethodType:
            pending.append(each.__func__)
        elif type(each) is types.FunctionType:
            found.append(each)
            for cell in each.__closure__ or ():
                with contextlib.suppress(ValueError):
                    pending.append(cell.cell_contents)
        if len(pending) > _MOST_BEHIND:
            break
    return found


def _slots_of(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def makers_of(source: Source, name: str, value: Any, namespace: dict[str, Any]) -> list[Any]:
    """The statements of which one made what a name means: one if that can be told, none if the source has none."""
    is_class = issubclass(type(value), type)
    nodes = [each for each in source.definitions.get(name, ()) if _may_make(each, value)]
    is_only = len(nodes) == 1
    if any(isinstance(each, (ast.Assign, ast.AnnAssign)) for each in nodes):
        return [] if is_only and _names(nodes[0].value, name) else nodes
    if is_class:
        prefix = f"{value.__qualname__}."
        own = [each for each in functions_of(value) if each.__qualname__.startswith(prefix)]
        agreeing = [each for each in nodes if _agrees(source, each, own)]
        if is_only or len(agreeing) < 2:  # noqa: PLR2004 -- it can be told
            return agreeing
        marks = [_likeness(value, each, namespace) for each in agreeing]
        best = max(marks)
        likely = [each for each, mark in zip(agreeing, marks, strict=True) if mark == best]
        return likely if best >= 0 else []
    behind = [each for each in functions_behind(value) if _is_from(each, source)]
    codes = {each.__code__ for each in behind if each.__code__.co_name == name}
    told = [each for each in nodes if not codes.isdisjoint(codes_in(source.code_of(each)))]
    return told if codes and len(told) < 2 else nodes  # noqa: PLR2004 -- it can be told


def _may_make(node: Any, value: Any) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return False
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return not (makes_no_call(node) if issubclass(type(value), type) else is_constant(node))
    return bool(getattr(node, "decorator_list", True)) or issubclass(type(value), (type, types.FunctionType))


def _names(expression: ast.expr, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(expression))


def _is_from(function: types.FunctionType, source: Source) -> bool:
    return function.__code__.co_filename == source.filename


def _agrees(source: Source, node: Any, own: list[types.FunctionType]) -> bool:
    """Return True if a statement has the code of a class's own functions; or if neither has any."""
    if not isinstance(node, ast.ClassDef):
        return True
    written = {each.name for each in ast.walk(node) if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}
    codes = [each.__code__ for each in own if _is_from(each, source) and each.__name__ in written]
    return codes_in(source.code_of(node)).issuperset(codes) if codes else not written


def _likeness(cls: type, node: Any, namespace: dict[str, Any]) -> int:
    """Tell by how much a class looks as if this statement had made it: -1 where it did not, more for more in common."""
    if not isinstance(node, ast.ClassDef):
        return 0
    has = vars(cls)
    if "__firstlineno__" in has:  # from CPython 3.13 on
        first: int = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        return 0 if has["__firstlineno__"] == first else -1
    text = ast.get_docstring(node, clean=False)
    written = _written(node)
    bases: list[Any] = [namespace.get(name, vars(builtins).get(name)) for name in map(root_of, node.bases) if name]
    if (
        text not in (None, cls.__doc__)
        or {name for name, (_, is_annotated) in written.items() if is_annotated} != set(has.get("__annotations__", ()))
        or any(isinstance(base, type) and base not in cls.__mro__ for base in bases)
    ):
        return -1
    values = {
        **has,
        **{name: member.value for name, member in getattr(cls, "__members__", {}).items()},
        **{name: field.default for name, field in getattr(cls, "__dataclass_fields__", {}).items()},
    }
    score = sum(base in cls.__bases__ for base in bases or [object])
    for name, (value, is_annotated) in written.items():
        with contextlib.suppress(Exception):  # what cannot be had here
            made = _evaluated(value, namespace)
            if type(live := values.get(name, node)) is type(made) and live != made:
                if type(made) in ATOMS:
                    return -1
                score -= 1  # it may have been changed in place
        score += 1 if is_annotated or name in values else -1
    return score


def _written(node: ast.ClassDef) -> dict[str, tuple[Any, bool]]:
    """The names that a class body itself binds or annotates: what to, and whether they are annotated."""
    found: dict[str, tuple[Any, bool]] = {}
    for each in node.body:
        if isinstance(each, ast.Assign):
            found.update((target.id, (each.value, False)) for target in each.targets if isinstance(target, ast.Name))
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            found[each.target.id] = each.value, True
        elif isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[each.name] = each, False
    return found


def is_special(name: str) -> bool:
    """Return True for a name such as `__repr__`."""
    return name.startswith("__") and name.endswith("__")


def set_later(cls: type, node: Any, *, is_bare: bool) -> frozenset[str]:
    """The attributes that a class was given after its statement, as by `cls.instance = cls()` in a method.

    Of a statement that is run without its decorators (`is_bare`), all that it does not write itself.
    """
    if not isinstance(node, ast.ClassDef) or hasattr(cls, "__members__"):
        return frozenset()
    written, found = _written(node), set()
    is_usual = type(cls) is type or type(cls).__name__ == "ABCMeta"
    for name, value in list(vars(cls).items()):
        kind = type(value)
        if is_special(name):
            continue
        if is_bare and name not in written:
            found.add(name)
        elif hasattr(kind, "__get__"):
            continue
        elif isinstance(value, cls) or (name not in written and is_usual and kind.__module__ in scripts):
            found.add(name)
        elif name in written and (is_usual or kind in ATOMS) and isinstance(written[name][0], ast.Constant):
            constant = written[name][0].value
            if value is not constant and (kind is not type(constant) or value != constant):
                found.add(name)
    return frozenset(found)
