"""joblib's own tests of `Parallel`, as far as they are made for several backends, with this one in their lists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("joblib")

import joblib

import poolkit
import support

OWN = Path(joblib.__file__).parent / "test/test_parallel.py"
PARTS = 16
LEFT_OUT = {
    "test_error_capture": "asks for other workers after an error; here the workers are kept",
    "test_auto_memmap_on_arrays_from_generator": "asks for memory maps of files; these are of shared memory",
    "test_memmapping_leaks": "asks for files in the folder for temporary ones; here there are none",
    "test_initializer_context": "an initializer is given to a pool",
    "test_initializer_parallel": "an initializer is given to a pool",
}
# Lists of backends that are written out, and not made of those that are registered.
WRITTEN_OUT = re.compile(
    r"""(?<=PROCESS_BACKENDS = )\[['"]multiprocessing['"], ['"]loky['"]\]"""
    r"""|(?<=@parametrize\(['"]backend['"], )\[.*['"]threading['"].*\](?=\))"""
    r"""|\[None, ['"]loky['"], ['"]threading['"]\]"""
)
CONFTEST = """
from poolkit.extras import joblib as extra

def pytest_collection_modifyitems(items):
    asked, left_out = {part}, {left_out}
    ours = []
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(value == "poolkit" or isinstance(value, extra.PoolkitBackend) for value in values):
            if item.originalname not in left_out:
                ours.append(item)
    items[:] = ours[asked::{parts}]
"""
SITE = "from poolkit.extras import joblib\njoblib.register()\n"  # in each interpreter that they start, too


@pytest.mark.long
@pytest.mark.skipif(not OWN.exists(), reason="this joblib was installed without its tests")
@pytest.mark.parametrize("part", range(PARTS))
def test_tests_of_joblib_pass_with_this_backend(part: int, tmp_path: Path) -> None:
    source = OWN.read_text(encoding="utf-8")
    changed, count = WRITTEN_OUT.subn('["poolkit"]', source)
    assert count >= 4
    assert all(f"def {name}(" in source for name in LEFT_OUT if "initializer" not in name)  # which are new
    (tmp_path / "test_own.py").write_text(changed, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(CONFTEST.format(part=part, parts=PARTS, left_out=set(LEFT_OUT)))
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(poolkit.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "JOBLIB_TEMP_FOLDER": str(tmp_path)},  # loky leaves some
        capture_output=True,
        text=True,
        timeout=support.WATCHDOG,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 80 // PARTS
