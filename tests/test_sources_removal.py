"""Race and its like end at preprocess, in every source: values of columns and, in MEDS, codes of rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cohortloom.sources.locate import SOURCES, declared
from cohortloom.sources.race import RACES, race_of_patients
from preprocess import preprocess
from raw_cohort import nhds_line

MARKER = "ZQXMARKER"
# Columns that a release has beside those that are read: race or ethnicity first, then its like.
WITHHELD = {
    "mimic3": {
        "ADMISSIONS": ["ETHNICITY", "LANGUAGE", "RELIGION", "INSURANCE", "MARITAL_STATUS", "DIAGNOSIS"]
    },
    "mimic4": {"admissions": ["race", "language", "insurance", "marital_status"], "patients": ["dod"]},
    "eicu": {"patient": ["ethnicity", "hospitalid"]},
    "omop": {
        "person": [
            "race_concept_id",
            "race_source_value",
            "race_source_concept_id",
            "ethnicity_concept_id",
            "ethnicity_source_value",
            "ethnicity_source_concept_id",
            "location_id",
        ],
        "condition_occurrence": ["condition_source_value"],
    },
}
VALUES = {  # of the columns that are read; numbers that join are the same everywhere
    "GENDER": "F",
    "DOB": "2100-01-01 00:00:00",
    "ADMITTIME": "2150-01-01 10:00:00",
    "ICD9_CODE": "4019",
    "icd_code": "4019",
    "icd_version": "9",
    "gender": "F",
    "anchor_age": "50",
    "anchor_year": "2150",
    "admittime": "2150-01-01 10:00:00",
    "uniquepid": "002-1",
    "age": "50",
    "hospitaldischargeyear": "2014",
    "hospitaldischargestatus": "Alive",
    "icd9code": "401.9",
    "gender_concept_id": "8532",
    "year_of_birth": "1960",
    "month_of_birth": "",
    "day_of_birth": "",
    "vocabulary_id": "ICD9CM",
    "concept_code": "401.9",
    "DRUG": "HEPARIN",
    "DRUG_TYPE": "MAIN",
    "drug": "HEPARIN",
    "drug_type": "MAIN",
    "drugname": "HEPARIN",
    "drugordercancelled": "No",
    "drug_source_value": "HEPARIN",
    "drug_source_concept_id": "0",
}


def value_of(name: str, source: str, marked: str | None) -> str:
    if name == marked:
        return f"{MARKER}"
    if source == "eicu" and name == "gender":
        return "Female"
    if name.endswith(("_date", "_datetime")):
        return "2010-05-05"
    return VALUES.get(name, "7")


def write_tables(folder, source, marked=None):
    """Each declared table with one row, and marked values in the columns that must not pass."""
    folder.mkdir()
    for table in declared(source).tables.values():
        row = {column.name: value_of(column.name, source, marked) for column in table.columns}
        row |= {name: f"{MARKER}{name}" for name in WITHHELD[source].get(table.name, [])}
        text = ",".join(row) + "\n" + ",".join(row.values()) + "\n"
        (folder / f"{table.name}.csv").write_text(text)
    return folder


def write_events(folder, drug="HEPARIN"):
    """A MEDS dataset of one patient and one visit."""
    (folder / "data").mkdir(parents=True)
    codes = [
        ("MEDS_BIRTH", "1960-01-01"),
        ("GENDER//F", None),
        (f"RACE//{MARKER}", None),
        (f"ETHNICITY//{MARKER}", None),
        (f"LANGUAGE//{MARKER}", "2010-05-05T10:00:00"),
        (f"INSURANCE//{MARKER}", "2010-05-05T10:00:00"),
        (f"MARITAL_STATUS//{MARKER}", "2010-05-05T10:00:00"),
        (f"{MARKER}", "2010-05-05T10:00:00"),
        (f"HOSPITAL_ADMISSION//{MARKER}//{MARKER}", "2010-05-05T10:00:00"),
        (f"MEDICATION//START//{drug}", "2010-05-05T11:00:00"),
        ("DIAGNOSIS//ICD//9//4019", "2010-05-06T10:00:00"),
        (f"HOSPITAL_DISCHARGE//{MARKER}", "2010-05-06T10:00:00"),
    ]
    times = pa.array([time for _, time in codes]).cast(pa.timestamp("us"))
    table = pa.table(
        {
            "subject_id": pa.array([7] * len(codes), pa.int64()),
            "time": times,
            "code": [code for code, _ in codes],
            "text_value": [MARKER] * len(codes),
        }
    )
    pq.write_table(table, folder / "data" / "0.parquet")
    return folder


def run(folder, raw, source) -> tuple[str, dict]:
    """All that preprocess leaves, as text, and its account."""
    out = folder / "out"
    preprocess(raw_dir=raw, visits=out / "visits.parquet", audit=out / "audit.json", source=source)
    text = ""
    for path in sorted(out.rglob("*")):
        text += path.name + path.read_bytes().decode("latin-1")
    visits = pq.read_table(out / "visits.parquet")
    assert visits.num_rows == 1
    text += str(visits.to_pylist()) + str(visits.schema.metadata)
    return text, json.loads((out / "audit.json").read_text())


def test_every_source_is_tested_here():
    assert {*WITHHELD, "meds", "nhds2010", "simulated"} == set(SOURCES)


@pytest.mark.parametrize("source", WITHHELD)
def test_no_value_of_a_removed_column_passes(tmp_path, caplog, source):
    caplog.set_level("DEBUG")
    text, account = run(tmp_path / "a", write_tables(tmp_path / "raw", source), source)
    assert MARKER not in text + caplog.text
    withheld = {name for names in WITHHELD[source].values() for name in names}
    assert withheld <= set(account["columns_removed"])
    # The control: in a column that is read the marker would be seen.
    drug = next(
        name
        for name in ("DRUG", "drug", "drugname", "drug_source_value")
        if any(name == column.name for table in declared(source).tables.values() for column in table.columns)
    )
    text, _ = run(tmp_path / "b", write_tables(tmp_path / "marked", source, marked=drug), source)
    assert MARKER in text


def test_no_row_of_a_removed_code_passes_in_meds(tmp_path, caplog):
    caplog.set_level("DEBUG")
    text, account = run(tmp_path / "a", write_events(tmp_path / "raw"), "meds")
    assert MARKER not in text + caplog.text
    left = {row["reason"]: row["rows"] for row in account["left_out"]}
    assert left == {
        "RACE": 1,
        "ETHNICITY": 1,
        "LANGUAGE": 1,
        "INSURANCE": 1,
        "MARITAL_STATUS": 1,
        "code without a prefix": 1,
    }
    assert MARKER in run(tmp_path / "b", write_events(tmp_path / "marked", drug=MARKER), "meds")[0]


def test_race_is_found_for_its_audit_in_every_source(tmp_path):
    """The audit of the removal reads what preprocess does not, under the patients' own ids."""
    for source, (table, column) in {
        "mimic3": ("ADMISSIONS", "ETHNICITY"),
        "mimic4": ("admissions", "race"),
        "eicu": ("patient", "ethnicity"),
        "omop": ("person", "race_source_value"),
    }.items():
        raw = write_tables(tmp_path / source, source)
        path = raw / f"{table}.csv"
        for value, race in (("ASIAN - CHINESE", "asian"), ("White", "white"), ("Black", "black")):
            path.write_text(path.read_text().replace(f"{MARKER}{column}", value))
            patient = "002-1" if source == "eicu" else "7"
            assert race_of_patients(source, raw) == {patient: RACES.index(race)}, source
            path.write_text(path.read_text().replace(value, f"{MARKER}{column}"))
    raw = write_events(tmp_path / "meds")
    assert race_of_patients("meds", raw) == {"7": RACES.index("other")}
    (tmp_path / "NHDS10.PU.txt").write_text(nhds_line("4019", fill="1") + "\n")
    assert race_of_patients("nhds2010", tmp_path) == {"nhds2010-1": RACES.index("white")}
