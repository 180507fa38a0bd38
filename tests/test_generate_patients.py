"""Patients from the model that is stored in the repository, as make patients asks for them."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.visits import read_visits
from conftest import REPOSITORY
from generate_patients import generate_patients
from raw_cohort import read

STORED = REPOSITORY / "published" / "nhds2010"
stored = pytest.mark.skipif(not (STORED / "model").is_dir(), reason="no published model is stored here yet")


@stored
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_the_suffix_sets_the_format(tmp_path, ending):
    generate_patients(synthetic=tmp_path / "v.parquet", patients=20, device="cpu")
    generate_patients(synthetic=tmp_path / f"w.{ending}", patients=20, device="cpu")
    table, written = read_visits(tmp_path / "v.parquet"), pd.read_csv(tmp_path / f"w.{ending}", dtype=str)
    assert list(written) == table.column_names
    assert written["diagnoses"].str.split("|").tolist() == table["diagnoses"].to_pylist()
    assert written["age"].astype(float).tolist() == table["age"].to_pylist()
    assert json.loads((tmp_path / "w.json").read_text()) == json.loads((tmp_path / "v.json").read_text())


@stored
@pytest.mark.parametrize("name", ["x.json", "x", "x.parquet.txt"])
def test_another_suffix_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: no file of visits has this ending; give a name with .parq"):
        generate_patients(synthetic=tmp_path / "new" / name, patients=2, device="cpu")
    assert not (tmp_path / "new").exists()


def test_without_a_model_the_command_names_the_missing_file(tmp_path):
    command = [sys.executable, REPOSITORY / "workflow_scripts" / "generate_patients.py", "--model", tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model.safetensors: no such file; name a published model" in done.stderr


@stored
def test_the_stored_model_generates(tmp_path):
    folder = STORED / "model"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    assert (STORED / "cohort" / "visits.parquet").stat().st_size < 1_000_000
    assert (read_visits(STORED / "cohort" / "visits.parquet")["visit"].to_numpy() == 0).sum() == 20_000
    generate_patients(synthetic=tmp_path / "v.parquet", patients=50, device="cpu")
    assert read_visits(tmp_path / "v.parquet").num_rows >= 50


@stored
@pytest.mark.parametrize("format", ["meds", "omop", "mimic4", "mimic3"])
def test_a_format_writes_a_folder_that_is_read_again(tmp_path, format):
    generate_patients(synthetic=tmp_path / "v.parquet", patients=20, device="cpu")
    generate_patients(synthetic=tmp_path / "out", format=format, patients=20, device="cpu")
    table, _ = read(tmp_path / "out", format, tmp_path / "in", columns=["diagnoses"])
    assert table["diagnoses"].to_pylist() == read_visits(tmp_path / "v.parquet")["diagnoses"].to_pylist()
    assert json.loads((tmp_path / "out.json").read_text())["patients"] == 20
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "National Hospital Discharge Survey 2010" in text


@stored
def test_a_folder_of_ones_own_is_refused_before_anything_is_generated(tmp_path):
    (tmp_path / "mine.csv").touch()
    with pytest.raises(UserError, match="holds mine.csv, which this step does not write"):
        generate_patients(synthetic=tmp_path, format="omop", patients=2, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]
