"""Faulty raw tables: one line that names file, line, column and value; no traceback, no output."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cohortloom.base.errors import UserError
from preprocess import preprocess
from raw_cohort import ADMISSIONS, DIAGNOSES_ICD, PATIENTS, nhds_line, write_mimic

SCRIPT = Path(__file__).parents[1] / "workflow_scripts" / "preprocess.py"
SECRET = "HISPANIC OR LATINO"  # a value of a removed column, in the row of many faults below


def replaced(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new)


# name: (tables that differ, what the message says in this order)
FAULTS = {
    "missing table": ({"ADMISSIONS": None}, ["table ADMISSIONS is missing", "raw_dir"]),
    "missing column": (
        {"PATIENTS": PATIENTS.replace("GENDER", "SEX")},
        ["PATIENTS.csv: line 1: column GENDER is missing"],
    ),
    "wrong delimiter": (
        {"PATIENTS": PATIENTS.replace(",", ";")},
        ["PATIENTS.csv: line 1: the delimiter is a semicolon, not a comma"],
    ),
    "empty file": ({"DIAGNOSES_ICD": ""}, ["DIAGNOSES_ICD.csv: the file is empty"]),
    "byte-order mark alone": (
        {"DIAGNOSES_ICD": b"\xef\xbb\xbf"},
        ["DIAGNOSES_ICD.csv: the file is empty"],
    ),
    "open quote": (
        {"PATIENTS": replaced(PATIENTS, "11,M", '"11,M') + "1,2,F,2100-01-01\n" * 10_000},
        ["PATIENTS.csv: line 3:", "a quotation mark is not closed"],
    ),
    "header alone": (
        {"PATIENTS": PATIENTS.splitlines()[0]},
        ["PATIENTS.csv: the table PATIENTS has a header but no"],
    ),
    "unknown sex": (
        {"PATIENTS": PATIENTS.replace("11,M", "11,U")},
        ["line 3: column GENDER: 'U' is neither F nor M"],
    ),
    "empty sex": (
        {"PATIENTS": PATIENTS.replace("11,M", "11,")},
        ["line 3: column GENDER: '' is neither F nor M"],
    ),
    "birth after admission": (
        {"PATIENTS": replaced(PATIENTS, "1850-01-01", "2151-01-01")},
        ["ADMISSIONS.csv: line 4: column ADMITTIME: '2150-12-31 10:00:00' is before the patient's DOB"],
    ),
    "unparsable date": (
        {"ADMISSIONS": replaced(ADMISSIONS, "2150-12-31 10:00:00", "31/12/2150")},
        ["ADMISSIONS.csv: line 4: column ADMITTIME: '31/12/2150' is no date of the form"],
    ),
    "no such day": (
        {"ADMISSIONS": replaced(ADMISSIONS, "2150-12-31 10:00:00", "2150-02-30 10:00:00")},
        ["ADMISSIONS.csv: line 4: column ADMITTIME: '2150-02-30 10:00:00' is no date"],
    ),
    "no date of birth": (
        {"PATIENTS": replaced(PATIENTS, "1850-01-01 00:00:00", "")},
        ["PATIENTS.csv: line 3: column DOB: '' is no date"],
    ),
    "admission without patient": (
        {"ADMISSIONS": replaced(ADMISSIONS, "3,11,103", "3,99,103")},
        ["ADMISSIONS.csv: line 4: column SUBJECT_ID: '99' is no SUBJECT_ID of PATIENTS"],
    ),
    "diagnosis without admission": (
        {"DIAGNOSES_ICD": replaced(DIAGNOSES_ICD, "11,103", "11,999")},
        ["DIAGNOSES_ICD.csv: line 7: column HADM_ID: '999' is no HADM_ID of ADMISSIONS"],
    ),
    "diagnosis of another patient": (
        {"DIAGNOSES_ICD": replaced(DIAGNOSES_ICD, "11,103", "12,103")},
        ["DIAGNOSES_ICD.csv: line 7: column SUBJECT_ID: '12' is not the patient of this admission"],
    ),
    "no visit left": (
        {"DIAGNOSES_ICD": "SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE\n11,103,1,\n"},
        ["no visit with a code is left"],
    ),
    "patient twice": (
        {"PATIENTS": PATIENTS + "4,11,F,2100-01-01 00:00:00,,,,0\n"},
        ["PATIENTS.csv: line 5: column SUBJECT_ID: '11' stands in an earlier row with other values"],
    ),
    "number that is none": (
        {"DIAGNOSES_ICD": replaced(DIAGNOSES_ICD, "103,1,", "103,first,")},
        ["DIAGNOSES_ICD.csv: line 7: column SEQ_NUM: 'first' is not a whole number"],
    ),
    "cut line": (
        {"ADMISSIONS": replaced(ADMISSIONS, "WIDOWED,HISPANIC OR LATINO,SEPSIS", "WIDOWED")},
        ["ADMISSIONS.csv: line 4: 9 values where the header has 11 columns"],
    ),
    "another encoding": ({"PATIENTS": PATIENTS.encode("utf-16")}, ["PATIENTS.csv: the file is UTF-16"]),
    "bytes that are no text": (
        {"DIAGNOSES_ICD": replaced(DIAGNOSES_ICD, "0389", "03\xff").encode("latin-1")},
        ["DIAGNOSES_ICD.csv: line 7: column ICD9_CODE is not UTF-8 text"],
    ),
}


def attempt(tmp_path, raw, source="mimic3"):
    """The message of the refusal; nothing may have been written."""
    out = tmp_path / "out"
    with pytest.raises(UserError) as error:
        preprocess(raw_dir=raw, visits=out / "visits.parquet", audit=out / "audit.json", source=source)
    assert not out.exists() or not list(out.iterdir())
    message = str(error.value)
    assert "\n" not in message and SECRET not in message
    return message


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_tables_are_refused(tmp_path, fault):
    tables, said = FAULTS[fault]
    message = attempt(tmp_path, write_mimic(tmp_path / "raw", **tables))
    assert all(text in message for text in said), message


def test_line_numbers_count_blank_and_broken_lines(tmp_path):
    """Lines as an editor shows them: blank ones and those inside a quoted value count too."""
    text = replaced(ADMISSIONS, '"FALL, HIP"', '"FALL\nHIP"').replace("3,11,103", "\n3,99,103")
    assert "ADMISSIONS.csv: line 6: column SUBJECT_ID: '99'" in attempt(
        tmp_path, write_mimic(tmp_path / "raw", ADMISSIONS=text)
    )


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_truncated_gz_is_refused(tmp_path, cut):
    raw = write_mimic(tmp_path / "raw", ADMISSIONS=None)
    (raw / "ADMISSIONS.csv.gz").write_bytes(gzip.compress(ADMISSIONS.encode())[:-cut])
    assert "ADMISSIONS.csv.gz: the compressed file is truncated or damaged" in attempt(tmp_path, raw)


NHDS_FAULTS = {
    "line of another width": ("x" * 100, "line 2: 100 characters where the layout of NHDS10.PU.TXT has 149"),
    "unknown sex": (nhds_line("4019", sex="3"), "line 2: column sex: '3' is neither 1 (M) nor 2 (F)"),
    "unknown age unit": (nhds_line("4019", unit="4"), "line 2: column age_unit: '4' is none of 1, 2, 3"),
    "age that is no number": (nhds_line("4019", age="x5"), "line 2: column age: 'x5' is not a number"),
}


@pytest.mark.parametrize("fault", NHDS_FAULTS)
def test_faulty_survey_lines_are_refused(tmp_path, fault):
    line, said = NHDS_FAULTS[fault]
    (tmp_path / "NHDS10.PU.txt").write_text("\n".join([nhds_line("4019"), line, nhds_line("486")]) + "\n")
    assert said in attempt(tmp_path, tmp_path, "nhds2010")


def test_a_cut_survey_archive_is_refused(tmp_path):
    whole = gzip.compress(((nhds_line("4019") + "\n") * 50).encode())
    (tmp_path / "NHDS10.PU.txt.gz").write_bytes(whole[:-12])
    assert "truncated or damaged" in attempt(tmp_path, tmp_path, "nhds2010")


def command_line(raw, out, source="mimic3"):
    files = ["--visits", out / "visits.parquet", "--audit", out / "audit.json"]
    command = [sys.executable, SCRIPT, "--raw-dir", raw, *files, "--source", source]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.mark.parametrize("fault", ["missing table", "unknown sex", "unparsable date", "no visit left"])
def test_the_command_line_says_one_line_and_leaves_nothing(tmp_path, fault):
    tables, said = FAULTS[fault]
    done = command_line(write_mimic(tmp_path / "raw", **tables), tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert said[0] in done.stderr and done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_an_unknown_source_is_refused(tmp_path):
    done = command_line(write_mimic(tmp_path / "raw"), tmp_path / "out", "mimic5")
    assert done.returncode == 1 and "'mimic5' is unknown" in done.stderr and "Traceback" not in done.stderr
    assert "'mimic5' is unknown" in attempt(tmp_path, tmp_path / "raw", "mimic5")


def test_the_command_line_on_good_tables(tmp_path):
    done = command_line(write_mimic(tmp_path / "raw"), tmp_path / "out")
    assert done.returncode == 0 and sorted(os.listdir(tmp_path / "out")) == ["audit.json", "visits.parquet"]


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "out" / "visits.parquet").mkdir(parents=True)
    done = command_line(write_mimic(tmp_path / "raw"), tmp_path / "out")
    assert done.returncode == 1 and "visits.parquet: cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert os.listdir(tmp_path / "out") == ["visits.parquet"]


def test_a_full_disk_leaves_neither_file(tmp_path, monkeypatch):
    """The disk fills up while the visits are written, after the account."""
    replace = os.replace

    def full(source, target):
        if Path(target).suffix == ".parquet":
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr("cohortloom.base.files.os.replace", full)
    assert "No space left on device" in attempt(tmp_path, write_mimic(tmp_path / "raw"))
