"""How long commands take that a person waits for, as whole processes: `python -m tests.bench.startup`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RUNS = 21
COMMANDS = (
    ("--help",),
    ("enqueue", "--help"),
    ("pause", "--help"),
    ("worker", "start", "--help"),
    ("inventory", "check"),
)


def seconds(arguments: tuple[str, ...]) -> float:
    """One run."""
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("qctl")), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Print the median of each command, the first run left out."""
    for arguments in COMMANDS:
        taken = [seconds(arguments) for _ in range(RUNS)][1:]
        print(f"qctl {' '.join(arguments)}: median {median(taken) * 1000:.0f} ms, most {max(taken) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
