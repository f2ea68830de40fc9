"""Loading: what is added to the error of a call that a worker cannot load: the same names are found in the owner."""

from __future__ import annotations

from types import ModuleType

ADVICE = (
    "a worker raised this while it loaded the call: it imports by name what functions and arguments belong to, from "
    "the sys.path that this program had when the worker started. Make that importable there: install it, or extend "
    "sys.path or PYTHONPATH before the pool is made; a module that exists in this process alone can be sent itself, "
    "after cloudpickle.register_pickle_by_value(module)"
)


def say_where(error: BaseException) -> None:
    """Add to an error of a name that was not found that it was raised in a worker, and what to do."""
    if isinstance(error, AttributeError):
        # up to CPython 3.13 in words of pickle's own
        missing = isinstance(error.obj, ModuleType) or str(error).startswith("Can't get attribute")
    else:
        missing = isinstance(error, ImportError)
    if not missing:
        return
    if hasattr(error, "add_note"):
        error.add_note(ADVICE)
    else:  # CPython 3.10 shows no notes
        text = f"{error} ({ADVICE})"
        error.args = (text, *error.args[1:])
        if isinstance(error, ImportError):
            error.msg = text
