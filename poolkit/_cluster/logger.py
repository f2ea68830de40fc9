"""Logger: the one that clusters log to, "poolkit.cluster"."""

from __future__ import annotations

import logging

log = logging.getLogger("poolkit.cluster")
