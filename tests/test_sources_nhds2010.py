"""The NHDS 2010 reader on a few lines, and on the survey itself."""

import bz2
import gzip
import zipfile
from collections import Counter

import numpy as np
import pytest

from cohortloom.data.visits import code_lists, sex_index
from raw_cohort import LAYOUT, SHARED, WIDTH, by_system, dropped, nhds_line, normalized, read, rows

SURVEY = SHARED / "nhds2010"
LINES = [
    nhds_line("7203", "64403", "V5862", sex="2", age="33"),
    nhds_line("V3000", unit="3", age=" 0", newborn="1", sex="1"),
    nhds_line("486", unit="2", age="11", sex="1"),
    nhds_line("486", "486", unit="3", age="20", sex="1"),
    nhds_line("41401", age="90", sex="2"),
]
EXPECTED = [
    ("nhds2010-1", 0, 0, 33.0, "F", ["7203", "64403", "V5862"]),
    ("nhds2010-2", 0, 0, 0.0, "M", ["V3000"]),
    ("nhds2010-3", 0, 0, np.float32(11 / 12), "M", ["486"]),
    ("nhds2010-4", 0, 0, np.float32(20 / 365.25), "M", ["486"]),
    ("nhds2010-5", 0, 0, 90.0, "F", ["41401"]),
]


def write(folder, content, suffix=""):
    path = folder / f"NHDS10.PU.txt{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("NHDS10.PU.txt", content)
    else:
        path.write_bytes({"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix](content))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".zip"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_visit_a_line(tmp_path, suffix, end):
    raw = write(tmp_path, (end.join(LINES) + end).encode(), suffix)
    for place in (tmp_path, raw):  # the folder, or the file itself
        table, account = read(place, "nhds2010", tmp_path / "out")
        assert rows(table) == EXPECTED
        assert normalized(account) == ({"files with CRLF line ends": 1} if end == "\r\n" else {})
        assert dropped(account) == {("diagnoses", "code repeated in its visit"): 1}
        assert "race" in account["tables"][0]["columns_removed"]


def test_procedures_are_read_from_their_fields(tmp_path):
    line = nhds_line("486", procedures=("3961", "004-", "3961"))
    write(tmp_path, (line + "\n").encode())
    table, account = read(tmp_path, "nhds2010", tmp_path / "out")
    assert table["procedures"].to_pylist() == [["ICD9Proc:3961", "ICD9Proc:004"]]
    assert dropped(account) == {("procedures", "code repeated in its visit"): 1}


def test_every_byte_of_the_layout_is_named_once():
    taken = Counter(byte for start, width in LAYOUT.values() for byte in range(start, start + width))
    assert taken == Counter(range(WIDTH))


@pytest.mark.skipif(not SURVEY.is_dir(), reason="the NHDS 2010 file is not beside the repository")
def test_the_facts_of_the_survey(tmp_path):
    """151,551 discharges, 63,603 of men; 1,105,849 diagnoses, three of them repeats within a discharge."""
    table, account = read(SURVEY, "nhds2010", tmp_path)
    assert table.num_rows == 151_551
    assert int((sex_index(table) == 1).sum()) == 63_603
    values, offsets = code_lists(table)
    repeated = dropped(account)
    assert len(values) + repeated["diagnoses", "code repeated in its visit"] == 1_105_849
    assert by_system(account)["procedures", "ICD9Proc"] == 218_127
    assert set(repeated) == {(what, "code repeated in its visit") for what in ("diagnoses", "procedures")}
    ages = table["age"].to_numpy()
    assert int((ages >= 1).sum()) == 135_418  # the other 1,313 and 14,820 are in months and days
    kept = np.random.default_rng(0).random(table.num_rows) < 0.8
    distinct = len(values.filter(np.repeat(kept, np.diff(offsets))).unique())
    assert distinct == pytest.approx(7_767, abs=60)
