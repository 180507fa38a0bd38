"""The MIMIC-III reader on tables small enough to check by eye, and on the demo."""

from pathlib import Path

import numpy as np
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.visits import check_visits
from cohortloom.sources import mimic3
from cohortloom.sources.cohort import Audit
from cohortloom.sources.csvtable import CsvTable
from cohortloom.sources.locate import find_tables
from raw_cohort import ADMISSIONS, DIAGNOSES_ICD, EXPECTED, PATIENTS, rows, write_mimic

DEMO = Path(__file__).parents[2] / "shared" / "data" / "mimic3_demo"


def read(folder):
    audit = Audit()
    return check_visits(mimic3.read(find_tables("mimic3", folder), audit)), audit


@pytest.mark.parametrize("packed", [False, True])
def test_visits_in_time_order_with_ages_and_codes_by_seq_num(tmp_path, packed):
    table, audit = read(write_mimic(tmp_path, packed))
    assert rows(table) == EXPECTED
    assert not any(audit.dropped.values()) and sum(audit.normalized.values()) == 1  # the quoted diagnosis


def test_order_of_rows_and_columns_and_case_of_names_do_not_matter(tmp_path):
    def turned(text):
        header, *lines = text.splitlines()
        swapped = [",".join(line.split(",")[::-1]) for line in (header.lower(), *lines[::-1])]
        return "\n".join(swapped) + "\n"

    table, _ = read(
        write_mimic(
            tmp_path,
            PATIENTS=turned(PATIENTS),
            ADMISSIONS=turned(ADMISSIONS.replace('"FALL, HIP"', "FALL")),
            DIAGNOSES_ICD=turned(DIAGNOSES_ICD),
        )
    )
    assert rows(table) == EXPECTED


def test_byte_order_mark_crlf_and_quotes_are_put_right_and_counted(tmp_path):
    header, *lines = DIAGNOSES_ICD.splitlines()
    quoted = "\r\n".join([header, *(",".join(f'"{cell}"' for cell in line.split(",")) for line in lines)])
    table, audit = read(write_mimic(tmp_path, DIAGNOSES_ICD=b"\xef\xbb\xbf" + quoted.encode()))
    assert rows(table) == EXPECTED
    assert audit.normalized["byte-order marks"] == 1
    assert audit.normalized["files with CRLF line ends"] == 1
    assert audit.normalized["files with quoted values"] == 2


def test_what_is_dropped_and_put_right_is_counted(tmp_path):
    more = (
        "8,10,102,,\n"  # null code: MIMIC gives it no SEQ_NUM either
        "9,10,102,3,I48.91\n"  # ICD-10
        "5,10,102,2,4019\n"  # the same row again
        "10,10,102,4, v45.82\n"
        "11,10,102,5,4019\n"  # the same code again
        "12,10,102,,486\n"
    )
    admissions = ADMISSIONS + "5,12,105,2151-05-05 12:00:00,ELECTIVE,Private,,,,,\n"
    patients = PATIENTS.replace("12,M", " 12 ,m") + "4,13,F,2100-01-01 00:00:00,,,,0\n"
    table, audit = read(
        write_mimic(tmp_path, PATIENTS=patients, ADMISSIONS=admissions, DIAGNOSES_ICD=DIAGNOSES_ICD + more)
    )
    assert rows(table)[1][-1] == ["82021", "4019", "V4582", "486"]
    assert len(rows(table)) == len(EXPECTED)
    assert {key: count for key, count in audit.dropped.items() if count} == {
        ("diagnoses", "null code"): 1,
        ("diagnoses", "code not of ICD-9-CM form"): 1,
        ("diagnoses", "duplicate row"): 1,
        ("diagnoses", "code repeated in its visit"): 1,
        ("admissions", "no diagnosis"): 1,
        ("patients", "no admission with a diagnosis"): 1,
    }
    assert {key: count for key, count in audit.normalized.items() if count} == {
        "files with quoted values": 1,
        "values of SUBJECT_ID with a blank": 1,
        "values of GENDER in lower case": 1,
        "codes with a dot": 1,
        "codes with a blank": 1,
        "codes in lower case": 1,
        "diagnoses without SEQ_NUM set last": 1,
    }


def test_a_row_that_stands_twice_counts_once(tmp_path):
    patient, admission = PATIENTS.splitlines()[1], ADMISSIONS.splitlines()[2]
    table, audit = read(
        write_mimic(tmp_path, PATIENTS=PATIENTS + patient + "\n", ADMISSIONS=ADMISSIONS + admission + "\n")
    )
    assert rows(table) == EXPECTED
    assert audit.dropped["patients", "duplicate row"] == audit.dropped["admissions", "duplicate row"] == 1


def test_days_start_at_the_first_admission_that_has_a_diagnosis(tmp_path):
    admissions = ADMISSIONS + "5,10,100,2149-01-01 00:00:00,ELECTIVE,,,,,,\n"
    table, _ = read(write_mimic(tmp_path, ADMISSIONS=admissions))
    assert rows(table) == EXPECTED


@pytest.mark.parametrize(
    ("birth", "admitted", "age"),
    [
        ("2100-06-15T00:00:00", "2100-06-15T23:00:00", 0),
        ("2100-06-15T00:00:00", "2100-06-22T01:00:00", 7 / 365.25),
        ("2100-06-15T00:00:00", "2101-06-14T23:59:59", 364 / 365.25),
        ("2103-06-15T00:00:00", "2104-06-14T23:59:59", 365 / 365.25),  # a leap year: still under one
        ("2100-06-15T00:00:00", "2101-06-15T00:00:00", 1),
        ("2096-02-29T00:00:00", "2114-02-28T10:00:00", 17),
        ("2096-02-29T00:00:00", "2114-03-01T10:00:00", 18),
        ("2060-01-02T00:00:00", "2150-01-01T00:00:00", 89),
        ("2060-01-02T00:00:00", "2150-01-02T00:00:00", 90),
        ("1850-01-01T00:00:00", "2150-01-01T00:00:00", 90),  # 300 years are more nanoseconds than int64 holds
    ],
)
def test_age_in_completed_years_by_the_calendar(birth, admitted, age):
    found = mimic3.ages(np.array([birth], "datetime64[s]"), np.array([admitted], "datetime64[s]"))
    assert found == pytest.approx([age], abs=1e-9)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the MIMIC-III demo is not beside the repository")
def test_the_demo():
    table, audit = read(DEMO)
    assert table.num_rows == 129 and sum(map(len, table["diagnoses"].to_pylist())) == 1761
    assert [read["rows"] for read in audit.tables] == [100, 129, 1761]
    ages = table["age"].to_numpy()
    assert ages.min() == 17 and ages.max() == 90
    first = table.filter([name == "10006" for name in table["patient_id"].to_pylist()]).to_pylist()[0]
    assert first["age"] == 70 and first["diagnoses"][:3] == ["ICD9CM:99591", "ICD9CM:99662", "ICD9CM:5672"]


def table_of(tmp_path, *lines):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["WHO,WHEN", *lines]) + "\n")
    return CsvTable("T", path, ("WHO", "WHEN"), Audit())


def test_a_value_that_no_row_has_any_more_is_no_fault(tmp_path):
    table = table_of(tmp_path, "1,2101-02-30", "x,soon", "2,2101-03-01")
    for column, read in (("WHO", table.integers), ("WHEN", table.dates)):
        with pytest.raises(UserError, match=f"column {column}"):
            read(column)
    table.filter(np.array([False, False, True]))
    assert table.integers("WHO").tolist() == [2] and str(table.dates("WHEN")[0])[:10] == "2101-03-01"


@pytest.mark.parametrize("most", [2**63, 7])
def test_copies_are_found_however_many_values_there_are(tmp_path, monkeypatch, most):
    """With few numbers at hand columns are numbered anew on the way."""
    monkeypatch.setattr("cohortloom.sources.csvtable.MAX_KEYS", most)
    table = table_of(tmp_path, "1,a", "2,b", "1,b", "2,b", "3,a", "1,a")
    audit = Audit()
    table.drop_copies(audit, "rows")
    assert table["WHO"].to_pylist() == ["1", "2", "1", "3"] and table["WHEN"].to_pylist() == list("abba")
    assert audit.dropped["rows", "duplicate row"] == 2
