"""One trial: one contender, once, in this fresh process. Started by run.py; prints its figures as JSON.

Usage: trial.py MEASURE CONTENDER SCALE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benchmarks`, here and in the workers

from benchmarks.catalogue import MEASURES
from benchmarks.contenders import MACHINE
from benchmarks.machine import LIMITS
from benchmarks.measure import Figures, Sized


def noop_of_main() -> None:
    """What users write in their scripts: it cannot be imported by name."""


def main() -> None:
    """Run the trial that the arguments name."""
    name, contender, scale = sys.argv[1:]
    measure, sized = MEASURES[name], Sized(float(scale))
    figures: Figures
    if contender == MACHINE:
        figures = {limit: LIMITS[limit].run(sized) for limit in measure.limits}
    else:
        figures = measure.trial(contender, sized)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
