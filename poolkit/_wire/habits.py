"""Habits: settings of a process or thread that a program makes once, at its top, and expects in its workers.

Those of the process are read when a worker starts, those of a thread where the pool is made, those of a library set in
a worker when it is imported there.
"""

from __future__ import annotations

import _socket
import functools
import sys
import warnings
from collections.abc import Callable

from poolkit._typing import Any
from poolkit._wire.modules import scripts

_OF_INTERPRETER = ("recursionlimit", "int_max_str_digits")
_OF_CONTEXT = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def of_thread() -> dict[str, Any]:
    """Return decimal context and numpy's handling of errors of the thread that calls, as far as those are loaded."""
    found: dict[str, Any] = {}
    decimal: Any = sys.modules.get("decimal")
    numpy: Any = sys.modules.get("numpy")  # either may be half imported
    if hasattr(decimal, "getcontext"):
        context = decimal.getcontext()
        traps = [signal.__name__ for signal, is_set in context.traps.items() if is_set]
        found["decimal"] = {name: getattr(context, name) for name in _OF_CONTEXT}, traps
    if hasattr(numpy, "geterr") and hasattr(numpy, "get_printoptions"):
        options = numpy.get_printoptions()
        plain = {name: value for name, value in options.items() if type(value) in (int, float, bool, str)}
        found["numpy"] = numpy.geterr(), plain
    return found


def of_process() -> dict[str, Any]:
    """Return recursion limit, digits of an int, warning filters, and the default timeout of sockets."""
    filters: list[Any] = list(warnings.filters)
    return {
        "interpreter": {name: getattr(sys, f"get{name}")() for name in _OF_INTERPRETER if hasattr(sys, f"get{name}")},
        "filters": [
            _by_name(each)
            for each in filters
            if (home := each[2].__module__) not in scripts and hasattr(sys.modules.get(home), each[2].__name__)
        ],
        "socket": _socket.getdefaulttimeout(),
    }


def settle(settings: dict[str, Any], when_imported: Callable[[str, Callable[[Any], object]], None]) -> None:
    """Set what differs, in a worker."""
    own = of_process()
    for name, value in settings["interpreter"].items():
        if own["interpreter"].get(name) != value:
            getattr(sys, f"set{name}")(value)
    if settings["socket"] is not None:
        _socket.setdefaulttimeout(settings["socket"])
    if own["filters"] != settings["filters"]:
        _settle_filters(settings["filters"], when_imported)
    if "decimal" in settings:
        when_imported("decimal", lambda decimal: _settle_decimal(decimal.getcontext(), *settings["decimal"]))
    if "numpy" in settings:
        when_imported("numpy", lambda numpy: _settle_numpy(numpy, *settings["numpy"]))


def _by_name(found: Any) -> tuple[Any, ...]:
    """A filter that can be read where the module of its category is not imported."""
    return (*found[:2], (found[2].__module__, found[2].__name__), *found[3:])


def _settle_filters(named: list[Any], when_imported: Callable[[str, Callable[[Any], object]], None]) -> None:
    """Set these filters; those of a library, which may take long to import, take their places when it is."""
    warnings.resetwarnings()
    lasting: Any = warnings.filters  # whoever imports within `catch_warnings` has a copy
    ranks = {each: rank for rank, each in enumerate(dict.fromkeys(named))}

    def add(module: Any, each: Any, *, is_last: bool = False) -> None:
        category = getattr(module, each[2][1], None)
        if category is None:  # its module is another one here
            return
        current: Any = warnings.filters
        for filters in (lasting, current) if current is not lasting else (lasting,):
            others = () if is_last else enumerate(filters)
            behind = (at for at, other in others if ranks.get(_by_name(other), -1) > ranks[each])
            filters.insert(next(behind, len(filters)), (*each[:2], category, *each[3:]))

    for each in ranks:
        home = each[2][0]
        if home in sys.modules:  # each is behind those before it: there may be hundreds
            add(sys.modules[home], each, is_last=True)
        else:
            when_imported(home, functools.partial(add, each=each))


def _settle_decimal(context: Any, values: dict[str, Any], traps: list[str]) -> None:
    for name, value in values.items():
        setattr(context, name, value)
    for signal in context.traps:
        context.traps[signal] = signal.__name__ in traps


def _settle_numpy(numpy: Any, errors: dict[str, str], options: dict[str, Any]) -> None:
    numpy.seterr(**{kind: how for kind, how in errors.items() if how not in ("call", "log")})
    numpy.set_printoptions(**options)
