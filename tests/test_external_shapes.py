"""evaluate_external's reader: folders of tables and events, as our own exports and others write them."""

import csv
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.absent import absent
from cohortloom.data.visits import read_visits
from cohortloom.sources import external
from cohortloom.sources.audit import Audit
from cohortloom.sources.shapes import NAMES, shape_of
from export_cohort import ICD10, ROWS, STEPS, cohort, export_as, without_ids
from raw_cohort import SHARED
from raw_cohort import read as read_source_as_cohort
from read_external import read_external

DIAGNOSES = [(*row[:5], "", "") for row in ROWS]


def rows_of(format: str) -> list:
    return ROWS if format == "mimic3" else ROWS + ICD10


def read(path: Path) -> external.External:
    with TemporaryDirectory() as spill:
        return external.read(path, Audit(), Path(spill))


def expected(format: str, rows: list) -> list[dict]:
    """The visits as they were, up to what the format cannot hold: MIMIC-IV has whole years."""
    visits = without_ids(cohort(rows))
    return [row | {"age": float(int(row["age"]))} for row in visits] if format == "mimic4" else visits


@pytest.mark.parametrize("format", STEPS)
def test_an_export_comes_back_as_the_same_visits(tmp_path, caplog, format):
    caplog.set_level("INFO")
    folder = export_as(format, cohort(rows_of(format)), tmp_path / "out")
    files = {"synthetic": tmp_path / "in" / "v.parquet", "counts": tmp_path / "in" / "v.json"}
    read_external(source=folder, **files)
    table = read_visits(files["synthetic"])
    assert without_ids(table) == expected(format, rows_of(format))
    assert set(table["patient_id"].to_pylist()) == {
        f"external-{n}" for n in range(1, table["visit"].to_pylist().count(0) + 1)
    }
    assert absent(files["synthetic"]) == frozenset()
    told = json.loads(files["counts"].read_text())
    assert told["shape"] == NAMES[format] and told["cohort"]["visits"] == table.num_rows
    assert f"ICD9CM {19 if format == 'mimic3' else 20}" in caplog.text
    assert "scored: the diagnoses, procedures, medications of" in caplog.text
    assert ("ICD10CM 2" in caplog.text) == (format != "mimic3")
    assert len(list((tmp_path / "in").iterdir())) == 2  # nothing spilled is left


@pytest.mark.parametrize("format", STEPS)
def test_an_export_of_diagnoses_alone_is_read(tmp_path, format):
    """Its tables of procedures and drugs have a header and no row."""
    found = read(export_as(format, cohort(DIAGNOSES), tmp_path / "out"))
    assert without_ids(found.visits) == expected(format, DIAGNOSES)
    assert bool(found.without_rows) == (format != "meds")


def test_omop_as_parquet(tmp_path):
    found = read(export_as("omop", cohort(ROWS), tmp_path / "out", table_files="parquet"))
    assert found.shape == "tables of OMOP" and without_ids(found.visits) == without_ids(cohort(ROWS))


@pytest.mark.parametrize("format", ["mimic3", "mimic4"])
def test_tables_of_mimic_without_patients_lack_age_and_sex(tmp_path, format):
    folder = export_as(format, cohort(ROWS), tmp_path / "out")
    next(path for path in folder.rglob("*.csv") if path.stem.lower() == "patients").unlink()
    found = read(folder)
    assert found.absent == {"age", "sex"}
    same = ["visit", "days", "diagnoses", "procedures", "medications"]
    assert found.visits.select(same).to_pylist() == cohort(ROWS).select(same).to_pylist()


def test_meds_without_births_lacks_age_and_sex_and_one_file_is_enough(tmp_path):
    folder = export_as("meds", cohort(ROWS), tmp_path / "out")
    one = tmp_path / "events.parquet"
    events = f"FROM '{folder}/data/**/*.parquet'"
    duckdb.sql(events).write_parquet(str(one))
    found = read(one)
    assert found.shape == "MEDS events" and without_ids(found.visits) == without_ids(cohort(ROWS))
    duckdb.sql(f"{events} WHERE code <> 'MEDS_BIRTH'").write_parquet(str(one))
    found = read(one)
    assert (
        found.absent == {"age", "sex"}
        and found.visits["days"].to_pylist() == cohort(ROWS)["days"].to_pylist()
    )


def test_what_tells_a_person_s_race_is_not_read(tmp_path):
    """Marked in columns of MIMIC and in rows of MEDS; a marked drug is seen."""
    tables = export_as("mimic4", cohort(ROWS), tmp_path / "a")
    with open(tables / "hosp" / "admissions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(tables / "hosp" / "admissions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"race": "ZQX", "language": "ZQX", "insurance": "ZQX"} for row in rows)
    events = export_as("meds", cohort(ROWS), tmp_path / "b")
    shard = events / "data" / "train" / "0.parquet"
    table = pq.read_table(shard, partitioning=None)
    place = table.column_names.index("code")
    race = table.set_column(place, table.schema.field("code"), pa.array(["RACE//ZQX"] * len(table)))
    pq.write_table(pa.concat_tables([table, race]), shard)
    for folder in (tables, events):
        files = {"synthetic": tmp_path / "in" / "v.parquet", "counts": tmp_path / "in" / "v.json"}
        read_external(source=folder, **files)
        assert "ZQX" not in files["counts"].read_text() + str(read_visits(files["synthetic"]).to_pylist())
    text = (tables / "hosp" / "prescriptions.csv").read_text()
    (tables / "hosp" / "prescriptions.csv").write_text(text.replace("HEPARIN", "ZQX"))
    assert "ZQX" in str(read(tables).visits.to_pylist())


def test_folders_that_lack_a_table_or_have_no_shape(tmp_path):
    folder = export_as("mimic3", cohort(ROWS), tmp_path / "m")
    diagnoses = folder / "DIAGNOSES_ICD.csv"
    text = diagnoses.read_text()
    diagnoses.write_text(text.replace("ICD9_CODE", "CODE"))
    with pytest.raises(
        UserError, match="DIAGNOSES_ICD.csv: line 1: column ICD9_CODE of MIMIC-III, or icd_code"
    ):
        read(folder)
    diagnoses.write_text(text.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="the table DIAGNOSES_ICD has a header but no row"):
        read(folder)
    diagnoses.unlink()
    with pytest.raises(UserError, match="table diagnoses_icd is missing beside"):
        read(folder)
    folder = export_as("omop", cohort(ROWS), tmp_path / "o")
    (folder / "concept.csv").unlink()
    with pytest.raises(UserError, match="table concept is missing beside person.csv"):
        read(folder)
    (tmp_path / "none" / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match="no known shape of visits; it holds no file; give visits as Parquet"):
        read(tmp_path / "none")
    (tmp_path / "none" / "sub" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="it holds sub/notes.txt;"):
        read(tmp_path / "none")


def test_a_table_that_lies_there_twice_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = export_as("mimic4", cohort(ROWS), tmp_path / "out")
    shutil.copy(folder / "hosp" / "patients.csv", folder / "hosp" / "patients.csv.gz")
    read_external(source=folder, synthetic=tmp_path / "in" / "v.parquet", counts=tmp_path / "in" / "v.json")
    assert "beside files not read: patients.csv.gz" in caplog.text


DEMOS = {"mimic3": "mimic3_demo", "mimic4": "mimic4_demo", "meds": "meds_mimic4_demo", "eicu": "eicu_demo"}


@pytest.mark.parametrize("name", DEMOS)
def test_the_demos_are_told_apart(name):
    if not (SHARED / DEMOS[name]).is_dir():
        pytest.skip(f"the demo {DEMOS[name]} is not beside the repository")
    assert shape_of(SHARED / DEMOS[name]).name == name


@pytest.mark.skipif(
    not (SHARED / "mimic4_demo").is_dir(), reason="the MIMIC-IV demo is not beside the repository"
)
def test_the_demo_of_mimic4_is_what_preprocess_reads(tmp_path):
    cohort_of_demo, _ = read_source_as_cohort(SHARED / "mimic4_demo", "mimic4", tmp_path)
    found = read(SHARED / "mimic4_demo")
    assert without_ids(found.visits) == without_ids(cohort_of_demo)


@pytest.mark.skipif(not (SHARED / "eicu_demo").is_dir(), reason="the eICU demo is not beside the repository")
def test_a_source_without_dates_lacks_days(tmp_path):
    for name in ("patient", "diagnosis"):
        (tmp_path / f"{name}.csv.gz").symlink_to(SHARED / "eicu_demo" / f"{name}.csv.gz")
    assert read(tmp_path).absent == {"days"}
