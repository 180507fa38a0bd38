"""The step from raw tables to visits: its files, its account, and what it must leave behind."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cohortloom.data.visits import read_visits
from cohortloom.sources.declared import read_source
from preprocess import preprocess
from raw_cohort import EXPECTED, LAYOUT, NHDS, nhds_line, rows, write_mimic

MARKER = "ZQXMARKER"
ALLOWED = {name: {c.name for c in table.columns} for name, table in read_source("mimic3").tables.items()}
KEPT = {column.name for column in NHDS.columns}
# Every column of the three tables of MIMIC-III 1.4.
MIMIC3 = {
    "PATIENTS": ["ROW_ID", "SUBJECT_ID", "GENDER", "DOB", "DOD", "DOD_HOSP", "DOD_SSN", "EXPIRE_FLAG"],
    "ADMISSIONS": [
        "ROW_ID",
        "SUBJECT_ID",
        "HADM_ID",
        "ADMITTIME",
        "DISCHTIME",
        "DEATHTIME",
        "ADMISSION_TYPE",
        "ADMISSION_LOCATION",
        "DISCHARGE_LOCATION",
        "INSURANCE",
        "LANGUAGE",
        "RELIGION",
        "MARITAL_STATUS",
        "ETHNICITY",
        "EDREGTIME",
        "EDOUTTIME",
        "DIAGNOSIS",
        "HOSPITAL_EXPIRE_FLAG",
        "HAS_CHARTEVENTS_DATA",
    ],
    "DIAGNOSES_ICD": ["ROW_ID", "SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE"],
}
VALUES = {
    "SUBJECT_ID": "7",
    "GENDER": "F",
    "DOB": "2100-01-01 00:00:00",
    "HADM_ID": "70",
    "ADMITTIME": "2150-01-01 10:00:00",
    "SEQ_NUM": "1",
    "ICD9_CODE": "4019",
}


def run(folder, raw, source="mimic3"):
    """Paths of visits and audit after the step."""
    visits, audit = folder / "out" / "visits.parquet", folder / "out" / "audit.json"
    preprocess(raw_dir=raw, visits=visits, audit=audit, source=source)
    return visits, audit


def test_visits_and_their_account(tmp_path):
    visits, audit = run(tmp_path, write_mimic(tmp_path / "raw"))
    assert rows(read_visits(visits)) == EXPECTED
    account = json.loads(audit.read_text())
    assert {table["table"]: table["rows"] for table in account["tables"]} == {
        "PATIENTS": 3,
        "ADMISSIONS": 4,
        "DIAGNOSES_ICD": 7,
    }
    for table in account["tables"]:
        raw = (tmp_path / "raw" / table["file"]).read_bytes()
        assert table["sha256"] == hashlib.sha256(raw).hexdigest()
        assert set(table["columns_kept"]) == set(ALLOWED[table["table"]])
    named = {"ETHNICITY", "LANGUAGE", "RELIGION", "INSURANCE", "MARITAL_STATUS", "DIAGNOSIS", "DOD"}
    assert named <= set(account["columns_removed"])
    assert account["cohort"]["patients"] == 3 and account["cohort"]["visits"] == 4
    metadata = pq.read_schema(visits).metadata
    digests = "".join(table["sha256"] for table in account["tables"])
    assert metadata[b"inputs_sha256"].decode() == hashlib.sha256(digests.encode()).hexdigest()
    assert metadata[b"source"] == b"mimic3"


def test_two_runs_give_identical_files(tmp_path):
    raw = write_mimic(tmp_path / "raw")
    first, second = run(tmp_path / "a", raw), run(tmp_path / "b", raw)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def everything(paths) -> str:
    """All that the files hold, parquet decoded."""
    out = ""
    for path in paths:
        out += path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            out += str(pq.read_table(path).to_pylist()) + str(pq.read_schema(path).metadata)
    return out


def test_no_value_of_a_removed_column_passes(tmp_path, caplog):
    caplog.set_level("DEBUG")
    tables = {
        name: ",".join(columns)
        + "\n"
        + ",".join(VALUES[column] if column in ALLOWED[name] else f"{MARKER}{column}" for column in columns)
        + "\n"
        for name, columns in MIMIC3.items()
    }
    paths = run(tmp_path, write_mimic(tmp_path / "raw", **tables))
    assert read_visits(paths[0]).num_rows == 1
    assert MARKER not in everything(paths) + caplog.text
    removed = json.loads(paths[1].read_text())["columns_removed"]
    assert set(removed) == {column for columns in MIMIC3.values() for column in columns} - set(VALUES)
    # The control: in an allowed column the marker would be seen.
    tables["DIAGNOSES_ICD"] = tables["DIAGNOSES_ICD"].replace("4019", "486")
    assert "486" in everything(run(tmp_path / "control", write_mimic(tmp_path / "raw", **tables)))


def test_no_byte_of_a_removed_nhds_column_passes(tmp_path, caplog):
    caplog.set_level("DEBUG")
    (tmp_path / "NHDS10.PU.txt").write_text(nhds_line("4019", fill="@") + "\n")
    paths = run(tmp_path, tmp_path, "nhds2010")
    table = str(pq.read_table(paths[0]).to_pylist())
    assert "@" not in table + paths[1].read_text() + caplog.text and "4019" in table
    assert json.loads(paths[1].read_text())["columns_removed"] == sorted(set(LAYOUT) - KEPT)


@pytest.mark.parametrize("column", ["ETHNICITY", "LANGUAGE", "RELIGION", "INSURANCE", "MARITAL_STATUS"])
def test_a_column_that_is_not_allowed_is_not_even_parsed(tmp_path, column):
    """Bytes that are no UTF-8 text stop the parser only in a column that it reads."""
    header = MIMIC3["ADMISSIONS"]
    row = [VALUES.get(name, "") for name in header]
    row[header.index(column)] = "\xff\xfe"
    bad = (",".join(header) + "\n" + ",".join(row) + "\n").encode("latin-1")
    one = {
        "PATIENTS": "SUBJECT_ID,GENDER,DOB\n7,F,2100-01-01 00:00:00\n",
        "DIAGNOSES_ICD": "SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE\n7,70,1,4019\n",
    }
    visits, _ = run(tmp_path, write_mimic(tmp_path / "raw", ADMISSIONS=bad, **one))
    assert read_visits(Path(visits)).num_rows == 1
