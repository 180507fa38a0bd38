"""Medical validity by hand, on generators that cheat, and on real discharges where the data are there."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cohortloom.data.validity import load_rules
from cohortloom.data.visits import code_lists, sex_array, sex_index, write_visits
from cohortloom.evaluation.medical_validity import medical_validity
from evaluate_medical_validity import evaluate_medical_validity
from metric_tables import visits_of
from raw_cohort import read

REPOSITORY = Path(__file__).parents[1]
TABLE = REPOSITORY / "resources" / "validity"
NHDS = REPOSITORY.parent / "shared" / "data" / "nhds2010" / "NHDS10.PU.txt.bz2"

VISITS = [
    [("V3000 4019", 0, 0, "M"), ("7746 4019", 9, 0.02, "M")],  # a birth with hypertension
    [("V3000 7746 25000", 0, 40, "F")],  # two newborn codes at 40, one impossible; diabetes at birth
    [("64511 60000", 0, 30, "M")],  # childbirth in a man is impossible
    [("64511 4019 42731", 0, 30, "F")],
    [("60000 V3001", 0, 0, "M")],  # prostate of a newborn is impossible
]


def figures(table: pa.Table, seed: int = 0) -> dict:
    return {(m, s): e for m, s, e, *_ in medical_validity(table, load_rules(TABLE), seed)}


def test_figures_by_hand():
    found = figures(visits_of(VISITS))

    def value(metric, subset=""):
        return found[metric, subset].value

    # 14 codes; age: V3000, 7746 at 40, 60000 at 0; sex: 64511 in a man; hard: all but 7746.
    assert value("age_violation_rate") == pytest.approx(3 / 14, abs=1e-9)
    assert value("sex_violation_rate") == pytest.approx(1 / 14, abs=1e-9)
    assert value("any_violation_rate") == pytest.approx(4 / 14, abs=1e-9)
    assert value("hard_violation_rate") == pytest.approx(3 / 14, abs=1e-9)
    # Restricted: V3000 twice, V3001, 7746 twice, 64511 twice, 60000 twice.
    assert value("restricted_share") == pytest.approx(9 / 14, abs=1e-9)
    assert value("any_per_restricted_code") == pytest.approx(4 / 9, abs=1e-9)
    assert value("hard_per_restricted_code") == pytest.approx(3 / 9, abs=1e-9)
    assert value("any_per_100k_visits") == pytest.approx(1e5 * 3 / 6, abs=1e-9)
    assert value("hard_per_100k_visits") == pytest.approx(1e5 * 3 / 6, abs=1e-9)
    # Births are the visits with V30-V39: with 4019, with 25000, with 600.
    assert value("newborn_chronic_rate") == pytest.approx(1.0, abs=1e-9)
    assert found["newborn_chronic_rate", ""].n == 3
    assert value("category_violation_rate", "newborn") == pytest.approx(2 / 5, abs=1e-9)
    assert value("category_violation_rate", "maternity") == pytest.approx(1 / 2, abs=1e-9)
    assert value("category_per_100k_visits", "adult") == pytest.approx(1e5 / 6, abs=1e-9)
    assert value("code_per_100k_visits", "ICD9CM:7746") == pytest.approx(1e5 / 6, abs=1e-9)
    assert ("code_per_100k_visits", "ICD9CM:4019") not in found


def test_icd10_diagnoses_count_like_icd9_ones():
    """The births and diseases of VISITS in ICD-10-CM."""
    found = figures(
        visits_of(
            [
                [("ICD10CM:Z3800 ICD10CM:I10", 0, 0, "M")],
                [("ICD10CM:Z3800 ICD10CM:H04531", 0, 40, "F")],  # both of newborns, one impossible at 40
                [("ICD10CM:O80 ICD10CM:N401", 0, 30, "M")],
                [("ICD10:O80 ICD10CM:I10", 0, 30, "M")],  # WHO's codes have no table and do not count
            ]
        )
    )
    value = {metric: estimate.value for (metric, subset), estimate in found.items() if not subset}
    assert value["age_violation_rate"] == pytest.approx(2 / 7, abs=1e-9)
    assert value["sex_violation_rate"] == pytest.approx(1 / 7, abs=1e-9)
    assert value["hard_violation_rate"] == pytest.approx(2 / 7, abs=1e-9)
    assert value["restricted_share"] == pytest.approx(5 / 7, abs=1e-9)
    assert value["newborn_chronic_rate"] == pytest.approx(1 / 2, abs=1e-9)


def test_procedures_are_scored_by_their_own_tables():
    visits = visits_of([[("4019", 0, 30, "M")], [("4019", 0, 30, "F")]])
    codes = {
        "procedures": [["ICD9Proc:7359", "ICD10PCS:0210093"], ["ICD10PCS:10E0XZZ", "ICD9Proc:3961"]],
        "medications": [["Drug:ASPIRIN"], ["Drug:HEPARIN"]],
    }
    for column, values in codes.items():
        place = visits.schema.get_field_index(column)
        field = visits.schema.field(place)
        visits = visits.set_column(place, field, pa.array(values, field.type))

    def of_column(column):
        return {(f.metric, f.subset): f for f in medical_validity(visits, load_rules(TABLE), 0, column)}

    found = of_column("procedures")
    assert found["sex_violation_rate", ""].estimate.value == pytest.approx(1 / 4, abs=1e-9)
    assert found["restricted_share", ""].estimate.value == pytest.approx(2 / 4, abs=1e-9)
    per_visit = found["code_per_100k_visits", "ICD9Proc:7359"].estimate.value
    assert per_visit == pytest.approx(1e5 / 2, abs=1e-9)
    assert ("newborn_chronic_rate", "") not in found  # births are diagnoses
    none = of_column("medications")["any_violation_rate", ""]
    assert np.isnan(none.estimate.value) and none.reason.startswith("no code is of a system with limits")


def test_a_valid_cohort_scores_zero_with_an_upper_end():
    found = figures(
        visits_of([[("V3000", 0, 0, "F")], [("64511 4019", 0, 30, "F")], [("60000", 0, 80, "M")]])
    )
    assert found["any_violation_rate", ""].value == 0
    assert 0 < found["any_violation_rate", ""].high <= 1
    assert found["newborn_chronic_rate", ""].value == 0


def test_permuted_demographics_fail_and_avoiding_codes_shows_in_the_share():
    rng = np.random.default_rng(3)
    patients = []
    for _ in range(600):
        kind = rng.integers(4)
        patients.append(
            [
                [
                    ("V3000 7746", 0, 0, "FM"[rng.integers(2)]),
                    ("64511 66401 4019", 0, int(rng.integers(18, 40)), "F"),
                    ("60000 4019 41401", 0, int(rng.integers(60, 90)), "M"),
                    ("4019 25000", 0, int(rng.integers(30, 90)), "FM"[rng.integers(2)]),
                ][kind]
            ]
        )
    table = visits_of(patients)
    honest = figures(table)
    order = rng.permutation(table.num_rows)
    permuted = table.set_column(3, "age", table["age"].take(pa.array(order)))
    permuted = permuted.set_column(4, "sex", sex_array(sex_index(table)[order]))
    wrong = figures(permuted)
    assert honest["any_violation_rate", ""].value == 0
    assert wrong["any_per_100k_visits", ""].low > 20_000
    assert wrong["hard_per_100k_visits", ""].low > 20_000
    assert wrong["restricted_share", ""].value == pytest.approx(honest["restricted_share", ""].value)
    # A generator that makes no restricted code is never wrong: only the share tells.
    avoider = figures(visits_of([[("4019 25000", 0, 50, "F")] for _ in patients]))
    assert avoider["any_violation_rate", ""].value == 0
    assert avoider["restricted_share", ""].high < 0.1 * honest["restricted_share", ""].low
    assert np.isnan(avoider["any_per_restricted_code", ""].value)


def test_the_step_writes_records(tmp_path):
    visits, out = tmp_path / "visits.parquet", tmp_path / "records.json"
    write_visits(visits_of(VISITS), visits, {})
    evaluate_medical_validity(synthetic=visits, rules=TABLE, records=out, run="x", seed=2, mode="synthesize")
    found = {(r["metric"], r["subset"]): r for r in json.loads(out.read_text())}
    row = found["age_violation_rate", ""]
    assert (row["run"], row["seed"], row["mode"], row["n"]) == ("x", 2, "synthesize", 6)
    assert row["higher_is_better"] is False and found["restricted_share", ""]["higher_is_better"] is None


@pytest.mark.skipif(not NHDS.exists(), reason="../shared/data/nhds2010 is not there")
def test_real_discharges_pass_and_permuted_ones_fail(tmp_path):
    table, _ = read(NHDS.parent, "nhds2010", tmp_path)
    rules = load_rules(TABLE)
    values, offsets = code_lists(table)
    owner = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    ages, sexes = table["age"].to_numpy(), sex_index(table)

    def per_100k(order: np.ndarray) -> tuple[float, float]:
        found = rules.violations(values, ages[order][owner], sexes[order][owner])
        return tuple(len(np.unique(owner[mask])) / table.num_rows * 1e5 for mask in (found.hard, found.any))

    hard, full = per_100k(np.arange(table.num_rows))
    assert hard <= 15 and full <= 40
    assert per_100k(np.random.default_rng(0).permutation(table.num_rows))[1] >= 20_000
