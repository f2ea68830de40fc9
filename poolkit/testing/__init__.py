"""poolkit.testing: fake pools, which run in this process and thread on a virtual clock, and a check for leaks.

What stands here is imported when it is first used: pytest loads the plugin in this package at its start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from poolkit.testing.calls import Call
    from poolkit.testing.command_script import WhenCommand
    from poolkit.testing.context import FakeContext
    from poolkit.testing.fakes import FakePool
    from poolkit.testing.leakage import leaks
    from poolkit.testing.programs import CommandCall
    from poolkit.testing.script import When
    from poolkit.testing.workers import WhenWorker

_HOMES = {
    "Call": "calls",
    "CommandCall": "programs",
    "FakeContext": "context",
    "FakePool": "fakes",
    "When": "script",
    "WhenCommand": "command_script",
    "WhenWorker": "workers",
    "leaks": "leakage",
}

__all__ = ["Call", "CommandCall", "FakeContext", "FakePool", "When", "WhenCommand", "WhenWorker", "leaks"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib  # noqa: PLC0415 -- see above

    import poolkit  # noqa: PLC0415 -- the same

    poolkit.check_system()
    value = globals()[name] = getattr(importlib.import_module(f"poolkit.testing.{home}"), name)
    return value
