"""Origins: which statement of a script made what a name means now, as far as that can be told.

Of several statements, such as those in branches, one is told by what the live object has of it: code objects; of a
class without methods its line, from CPython 3.13 on, else what its body binds and what it is derived from.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import types
from typing import Any

from poolkit._wire.functions import ATOMS
from poolkit._wire.modules import scripts
from poolkit._wire.process_wide import is_made_anew, writes_to_file
from poolkit._wire.source import (
    ASSIGNMENTS,
    IMPORTS,
    Source,
    codes_in,
    has_simple_arguments,
    is_constant,
    makes_no_call,
    may_write,
    root_of,
)

_MISSING = object()
_PURE = frozenset({"ctypes.util", "ntpath", "pathlib", "pathlib._local", "posixpath"})
_MOST_BEHIND = 100  # objects that are looked at for functions behind one


def functions_of(cls: type) -> list[types.FunctionType]:
    """Return the functions that a class was given by its own statement, or that were set on it, without wrappers."""
    values = list(vars(cls).values())  # to look at one may add others
    return [each for value in values for each in functions_behind(value) if "__wrapped__" not in vars(each)]


def functions_behind(value: Any) -> list[types.FunctionType]:
    """Return the functions that decorators have put into an object: as an attribute, or a variable of a closure."""
    found: list[types.FunctionType] = []
    pending = [value]
    for each in pending:  # grows while we go through it
        with contextlib.suppress(AttributeError):
            pending += object.__getattribute__(each, "__dict__").values()
        for slot in [member for cls in type(each).__mro__ for member in vars(cls).values()]:
            if type(slot) is types.MemberDescriptorType:  # func, fget, __func__ and others of C, too
                with contextlib.suppress(Exception):
                    pending.append(slot.__get__(each))
        if type(each) is types.FunctionType:
            found.append(each)
            pending += [cell.cell_contents for cell in each.__closure__ or () if cell != types.CellType()]
        if len(pending) > _MOST_BEHIND:
            break
    return found


def makers_of(source: Source, name: str, value: Any, namespace: dict[str, Any]) -> list[Any]:
    """Return the statements of which one made what a name means: one if that can be told, none if there is none."""
    nodes = [each for each in source.definitions.get(name, ()) if _may_make(each, value)]
    is_only = len(nodes) == 1
    if any(isinstance(each, ASSIGNMENTS) for each in nodes):
        names = [each.id for each in ast.walk(nodes[0].value) if isinstance(each, ast.Name)] if is_only else ()
        return [] if name in names else nodes
    if issubclass(type(value), type):
        prefix = f"{value.__qualname__}."
        own = [each for each in functions_of(value) if each.__qualname__.startswith(prefix)]
        marks = [_agreement(source, each, own) for each in nodes]
        best = [each for each, mark in zip(nodes, marks, strict=True) if mark == max(marks) > 0]
        if is_only or len(best) < 2:  # noqa: PLR2004 -- it can be told
            return best
        marks = [_resemblance(value, each, namespace) for each in best]
        return [each for each, mark in zip(best, marks, strict=True) if mark == max(marks) >= 0]
    codes = {each.__code__ for each in functions_behind(value)}
    codes = {each for each in codes if each.co_filename == source.filename and each.co_name == name}
    told = [each for each in nodes if not codes.isdisjoint(codes_in(source.code_of(each)))]
    return told if codes and len(told) < 2 else nodes  # noqa: PLR2004 -- it can be told


def _may_make(node: Any, value: Any) -> bool:
    if isinstance(node, IMPORTS):
        return False
    if isinstance(node, ASSIGNMENTS):
        return not (makes_no_call(node) if issubclass(type(value), type) else is_constant(node))
    return bool(getattr(node, "decorator_list", True)) or issubclass(type(value), (type, types.FunctionType))


def _agreement(source: Source, node: Any, own: list[types.FunctionType]) -> int:
    """Return 2 if a statement has the code of a class's own functions, 1 if neither has any, else 0."""
    if not isinstance(node, ast.ClassDef):
        return 1
    written = {each.name for each in ast.walk(node) if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}
    codes = [each.__code__ for each in own if each.__name__ in written]
    codes = [each for each in codes if each.co_filename == source.filename]
    return 2 * codes_in(source.code_of(node)).issuperset(codes) if codes else int(not written)


def _resemblance(cls: type, node: Any, namespace: dict[str, Any]) -> int:
    """Return how much of what a statement binds a class has; -1 if the statement did not make it."""
    if not isinstance(node, ast.ClassDef):
        return 0
    own = vars(cls)
    if "__firstlineno__" in own:  # from CPython 3.13 on
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        return 0 if own["__firstlineno__"] == first else -1
    annotated = {each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and hasattr(each.target, "id")}
    bases = [_meant_by(name, namespace) for name in map(root_of, node.bases) if name]
    if (
        ast.get_docstring(node, clean=False) not in (None, cls.__doc__)
        or annotated != set(own.get("__annotations__", ()))
        or any(isinstance(base, type) and base not in cls.__mro__ for base in bases)
    ):
        return -1
    members, fields = getattr(cls, "__members__", {}), getattr(cls, "__dataclass_fields__", {})
    live = {**own, **{name: member.value for name, member in members.items()}}
    live.update({name: field.default for name, field in fields.items()})
    score = sum(base in cls.__bases__ for base in bases or [object])
    for name, value in _written(node).items():
        with contextlib.suppress(Exception):  # what cannot be had here
            made = eval(ast.unparse(value), namespace.copy()) if makes_no_call(ast.Expr(value)) else node  # noqa: S307
            if type(has := live.get(name, node)) is type(made) and has != made:
                if type(made) in ATOMS:
                    return -1
                score -= 1  # it may have been changed in place
        score += 1 if name in annotated or name in live else -1
    return score


# ===== what may be run in a worker =====


def may_run(source: Source, node: Any, value: Any, namespace: dict[str, Any], *, is_named: bool) -> bool:
    """Return True if a worker may run the statement that made a value: it makes the same there, and no file."""
    if isinstance(node, ASSIGNMENTS) and is_named:
        return node in source.plain
    if may_write(source.code_of(node)):
        return False
    if not isinstance(node, ASSIGNMENTS):
        return not (issubclass(type(value), type) and any(map(writes_to_file, vars(value).values())))
    if node not in source.plain or not isinstance(node.value, ast.Call):
        return False
    callee = _meant_by(root_of(node.value.func) or "", namespace)
    is_simple = has_simple_arguments(node.value, source.definitions, lambda each: _is_pure(each, namespace))
    return is_simple and callee is not _MISSING and is_made_anew(value, callee)


def _meant_by(name: str, namespace: dict[str, Any]) -> Any:
    return namespace.get(name, getattr(builtins, name, _MISSING))


def _is_pure(function: ast.expr, namespace: dict[str, Any]) -> bool:
    """Return True for functions of a few modules that give the same for the same, such as `os.path.join`."""
    top, *attributes = ast.unparse(function).split(".")
    found = _meant_by(top, namespace)
    for each in attributes:
        found = getattr(found, each, None)
    return getattr(found, "__module__", None) in _PURE


# ===== what a class was given later =====


def _written(node: ast.ClassDef) -> dict[str, Any]:
    """Return the names that a class body itself binds or annotates, and what to."""
    found: dict[str, Any] = {}
    for each in node.body:
        if isinstance(each, ast.Assign):
            found.update((target.id, each.value) for target in each.targets if isinstance(target, ast.Name))
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            found[each.target.id] = each.value
        elif isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[each.name] = each
    return found


def is_special(name: str) -> bool:
    """Return True for a name such as `__repr__`."""
    return name.startswith("__") and name.endswith("__")


def set_later(cls: type, node: Any, *, is_bare: bool) -> frozenset[str]:
    """Return the attributes that a class was given after its statement, as by `cls.instance = cls()` in a method.

    Of a statement that is run without its decorators (`is_bare`), all that it does not write itself.
    """
    if not isinstance(node, ast.ClassDef) or hasattr(cls, "__members__"):
        return frozenset()
    written, found = _written(node), set()
    is_usual = type(cls) is type or type(cls).__name__ == "ABCMeta"
    for name, value in list(vars(cls).items()):
        kind, own = type(value), written.get(name)
        if is_special(name) or (hasattr(kind, "__get__") and not (is_bare and own is None)):
            continue
        if own is None:
            is_later = is_bare or (is_usual and kind.__module__ in scripts)
        else:
            is_constant = (is_usual or kind in ATOMS) and isinstance(own, ast.Constant) and value is not own.value
            is_later = is_constant and (kind is not type(own.value) or value != own.value)
        if is_later or isinstance(value, cls):
            found.add(name)
    return frozenset(found)
