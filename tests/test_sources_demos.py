"""The other sources on their public demos: the figures that their descriptions give."""

import shutil

import duckdb
import pyarrow.parquet as pq
import pytest

from cohortloom.base.errors import UserError
from raw_cohort import SHARED, by_system, dropped, normalized, read

MIMIC4, MEDS, OMOP, EICU = (
    SHARED / name for name in ("mimic4_demo", "meds_mimic4_demo", "omop_mimic4_demo", "eicu_demo")
)


def at_hand(folder):
    return pytest.mark.skipif(
        not folder.is_dir(), reason=f"the demo {folder.name} is not beside the repository"
    )


def codes(table, column) -> set[tuple]:
    """(patient, visit, code) of a table of visits."""
    rows = table.select(["patient_id", "visit", column]).to_pylist()
    return {(row["patient_id"], row["visit"], code) for row in rows for code in row[column]}


@at_hand(MIMIC4)
def test_mimic4(tmp_path):
    table, account = read(MIMIC4, "mimic4", tmp_path)
    assert account["cohort"]["patients"] == 100 and table.num_rows == 275
    assert account["cohort"]["visits_by_sex"] == {"F": 133, "M": 142}
    found = by_system(account)
    assert found["diagnoses", "ICD9CM"] == 2193 and found["diagnoses", "ICD10CM"] == 2313
    assert found["procedures", "ICD9Proc"] + found["procedures", "ICD10PCS"] == 667
    assert found["medications", "Drug"] == 7279
    # Of 722 procedures 55 repeat a code of their admission; diluents are left out.
    assert dropped(account)["procedures", "code repeated in its visit"] == 55
    assert dropped(account, "left_out")["medications", "drug_type is BASE, not MAIN"] == 3677
    ages = table["age"].to_numpy()
    assert ages.min() == 21 and ages.max() == 90 and int((ages == 90).sum()) == 8
    assert sum(bool(visit) for visit in table["medications"].to_pylist()) == 250
    assert sum(bool(visit) for visit in table["procedures"].to_pylist()) == 187
    # E8809 is a code of both systems, and no admission mixes them.
    distinct = {code for _, _, code in codes(table, "diagnoses")}
    assert {"ICD9CM:E8809", "ICD10CM:E8809", "ICD9CM:E8881", "ICD10CM:E8881"} <= distinct
    for row in table["diagnoses"].to_pylist():
        assert len({code.split(":")[0] for code in row}) == 1
    assert not any("ZQX" in name for name in account["columns_removed"])
    assert {"race", "language", "insurance", "marital_status"} <= set(account["columns_removed"])


@at_hand(MIMIC4)
@pytest.mark.parametrize("form", ["csv.gz", "zip", "parquet"])
def test_mimic4_in_each_form_of_file(tmp_path, form):
    """Lower- and upper-case names, packed, in the release's folder: the same table."""
    plain, _ = read(MIMIC4, "mimic4", tmp_path / "plain", columns=["diagnoses"])
    raw = tmp_path / "raw" / "hosp"
    raw.mkdir(parents=True)
    for name in ("patients", "admissions", "diagnoses_icd"):
        source = MIMIC4 / f"{name}.csv"
        if form == "parquet":
            duckdb.sql(f"SELECT * FROM read_csv('{source}', all_varchar=true)").write_parquet(
                str(raw / f"{name.upper()}.parquet")
            )
        elif form == "zip":
            shutil.make_archive(str(raw / name), "zip", MIMIC4, source.name)
        else:
            import gzip

            (raw / f"{name.upper()}.CSV.GZ").write_bytes(gzip.compress(source.read_bytes()))
    table, _ = read(tmp_path / "raw", "mimic4", tmp_path / "out", columns=["diagnoses"])
    assert table.to_pylist() == plain.to_pylist()


@at_hand(MIMIC4)
@at_hand(MEDS)
def test_meds_gives_the_diagnoses_and_procedures_of_the_tables(tmp_path):
    tables, _ = read(MIMIC4, "mimic4", tmp_path / "tables")
    events, account = read(MEDS, "meds", tmp_path / "events")
    same = ["patient_id", "visit", "days", "age", "sex"]
    assert events.select(same).to_pylist() == tables.select(same).to_pylist()
    assert codes(events, "diagnoses") == codes(tables, "diagnoses")
    # Four procedures were done on days of two later admissions, which have the same codes on the same days:
    # no event tells that they were billed with an earlier one as well.
    lost = codes(tables, "procedures") - codes(events, "procedures")
    assert {(patient, visit) for patient, visit, _ in lost} == {("10019003", 3)} and len(lost) == 4
    assert codes(events, "procedures") < codes(tables, "procedures")
    assert normalized(account)["procedures of the day before an admission, put into that visit"] == 1
    # Drugs are those of MIMIC's table pharmacy, which has no name for some orders and other names for some.
    drugs = {name: codes(table, "medications") for name, table in (("tables", tables), ("events", events))}
    assert dropped(account)["medications", "null code"] == 1011
    assert not any(code == "Drug:UNK" for *_, code in drugs["events"])
    assert len(drugs["tables"]) == 7279 and len(drugs["events"]) == 7230
    assert len(drugs["tables"] & drugs["events"]) == 6989
    assert normalized(account)["medications of the day after a discharge, put into that visit"] == 52
    # What is not read is counted by the first part of its code.
    left = dropped(account, "left_out")
    assert left["data", "LAB"] == 776_411 and left["data", "PROCEDURE"] == 2872


@at_hand(MEDS)
def test_meds_with_ids_of_visits_on_some_events(tmp_path):
    """MIMIC_IV_MEDS writes hadm_id for admissions and diagnoses, and none for drugs: those go by day."""
    plain, _ = read(MEDS, "meds", tmp_path / "plain")
    (tmp_path / "raw" / "data").mkdir(parents=True)
    duckdb.sql(f"""
        WITH events AS (FROM '{MEDS}/data/**/*.parquet'),
        stay AS (
            SELECT a.subject_id, a.time AS start, min(d.time) AS finish, row_number() OVER () AS hadm_id
            FROM events a JOIN events d USING (subject_id)
            WHERE starts_with(a.code, 'HOSPITAL_ADMISSION') AND starts_with(d.code, 'HOSPITAL_DISCHARGE')
              AND d.time > a.time GROUP BY a.subject_id, a.time
        )
        SELECT e.*, s.hadm_id FROM events e LEFT JOIN stay s ON s.subject_id = e.subject_id
          AND (starts_with(code, 'HOSPITAL_ADMISSION') AND e.time = start
               OR regexp_matches(code, '^(HOSPITAL_DISCHARGE|DIAGNOSIS)') AND e.time = finish)
        WHERE NOT starts_with(code, 'LAB')
    """).write_parquet(str(tmp_path / "raw" / "data" / "0.parquet"))
    table, _ = read(tmp_path / "raw", "meds", tmp_path / "out")
    for column in ("diagnoses", "procedures", "medications"):
        assert codes(table, column) == codes(plain, column)
    same = ["patient_id", "visit", "days", "age", "sex"]
    assert table.select(same).to_pylist() == plain.select(same).to_pylist()


def test_meds_without_any_visit_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    events = "(VALUES (7, 'MEDS_BIRTH', '1960-01-01'), (7, 'DIAGNOSIS//ICD//9//4019', '2010-01-01'))"
    duckdb.sql(
        "SELECT subject_id::BIGINT AS subject_id, time::TIMESTAMP AS time, code"
        f" FROM {events} e(subject_id, code, time)"
    ).write_parquet(str(tmp_path / "data" / "0.parquet"))
    with pytest.raises(UserError, match="row 1: column code: 'MEDS_BIRTH' and no other event tells visits"):
        read(tmp_path, "meds", tmp_path / "out")


def omop_tables(tmp_path):
    """A folder with the demo's tables, without a table of concepts."""
    raw = tmp_path / "raw"
    raw.mkdir()
    events = ("condition_occurrence", "procedure_occurrence", "drug_exposure")
    for name in ("person", "visit_occurrence", *events):
        (raw / f"{name}.csv").symlink_to(OMOP / f"{name}.csv")
    return raw


@at_hand(OMOP)
def test_omop(tmp_path):
    raw = omop_tables(tmp_path)
    with pytest.raises(UserError, match="table concept is missing"):
        read(raw, "omop", tmp_path / "none")
    (raw / "CONCEPT.csv").symlink_to(OMOP / "concept_icd_derived.csv")
    table, account = read(raw, "omop", tmp_path / "out")
    assert account["cohort"]["patients"] == 100 and table.num_rows == 275  # the hospital stays
    found = by_system(account)
    # 3,640 pairs of visit and code, of 3,833 rows: a code may have several standard concepts.
    assert found["diagnoses", "ICD9CM"] + found["diagnoses", "ICD10CM"] == 3640
    assert dropped(account)["diagnoses", "code repeated in its visit"] == 3833 - 3640
    assert ("procedures", "ICD9Proc") not in found  # the 401 are not in the tables
    assert (
        found["procedures", "ICD10PCS"] + dropped(account)["procedures", "code repeated in its visit"] == 305
    )
    left = dropped(account, "left_out")
    assert left["diagnoses", "source concept of no known vocabulary"] == 12_608  # charted items
    assert left["visits", "no code"] == 577  # outpatient days


@at_hand(OMOP)
@at_hand(MIMIC4)
def test_omop_misses_what_its_description_says(tmp_path):
    raw = omop_tables(tmp_path)
    (raw / "concept.csv").symlink_to(OMOP / "concept_icd_derived.csv")
    omop, _ = read(raw, "omop", tmp_path / "omop", columns=["diagnoses"])
    tables, _ = read(MIMIC4, "mimic4", tmp_path / "tables", columns=["diagnoses"])
    people = dict(
        duckdb.sql(f"SELECT person_id, person_source_value FROM '{OMOP / 'person.csv'}'").fetchall()
    )
    of_omop = {(str(people[int(patient)]), code) for patient, _, code in codes(omop, "diagnoses")}
    of_tables = {(patient, code) for patient, _, code in codes(tables, "diagnoses")}
    assert len(of_tables) == 3223 and len(of_tables - of_omop) == 602
    lost = [code.split(":")[1][0] for _, code in of_tables - of_omop]
    assert {letter: lost.count(letter) for letter in "VZEY"} == {"V": 232, "Z": 211, "E": 62, "Y": 39}


@at_hand(EICU)
def test_eicu(tmp_path):
    # Four patients have no sex and two no age; the figures are those of all, so these are given one here.
    raw = tmp_path / "raw"
    raw.mkdir()
    patient = f"read_csv('{EICU / 'patient.csv.gz'}', all_varchar=true)"
    filled = "coalesce(nullif(gender, ''), 'Female') AS gender, coalesce(nullif(age, ''), '50') AS age"
    duckdb.sql(f"SELECT * REPLACE ({filled}) FROM {patient}").write_csv(str(raw / "patient.csv"))
    (raw / "diagnosis.csv.gz").symlink_to(EICU / "diagnosis.csv.gz")
    table, account = read(raw, "eicu", tmp_path / "out", columns=["diagnoses"])
    assert table.num_rows == 1839 and account["cohort"]["patients"] == 1560
    assert dropped(account)["visits", "no code"] == 2174 - 1839
    # One system of a cell is kept, so that a problem counts once.
    found = by_system(account)
    assert found["diagnoses", "ICD9CM"] > 50 * found["diagnoses", "ICD10CM"] > 0
    assert pq.read_schema(tmp_path / "out" / "visits.parquet").metadata[b"days"] == b"placeholder"
    # As they are, those patients are left out and counted.
    _, account = read(EICU, "eicu", tmp_path / "all", columns=["diagnoses"])
    assert dropped(account)["patients", "sex marked as unknown"] == 4
    assert {"ethnicity"} <= set(account["columns_removed"])


@at_hand(EICU)
def test_eicu_drugs_are_named_by_their_number(tmp_path):
    table, account = read(EICU, "eicu", tmp_path, columns=["medications"], max_empty=1.0)
    left = dropped(account, "left_out")
    assert left["medications", "order cancelled"] == 2636
    assert left["medications", "neither a name nor a HICL number"] <= 1648
    assert by_system(account).keys() == {("medications", "Drug")}
    assert normalized(account).keys() >= {"codes with a blank"}
