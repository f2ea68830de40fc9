"""Cloud: cloudpickle, imported when it is first needed, also in the midst of its own import.

A signal handler or finalizer may submit while the very import that `submit` has begun is under way below it, in the
same thread. Python then hands out the half of the module that is there. That half is put aside and the import done
anew; what was interrupted goes on with the module that is the imported one when it comes to its end: the new one.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing typing would cost each template process 6 ms
if TYPE_CHECKING:
    from typing import Any


def cloudpickle_module() -> Any:
    """Return cloudpickle, all of it. Waits for another thread that imports it just now."""
    import cloudpickle  # noqa: PLC0415 -- costs a worker tens of milliseconds, and many never need it

    if getattr(cloudpickle.__spec__, "_initializing", False):  # by this thread, else it would have been waited for
        for name in [name for name in sys.modules if name.partition(".")[0] == "cloudpickle"]:
            del sys.modules[name]
        import cloudpickle  # noqa: PLC0415 -- see above
    return cloudpickle
