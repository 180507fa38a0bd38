"""What the benchmarks share: a line of the table, a step in a process of its own, growth with size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "workflow_scripts"


class Line(NamedTuple):
    """A line of the table; what does not apply is None.

    size: rows, patients, visits or tokens, as `unit` says. rate: of `unit` a second. ratio: to `of`.
    memory: the greatest of the process, in MB.
    """

    stage: str
    size: int | None
    unit: str
    seconds: float | None
    rate: float | None
    ratio: float | None = None
    of: str = ""
    memory: float | None = None

    def __str__(self) -> str:
        cells = [f"{self.stage:34}", f"{self.size:>10,}" if self.size else " " * 10, f"{self.unit:16}"]
        cells.append(f"{self.seconds:8.1f} s" if self.seconds is not None else " " * 10)
        cells.append(f"{self.rate:>11,.1f} a second" if self.rate is not None else " " * 20)
        cells.append(f"{self.memory:7,.0f} MB" if self.memory is not None else " " * 10)
        cells.append(f"{self.ratio:8.3f} {self.of}" if self.ratio is not None else "")
        return " ".join(cells).rstrip()


def report(lines, out: Path | None) -> list[Line]:
    """Print lines as they come and append them to the JSON lines of `out`."""
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.append(line)
        if out:
            with open(out, "a", encoding="utf-8") as file:
                file.write(json.dumps(line._asdict()) + "\n")
    return kept


# The peak of a process counts what its parent held when it started: so a small one stands between.
BETWEEN = """
import os, subprocess, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss)
sys.exit(status != 0)
"""


def run(
    script: str, *options, threads: int | None = None, scripts: Path = SCRIPTS
) -> tuple[float, float, str]:
    """Seconds, peak megabytes and log of a step, which may have `threads` (None: as many as there are cores).

    `scripts` is the folder that holds it.

    Ends the benchmark, with the log, where the step fails.
    """
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    step = [sys.executable, scripts / f"{script}.py", *options]
    done = subprocess.run(
        list(map(str, [sys.executable, "-c", BETWEEN, *step])),
        capture_output=True,
        text=True,
        env={**os.environ, **limit},
    )
    if done.returncode:
        sys.exit(f"error: {script} failed:\n{done.stderr[-2000:]}")
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak / 1024, done.stderr  # kilobytes on Linux


def growth(lines: list[Line], stage: str) -> Line:
    """The exponent of seconds by size, a least-squares line through the logarithms; 1 is linear."""
    own = [line for line in lines if line.stage == stage]
    slope = np.polyfit(np.log([line.size for line in own]), np.log([line.seconds for line in own]), 1)[0]
    return Line(f"{stage}, growth", None, "", None, None, float(slope), f"exponent over {len(own)} sizes")
