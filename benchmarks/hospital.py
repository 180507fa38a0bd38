"""Measure reading a hospital: against the CSV reader of an earlier commit, and at the size of MIMIC-IV.

    python benchmarks/hospital.py mimic3 [--commit a15a2f5] [--rounds 3] [--out FILE]
    python benchmarks/hospital.py mimic4 --demo DIR [--times 1985 3970] [--memory-mb 2000] [--out FILE]

mimic3: a MIMIC-III of full size (46,520 patients, 651,000 diagnoses) is simulated, diagnoses alone;
preprocess and build_dataset of that commit and of this one run in turn, in processes of their own, --rounds
times each.

mimic4: the MIMIC-IV demo (DIR) is repeated, 1,985 times for the size of MIMIC-IV, with ids of their own. Of
each copy a share of the codes is kept, so that there are 6.4 million diagnoses, 860,000 procedures and 20
million prescriptions. Seconds and the greatest resident memory of preprocess; at twice the size memory should
stay.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
from measures import REPOSITORY, Line, growth, report, run

from preprocess import DIAGNOSES, simulate

ADMISSIONS = 275  # of the demo
# Table -> rows of MIMIC-IV 3.1 for each admission, over those of the demo.
SHARES = {
    "patients": 1.0,
    "admissions": 1.0,
    "diagnoses_icd": 6_364_488 / 546_028 / (4506 / ADMISSIONS),
    "procedures_icd": 859_655 / 546_028 / (722 / ADMISSIONS),
    "prescriptions": 20_292_611 / 546_028 / (18_087 / ADMISSIONS),
}


def compare(commit: str, rounds: int) -> Iterator[Line]:
    """Both steps of an earlier commit and of this one, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        simulate(folder / "raw")
        old = folder / "old"
        subprocess.run(
            ["git", "-C", REPOSITORY, "worktree", "add", "--detach", "-f", old, commit], check=True
        )
        try:
            lines: dict[tuple[str, str], list[Line]] = {}
            for _ in range(rounds):
                for label, scripts in (
                    (commit, old / "workflow_scripts"),
                    ("now", REPOSITORY / "workflow_scripts"),
                ):
                    for line in both_steps(label, scripts, folder):
                        lines.setdefault((line.stage.split(",")[0], label), []).append(line)
                        yield line
            for step in ("preprocess", "build_dataset"):
                best = {label: min(line.seconds for line in lines[step, label]) for label in (commit, "now")}
                yield Line(
                    f"{step}, best", None, "", best["now"], None, best["now"] / best[commit], f"of {commit}"
                )
        finally:
            subprocess.run(["git", "-C", REPOSITORY, "worktree", "remove", "--force", old], check=True)


def both_steps(label: str, scripts: Path, folder: Path) -> Iterator[Line]:
    """Preprocess and build_dataset of one commit."""
    visits = folder / "visits.parquet"
    sets = [x for name in ("train", "val", "test") for x in (f"--{name}", folder / f"{name}.parquet")]
    read = (
        "--raw-dir",
        folder / "raw",
        "--source",
        "mimic3",
        "--visits",
        visits,
        "--audit",
        folder / "audit.json",
    )
    if label == "now":
        read = (*read, "--icd9-list", REPOSITORY / "resources" / "titles" / "ICD9CM.csv")
    for script, options in (
        ("preprocess", read),
        ("build_dataset", ("--visits", visits, *sets, "--vocabulary", folder / "vocabulary.json")),
    ):
        seconds, memory, _ = run(script, *options, scripts=scripts)
        yield Line(f"{script}, {label}", DIAGNOSES, "diagnoses", seconds, DIAGNOSES / seconds, memory=memory)


def repeat(demo: Path, target: Path, times: int) -> int:
    """The demo `times` over as .csv.gz, with ids of their own and SHARES of the rows; the rows written."""
    target.mkdir()
    connection, rows = duckdb.connect(), 0
    for name, share in SHARES.items():
        source = next(
            path for path in (demo / f"{name}.csv", demo / "hosp" / f"{name}.csv.gz") if path.exists()
        )
        table = f"read_csv('{source}', all_varchar=true)"
        moved = ", ".join(
            f"CAST({column} AS BIGINT) + copy * 100000000 AS {column}"
            for (column, *_) in connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
            if column in ("subject_id", "hadm_id")
        )
        query = (
            f"SELECT * EXCLUDE (copy, number) REPLACE ({moved}) FROM range({times}) AS copies(copy),"
            f" (SELECT *, row_number() OVER () AS number FROM {table})"
            f" WHERE hash(copy, number) % 1000000 < {share * 1_000_000:.0f} ORDER BY copy, number"
        )
        path = target / f"{name}.csv.gz"
        connection.execute(f"COPY ({query}) TO '{path}' (FORMAT csv, HEADER, COMPRESSION gzip)")
        rows += connection.execute(f"SELECT count(*) FROM ({query})").fetchall()[0][0]
    return rows


def grow(demo: Path, times: list[int], memory_mb: int) -> Iterator[Line]:
    """Preprocess at each size."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in times:
            raw = folder / str(number)
            rows = repeat(demo, raw, number)
            out = ("--visits", folder / "visits.parquet", "--audit", folder / "audit.json")
            options = ("--raw-dir", raw, "--source", "mimic4", *out, "--memory-mb", memory_mb)
            seconds, memory, _ = run("preprocess", *options)
            lines.append(Line("preprocess, mimic4", rows, "rows", seconds, rows / seconds, memory=memory))
            yield lines[-1]
        if len(times) > 1:
            yield growth(lines, "preprocess, mimic4")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=["mimic3", "mimic4"])
    parser.add_argument("--commit", default="a15a2f5")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--times", type=int, nargs="+", default=[1985, 3970])
    parser.add_argument("--memory-mb", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.source == "mimic4" and not (given.demo and given.demo.is_dir()):
        sys.exit("error: --demo: give the folder of the MIMIC-IV demo")
    if given.source == "mimic3":
        report(compare(given.commit, given.rounds), given.out)
    else:
        report(grow(given.demo, given.times, given.memory_mb), given.out)
