"""The visits table: schema version 2, files of version 1, and what its check refuses."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.visits import SCHEMA, check_visits, read_visits, with_empty_columns, write_visits
from cohortloom.data.vocabulary import Vocabulary
from conftest import REPOSITORY

PUBLISHED = REPOSITORY / "published" / "nhds2010"
ROWS = {
    "patient_id": ["a", "a", "b"],
    "visit": [0, 1, 0],
    "days": [0, 9, 0],
    "age": [1.0, 1.0, 2.0],
    "sex": ["F", "F", "M"],
}


def table(**codes: list) -> pa.Table:
    return with_empty_columns(pa.table({**ROWS, **codes}))


def test_a_file_of_version_1_is_read_as_icd9cm(tmp_path):
    old = pa.table({**ROWS, "diagnoses": [["4019", "25000"], ["4019"], []]})
    path = tmp_path / "visits.parquet"
    pq.write_table(old.replace_schema_metadata({"schema_version": "1"}), path)
    visits = read_visits(path)
    assert visits.schema.equals(SCHEMA)
    assert visits["diagnoses"].to_pylist() == [["ICD9CM:4019", "ICD9CM:25000"], ["ICD9CM:4019"], []]
    assert visits["procedures"].to_pylist() == visits["medications"].to_pylist() == [[], [], []]
    # A file that says it is of version 2 must be so.
    pq.write_table(old.replace_schema_metadata({"schema_version": "2"}), path)
    with pytest.raises(UserError, match="column procedures is missing"):
        read_visits(path)


def test_what_is_written_is_version_2_and_comes_back(tmp_path):
    visits = table(
        diagnoses=[["ICD9CM:E8809", "ICD10CM:E8809"], [], ["ICD10CM:I10"]],
        procedures=[["ICD9Proc:0045"], [], ["ICD10PCS:5A1D70Z"]],
        medications=[[], ["Drug:HEPARIN SODIUM"], []],
    )
    write_visits(visits, tmp_path / "visits.parquet", {})
    assert pq.read_schema(tmp_path / "visits.parquet").metadata[b"schema_version"] == b"2"
    assert read_visits(tmp_path / "visits.parquet").to_pylist() == visits.to_pylist()


@pytest.mark.parametrize(
    ("column", "code", "message"),
    [
        ("diagnoses", "4019", "column diagnoses: '4019' is not of the form SYSTEM:CODE"),
        ("diagnoses", "ICD9CM:", "is not of the form SYSTEM:CODE"),
        ("diagnoses", "ICD9Proc:0045", "has no place in this column"),
        ("procedures", "Drug:HEPARIN", "has no place in this column"),
        ("medications", "ICD9CM:4019", "has no place in this column"),
    ],
)
def test_codes_without_their_system_or_in_another_column_are_refused(column, code, message):
    with pytest.raises(UserError, match=message):
        check_visits(table(**{column: [[code], [], []]}))
    assert check_visits(table(**{column: [["CCS:98"], [], []]})).num_rows == 3  # a group of the user's own


def test_a_code_that_stands_twice_is_refused_in_each_column():
    for column, (system, *_) in CODE_COLUMNS.items():
        twice = [[f"{system}:123"], [f"{system}:123", f"{system}:123"], []]
        with pytest.raises(UserError, match=f"row 1: column {column}: a code stands twice"):
            check_visits(table(**{column: twice}))


def test_the_published_vocabulary_and_cohort_are_read_as_icd9cm():
    words = Vocabulary.load(PUBLISHED / "model" / "vocabulary.json")
    assert len(words) == 5473 and all(code.startswith("ICD9CM:") for code in words.codes)
    cohort = read_visits(PUBLISHED / "cohort" / "visits.parquet")
    ids = words.encode(cohort["diagnoses"].combine_chunks().flatten())
    assert cohort.num_rows == 20_000 and (ids >= words.first_code).all()


def test_a_vocabulary_keeps_its_systems(tmp_path):
    words = Vocabulary(("ICD10CM:E8809", "ICD9CM:E8809"), (2, 1))
    words.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == words
