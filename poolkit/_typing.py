"""Typing: names that only annotations need. To import `typing` itself would cost each template process 6 ms."""

from __future__ import annotations

__all__ = ["TYPE_CHECKING", "Any", "Self", "TypeVar"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from typing_extensions import Self
else:
    Any = Self = TypeVar = object
