"""Finding the raw tables of a source."""

import subprocess
import sys
from pathlib import Path

import pytest

from cohortloom.base.errors import UserError
from cohortloom.sources.locate import find_tables, ignored_files
from raw_cohort import write_mimic

SCRIPTS = Path(__file__).parents[1] / "workflow_scripts"


def test_names_in_either_case_and_plain_before_packed(tmp_path):
    write_mimic(tmp_path, packed=True)
    (tmp_path / "patients.CSV").write_text("x")
    found = find_tables("mimic3", tmp_path)
    assert [[path.name for path in files] for files in found.values()] == [
        ["patients.CSV"],
        ["ADMISSIONS.csv.gz"],
        ["DIAGNOSES_ICD.csv.gz"],
    ]
    assert find_tables("simulated", tmp_path) == found
    assert ignored_files("mimic3", tmp_path, found) == ["PATIENTS.csv.gz"]


def test_tables_of_other_columns_of_codes_are_left_alone(tmp_path):
    write_mimic(tmp_path, PROCEDURES_ICD="x")
    assert set(find_tables("mimic3", tmp_path)) == {
        "PATIENTS",
        "ADMISSIONS",
        "DIAGNOSES_ICD",
        "PROCEDURES_ICD",
    }
    assert set(find_tables("mimic3", tmp_path, ["procedures"])) == {
        "PATIENTS",
        "ADMISSIONS",
        "PROCEDURES_ICD",
    }
    with pytest.raises(UserError, match="table PRESCRIPTIONS is missing"):
        find_tables("mimic3", tmp_path, ["medications"])


def test_the_inner_folder_of_a_release_and_parts_of_a_table(tmp_path):
    (tmp_path / "hosp").mkdir()
    for name in ("patients", "admissions", "diagnoses_icd"):
        (tmp_path / "hosp" / f"{name}.csv.gz").write_bytes(b"x")
    assert find_tables("mimic4", tmp_path) == find_tables("mimic4", tmp_path / "hosp")
    (tmp_path / "data" / "train").mkdir(parents=True)
    shards = [tmp_path / "data" / "train" / f"{number}.parquet" for number in (0, 1)]
    for shard in shards:
        shard.write_bytes(b"x")
    assert find_tables("meds", tmp_path) == {"data": shards}


@pytest.mark.parametrize(
    "name", ["NHDS10.PU.txt", "nhds10.pu.txt.bz2", "NHDS10.PU.TXT.gz", "NHDS10.PU.txt.zip"]
)
def test_the_survey_by_folder_or_by_file(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert find_tables("nhds2010", tmp_path) == {"NHDS": [tmp_path / name]}
    assert find_tables("nhds2010", tmp_path / name) == {"NHDS": [tmp_path / name]}


def test_what_is_missing_is_named_with_folder_and_remedy(tmp_path):
    write_mimic(tmp_path, ADMISSIONS=None)
    with pytest.raises(UserError, match=f"{tmp_path}: table ADMISSIONS is missing .* raw_dir"):
        find_tables("mimic3", tmp_path)
    with pytest.raises(UserError, match="NHDS10.PU.TXT is missing"):
        find_tables("nhds2010", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_tables("mimic3", tmp_path / "nowhere")
    with pytest.raises(UserError, match="COHORTLOOM_RAW_DIR"):
        find_tables("mimic3", None)
    with pytest.raises(UserError, match="'mimic5' is unknown"):
        find_tables("mimic5", tmp_path)


def test_parsing_the_workflow_needs_the_standard_library_alone():
    program = (
        "import sys; import cohortloom.sources.locate;"
        "sys.exit(bool({'numpy', 'pandas', 'pyarrow', 'torch', 'duckdb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-S", "-c", program], cwd=SCRIPTS).returncode == 0
