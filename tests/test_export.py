"""Exports: what may be exported, what is refused, what is withheld, and what each folder holds."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from cohortloom.base.errors import UserError
from cohortloom.data.visits import RECONSTRUCT_SCHEMA, write_visits
from cohortloom.release.exports import check_synthesized
from cohortloom.release.layout import EXPORTED, omop_files
from export_cohort import FACTS, ICD10, ROWS, STEPS, cohort, export_as

FILES = EXPORTED | {"omop": omop_files("csv", False)}
WITHHELD = {"race", "ethnicity", "language", "religion", "insurance", "marital_status"}
# Columns that PyHealth's configs name, and that its reader insists on.
PYHEALTH = {
    "mimic3": {
        "PATIENTS": "subject_id gender dob dod dod_hosp dod_ssn expire_flag",
        "ADMISSIONS": "subject_id hadm_id admittime dischtime admission_type insurance language religion"
        " marital_status ethnicity edregtime edouttime diagnosis discharge_location hospital_expire_flag",
        "ICUSTAYS": "subject_id icustay_id intime outtime first_careunit last_careunit dbsource",
        "DIAGNOSES_ICD": "subject_id hadm_id icd9_code seq_num",
        "PROCEDURES_ICD": "subject_id hadm_id icd9_code seq_num",
        "PRESCRIPTIONS": "subject_id hadm_id startdate enddate drug ndc",
    },
    "mimic4": {
        "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
        "hosp/admissions": "subject_id hadm_id admittime dischtime admission_type admission_location"
        " insurance language marital_status race discharge_location hospital_expire_flag",
        "icu/icustays": "subject_id stay_id first_careunit last_careunit intime outtime",
        "hosp/diagnoses_icd": "subject_id hadm_id icd_code icd_version seq_num",
        "hosp/procedures_icd": "subject_id hadm_id icd_code icd_version seq_num",
        "hosp/prescriptions": "subject_id hadm_id starttime stoptime drug ndc prod_strength dose_val_rx"
        " dose_unit_rx route",
    },
}


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [{key.lower(): value for key, value in row.items()} for row in csv.DictReader(file)]


def header(path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return [name.lower() for name in next(csv.reader(file))]


@pytest.mark.parametrize("format", STEPS)
def test_a_folder_holds_its_files_and_no_others_and_is_replaced(tmp_path, format):
    for _ in range(2):
        folder = export_as(format, cohort(), tmp_path)
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert files == set(FILES[format])
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "Nobody here exists" in text
        and "6 synthetic patients" in text
        and "What the format does not hold, and how it is filled" in text
    )
    assert "None" not in text and "race, ethnicity" in text
    facts = json.loads((folder / "cohortloom.json").read_text())
    assert (facts["patients"], facts["visits"], facts["ages_not_given"]) == (6, 14, 0)
    (folder / "mine.txt").touch()
    with pytest.raises(UserError, match="holds mine.txt, which this step does not write"):
        export_as(format, cohort(), tmp_path)
    assert (folder / "mine.txt").exists()


@pytest.mark.parametrize("format", STEPS)
def test_the_same_seed_writes_the_same_files(tmp_path, format):
    one, same, other = (
        export_as(format, cohort(), tmp_path / name, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    dated = {"metadata/dataset.json", "cdm_source.csv"}  # hold the day of writing
    for name in set(FILES[format]) - dated:
        assert (one / name).read_bytes() == (same / name).read_bytes(), name
    assert any(
        (one / name).read_bytes() != (other / name).read_bytes() for name in set(FILES[format]) - dated
    )


@pytest.mark.parametrize("source", ["mimic3", "copy", "prevalence", "external", ""])
def test_only_what_a_model_synthesized_is_exported(tmp_path, source):
    with pytest.raises(UserError, match="only what a trained run synthesized is exported"):
        export_as("meds", cohort(), tmp_path, facts=FACTS | {"source": source})
    assert not (tmp_path / "meds").exists()


def test_a_reconstruction_is_not_exported(tmp_path):
    visits = cohort()
    for column in ("diagnoses", "procedures", "medications"):
        visits = visits.append_column(f"revealed_{column}", visits[column])
    visits = visits.append_column("source_patient_id", visits["patient_id"]).append_column(
        "source_visit", visits["visit"]
    )
    path = tmp_path / "reconstruct.parquet"
    write_visits(visits, path, FACTS, RECONSTRUCT_SCHEMA)
    with pytest.raises(UserError, match="is a reconstruction and holds real codes"):
        check_synthesized(path)


def test_a_system_that_the_format_has_no_place_for_is_refused(tmp_path):
    visits = cohort([*ROWS, (9, 0, 50, 0, "SNOMED:38341003", "", "")])
    with pytest.raises(
        UserError, match="mimic4 holds no diagnoses of the system SNOMED, such as SNOMED:38341003"
    ):
        export_as("mimic4", visits, tmp_path)
    assert not (tmp_path / "mimic4").exists()
    events = pq.read_table(export_as("meds", visits, tmp_path) / "data" / "train" / "0.parquet")
    assert "SNOMED/38341003" in events["code"].to_pylist()  # MEDS has a place for it


@pytest.mark.parametrize("format", sorted(PYHEALTH))
def test_pyhealth_finds_its_columns_and_what_is_withheld_is_empty(tmp_path, format):
    folder = export_as(format, cohort(), tmp_path)
    for table, columns in PYHEALTH[format].items():
        assert set(columns.split()) <= set(header(folder / f"{table}.csv")), table
    seen = set()
    for path in folder.rglob("*.csv"):
        rows = rows_of(path)
        for column in WITHHELD & set(header(path)):
            seen.add(column)
            assert rows and all(row[column] == "" for row in rows), (path, column)
    assert {"language", "insurance", "marital_status"} < seen


def test_mimic4_by_hand(tmp_path):
    folder = export_as("mimic4", cohort([ROWS[0], ROWS[1], ROWS[6], *ICD10]), tmp_path)
    patients = rows_of(folder / "hosp" / "patients.csv")
    assert [(row["gender"], row["anchor_age"]) for row in patients] == [
        ("M", "61"),
        ("F", "91"),
        ("M", "45"),
        ("F", "46"),
    ]
    for row in patients:
        low, high = map(int, row["anchor_year_group"].split(" - "))
        assert low <= int(row["anchor_year"]) <= high == low + 2 and (low - 2008) % 3 == 0
    codes = [
        (r["seq_num"], r["icd_code"], r["icd_version"])
        for r in rows_of(folder / "hosp" / "diagnoses_icd.csv")
    ]
    assert codes[:4] == [("1", "41401", "9"), ("2", "4019", "9"), ("3", "V4582", "9"), ("1", "E8120", "9")]
    assert ("1", "E8809", "10") in codes and ("1", "E8809", "9") in codes and ("2", "07070", "9") in codes
    admissions = rows_of(folder / "hosp" / "admissions.csv")
    assert all(len(row["dischtime"]) == len("2015-01-01 00:00:00") for row in admissions)
    assert {row["hadm_id"] for row in admissions} == {str(1_000_000_000 + n) for n in range(1, 6)}
