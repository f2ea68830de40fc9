"""Objects that the tests of the codec have pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def in_main(source: str, name: str) -> Any:
    """Define `source` as if in `__main__`, and return one name of it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(source, namespace)  # noqa: S102 -- our own source
    return namespace[name]


@dataclass
class Box:
    content: object
