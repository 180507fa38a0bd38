"""Seconds and peak memory of the evaluations that need no model, each in a process of its own.

    python benchmarks/evaluation.py [--visits 10000 100000 1000000] [--out FILE]

As many synthetic as training and as held-out visits. A hospital is simulated and its patients fall into four
parts (training, validation, test, and a part that stands for synthetic ones); each part is drawn up to size,
with replacement. Groups that compare all pairs, or train trees, work on their stated sample (20,000 visits a
side by default); the others are given every visit.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measures import REPOSITORY, SCRIPTS, Line, growth, report, run

PATIENTS = 60_000
PARTS = ("train", "val", "test", "synthetic")
ALL_VISITS = ("fidelity", "utility", "conditioning")  # evaluations whose cost grows with the visits alone
FILES = {
    "medical_validity": ("synthetic", "rules"),
    "fidelity": ("synthetic", "train"),
    "classifier": ("synthetic", "train", "test"),
    "privacy": ("synthetic", "train", "val", "test"),
    "utility": ("synthetic", "train", "test"),
    "conditioning": ("synthetic", "train", "test"),
}


def cohort(folder: Path) -> None:
    """visits.parquet of a simulated hospital."""
    resources = REPOSITORY / "resources"
    names = {"patients": "PATIENTS", "admissions": "ADMISSIONS", "diagnoses": "DIAGNOSES_ICD"}
    tables = [x for key, name in names.items() for x in (f"--{key}-table", folder / f"{name}.csv.gz")]
    counts = [x for path in sorted(resources.glob("simulation_*.csv")) for x in ("--counts", path)]
    size = ["--rules", resources / "validity", "--patients", PATIENTS, "--seed", 1]
    run("simulate_raw", *tables, *counts, *size)
    written = ["--visits", folder / "visits.parquet", "--audit", folder / "audit.json"]
    run("preprocess", "--raw-dir", folder, "--source", "simulated", *written)


def draw(folder: Path, visits: int) -> None:
    """The four parts, each of `visits` visits or a few more, with ids of their own."""
    import numpy as np
    import pyarrow as pa

    sys.path.insert(0, str(SCRIPTS))
    from cohortloom.base.ragged import ragged_range, row_of_value, row_offsets
    from cohortloom.data.visits import numbered_ids, patient_starts, read_visits, write_visits

    everything = read_visits(folder / "visits.parquet")
    starts = patient_starts(everything)
    counts = np.diff(np.r_[starts, everything.num_rows])
    rng = np.random.default_rng(1)
    part_of = rng.permutation(len(starts)) % len(PARTS)
    for number, part in enumerate(PARTS):
        own = np.flatnonzero(part_of == number)
        wanted = rng.choice(own, 2 * visits // max(1, int(counts.mean())) + 10)
        wanted = wanted[: np.searchsorted(np.cumsum(counts[wanted]), visits) + 1]
        lengths = counts[wanted]
        table = everything.take(pa.array(ragged_range(starts[wanted], lengths)))
        ids = numbered_ids(part, row_of_value(row_offsets(lengths)))
        write_visits(table.set_column(0, "patient_id", ids), folder / f"{part}.parquet", {})


def measure(sizes: list[int]) -> Iterator[Line]:
    """Lines of the table."""
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cohort(folder)
        for visits in sizes:
            # In a process of its own, which gives its memory back.
            subprocess.run([sys.executable, __file__, "--draw", folder, str(visits)], check=True)
            done = []
            for kind, names in FILES.items():
                paths = {name: folder / f"{name}.parquet" for name in names}
                if "rules" in paths:
                    paths["rules"] = REPOSITORY / "resources" / "validity"
                options = [x for name, path in paths.items() for x in (f"--{name}", path)]
                options += ["--visits", visits] if kind in ALL_VISITS else []
                written = ("--records", folder / "r.json", "--run", "x")
                seconds, memory, _ = run(f"evaluate_{kind}", *options, *written)
                done.append(
                    Line(f"evaluate_{kind}", visits, "visits", seconds, visits / seconds, memory=memory)
                )
                yield done[-1]
            seconds, memory = sum(line.seconds for line in done), max(line.memory for line in done)
            done.append(
                Line("evaluation, one set", visits, "visits", seconds, visits / seconds, memory=memory)
            )
            yield done[-1]
            lines += done
    if len(sizes) > 1:
        for stage in dict.fromkeys(line.stage for line in lines):
            yield growth(lines, stage)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--draw"]:
        draw(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--visits", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
        parser.add_argument("--out", type=Path)
        given = parser.parse_args()
        report(measure(given.visits), given.out)
