"""Invented visits that exercise every rule of an export, and exports of them, for the tests."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from cohortloom.data.visits import list_column, sex_array, write_visits
from conftest import REPOSITORY
from export_meds import export_meds
from export_mimic3 import export_mimic3
from export_mimic4 import export_mimic4
from export_omop import export_omop

RESOURCES = REPOSITORY / "resources"
STEPS = {"meds": export_meds, "omop": export_omop, "mimic4": export_mimic4, "mimic3": export_mimic3}
KEYWORDS = {
    "titles": RESOURCES / "titles",
    "terms": RESOURCES / "publication.yaml",
    "readme": RESOURCES / "export.md.j2",
    "experiment": "test",
    "run": "multitask",
    "source": "simulated",
}
FACTS = {"source": "model", "seed": "0", "inputs_sha256": "abc", "tool_version": "0"}
ROWS = [  # patient, days, age, sex (0 F, 1 M), diagnoses, procedures, medications
    (1, 0, 61, 1, "ICD9CM:41401 ICD9CM:4019 ICD9CM:V4582", "ICD9Proc:3613 ICD9Proc:0066", "Drug:HEPARIN"),
    (1, 3, 61, 1, "ICD9CM:E8120 ICD9CM:07070", "", "Drug:ASPIRIN Drug:HEPARIN"),
    (1, 400, 62, 1, "ICD9CM:0389", "ICD9Proc:0066", ""),
    (2, 0, 0, 0, "ICD9CM:V3000", "", ""),  # a newborn, back after 200 days and at two years
    (2, 200, 200 / 365.25, 0, "ICD9CM:4660", "", ""),
    (2, 800, 2, 0, "ICD9CM:4660 ICD9CM:7806", "", ""),
    (3, 0, 90, 0, "ICD9CM:4280", "", "Drug:FUROSEMIDE 40MG/4ML"),  # capped ages
    (3, 1500, 90, 0, "ICD9CM:4280 ICD9CM:5849", "", ""),
    (4, 0, 88, 1, "ICD9CM:4280", "", ""),
    (4, 1200, 90, 1, "ICD9CM:42731", "", ""),
    (
        5,
        0,
        30,
        0,
        "ICD9CM:650",
        "ICD9Proc:7359",
        "",
    ),  # two visits on one day, the birthday between the next two
    (5, 0, 30, 0, "ICD9CM:V270", "", ""),
    (5, 1, 31, 0, "ICD9CM:6826", "", ""),
    (6, 0, 364 / 365.25, 1, "ICD9CM:7793", "", ""),
]
ICD10 = [
    (7, 0, 45, 1, "ICD10CM:E8809 ICD10CM:I4891", "ICD10PCS:5A1D70Z", "Drug:WARFARIN"),
    (8, 0, 46, 0, "ICD9CM:E8809", "", ""),  # of the same letters, another code
]


def cohort(rows=ROWS) -> pa.Table:
    """Visits of such rows."""
    numbers = [row[0] for row in rows]
    visit = [numbers[:i].count(number) for i, number in enumerate(numbers)]
    columns = {}
    for place, column in enumerate(("diagnoses", "procedures", "medications"), 4):
        lists = [
            [f"Drug:{c}" for c in r[place].split("Drug:")[1:]] if "Drug:" in r[place] else r[place].split()
            for r in rows
        ]
        lists = [[code.strip() for code in codes] for codes in lists]
        offsets = np.concatenate([[0], np.cumsum([len(codes) for codes in lists])]).astype(np.int32)
        columns[column] = list_column(pa.array([c for codes in lists for c in codes], pa.string()), offsets)
    return pa.table(
        {
            "patient_id": [f"synthetic-{number:07d}" for number in numbers],
            "visit": pa.array(visit, pa.int16()),
            "days": pa.array([row[1] for row in rows], pa.int32()),
            "age": pa.array([row[2] for row in rows], pa.float32()),
            "sex": sex_array(np.array([row[3] for row in rows])),
            **columns,
        }
    )


def export_as(format: str, visits: pa.Table, folder: Path, facts=FACTS, **options) -> Path:
    """The folder of an export of these visits; the visits lie beside it."""
    write_visits(visits, folder / "synthesize.parquet", facts)
    if format == "omop":
        options = {"cdm": RESOURCES / "omop_cdm54.csv"} | options
    STEPS[format](synthetic=folder / "synthesize.parquet", folder=folder / format, **KEYWORDS | options)
    return folder / format


def without_ids(visits: pa.Table) -> list[dict]:
    """Rows without the patient's id and with ages to the day."""
    rows = visits.drop_columns("patient_id").to_pylist()
    return [row | {"age": round(row["age"], 3)} for row in rows]
