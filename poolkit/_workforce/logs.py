"""Logs: the library's logger, made when poolkit is imported.

Not when a pool is made, which is when most of the rest is imported: making a logger takes a lock of `logging`, and a
thread that holds that may be waiting for the pool.
"""

from __future__ import annotations

import logging

log = logging.getLogger("poolkit")
