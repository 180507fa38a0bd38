"""Raw tables small enough to check by eye, for the tests of the readers."""

import gzip
import json
from pathlib import Path

import pyarrow as pa

from cohortloom.data.visits import read_visits
from cohortloom.sources.declared import read_source
from preprocess import preprocess

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NHDS = read_source("nhds2010").tables["NHDS"]
WIDTH = NHDS.width
# First character (from 0) and width of each column, read or not.
LAYOUT = {
    name: (first - 1, width)
    for name, (first, width) in {c.name: c.place for c in NHDS.columns}.items() | NHDS.removed_places.items()
}

# Three patients: one with two admissions, one over 89, one newborn. Expected visits: EXPECTED.
PATIENTS = """ROW_ID,SUBJECT_ID,GENDER,DOB,DOD,DOD_HOSP,DOD_SSN,EXPIRE_FLAG
1,10,F,2100-06-15 00:00:00,,,,0
2,11,M,1850-01-01 00:00:00,2151-01-01 00:00:00,,,1
3,12,M,2150-05-05 00:00:00,,,,0
"""
ADMISSIONS = """ROW_ID,SUBJECT_ID,HADM_ID,ADMITTIME,ADMISSION_TYPE,INSURANCE,LANGUAGE,RELIGION,\
MARITAL_STATUS,ETHNICITY,DIAGNOSIS
1,10,102,2160-06-14 23:59:00,EMERGENCY,Medicare,ENGL,JEWISH,MARRIED,WHITE,"FALL, HIP"
2,10,101,2150-06-15 00:01:00,ELECTIVE,Medicare,ENGL,JEWISH,MARRIED,WHITE,CHEST PAIN
3,11,103,2150-12-31 10:00:00,EMERGENCY,Private,SPAN,CATHOLIC,WIDOWED,HISPANIC OR LATINO,SEPSIS
4,12,104,2150-05-05 12:00:00,NEWBORN,Private,,NOT SPECIFIED,,ASIAN - CHINESE,NEWBORN
"""
DIAGNOSES_ICD = """ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE
1,10,101,2,4019
2,10,101,1,41401
3,10,101,10,V4582
4,10,102,1,82021
5,10,102,2,4019
6,11,103,1,0389
7,12,104,1,V3000
"""
EXPECTED = [  # patient_id, visit, days, age, sex, diagnoses
    ("10", 0, 0, 50.0, "F", ["41401", "4019", "V4582"]),
    ("10", 1, 3652, 59.0, "F", ["82021", "4019"]),  # a day before the 60th birthday
    ("11", 0, 0, 90.0, "M", ["0389"]),
    ("12", 0, 0, 0.0, "M", ["V3000"]),
]


def write_mimic(folder: Path, packed: bool = False, **tables: str | bytes | None) -> Path:
    """Write the three tables, some replaced by other text; None leaves a table out."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"PATIENTS": PATIENTS, "ADMISSIONS": ADMISSIONS, "DIAGNOSES_ICD": DIAGNOSES_ICD} | tables
    for name, text in texts.items():
        if text is None:
            continue
        content = text if isinstance(text, bytes) else text.encode()
        if packed:
            (folder / f"{name}.csv.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{name}.csv").write_bytes(content)
    return folder


def nhds_line(
    *codes: str,
    sex: str = "1",
    age: str = "50",
    unit: str = "1",
    newborn: str = "2",
    procedures: tuple[str, ...] = (),
    fill: str = " ",
) -> str:
    """One discharge of the NHDS 2010 layout; `fill` stands in every column that is not read."""
    line = [fill] * WIDTH
    diagnoses = "".join(code.ljust(5, "-") for code in codes).ljust(75)
    for column, text in {
        "newborn": newborn,
        "age_unit": unit,
        "age": age,
        "sex": sex,
        "diagnoses": diagnoses,
        "procedures": "".join(code.ljust(4, "-") for code in procedures).ljust(32),
    }.items():
        start, width = LAYOUT[column]
        line[start : start + width] = text.rjust(width) if width < 5 else text
    return "".join(line)


def rows(table) -> list[tuple]:
    """Visits as tuples in the order of EXPECTED's columns, ICD-9-CM codes without their system."""
    bare = lambda codes: [code.removeprefix("ICD9CM:") for code in codes]  # noqa: E731
    return [(*list(row.values())[:5], bare(row["diagnoses"])) for row in table.to_pylist()]


def read(raw: Path, source: str, folder: Path, **options) -> tuple[pa.Table, dict]:
    """Visits and account that preprocess writes into `folder`."""
    files = {"visits": folder / "visits.parquet", "audit": folder / "audit.json"}
    preprocess(raw_dir=raw, source=source, **files, **options)
    return read_visits(files["visits"]), json.loads(files["audit"].read_text())


def dropped(account: dict, part: str = "dropped") -> dict:
    """(what, reason) -> rows of an account, without the reasons that never occurred."""
    return {(row["what"], row["reason"]): row["rows"] for row in account[part] if row["rows"]}


def normalized(account: dict) -> dict:
    """what -> count of an account, without what never occurred."""
    return {row["what"]: row["count"] for row in account["normalized"] if row["count"]}


def by_system(account: dict) -> dict:
    """(column, system) -> codes of an account."""
    return {(row["column"], row["system"]): row["codes"] for row in account["cohort"]["by_system"]}
