"""Rows a second and peak memory of preprocessing, each step in a process of its own.

    python benchmarks/preprocess.py [--nhds DIR]

A MIMIC-III of full size (46,520 patients, 651,000 diagnoses) is simulated first, its visits lengthened by
codes of other visits; NHDS 2010 (151,551 discharges) is read from DIR or ../shared/data where that is there.
"""

import argparse
import gzip
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "workflow_scripts"
PATIENTS, DIAGNOSES = 46_520, 651_000


def simulate(folder: Path) -> None:
    """The three tables of a full-size MIMIC-III in `folder`."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv

    sys.path.insert(0, str(SCRIPTS))
    from simulate_raw import simulate_raw, write_table

    resources = REPOSITORY / "resources"
    simulate_raw(
        patients_table=folder / "PATIENTS.csv.gz",
        admissions_table=folder / "ADMISSIONS.csv.gz",
        diagnoses_table=folder / "DIAGNOSES_ICD.csv.gz",
        counts=sorted(resources.glob("simulation_*.csv")),
        rules=resources / "icd9_validity.csv",
        patients=PATIENTS,
        seed=1,
    )
    path = folder / "DIAGNOSES_ICD.csv.gz"
    convert = pa.csv.ConvertOptions(column_types={"ICD9_CODE": pa.string()})
    with gzip.open(path) as file:
        table = pa.csv.read_csv(file, convert_options=convert)
    rng = np.random.default_rng(1)
    more = table.take(pa.array(rng.integers(0, table.num_rows, DIAGNOSES - table.num_rows)))
    codes = table["ICD9_CODE"].take(pa.array(rng.permutation(table.num_rows)[: more.num_rows]))
    late = pa.array(20 + np.arange(more.num_rows))
    more = more.set_column(3, "SEQ_NUM", late).set_column(4, "ICD9_CODE", codes)
    write_table(path, pa.concat_tables([table, more]))


def measure(source: str, raw: Path, rows: int) -> None:
    """Run the step once and print its figures."""
    with tempfile.TemporaryDirectory() as folder:
        files = ["--visits", f"{folder}/visits.parquet", "--audit", f"{folder}/audit.json"]
        command = [sys.executable, SCRIPTS / "preprocess.py", "--raw-dir", raw, "--source", source, *files]
        start = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        sys.exit(f"error: preprocess of {source} failed; run it by hand to see why")
    memory = usage.ru_maxrss / 1024  # kilobytes on Linux
    print(f"{source:10} {rows:>9,} rows {seconds:6.1f} s {rows / seconds:>10,.0f} rows/s {memory:7.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nhds", type=Path, default=REPOSITORY.parent / "shared" / "data" / "nhds2010")
    nhds = parser.parse_args().nhds
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: the peak memory of a child counts what its parent held.
        process = multiprocessing.get_context("spawn").Process(target=simulate, args=[Path(folder)])
        process.start()
        process.join()
        if process.exitcode:
            sys.exit("error: the simulation failed")
        measure("mimic3", Path(folder), DIAGNOSES)
    if nhds.exists():
        measure("nhds2010", nhds, 151_551)
    else:
        print("nhds2010   not measured: give its folder by --nhds")


if __name__ == "__main__":
    main()
