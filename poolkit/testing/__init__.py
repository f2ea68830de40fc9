"""poolkit.testing: pools for tests, which run in this process and thread, on a virtual clock."""

from __future__ import annotations

from poolkit.testing.fakes import FakePool

__all__ = ["FakePool"]
