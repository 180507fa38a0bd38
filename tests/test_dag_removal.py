"""After the whole workflow: no file under results/ holds a column that is removed from the raw tables."""

import gzip

import pyarrow.parquet as pq

from conftest import MARKER


def files_that_hold(folder, word):
    """Names of the files below `folder` that hold the word, parquet and gzip decoded."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = content.decode("latin-1")
            if path.suffix == ".parquet":
                text += str(pq.read_table(path, partitioning=None).to_pylist()) + str(
                    pq.read_schema(path).metadata
                )
            if word in text:
                found.append(path.name)
    return found


def test_no_value_of_a_removed_column_reaches_a_result(tiny):
    """Each of those values is marked in the raw tables."""
    results = tiny.directory / "results"
    assert (results / "tiny" / "report.html").exists()
    assert len(files_that_hold(tiny.directory / "raw", MARKER)) == 5
    assert files_that_hold(results, MARKER) == []


def test_the_search_detects_a_code_that_is_kept(tiny):
    """The control: the most frequent code, which is kept, is in visits, dataset and synthetic files."""
    found = files_that_hold(tiny.directory / "results", "4019")
    assert {"visits.parquet", "train.parquet", "synthesize.parquet"} <= set(found)
