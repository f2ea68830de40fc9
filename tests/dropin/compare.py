"""What several pools make of the programs of `programs.py`: prints a table in Markdown. Nothing is tested.

Usage: PYTHONPATH=. python tests/dropin/compare.py [PROGRAM ...]     Pools that are not installed do not take part.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from programs import PROGRAMS, run

from support_pools import POOLS


def cell(verdict: str) -> str:
    """A verdict as it stands in the table."""
    if verdict == "right":
        return "●"
    text = verdict.removeprefix("found ").replace("|", "\\|")
    # The names of exceptions, each once; else what was found, as it is.
    names = dict.fromkeys(re.findall(r"\b(?:[A-Z]\w*Error|Broken\w+|PoolClosed|ProcessExpired|WorkerCrashed)\b", text))
    return "○ " + (", ".join(names) or text)


def main(names: list[str]) -> None:
    """Run all programs, or some, with each pool that is there."""
    there = [kind for kind in POOLS if kind in {"fork", "spawn"} or importlib.util.find_spec(kind)]
    versions = [f"{kind} {importlib.metadata.version(kind)}" for kind in there if kind not in {"fork", "spawn"}]
    print(f"CPython {platform.python_version()}, {', '.join(versions)}\n", flush=True)
    print("| what a program does |", " | ".join(POOLS[kind] for kind in there), "|")
    print("| --- |" + " --- |" * len(there))
    for name in names or PROGRAMS:
        cells = []
        for kind in there:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(cell(run(name, kind, Path(folder))))
        print(f"| {PROGRAMS[name].title} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
