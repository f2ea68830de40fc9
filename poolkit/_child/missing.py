"""Missing: what a call or a task does not find by its name in a worker, and what is said of that.

A name of the script that nothing has needed here is made from the source when somebody looks it up on the module, as
pickle does. Errors of names that are not to be had say that a worker raised them, why, and what to do.
"""

from __future__ import annotations

from types import ModuleType

from poolkit._child import script
from poolkit._typing import Any
from poolkit._wire.modules import Script
from poolkit._wire.remote import describe_error

ADVICE = (
    "a worker raised this while it loaded the call: it imports by name what functions and arguments belong to, from "
    "the sys.path that this program had when the worker started. Make that importable there: install it, or extend "
    "sys.path or PYTHONPATH before the pool is made; a module that exists in this process alone can be sent itself, "
    "after cloudpickle.register_pickle_by_value(module); one that nodes lack, by the pool's by_value"
)


def explain(error: BaseException, *, is_loading: bool = False) -> None:
    """Add to an error about a name why that could not be had in this worker."""
    if type(error) is EOFError and str(error) == "EOF when reading a line":
        _note(error, "a task has no standard input: ask in the program, and pass on what was said")
    if not isinstance(error, (NameError, AttributeError, ImportError)):
        return
    # up to CPython 3.13 in words of its own
    is_of_pickle = type(error) is AttributeError and str(error).startswith("Can't get attribute '")
    name = str(error).split("'")[2].partition(".")[0] if is_of_pickle else getattr(error, "name", None)
    reason = script.reasons.get(name) if isinstance(name, str) else None
    if reason is not None:
        how = reason if isinstance(reason, str) else describe_error(reason)
        text = f"{name!r} of the script could not be made in this worker ({how}); an initializer can set it"
        vars(error).setdefault("__notes__", []).append(text)
    is_of_module = isinstance(error, AttributeError) and isinstance(error.obj, ModuleType)
    if is_loading and (is_of_pickle or is_of_module or isinstance(error, ImportError)):
        vars(error).setdefault("__notes__", []).append(ADVICE)
        if not hasattr(error, "add_note"):  # CPython 3.10 shows no notes
            error.args = (f"{error} ({ADVICE})", *error.args[1:])
            if isinstance(error, ImportError):
                error.msg = error.args[0]


def explain_keyword(error: BaseException, kwargs: dict[str, Any]) -> None:
    """Add to the error of a function that does not take an option of a task where those go."""
    if type(error) is not TypeError or error.__traceback__ is None or error.__traceback__.tb_next is not None:
        return  # it comes from within
    from poolkit._core.options import CallOptions  # noqa: PLC0415 -- only where something is wrong

    try:
        given = [f"{name}={kwargs[name]!r:.50}" for name in CallOptions.NAMES if name in kwargs]
    except Exception:  # noqa: BLE001 -- the `repr` of what the user gave
        return
    if given and "unexpected keyword argument" in str(error):
        text = (
            f"each keyword of submit() is the function's; options go through a view: pool.options({', '.join(given)})"
        )
        _note(error, text)


def _note(error: BaseException, text: str) -> None:
    vars(error).setdefault("__notes__", []).append(text)
    if not hasattr(error, "add_note"):  # CPython 3.10 shows no notes
        error.args = (f"{error} ({text})",)


def make_from_source(module: ModuleType, name: str) -> None:  # noqa: C901 -- one step after another
    """Make a definition of the script from its source, with what it needs: imports, definitions, constants."""
    from poolkit._wire import source as sources  # noqa: PLC0415 -- few tasks need it
    from poolkit._wire.functions import scan_code  # noqa: PLC0415

    filename = getattr(module, "__file__", None)
    typed = script.typed.get(module.__name__)
    if typed is not None:
        filename = typed[0]
        sources.remember_text(*typed)
    source = sources.source_for(filename) if isinstance(filename, str) else None
    if source is None:
        return
    namespace = vars(module)
    pending = [name]
    order: list[tuple[int, str, Any, bool]] = []
    for each in pending:  # grows while we go through it
        nodes = source.definitions.get(each, [])
        if len(nodes) > 1 and not all(isinstance(node, sources.IMPORTS) for node in nodes):  # one cannot be told
            continue
        for node in nodes:
            is_made = isinstance(node, (*sources.DEFINITIONS, *sources.IMPORTS))
            if is_made or (each != name and sources.is_constant(node)):
                code = source.code_of(node)
                order.append((node.lineno, each, code, node is nodes[-1]))
                scan = scan_code(code)
                pending += {*scan.now, *scan.later}.difference(pending, namespace)
    for _, each, code, is_last in sorted(order, key=lambda entry: entry[0]):
        if each not in namespace:
            try:
                exec(code, namespace)  # noqa: S102 -- the script's own statement
            except ImportError:
                if is_last:
                    raise
                continue
            script.bound[module.__name__, each] = 0, namespace.get(each)


Script.make = make_from_source
