"""Measure preprocessing and the dataset: rows a second and peak memory, each step in a process of its own.

    python benchmarks/preprocess.py [--rows 651000 2500000 10000000] [--nhds DIR] [--out FILE]

A MIMIC-III of full size (46,520 patients, 651,000 diagnoses) is simulated first, its visits lengthened by
codes of other visits; larger ones hold each patient several times. NHDS 2010 (151,551 discharges) is read
from DIR or ../shared/data where that is there.
"""

import argparse
import gzip
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measures import REPOSITORY, SCRIPTS, Line, growth, report, run

sys.path.append(str(SCRIPTS))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from simulate_raw import write_table

PATIENTS, DIAGNOSES, DISCHARGES = 46_520, 651_000, 151_551
TABLES = ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD")
TEXT = {"ICD9_CODE": pa.string()}


def read(path: Path) -> pa.Table:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(column_types=TEXT))


def simulate(folder: Path) -> None:
    """The three tables of a full-size MIMIC-III in `folder`."""
    resources = REPOSITORY / "resources"
    unused = {name: folder / f"{name}.unused.csv.gz" for name in ("procedures", "prescriptions")}
    paths = dict(
        zip(("patients", "admissions", "diagnoses"), (folder / f"{t}.csv.gz" for t in TABLES), strict=True)
    )
    tables = [x for name, path in (paths | unused).items() for x in (f"--{name}-table", path)]
    counts = [x for path in sorted(resources.glob("simulation_*.csv")) for x in ("--counts", path)]
    rules = resources / "validity"
    run("simulate_raw", *tables, *counts, "--rules", rules, "--patients", PATIENTS, "--seed", 1)
    path = folder / "DIAGNOSES_ICD.csv.gz"
    table = read(path)
    rng = np.random.default_rng(1)
    more = table.take(pa.array(rng.integers(0, table.num_rows, DIAGNOSES - table.num_rows)))
    codes = table["ICD9_CODE"].take(pa.array(rng.permutation(table.num_rows)[: more.num_rows]))
    late = pa.array(20 + np.arange(more.num_rows))
    more = more.set_column(3, "SEQ_NUM", late).set_column(4, "ICD9_CODE", codes)
    write_table(path, pa.concat_tables([table, more]))


def repeat(source: Path, target: Path, times: int) -> int:
    """The same hospital `times` over, with ids of their own, as plain CSV; the number of diagnoses."""
    target.mkdir()
    rows = 0
    for name in TABLES:
        table = read(source / f"{name}.csv.gz")
        with open(target / f"{name}.csv", "wb") as file:
            for number in range(times):
                copy = table
                for column in ("ROW_ID", "SUBJECT_ID", "HADM_ID"):
                    if column in table.column_names:
                        moved = pc.add(table[column], number * 10_000_000)
                        copy = copy.set_column(table.column_names.index(column), column, moved)
                options = pa.csv.WriteOptions(include_header=number == 0, quoting_style="needed")
                pa.csv.write_csv(copy, file, options)
        rows = times * table.num_rows
    return rows


def steps(source: str, raw: Path, rows: int, unit: str, folder: Path) -> Iterator[Line]:
    """Both steps, one after the other."""
    visits = folder / "visits.parquet"
    written = ("--visits", visits, "--audit", folder / "audit.json")
    sets = [x for name in ("train", "val", "test") for x in (f"--{name}", folder / f"{name}.parquet")]
    for script, options in (
        ("preprocess", ("--raw-dir", raw, "--source", source, *written)),
        ("build_dataset", ("--visits", visits, *sets, "--vocabulary", folder / "vocabulary.json")),
    ):
        seconds, memory, _ = run(script, *options)
        yield Line(f"{script}, {source}", rows, unit, seconds, rows / seconds, memory=memory)


def measure(sizes: list[int], nhds: Path) -> Iterator[Line]:
    """Lines of the table."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder)
        for size in sizes:
            raw = folder / str(size)
            rows = repeat(folder, raw, max(1, round(size / DIAGNOSES)))
            for line in steps("mimic3", raw, rows, "diagnoses", folder):
                lines.append(line)
                yield line
        if len(sizes) > 1:
            for script in ("preprocess", "build_dataset"):
                yield growth(lines, f"{script}, mimic3")
        if nhds.exists():
            yield from steps("nhds2010", nhds, DISCHARGES, "discharges", folder)
        else:
            print("nhds2010: not measured; give its folder by --nhds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[DIAGNOSES, 2_500_000, 10_000_000])
    parser.add_argument("--nhds", type=Path, default=REPOSITORY.parent / "shared" / "data" / "nhds2010")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report(measure(given.rows, given.nhds), given.out)
