"""Select: `poll`, also where eventlet has taken it out of the module `select`, as it has no green form of it."""

from __future__ import annotations

import select

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any


def _find_poll() -> Any:
    found = getattr(select, "poll", None)
    if found is None:
        import importlib.util  # noqa: PLC0415 -- there only

        spec = select.__spec__
        if spec.loader is not None:
            again = importlib.util.module_from_spec(spec)  # another module object, with all that is in it
            spec.loader.exec_module(again)
            found = getattr(again, "poll", None)
    return found


poll: Any = _find_poll()  # None: this system has none
