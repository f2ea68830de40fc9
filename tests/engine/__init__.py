"""What shows that poolkit on many machines does what it promises; see each program's header.

Usage, from the repository's root: `python -m tests.engine.NAME`; from `tests`: `python -m engine.NAME`.
"""

import sys
from pathlib import Path

_tests = Path(__file__).resolve().parent.parent
# For `engine` and the modules `support*`, here and in the workers; and for the library, where it is not installed.
sys.path.extend(str(folder) for folder in (_tests, _tests.parent) if str(folder) not in sys.path)
