"""Damage people met in a hospital's tables, on copies of the MIMIC-III demo: refused, or read and said."""

import csv
import gzip
import io
import zipfile

import pytest

from cohortloom.base.errors import UserError
from conftest import REPOSITORY
from raw_cohort import (
    ADMISSIONS,
    DIAGNOSES_ICD,
    EXPECTED,
    PATIENTS,
    SHARED,
    normalized,
    read,
    rows,
    write_mimic,
)

DEMO = SHARED / "mimic3_demo"
LIST = REPOSITORY / "resources" / "titles" / "ICD9CM.csv"
demo = pytest.mark.skipif(not DEMO.is_dir(), reason="the MIMIC-III demo is not beside the repository")


def text_of(name: str) -> str:
    return gzip.decompress((DEMO / f"{name}.csv.gz").read_bytes()).decode()


def copy(folder, **changed: str | bytes):
    """A copy of the demo's tables of diagnoses, some of them changed."""
    folder.mkdir()
    for name in ("PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD"):
        content = changed.get(name, text_of(name))
        (folder / f"{name}.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def diagnoses(change) -> str:
    """The demo's diagnoses with every code changed by a function of (row number, code)."""
    table = list(csv.reader(io.StringIO(text_of("DIAGNOSES_ICD"))))
    lines = [",".join(table[0])]
    for number, row in enumerate(table[1:]):
        row[-1] = change(number, row[-1])
        lines.append(",".join(f'"{cell}"' if "," in cell else cell for cell in row))
    return "\n".join(lines) + "\n"


def refusal(tmp_path, raw, **options) -> str:
    with pytest.raises(UserError) as error:
        read(raw, "mimic3", tmp_path / "out", **{"icd9_list": LIST, **options})
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    return str(error.value)


def without_zeros(number: int, code: str) -> str:
    return code.lstrip("0") or "0"


def as_number(number: int, code: str) -> str:
    """As a reader that guesses types writes a column in which a value is missing."""
    dotted = f"{code[:3]}.{code[3:]}" if len(code) > 3 else code
    return str(float(dotted if number % 5 else code)) if code.isdecimal() else code


def as_icd10(number: int, code: str) -> str:
    return ("E11.9", "I10", "I48.91", "E78.5")[number % 4] if number >= 880 else code


@demo
def test_the_demo_itself_passes_and_says_what_is_in_no_list(tmp_path, caplog):
    caplog.set_level("INFO")
    table, account = read(copy(tmp_path / "raw"), "mimic3", tmp_path / "out", icd9_list=LIST)
    assert sum(map(len, table["diagnoses"].to_pylist())) == 1761
    (row,) = account["cohort"]["by_system"]
    assert row["in_no_list"] == 45  # 2.6%: codes retired before the list's year
    assert "45 codes are in no list of ICD9CM, and stay" in caplog.text and "warning" not in caplog.text


@demo
def test_codes_that_lost_their_zeros_are_refused(tmp_path):
    raw = copy(tmp_path / "raw", DIAGNOSES_ICD=diagnoses(without_zeros))
    message = refusal(tmp_path, raw)
    assert "in no list of ICD9CM" in message and "No code begins with 0" in message
    assert "cohort.max_dropped (5%)" in message


@demo
def test_codes_that_lost_their_zeros_are_warned_of_where_they_pass(tmp_path, caplog):
    raw = copy(tmp_path / "raw", DIAGNOSES_ICD=diagnoses(without_zeros))
    read(raw, "mimic3", tmp_path / "out", icd9_list=LIST, max_dropped=0.5)
    assert "warning: diagnoses. No code begins with 0" in caplog.text


@demo
def test_codes_as_numbers_are_refused(tmp_path):
    message = refusal(tmp_path, copy(tmp_path / "raw", DIAGNOSES_ICD=diagnoses(as_number)))
    assert "read as numbers: keep codes as text" in message


@demo
def test_icd10_codes_in_a_column_of_icd9_are_refused(tmp_path):
    message = refusal(tmp_path, copy(tmp_path / "raw", DIAGNOSES_ICD=diagnoses(as_icd10)))
    assert "not of the form of ICD9CM" in message and "They look like ICD-10 codes" in message


@demo
def test_numbers_of_a_vocabulary_are_refused(tmp_path):
    message = refusal(
        tmp_path, copy(tmp_path / "raw", DIAGNOSES_ICD=diagnoses(lambda n, code: str(483 + n % 900)))
    )
    assert "in no list of ICD9CM" in message


@demo
def test_a_share_that_the_user_allows_passes_and_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    raw = copy(tmp_path / "raw", DIAGNOSES_ICD=diagnoses(as_icd10))
    _, account = read(raw, "mimic3", tmp_path / "out", icd9_list=LIST, max_dropped=0.6, max_empty=0.6)
    lost = {(row["what"], row["reason"]): row["rows"] for row in account["dropped"]}
    assert lost["diagnoses", "code not of the form of ICD9CM"] == 881
    assert "diagnoses: code not of the form of ICD9CM 881" in caplog.text
    caplog.clear()


@demo
@pytest.mark.parametrize("cut", ["row", "value", "quote", "code"])
def test_a_table_that_is_cut_off_is_refused(tmp_path, cut):
    lines = text_of("DIAGNOSES_ICD").splitlines(keepends=True)
    if cut == "row":
        text, said = "".join(lines[:900]), "visits"
    elif cut == "value":
        text, said = "".join(lines[:900]) + lines[900][:9], "values where the header has"
    elif cut == "quote":
        text, said = (
            "".join(lines[:900]) + lines[900].rsplit(",", 1)[0] + ',"40',
            "DIAGNOSES_ICD.csv: line 901",
        )
    else:  # of 32723 the first three digits are left, which are no code
        row = lines[900].rsplit(",", 1)[0] + ",327"
        text, said = "".join(lines[:900]) + row, "'327' is no code and ends the file without a line end"
    message = refusal(tmp_path, copy(tmp_path / "raw", DIAGNOSES_ICD=text))
    assert said in message, message
    if cut == "row":
        assert "have no code, more than cohort.max_empty (20%)" in message


@demo
def test_a_last_line_without_its_end_is_read_and_said(tmp_path, caplog):
    caplog.set_level("INFO")
    raw = copy(tmp_path / "raw", DIAGNOSES_ICD=text_of("DIAGNOSES_ICD").rstrip("\n"))
    table, account = read(raw, "mimic3", tmp_path / "out", icd9_list=LIST)
    assert sum(map(len, table["diagnoses"].to_pylist())) == 1761
    assert normalized(account)["files without a last line end"] == 1
    assert "1 files end without a line end" in caplog.text


@demo
def test_the_packed_table_beside_a_plain_one_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    raw = copy(tmp_path / "raw")
    (raw / "DIAGNOSES_ICD.csv.gz").write_bytes((DEMO / "DIAGNOSES_ICD.csv.gz").read_bytes())
    _, account = read(raw, "mimic3", tmp_path / "out")
    assert account["files_ignored"] == ["DIAGNOSES_ICD.csv.gz"]
    assert "beside files not read: DIAGNOSES_ICD.csv.gz" in caplog.text


@pytest.mark.parametrize("birth", ["1900-01-01", "1970-01-01"])
def test_a_filler_for_the_date_of_birth_is_refused(tmp_path, birth):
    """Only MIMIC's shift of about 300 years is 90."""
    raw = write_mimic(tmp_path / "raw", PATIENTS=PATIENTS.replace("1850-01-01", birth))
    message = refusal(tmp_path, raw)
    assert "ADMISSIONS.csv: line 4: column ADMITTIME" in message and "DOB is no birth but a filler" in message


def test_an_ambiguous_date_stays_refused(tmp_path):
    raw = write_mimic(tmp_path / "raw", PATIENTS=PATIENTS.replace("1850-01-01 00:00:00", "3/5/1850"))
    assert "line 3: column DOB: '3/5/1850' is no date" in refusal(tmp_path, raw)


def test_two_admissions_of_a_day_are_two_visits(tmp_path):
    admissions = ADMISSIONS + "5,12,105,2150-05-05 20:00:00,ELECTIVE,Private,,,,,\n"
    more = DIAGNOSES_ICD + "8,12,105,1,7742\n"
    table, _ = read(
        write_mimic(tmp_path / "raw", ADMISSIONS=admissions, DIAGNOSES_ICD=more), "mimic3", tmp_path / "out"
    )
    assert rows(table)[-2:] == [EXPECTED[-1], ("12", 1, 0, 0.0, "M", ["7742"])]


def test_a_file_is_what_its_first_bytes_say(tmp_path):
    """A gzip named .csv, a plain file named .csv.gz and an archive are read; a web page is not."""
    raw = write_mimic(tmp_path / "raw", PATIENTS=gzip.compress(PATIENTS.encode()), ADMISSIONS=None)
    (raw / "ADMISSIONS.csv.gz").write_text(ADMISSIONS)
    (raw / "DIAGNOSES_ICD.csv").unlink()
    with zipfile.ZipFile(raw / "DIAGNOSES_ICD.zip", "w") as archive:
        archive.writestr("DIAGNOSES_ICD.csv", DIAGNOSES_ICD)
    assert rows(read(raw, "mimic3", tmp_path / "out")[0]) == EXPECTED
    (raw / "PATIENTS.csv").write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    with pytest.raises(UserError, match="PATIENTS.csv: is a web page, not a table"):
        read(raw, "mimic3", tmp_path / "page")


def test_a_code_map_groups_codes_and_drops_or_keeps_the_rest(tmp_path):
    raw = write_mimic(tmp_path / "raw")
    groups = tmp_path / "groups.csv"
    groups.write_text("from,to\nICD9CM:401.9,CCS:98\nICD9CM:41401,CCS:101\nICD9CM:V4582,CCS:101\n")
    table, account = read(raw, "mimic3", tmp_path / "keep", code_map=groups)
    assert table["diagnoses"].to_pylist() == [
        ["CCS:101", "CCS:98"],  # two codes of one group are one code
        ["ICD9CM:82021", "CCS:98"],
        ["ICD9CM:0389"],
        ["ICD9CM:V3000"],
    ]
    assert {(row["column"], row["what"]): row["codes"] for row in account["mapped"]} == {
        ("diagnoses", "mapped"): 4,
        ("diagnoses", "kept"): 3,
    }
    table, account = read(raw, "mimic3", tmp_path / "drop", code_map=groups, unmapped="drop", max_empty=0.5)
    assert table["diagnoses"].to_pylist() == [["CCS:101", "CCS:98"], ["CCS:98"]]
    for line, message in (
        ("4019,CCS:98", "line 2: column from: '4019' is no code"),
        ("ICD9CM:4019,98", "line 2: column to: '98' is no code"),
        ("ICD9CM:4019,Drug:X", "line 2: column to: 'Drug:X' is no code for this column"),
        (
            "ICD9CM:4019,CCS:98\nICD9CM:401.9,CCS:99",
            "line 3: column from: 'ICD9CM:401.9' stands in an earlier",
        ),
        ("", "names no code"),
    ):
        groups.write_text(f"from,to\n{line}\n")
        with pytest.raises(UserError, match=message):
            read(raw, "mimic3", tmp_path / "wrong", code_map=groups)
    groups.write_text("old,new\n")
    with pytest.raises(UserError, match="column from is missing"):
        read(raw, "mimic3", tmp_path / "wrong", code_map=groups)


def test_spilled_rows_are_gone_at_the_end_and_after_a_kill(tmp_path):
    raw = write_mimic(tmp_path / "raw")
    left = tmp_path / "out" / ".preprocess-spill-999999999"  # no process has this number
    left.mkdir(parents=True)
    (left / "rows.duckdb").write_text("x")
    read(raw, "mimic3", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.json", "visits.parquet"]


def test_a_faulty_source_file_is_one_line(tmp_path, monkeypatch):
    """Whoever changes a SQL file is told which and what."""
    from cohortloom.sources import declared

    text = (REPOSITORY / "workflow_scripts" / "cohortloom" / "sources" / "mimic3.sql").read_text()
    raw = write_mimic(tmp_path / "raw")
    for old, new, said in (
        (
            "FROM ADMISSIONS JOIN PATIENTS USING (SUBJECT_ID);",
            "FROM ADMISSIONS;",
            "sources/mimic3.sql: .*DOB",
        ),
        ("CREATE VIEW visit AS", "CREATE VEW visit AS", "sources/mimic3.sql: .*syntax error"),
        (
            "SUBJECT_ID integer key, GENDER text",
            "SUBJECT_ID whole key, GENDER text",
            "not a declaration of a column",
        ),
    ):
        assert old in text
        (tmp_path / "mimic3.sql").write_text(text.replace(old, new))
        monkeypatch.setattr(declared, "FOLDER", tmp_path)
        with pytest.raises(UserError, match=said) as error:
            read(raw, "mimic3", tmp_path / "out")
        assert "\n" not in str(error.value)


def test_a_full_disk_for_spilled_rows_is_one_line(tmp_path, monkeypatch):
    import duckdb

    def full(*_):
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")

    monkeypatch.setattr("cohortloom.sources.intake.Intake.spell", full)
    assert "the disk is full" in refusal(tmp_path, write_mimic(tmp_path / "raw"))
