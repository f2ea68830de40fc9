"""The soak: everything mixed at random, with exact accounting and flat memory.

Usage, from the repository's root:

    python -m tests.soak --minutes 10
    python -m tests.soak --minutes 10 --with streams,messages      with who reads streams, and who talks, in every round
    python -m tests.soak --minutes 10 --with services,clusters     with who runs programs, keeps workers, and clusters
    python -m tests.soak --seed 7 --first-round 31 --rounds 1      repeat one round that went wrong
    python -m tests.soak --tasks 200000                            small tasks alone, and what everybody holds

Exit status 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parent.parent)
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)  # for `soak` and the modules `support*`, here and in the workers
if str(Path(TESTS).parent) not in sys.path:
    sys.path.insert(0, str(Path(TESTS).parent))  # the library, where it is not installed


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    asked = _arguments()
    import support
    from soak import flat
    from soak.run import lines_of, run, watched

    support.adopt_orphans()
    print(f"seed {asked.seed}", flush=True)
    if asked.tasks:
        found = flat.run(asked.tasks, min(flat.WARM_UP, asked.tasks // 2), print)
        print(*found, sep="\n")
        return bool(found)
    kinds = ["process", "thread"] if asked.kind == "both" else [asked.kind]
    seconds = asked.seconds or asked.minutes * 60
    report = run(asked.seed, seconds, kinds, asked.first_round, asked.rounds, watched, asked.always)
    print(*lines_of(report), sep="\n", flush=True)
    return bool(report.violations)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Everything mixed at random.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--kind", choices=["process", "thread", "both"], default="both")
    parser.add_argument(
        "--with",
        dest="always",
        type=lambda text: text.split(","),
        default=[],
        metavar="streams,messages,services,clusters",
        help="have these in every round; else they are in some",
    )
    parser.add_argument("--first-round", type=int, default=0, metavar="N", help="begin with this round")
    parser.add_argument("--rounds", type=int, metavar="N", help="end after so many rounds")
    parser.add_argument("--tasks", type=int, metavar="N", help="run so many small tasks instead")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
