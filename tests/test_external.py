"""evaluate_external: every shape is read to the same visits, mistakes are named, figures do without age and
sex.
"""

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cohortloom.base.errors import UserError
from cohortloom.data.absent import absent
from cohortloom.data.visits import read_visits, write_visits
from cohortloom.reporting import scorecard
from cohortloom.sources import external
from cohortloom.sources.audit import Audit
from cohortloom.sources.spelling import Spelling
from conftest import REPOSITORY
from evaluate_classifier import evaluate_classifier
from evaluate_conditioning import evaluate_conditioning
from evaluate_fidelity import evaluate_fidelity
from evaluate_medical_validity import evaluate_medical_validity
from evaluate_privacy import evaluate_privacy
from evaluate_utility import evaluate_utility
from metric_worlds import hospital
from read_external import read_external
from summarize_external import summarize_external
from summarize_inputs import RESOURCES, figure

SHARED_CASES = REPOSITORY.parent / "shared" / "cases"
DEMO = REPOSITORY.parent / "shared" / "data" / "mimic3_demo"
VISITS = hospital(60, 1)
COLUMNS = ("visit", "days", "age", "sex", "diagnoses")


def read(path: Path, **options) -> tuple[pa.Table, frozenset, Audit]:
    account = Audit()
    with TemporaryDirectory() as spill:
        found = external.read(path, account, Path(spill), **options)
    return found.visits, found.absent, account


def same(table: pa.Table, columns=COLUMNS) -> bool:
    return table.select(columns).to_pylist() == VISITS.select(columns).to_pylist()


def long_csv(path: Path, header: str, rows: list) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def dotted(code: str) -> str:
    return f"{code[:3]}.{code[3:]}" if len(code) > 3 else code


def test_a_parquet_file_comes_back_with_ids_of_our_own(tmp_path):
    shuffled = VISITS.take(pa.array(np.random.default_rng(0).permutation(VISITS.num_rows)))
    pq.write_table(shuffled.append_column("race", pa.array(["x"] * VISITS.num_rows)), tmp_path / "v.parquet")
    table, lacking, _ = read(tmp_path / "v.parquet")
    key = ["diagnoses", "age", "visit", "days"]
    assert sorted(map(str, table.select(key).to_pylist())) == sorted(map(str, VISITS.select(key).to_pylist()))
    assert lacking == frozenset() and "race" not in table.column_names
    assert not set(table["patient_id"].to_pylist()) & set(VISITS["patient_id"].to_pylist())


@pytest.mark.parametrize("a_row_is", ["visit", "code"])
def test_a_long_csv_with_days_age_and_sex(tmp_path, a_row_is):
    rows = []
    for v in VISITS.to_pylist():
        cells = (
            [" ".join(dotted(code.removeprefix("ICD9CM:")) for code in v["diagnoses"])]
            if a_row_is == "visit"
            else v["diagnoses"]
        )
        rows += [(v["patient_id"], v["days"], cell, v["age"], v["sex"].lower()) for cell in cells]
    table, lacking, _ = read(long_csv(tmp_path / "x.csv", "id,time,visit_codes,age,sex", rows))
    assert same(table) and lacking == frozenset()


def test_numbers_of_visits_tell_no_gaps_and_no_demographics_is_said(tmp_path):
    rows = [(v["patient_id"], v["visit"], str(v["diagnoses"])) for v in VISITS.to_pylist()]
    table, lacking, _ = read(long_csv(tmp_path / "x.csv", "ID,Time,visit_codes", rows))
    assert lacking == {"days", "age", "sex"} and same(table, ("visit", "diagnoses"))


def test_dates_are_days(tmp_path):
    rows = [("a", "2101-01-31", "401.9"), ("a", "2101-01-01", "250.00"), ("a", "2101-01-31", "V30.00")]
    table, lacking, _ = read(long_csv(tmp_path / "x.csv", "id,time,visit_codes", rows))
    assert table["days"].to_pylist() == [0, 30] and lacking == {"age", "sex"}
    assert table["diagnoses"].to_pylist() == [["ICD9CM:25000"], ["ICD9CM:4019", "ICD9CM:V3000"]]


def test_foreign_codes_and_repeats_are_dropped_and_counted(tmp_path):
    rows = [("a", 0, "4019 4019 I10"), ("a", 9, "nonsense"), ("b", 0, "25000")]
    table, _, account = read(long_csv(tmp_path / "x.csv", "id,time,visit_codes", rows))
    assert table["diagnoses"].to_pylist() == [["ICD9CM:4019"], ["ICD9CM:25000"]]
    assert account.dropped["diagnoses", "code not of the form of ICD9CM"] == 2
    assert account.dropped["diagnoses", "code repeated in its visit"] == 1
    assert account.dropped["visits", "no code"] == 1


def mimic(folder: Path, patients: bool) -> Path:
    folder.mkdir()
    rows = VISITS.to_pylist()
    names = list(dict.fromkeys(v["patient_id"] for v in rows))
    first = {v["patient_id"]: v for v in rows if v["visit"] == 0}
    start = np.datetime64("2150-06-01")
    if patients:
        born = [(i, first[n]["sex"], f"{2150 - int(first[n]['age'])}-06-01") for i, n in enumerate(names)]
        long_csv(folder / "PATIENTS.csv", "SUBJECT_ID,GENDER,DOB", born)
    stays = [(names.index(v["patient_id"]), k, str(start + v["days"])) for k, v in enumerate(rows)]
    long_csv(folder / "admissions.csv", "subject_id,hadm_id,admittime", stays)
    codes = [
        (names.index(v["patient_id"]), k, n, c.removeprefix("ICD9CM:"))
        for k, v in enumerate(rows)
        for n, c in enumerate(v["diagnoses"])
    ]
    long_csv(folder / "DIAGNOSES_ICD.csv", "SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE", codes)
    return folder


@pytest.mark.parametrize("patients", [True, False])
def test_tables_in_the_shape_of_mimic(tmp_path, patients):
    table, lacking, _ = read(mimic(tmp_path / "tables", patients))
    assert same(table, COLUMNS if patients else ("visit", "days", "diagnoses"))
    assert lacking == (frozenset() if patients else {"age", "sex"})


def test_codes_of_all_columns_are_kept_with_their_systems(tmp_path):
    """In lists and in cells; what has no system is ICD-9 or the name of a drug."""
    lists = {
        "diagnoses": [["ICD10CM:E88.09", "4019"], ["ICD9CM:E8809"], []],
        "procedures": [["ICD10PCS:5A1D70Z"], ["0045"], ["0045"]],
        "medications": [["Drug:HEPARIN SODIUM", "aspirin, coated"], [], ["NDC:00338004904"]],
    }
    of_patient = {"patient_id": ["a", "a", "b"], "visit": [0, 1, 0]}
    pq.write_table(pa.table(of_patient | lists), tmp_path / "v.parquet")
    cells = [
        (who, visit, *("|".join(codes[row]) for codes in lists.values()))
        for row, (who, visit) in enumerate(zip(*of_patient.values(), strict=True))
    ]
    long_csv(tmp_path / "v.csv", "patient_id,visit,diagnoses,procedures,medications", cells)
    for name in ("v.parquet", "v.csv"):
        table, _, account = read(tmp_path / name)
        assert table["diagnoses"].to_pylist() == [["ICD10CM:E8809", "ICD9CM:4019"], ["ICD9CM:E8809"], []]
        assert table["procedures"].to_pylist() == [["ICD10PCS:5A1D70Z"], ["ICD9Proc:0045"], ["ICD9Proc:0045"]]
        drugs = [["Drug:HEPARIN SODIUM", "Drug:ASPIRIN, COATED"], [], ["NDC:00338004904"]]
        assert table["medications"].to_pylist() == drugs
        assert account.visits == 3
        assert "3 medications (Drug 2, NDC 1)" in account.codes_in_words()
    empty = pa.array([[], [], []], pa.list_(pa.string()))
    pq.write_table(pa.table(of_patient | dict.fromkeys(lists, empty)), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no visit with a code is left"):
        read(tmp_path / "none.parquet")


def test_too_many_rejected_codes_are_refused(tmp_path):
    listed = Spelling({"ICD9CM": frozenset({"4019", "25000"})})
    rows = [(f"p{n}", 0, "4019" if n else "1221") for n in range(40)]  # one of 40 is a number of a vocabulary
    path = long_csv(tmp_path / "x.csv", "id,time,visit_codes", rows)
    table, _, account = read(path, spelling=listed, max_dropped=0.05)
    assert table.num_rows == 40 and account.unlisted["diagnoses", "ICD9CM"] == 1
    long_csv(path, "id,time,visit_codes", rows[:10])
    error = "x.csv: diagnoses: 1 of 10 codes .* more than evaluate.max_dropped .*in no list of ICD9CM"
    with pytest.raises(UserError, match=error):
        read(path, spelling=Spelling({"ICD9CM": frozenset({"4019", "25000"})}), max_dropped=0.05)


def test_codes_of_the_cohort_s_own_map(tmp_path):
    """They are replaced as in the cohort, and stay where the generator learnt them."""
    spelling = Spelling(code_map={"ICD9CM:4019": "CCS:98"}, keep=False)
    rows = [("a", 0, "401.9"), ("b", 0, "CCS:98"), ("c", 0, "25000"), ("d", 0, "CCS:99")]
    table, _, account = read(long_csv(tmp_path / "x.csv", "id,time,visit_codes", rows), spelling=spelling)
    assert table["diagnoses"].to_pylist() == [["CCS:98"], ["CCS:98"]]
    assert account.dropped["diagnoses", "not named by cohort.code_map"] == 1
    assert account.dropped["diagnoses", "code not of the form of ICD9CM"] == 1


@pytest.mark.skipif(not DEMO.exists(), reason="the MIMIC-III demo is not at hand")
def test_the_demo_of_mimic_reads_with_and_without_patients(tmp_path):
    whole, lacking, _ = read(DEMO)
    assert lacking == frozenset() and whole.num_rows == 129
    (tmp_path / "tables").mkdir()
    for name in ("ADMISSIONS", "DIAGNOSES_ICD"):
        (tmp_path / "tables" / f"{name}.csv.gz").symlink_to(DEMO / f"{name}.csv.gz")
    without, lacking, _ = read(tmp_path / "tables")
    assert lacking == {"age", "sex"}
    assert without["diagnoses"].to_pylist() == whole["diagnoses"].to_pylist()


MISTAKES = {
    "no codes": ("id,time", [("a", 0)], r"column visit_codes is missing .*the file has id, time"),
    "age without sex": ("id,time,visit_codes,age", [("a", 0, "4019", 5)], "column sex is missing"),
    "age": ("id,time,visit_codes,age,sex", [("a", 0, "4019", "old", "F")], "column age"),
    "a negative age": (
        "id,time,visit_codes,age,sex",
        [("a", 0, "4019", -1, "F")],
        "line 2: column age: '-1' is no age",
    ),
    "sex": ("id,time,visit_codes,age,sex", [("a", 0, "4019", 5, "Q")], "column sex: 'Q' is neither F nor M"),
    "time": (
        "id,time,visit_codes",
        [("a", "soon", "4019")],
        "'soon' is neither a date such as 2101-10-20 nor a whole",
    ),
    "an empty id": ("id,time,visit_codes", [("", 0, "4019")], "line 2: column id: '' is empty"),
    "another delimiter": ("id;time;visit_codes", [("a;0;4019",)], "line 1: the delimiter is a semicolon"),
    "two sexes in a visit": (
        "id,time,visit_codes,age,sex",
        [("a", 0, "4019", 5, "F"), ("a", 0, "25000", 5, "M")],
        "line 3: column sex: 'M' is not that",
    ),
    "two ages in a visit": (
        "id,time,visit_codes,age,sex",
        [("a", 0, "4019", 5, "F"), ("a", 0, "25000", 6, "F")],
        "line 3: column age: '6' is not that of another row",
    ),
    "more visits than a table holds": (
        "id,time,visit_codes",
        [("a", n, "4019") for n in range(32_769)],
        "'32767' is of a patient with more than 32,767 visits",
    ),
    "nothing left": ("id,time,visit_codes", [("a", 0, "I10")], "no visit with a code is left"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_in_one_line(tmp_path, name):
    header, rows, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as error:
        read(long_csv(tmp_path / "x.csv", header, rows))
    assert "\n" not in str(error.value)


def test_a_parquet_file_of_another_shape_is_refused(tmp_path):
    pq.write_table(VISITS.drop_columns(["diagnoses"]), tmp_path / "v.parquet")
    with pytest.raises(UserError, match="column visit_codes is missing .or diagnoses"):
        read(tmp_path / "v.parquet")
    (tmp_path / "w.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="neither a readable parquet file nor a .csv"):
        read(tmp_path / "w.parquet")


# What becomes of files that people met: rows of visits, or a part of the message that refuses it.
CASES = {
    "external_csv": {
        "age_140.csv": "line 2: column age: '140' is no age",
        "age_nan.csv": "line 2: column age: 'nan' is no age",
        "age_neg.csv": "line 2: column age: '-0.3' is no age",
        "age_words.csv": "line 2: column age: '50-59' is no age",
        "big_time.csv": "line 3: column time: '1546300800000000000' is no number of days",
        "float_time.csv": 3,
        "gender_column.csv": 2,
        "mixed_time.csv": "line 3: column time: '01/02/2020' is no date",
        "nan_time.csv": "line 2: column time: '' is empty",
        "negative_time.csv": 3,
        "same_day.csv": 4,
        "sex_changes.csv": "column sex: 'M' is not that of an earlier visit",
        "sex_words.csv": 2,
    },
    "external_parquet": {
        "age_falls.parquet": "column age: .* is lower than at an earlier visit",
        "age_null.parquet": "column age: '' is empty",
        "age_string.parquet": 3,
        "days_date.parquet": 3,
        "days_fall.parquet": "column days: .* is before an earlier visit",
        "days_float_frac.parquet": "column days: .* is neither a whole number",
        "days_null.parquet": "column days: '' is empty",
        "days_string.parquet": 3,
        "days_timestamp.parquet": 3,
        "days_uint.parquet": 3,
        "dict_codes.parquet": 3,
        "empty.parquet": "has a header but no row",
        "fixed_list.parquet": 3,
        "float_codes.parquet": "column diagnoses is of type DOUBLE",
        "folder_of_shards": 3,
        "good.parquet": 3,
        "id_int.parquet": 3,
        "id_null.parquet": "column patient_id: '' is empty",
        "id_uuid_bin.parquet": "column patient_id is of type BLOB",
        "int_codes.parquet": "column diagnoses is of type BIGINT",
        "large_list.parquet": 3,
        "meds.parquet": "no other event tells visits",
        "null_code.parquet": 3,
        "sex_int.parquet": "column sex: .* is neither F nor M",
        "sex_null.parquet": "column sex: '' is empty",
        "sex_swaps.parquet": "column sex: .* is not that of an earlier visit",
        "string_codes.parquet": 3,
        "string_view.parquet": 3,
        "struct_codes.parquet": "column diagnoses is of type STRUCT",
        "unsorted.parquet": 3,
        "visit_dup.parquet": "stands twice for its patient",
        "visit_from_one.parquet": 3,
        "visit_null.parquet": "column visit: '' is empty",
        "visit_string.parquet": 3,
        "visits.json": "neither a readable parquet file",
    },
}


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="the cases are not beside the repository")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CASES for name in CASES[kind]])
def test_files_that_people_met(kind, name):
    expected = CASES[kind][name]
    if isinstance(expected, int):
        assert read(SHARED_CASES / kind / name)[0].num_rows == expected
        return
    with pytest.raises(UserError, match=expected) as error:
        read(SHARED_CASES / kind / name)
    assert "\n" not in str(error.value)


def test_without_age_and_sex_only_what_needs_neither_is_scored(tmp_path):
    files = {name: tmp_path / f"{name}.parquet" for name in ("train", "val", "test")}
    for number, path in enumerate(files.values()):
        write_visits(hospital(100, 5 + number, str(number)), path, {})
    rows = [(v["patient_id"], v["visit"], " ".join(v["diagnoses"])) for v in VISITS.to_pylist()]
    source = long_csv(tmp_path / "x.csv", "id,time,visit_codes", rows)
    made = tmp_path / "made.parquet"
    read_external(source=source, synthetic=made, counts=tmp_path / "made.json")
    assert absent(made) == {"days", "age", "sex"} and absent(files["train"]) == frozenset()
    told = json.loads((tmp_path / "made.json").read_text())
    assert told["absent"] == ["age", "days", "sex"]
    assert told["shape"] == "long CSV" and told["scored"] == ["diagnoses"]
    shared = {"synthetic": made, "run": "theirs"}
    two = {"train": files["train"], "test": files["test"]}
    evaluate_medical_validity(rules=RESOURCES / "validity", records=tmp_path / "m.json", **shared)
    evaluate_conditioning(records=tmp_path / "c.json", **two, **shared)
    for name in ("m.json", "c.json"):
        rows = json.loads((tmp_path / name).read_text())
        assert rows and {row["value"] for row in rows} == {None}
        assert {row["reason"] for row in rows} == {"the visits have no age and sex"}
    evaluate_fidelity(train=files["train"], records=tmp_path / "f.json", **shared)
    evaluate_classifier(records=tmp_path / "t.json", **two, **shared)
    evaluate_privacy(**files, records=tmp_path / "p.json", **shared)
    evaluate_utility(records=tmp_path / "u.json", **two, **shared)
    records = scorecard.read_records([tmp_path / f"{name}.json" for name in "ftpu"])
    found = {record["metric"] for record in records}
    assert {"js_distance", "classifier_auc", "membership_auc", "prediction_auc", "carried_codes"} <= found
    assert not {"ks_gap_days", "mean_gap_days", "attribute_risk"} & found
    assert {r["subset"] for r in records if r["metric"] == "js_distance"} == {""}


def test_the_scorecard_compares_with_real_and_naive(tmp_path):
    records = []
    for run, value in (("theirs", 0.125), ("real", 0.12), ("copy", 0.11), ("markov", 0.13)):
        records.append(tmp_path / f"{run}.json")
        records[-1].write_text(json.dumps([figure(run, "js_distance", value)]))
    out = {"scorecard": tmp_path / "s.json", "scorecard_csv": tmp_path / "s.csv"}
    given = {"metrics": RESOURCES / "metrics.csv", "experiment": "x", **out}
    summarize_external(records=records, names=["theirs"], **given)
    card = json.loads(out["scorecard"].read_text())
    (mine,) = [record for record in card["records"] if record["run"] == "theirs"]
    assert (mine["real"], mine["copy"], mine["naive"], mine["pass"]) == (0.12, 0.11, 0.13, True)
    with pytest.raises(UserError, match="no file is named"):
        summarize_external(records=records, names=[], **given)


def overlay(tmp_path, **external_files) -> Path:
    path = tmp_path / "overlay.yaml"
    path.write_text(
        yaml.safe_dump({"evaluate": {"external": {k: str(v) for k, v in external_files.items()}}})
    )
    return path


def test_the_target_scores_a_copy_and_trains_nothing(tiny, tmp_path):
    """A copy of tiny's own training patients: perfect likeness, all copied."""
    train = read_visits(tiny.directory / "results" / "tiny" / "dataset" / "train.parquet")
    write_visits(train, tmp_path / "theirs.parquet", {})
    options = ("--configfile", *tiny.options[1:], overlay(tmp_path, theirs=tmp_path / "theirs.parquet"))
    told = tiny.jobs(*options, "--", "evaluate_external")
    assert {"read_external theirs", "evaluate_privacy theirs", "summarize_external"} <= told
    assert not [job for job in told if job.split()[0] in ("train", "generate", "preprocess", "summarize")]
    tiny.run(*options, "--", "evaluate_external")
    card = json.loads((tiny.directory / "results" / "tiny" / "external.json").read_text())
    mine = {r["metric"]: r for r in card["records"] if r["run"] == "theirs" and not r["subset"]}
    assert mine["js_distance"]["value"] < mine["js_distance"]["real"]
    assert mine["copy_share"]["value"] == 1 and mine["copy_share"]["pass"] is False
    assert tiny.jobs() == set()  # the experiment itself has not changed


def test_a_reserved_name_and_a_missing_file_stop_before_any_job(fresh, tmp_path):
    for name, message in (("markov", "this name is taken"), ("theirs", "no such file")):
        said = fresh.plan("--configfile", overlay(tmp_path, **{name: "/nowhere"}), status=1)
        assert message in said and "Traceback" not in said
