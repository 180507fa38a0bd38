"""Through the whole workflow: what was removed from the raw tables stands in no file under results/."""

import csv
import gzip

import pyarrow.parquet as pq
import pytest

from cohortloom.sources.mimic3 import ALLOWED
from conftest import Workflow, copy_workflow

MARKER = "ZQXMARKER"
OVERLAY = """
experiment: marked
cohort: {source: mimic3}
train: {tokens: 1000}
runs: {lm_only: null}
naive: [prevalence, copy]
"""


def plant(source, target, allowed):
    """Copy a raw table with the marker in place of every value that is not allowed through."""
    with gzip.open(source, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(target, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: v if k in allowed else f"{MARKER}{k}" for k, v in row.items()})


def files_that_hold(folder, word):
    """Names of the files below `folder` that hold the word, parquet decoded."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            text = path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                text += str(pq.read_table(path, partitioning=None).to_pylist()) + str(
                    pq.read_schema(path).metadata
                )
            if word in text:
                found.append(path.name)
    return found


@pytest.fixture(scope="module")
def marked(tiny, tmp_path_factory):
    """Results of the tiny workflow on raw tables whose dropped columns hold the marker alone."""
    base = tmp_path_factory.mktemp("marked")
    raw = base / "raw_tables"
    raw.mkdir()
    for name, allowed in ALLOWED.items():
        plant(tiny.directory / "raw" / "tiny" / f"{name}.csv.gz", raw / f"{name}.csv", allowed)
    (base / "work").mkdir()
    (base / "marked.yaml").write_text(OVERLAY)
    folder = copy_workflow(base / "workflow")
    options = ["--configfile", folder / "tests" / "config_tiny.yaml", base / "marked.yaml"]
    workflow = Workflow(folder, base / "work", [*options, "--config", f"raw_dir={raw}"])
    workflow.run("evaluate_all")
    return raw, base / "work" / "results"


def test_no_value_of_a_removed_column_reaches_a_result(marked):
    raw, results = marked
    assert (results / "marked" / "report.html").exists()
    assert len(files_that_hold(raw, MARKER)) == 3
    assert files_that_hold(results, MARKER) == []


def test_the_search_would_find_what_is_kept(marked):
    """The control: the commonest code, which is allowed, stands in visits, dataset and synthetic files."""
    _, results = marked
    assert {"visits.parquet", "train.parquet", "synthesize.parquet"} <= set(files_that_hold(results, "4019"))
