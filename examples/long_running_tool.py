"""Ask one program a thousand questions, beside starting it a thousand times.

The program is bc where that is installed, else a Python that reads from its input: what matters is that it answers a
line with a line, and takes longer to start than to answer. It is kept between questions, told that there are no more by
the end of its input, and started again when it has died.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator

import poolkit

BC = ["bc", "-q"]
PYTHON = [sys.executable, "-I", "-q", "-u", "-i"]  # which writes its prompts to standard error


class Calculator:
    """Whatever program of these is there, kept from one question to the next.

    Attributes:
        tool: the program and its arguments.
        starts: how often it was started.
    """

    def __init__(self, tool: list[str]) -> None:
        self.tool = tool
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.command: poolkit.Command[str] = poolkit.spawn(self.tool, stdin="pipe", stderr="null", text=True)
        self._answers: Iterator[str] = iter(self.command)
        self.starts += 1

    def ask(self, question: str) -> str:
        """Return the answer; if the program has died, that of a new one."""
        try:
            return self._ask(question)
        except (poolkit.ChannelClosed, poolkit.CommandFailed):  # as it does not read, or write, any more
            print(f"  started again: {self.command.exception(timeout=10)}")
            self._start()
            return self._ask(question)

    def _ask(self, question: str) -> str:
        self.command.write(f"{question}\n", timeout=10)
        return next(self._answers)

    def close(self) -> None:
        """Stop the program, if it runs still."""
        self.command.stop()

    def end(self) -> poolkit.CompletedCommand[str]:
        """Let the program end by itself, as it does when its input has ended."""
        self.command.close_stdin()
        return self.command.result(timeout=10)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--python", action="store_true", help="ask Python, also where there is bc")
    asked = parser.parse_args()
    tool = PYTHON if asked.python or not shutil.which("bc") else BC
    questions = [f"{number} * {number}" for number in range(asked.questions)]
    right = [str(number * number) for number in range(asked.questions)]

    with contextlib.closing(Calculator(tool)) as calculator:
        calculator.ask("1")  # it is started, and so is what starts programs
        began = time.perf_counter()
        kept = [calculator.ask(question) for question in questions]
        one = (time.perf_counter() - began) / len(questions)
        print(f"{tool[0]} answered {len(kept)} questions in one process, {one * 1e6:.0f} us each")

        calculator.command.send_signal("SIGKILL")
        calculator.ask("1")
        print(f"  it was started {calculator.starts} times in all")
        done = calculator.end()
        print(f"  it has ended by itself, with code {done.returncode}, after {done.cpu_time * 1e3:.0f} ms of CPU time")

    began = time.perf_counter()
    runs = [poolkit.run(tool, input=f"{question}\n", stderr="null", text=True) for question in questions]
    started = [run.result().stdout.strip() for run in runs]
    each = (time.perf_counter() - began) / len(questions)
    print(f"{tool[0]} was started {len(started)} times, {each * 1e6:.0f} us each")
    print(f"one process took 1/{each / one:.0f} of the time")
    if not kept == started == right:
        sys.exit("some answers are wrong")


if __name__ == "__main__":
    main()
