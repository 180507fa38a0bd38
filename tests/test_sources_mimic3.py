"""MIMIC-III on tables small enough to check by eye, and on the demo."""

import duckdb
import pytest

from cohortloom.sources.intake import MACROS
from raw_cohort import (
    ADMISSIONS,
    DIAGNOSES_ICD,
    EXPECTED,
    PATIENTS,
    SHARED,
    by_system,
    dropped,
    normalized,
    read,
    rows,
    write_mimic,
)

DEMO = SHARED / "mimic3_demo"
PRESCRIPTIONS = """ROW_ID,SUBJECT_ID,HADM_ID,DRUG_TYPE,DRUG
1,10,101,MAIN,Heparin Sodium
2,10,101,BASE,Heparin Base
3,10,101,MAIN,heparin  sodium
4,11,103,MAIN,0.9% Sodium Chloride
"""
PROCEDURES_ICD = """ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE
1,10,101,2,0045
2,10,101,1,3961
3,10,101,3,3961
"""


@pytest.mark.parametrize("packed", [False, True])
def test_visits_in_time_order_with_ages_and_codes_by_seq_num(tmp_path, packed):
    table, account = read(write_mimic(tmp_path / "raw", packed), "mimic3", tmp_path / "out")
    assert rows(table) == EXPECTED
    assert dropped(account) == {} and normalized(account) == {"files with quoted values": 1}


def test_procedures_and_medications_where_their_tables_are_there(tmp_path):
    raw = write_mimic(tmp_path / "raw", PROCEDURES_ICD=PROCEDURES_ICD, PRESCRIPTIONS=PRESCRIPTIONS)
    table, account = read(raw, "mimic3", tmp_path / "out")
    assert rows(table) == EXPECTED
    assert table["procedures"].to_pylist() == [["ICD9Proc:3961", "ICD9Proc:0045"], [], [], []]
    assert table["medications"].to_pylist() == [
        ["Drug:HEPARIN SODIUM"],
        [],
        ["Drug:0.9% SODIUM CHLORIDE"],
        [],
    ]
    assert dropped(account, "left_out") == {("medications", "drug_type is not MAIN"): 1}
    # Only the columns that are asked for are read; one without a table is named.
    table, account = read(raw, "mimic3", tmp_path / "one", columns=["diagnoses", "procedures"])
    assert {one["table"] for one in account["tables"]} == {
        "PATIENTS",
        "ADMISSIONS",
        "DIAGNOSES_ICD",
        "PROCEDURES_ICD",
    }
    assert not any(table["medications"].to_pylist()) and any(table["procedures"].to_pylist())


def test_order_of_rows_and_columns_and_case_of_names_do_not_matter(tmp_path):
    def turned(text):
        header, *lines = text.splitlines()
        swapped = [",".join(line.split(",")[::-1]) for line in (header.lower(), *lines[::-1])]
        return "\n".join(swapped) + "\n"

    raw = write_mimic(
        tmp_path / "raw",
        PATIENTS=turned(PATIENTS),
        ADMISSIONS=turned(ADMISSIONS.replace('"FALL, HIP"', "FALL")),
        DIAGNOSES_ICD=turned(DIAGNOSES_ICD),
    )
    assert rows(read(raw, "mimic3", tmp_path / "out")[0]) == EXPECTED


@pytest.mark.parametrize("ends", ["\r\n", "mixed"])
def test_byte_order_mark_crlf_and_quotes_are_put_right_and_counted(tmp_path, ends):
    header, *lines = DIAGNOSES_ICD.splitlines()
    quoted = [header, *(",".join(f'"{cell}"' for cell in line.split(",")) for line in lines)]
    text = (
        "\r\n".join(quoted) + "\r\n"
        if ends == "\r\n"
        else "\n".join(quoted[:3]) + "\r\n" + "\r\n".join(quoted[3:]) + "\n"
    )
    raw = write_mimic(tmp_path / "raw", DIAGNOSES_ICD=b"\xef\xbb\xbf" + text.encode())
    table, account = read(raw, "mimic3", tmp_path / "out")
    assert rows(table) == EXPECTED
    found = normalized(account)
    assert found["byte-order marks"] == found["files with CRLF line ends"] == 1
    assert found["files with quoted values"] == 2


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
    raw = write_mimic(
        tmp_path / "raw", PATIENTS=patients, ADMISSIONS=admissions, DIAGNOSES_ICD=DIAGNOSES_ICD + more
    )
    table, account = read(raw, "mimic3", tmp_path / "out", max_dropped=0.1)
    assert rows(table)[1][-1] == ["82021", "4019", "V4582", "486"]
    assert len(rows(table)) == len(EXPECTED)
    assert dropped(account) == {
        ("diagnoses", "null code"): 1,
        ("diagnoses", "code not of the form of ICD9CM"): 1,
        ("diagnoses", "duplicate row"): 1,
        ("diagnoses", "code repeated in its visit"): 1,
        ("visits", "no code"): 1,
    }
    assert dropped(account, "left_out") == {("patients", "no admission"): 1}
    assert normalized(account) == {
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
    raw = write_mimic(
        tmp_path / "raw", PATIENTS=PATIENTS + patient + "\n", ADMISSIONS=ADMISSIONS + admission + "\n"
    )
    table, account = read(raw, "mimic3", tmp_path / "out")
    assert rows(table) == EXPECTED
    assert dropped(account) == {("PATIENTS", "duplicate row"): 1, ("ADMISSIONS", "duplicate row"): 1}


def test_days_start_at_the_first_admission_that_has_a_code(tmp_path):
    admissions = ADMISSIONS + "5,10,100,2149-01-01 00:00:00,ELECTIVE,,,,,,\n"
    raw = write_mimic(tmp_path / "raw", ADMISSIONS=admissions)
    assert rows(read(raw, "mimic3", tmp_path / "out")[0]) == EXPECTED


@pytest.mark.parametrize(
    "written",
    [
        "2150-12-31 10:00:00 UTC",  # BigQuery
        "2150-12-31T10:00:00Z",  # readr
        "2150-12-31 10:00:00.000",  # JDBC
        "2150-12-31 10:00:00+00",  # Postgres
        "2150-12-31 10:00",
        "2150-12-31",
    ],
)
def test_dates_of_other_exports_are_read(tmp_path, written):
    raw = write_mimic(tmp_path / "raw", ADMISSIONS=ADMISSIONS.replace("2150-12-31 10:00:00", written))
    assert rows(read(raw, "mimic3", tmp_path / "out")[0]) == EXPECTED


@pytest.mark.parametrize(
    ("birth", "admitted", "age"),
    [
        ("2100-06-15 00:00:00", "2100-06-15 23:00:00", 0),
        ("2100-06-15 00:00:00", "2100-06-22 01:00:00", 7 / 365.25),
        ("2100-06-15 00:00:00", "2101-06-14 23:59:59", 364 / 365.25),
        ("2103-06-15 00:00:00", "2104-06-14 23:59:59", 365 / 365.25),  # a leap year: still under one
        ("2100-06-15 00:00:00", "2101-06-15 00:00:00", 1),
        ("2096-02-29 00:00:00", "2114-02-28 10:00:00", 17),
        ("2096-02-29 00:00:00", "2114-03-01 10:00:00", 18),
        ("2060-01-02 00:00:00", "2150-01-01 00:00:00", 89),
        ("2060-01-02 00:00:00", "2150-01-02 00:00:00", 90),
        ("1850-01-01 00:00:00", "2150-01-01 00:00:00", 300),  # capped at 90 later
    ],
)
def test_age_in_completed_years_by_the_calendar(birth, admitted, age):
    with duckdb.connect() as connection:
        connection.execute(MACROS)
        query = "SELECT age_at(CAST(? AS TIMESTAMP), CAST(? AS TIMESTAMP))"
        assert connection.execute(query, [birth, admitted]).fetchone()[0] == pytest.approx(age, abs=1e-9)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the MIMIC-III demo is not beside the repository")
def test_the_demo(tmp_path):
    table, account = read(DEMO, "mimic3", tmp_path)
    assert table.num_rows == 129 and sum(map(len, table["diagnoses"].to_pylist())) == 1761
    read_rows = {one["table"]: one["rows"] for one in account["tables"]}
    assert read_rows == {
        "PATIENTS": 100,
        "ADMISSIONS": 129,
        "DIAGNOSES_ICD": 1761,
        "PROCEDURES_ICD": 506,
        "PRESCRIPTIONS": 10398,
    }
    assert by_system(account)["procedures", "ICD9Proc"] == 486  # of 506 rows: a code counts once a visit
    ages = table["age"].to_numpy()
    assert ages.min() == 17 and ages.max() == 90
    first = table.filter([name == "10006" for name in table["patient_id"].to_pylist()]).to_pylist()[0]
    assert first["age"] == 70 and first["diagnoses"][:3] == ["ICD9CM:99591", "ICD9CM:99662", "ICD9CM:5672"]
