"""The audit of the removal of race: it finds what codes tell, finds nothing where they tell nothing, shows
no row.
"""

import json

import numpy as np
import pytest

from cohortloom.data.coded import encode
from cohortloom.data.visits import write_visits
from cohortloom.evaluation.race import audit
from cohortloom.sources.race import RACES, race_of_patients, race_of_visits
from conftest import REPOSITORY
from evaluate_race import evaluate_race
from metric_worlds import few_codes, hospital
from raw_cohort import LAYOUT, WIDTH, read

TRAIN, TEST, VAL = hospital(1200, 1, "t"), hospital(600, 2, "h"), hospital(600, 3, "v")
NHDS = REPOSITORY.parent / "shared" / "data" / "nhds2010"


def groups_by(table, told: bool, seed: int) -> np.ndarray:
    """Group 0 or 1 of each visit: patients with code 100 are group 1 in 9 of 10 cases if codes tell, else at
    random.
    """
    rng = np.random.default_rng(seed)
    patient = np.cumsum(table["visit"].to_numpy() == 0) - 1
    has = np.zeros(patient[-1] + 1, bool)
    for number, codes in zip(patient, table["diagnoses"].to_pylist(), strict=True):
        has[number] |= "ICD9CM:100" in codes
    flipped = rng.random(len(has)) < 0.1
    return (np.where(flipped, ~has, has) if told else rng.random(len(has)) < 0.4).astype(int)[patient]


def audited(release, told: bool, least: int = 20, real: bool = True) -> dict:
    coded, names = encode([TRAIN, TEST, release])
    groups = groups_by(TRAIN, told, 1), groups_by(TEST, told, 2)
    figures = audit(*coded, groups, RACES, len(names), 0, least, real)
    return {(metric, group): estimate for metric, group, estimate, *_ in figures}


def test_race_is_predicted_only_from_codes_that_depend_on_it():
    told, silent = audited(VAL, True), audited(VAL, False)
    assert told["race_auc", "black"].low > 0.65
    assert silent["race_auc", "black"].low < 0.5 < silent["race_auc", "black"].high
    for found in (told, silent):
        share = sum(found["race_predicted_share", group].value for group in ("white", "black"))
        assert share == pytest.approx(1, abs=1e-9)


def test_a_release_without_a_group_is_detected():
    without = VAL.filter((groups_by(VAL, True, 3) == 0).tolist())
    starts = np.flatnonzero(without["visit"].to_numpy() == 0)
    assert len(starts) > 100
    real, lost = audited(VAL, True), audited(without, True, real=False)
    assert lost["race_predicted_share", "black"].high < real["race_predicted_share", "black"].low
    assert lost["race_js_distance", "black"].low > real["race_js_distance", "black"].high
    assert not [key for key in lost if key[0] == "race_auc"]  # a figure of the real data


def test_small_groups_are_not_reported():
    (((metric, group), estimate),) = audited(VAL, True, least=10**6).items()
    assert (metric, group) == ("race_auc", "") and np.isnan(estimate.value)
    assert {group for _, group in audited(VAL, True)} == {"white", "black"}


def write_tables(folder, ethnicity, header="SUBJECT_ID,HADM_ID,ADMITTIME,ETHNICITY"):
    folder.mkdir(exist_ok=True)
    for name in ("PATIENTS", "DIAGNOSES_ICD"):
        (folder / f"{name}.csv").write_text("SUBJECT_ID\n1\n")
    rows = [f"{k},{k},2101-01-01,{value}" for k, value in enumerate(ethnicity)]
    (folder / "ADMISSIONS.csv").write_text("\n".join([header, *rows]) + "\n")


def test_values_of_mimic_are_mapped_to_broad_groups(tmp_path):
    values = [
        "WHITE - RUSSIAN",
        "BLACK/AFRICAN AMERICAN",
        "HISPANIC OR LATINO",
        "ASIAN - CHINESE",
        "MIDDLE EASTERN",
    ]
    write_tables(
        tmp_path / "raw", [*values, "UNKNOWN/NOT SPECIFIED", "PATIENT DECLINED TO ANSWER", "UNABLE TO OBTAIN"]
    )
    found = race_of_patients("mimic3", tmp_path / "raw")
    assert [RACES[found[str(k)]] for k in range(5)] == list(RACES)
    assert set(found) == {"0", "1", "2", "3", "4"}  # who did not say is in no group


def test_tables_that_tell_no_race_leave_nothing_to_audit(tmp_path):
    write_tables(tmp_path / "raw", ["x"], header="SUBJECT_ID,HADM_ID,ADMITTIME,OTHER")
    assert race_of_patients("mimic3", tmp_path / "raw") is None


def test_nhds_is_joined_by_the_number_of_the_line(tmp_path):
    lines = []
    for race in "129":
        line = [" "] * WIDTH
        for name, value in (("newborn", "2"), ("age_unit", "1"), ("age", "40"), ("sex", "1"), ("race", race)):
            line[LAYOUT[name][0] : sum(LAYOUT[name])] = value
        line[LAYOUT["diagnoses"][0] : sum(LAYOUT["diagnoses"])] = "4019-" + "-" * 70
        lines.append("".join(line))
    path = tmp_path / "NHDS10.PU.txt"
    path.write_text("\n".join(lines) + "\n")
    found = race_of_patients("nhds2010", tmp_path)
    visits, _ = read(tmp_path, "nhds2010", tmp_path / "out")
    assert race_of_visits(visits, found).tolist() == [0, 1, -1]


@pytest.mark.skipif(not NHDS.exists(), reason="NHDS is not at hand")
def test_the_survey_has_the_groups_that_its_documentation_counts():
    found = race_of_patients("nhds2010", NHDS)
    counts = np.bincount(list(found.values()), minlength=len(RACES))
    assert counts[0] > counts[1] > counts[4] > 0 and counts[2] == 0 and counts.sum() < 151_551


def test_records_are_rates_by_group_and_name_no_patient(tmp_path):
    files = {}
    for name, table in (("train", TRAIN), ("test", TEST), ("made", few_codes(VAL, 31))):
        files[name] = tmp_path / f"{name}.parquet"
        write_visits(table, files[name], {})
    ids = [*dict.fromkeys(TRAIN["patient_id"].to_pylist()), *dict.fromkeys(TEST["patient_id"].to_pylist())]
    raw = tmp_path / "raw"
    write_tables(raw, [])
    rows = [f"{k},{k},2101-01-01,{'WHITE' if k % 3 else 'ZQXSECRET'}" for k in range(len(ids))]
    (raw / "ADMISSIONS.csv").write_text("\n".join(["SUBJECT_ID,HADM_ID,ADMITTIME,ETHNICITY", *rows]) + "\n")
    out = tmp_path / "race.json"
    shared = {
        "synthetic": files["made"],
        "train": files["train"],
        "test": files["test"],
        "records": out,
        "run": "x",
    }
    evaluate_race(raw_dir=raw, source="mimic3", **shared)
    (row,) = json.loads(out.read_text())  # no id of the tables is one of the visits
    assert (row["metric"], row["value"]) == ("race_auc", None) and "20 patients" in row["reason"]
    renamed = {one: str(k) for k, one in enumerate(ids)}
    for name, table in (("train", TRAIN), ("test", TEST)):
        column = [renamed[one] for one in table["patient_id"].to_pylist()]
        write_visits(table.set_column(0, "patient_id", [column]), files[name], {})
    evaluate_race(raw_dir=raw, source="mimic3", control=True, **shared)
    records = json.loads(out.read_text())
    assert {record["subset"] for record in records} == {"white", "other"}
    assert {record["metric"] for record in records} == {
        "race_auc",
        "race_predicted_share",
        "race_js_distance",
    }
    assert "ZQXSECRET" not in out.read_text() and "hospital" not in out.read_text()
