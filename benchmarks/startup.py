"""How long ``kit --help`` takes beside a Python that does nothing, interleaved in one run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

_ROUNDS = 15
_COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "kit --help": [sys.executable, "-m", "kit", "--help"],
    "kit train --help": [sys.executable, "-m", "kit", "train", "--help"],
    "import edge.agent": [sys.executable, "-c", "import edge.agent.__main__"],
}


def main() -> None:
    """Print the median of each command, and its ratio to an empty Python."""
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(_ROUNDS):
        for name, words in _COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    empty = statistics.median(times["python -c pass"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:20} {median:6.3f} s  {median / empty:5.1f} x")


if __name__ == "__main__":
    main()
