"""Visits, exported and read again by our own reader: the same visits, up to the ids of patients."""

import pytest

from export_cohort import ICD10, ROWS, cohort, export_as, without_ids
from raw_cohort import read

LONG_NAMES = [
    (9, 0, 70, 1, "ICD9CM:4019", "", f"Drug:{'SALINE ' * 8}A Drug:{'SALINE ' * 8}B")
]  # alike up to 56


@pytest.mark.parametrize("format", ["meds", "omop", "mimic4", "mimic3"])
@pytest.mark.parametrize("seed", range(2))
def test_an_export_is_read_as_the_same_visits(tmp_path, format, seed):
    visits = cohort(ROWS + LONG_NAMES if format == "mimic3" else ROWS + ICD10 + LONG_NAMES)
    folder = export_as(format, visits, tmp_path / "out", seed=seed)
    table, account = read(folder, format, tmp_path / "in")
    expected = without_ids(visits)
    if format == "mimic4":  # has whole years
        expected = [row | {"age": float(int(row["age"]))} for row in expected]
    assert without_ids(table) == expected
    assert len(set(table["patient_id"].to_pylist())) == (7 if format == "mimic3" else 9)
