"""Compare poolkit with other pools, side by side, and print how many times faster it is.

Usage: python tests/benchmarks/run.py [MEASURE...] [--repeat N] [--only CONTENDER...] [--json FILE]
How to read what it prints: docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benchmarks`

from benchmarks.catalogue import MEASURES
from benchmarks.contenders import ENTRIES, is_installed
from benchmarks.measure import run_rounds
from benchmarks.record import Record, environment, load
from benchmarks.table import lines_of


def main() -> None:
    """Run what the command line asks for."""
    asked = _arguments()
    record = Record(environment(), asked.scale)
    print(*(f"{name}: {value}" for name, value in record.environment.items()), sep="\n", end="\n\n", flush=True)
    for name in asked.measures or MEASURES:
        measure = MEASURES[name]
        contenders = [
            contender
            for contender in measure.contenders
            if is_installed(contender) and (not asked.only or contender in asked.only)
        ]
        if not contenders:
            continue
        samples = run_rounds(measure, contenders, asked.repeat, asked.scale)
        print(*lines_of(measure, contenders, samples), sep="\n", flush=True)
        record.samples[name] = samples
        record.environment["load after"] = load()
        if asked.json:  # each time, so that what was measured outlives an interruption
            record.write(asked.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare poolkit with other pools, side by side.")
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"all unless given: {', '.join(MEASURES)}")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="sizes are multiplied by it (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="CONTENDER", help=f"take these alone: {', '.join(ENTRIES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample into a file")
    asked = parser.parse_args()
    unknown = [name for name in asked.measures if name not in MEASURES]
    unknown += [name for name in asked.only or () if name not in ENTRIES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if asked.repeat < 1 or asked.scale <= 0:
        parser.error("--repeat and --scale must be positive")
    return asked


if __name__ == "__main__":
    main()
