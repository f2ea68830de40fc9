"""Make the results in docs/performance.md, and the pictures of them, from the record of a run.

Usage: python tests/benchmarks/report.py [--json FILE]

It replaces what stands between the comments `results` and `end of results`, `account` and `end of account`. It
measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benchmarks`

from benchmarks.page import filled, pictures
from benchmarks.record import read

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def main() -> None:
    """Write the picture and the page."""
    parser = argparse.ArgumentParser(description="Make the results in docs/performance.md from a record.")
    parser.add_argument("--json", type=Path, default=DOCS / "performance.json", metavar="FILE", help="from run.py")
    record = read(parser.parse_args().json)
    page = DOCS / "performance.md"
    made = filled(page.read_text(encoding="utf-8"), record)
    page.write_text(made, encoding="utf-8")
    for name, picture in pictures(record).items():
        (DOCS / name).write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
