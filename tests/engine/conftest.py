"""What runs on a Dask cluster is tested apart: importing `distributed` starts threads and changes how errors pickle.

POOLKIT_DASK=1 pytest -m "long or not long" tests/engine
"""

from __future__ import annotations

import os

ON_DASK = ["test_dask_pool.py", "test_install.py", "test_network_failures.py", "test_provider_dask.py"]
collect_ignore = [] if "POOLKIT_DASK" in os.environ else ON_DASK
