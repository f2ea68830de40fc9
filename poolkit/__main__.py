"""The command line: `python -m poolkit serve ...`."""

from __future__ import annotations

import sys

USAGE = "usage: python -m poolkit serve MODULE:APP [options]; python -m poolkit serve --help says more"


def main(argv: list[str]) -> int:
    """Run a command; return the exit code."""
    if argv[:1] == ["serve"]:
        from poolkit import serve  # noqa: PLC0415 -- there only

        return serve.main(argv[1:])
    if argv[:1] in (["-h"], ["--help"]):
        sys.stdout.write(f"{USAGE}\n")
        return 0
    sys.stderr.write(f"{USAGE}\n" if not argv else f"python -m poolkit: there is no command {argv[0]!r}\n{USAGE}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
