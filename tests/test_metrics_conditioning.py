"""Conditioning and utility: who ignores age, sex or the company of codes is caught; figures recomputed."""

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from cohortloom.data import bands
from cohortloom.data.coded import encode
from cohortloom.data.visits import write_visits
from cohortloom.evaluation.conditioning import flips, generated_sides, matched_pairs, observed_sides, probes
from cohortloom.evaluation.utility import prediction
from evaluate_conditioning import evaluate_conditioning
from evaluate_utility import evaluate_utility
from metric_worlds import CODES, copied, few_codes, hospital, permuted_demographics, shuffled

TRAIN, VAL, TEST = hospital(1500, 1, "t"), hospital(500, 2, "v"), hospital(500, 3, "h")


def probed(table) -> dict:
    (known, scored), names = encode([TRAIN, table])
    return {metric: estimate for metric, _, estimate, *_ in probes(known, scored, len(names), 0)}


def distances(table, seed=0) -> dict:
    (coded,), names = encode([table])
    return {metric: e for metric, _, e, *_ in flips(observed_sides(coded, 200, seed), len(names), seed)}


def test_real_is_read_like_real_and_permuted_demographics_are_not():
    real, other, wrong = probed(TEST), probed(VAL), probed(permuted_demographics(VAL, 4))
    for metric in ("probe_sex_auc", "probe_age_r2"):
        assert real[metric].low <= other[metric].value <= real[metric].high
        assert wrong[metric].high < real[metric].low
    assert wrong["probe_age_error_years"].low > real["probe_age_error_years"].high
    assert wrong["probe_sex_auc"].low < 0.5 < wrong["probe_sex_auc"].high


def test_flips_see_what_sex_and_age_do_and_nothing_where_they_do_nothing():
    real, wrong = distances(TEST), distances(permuted_demographics(TEST, 4))
    for flip in ("flip_sex_js", "flip_age_js"):
        assert real[flip].low > real["flip_none_js"].high
        assert wrong[flip].high < real[flip].low
        assert wrong[flip].low < wrong["flip_none_js"].high
    other = distances(VAL)
    assert all(real[flip].low <= other[flip].value <= real[flip].high for flip in real)


def test_pairs_are_matched_and_disjoint():
    rng = np.random.default_rng(0)
    age, sex = rng.integers(0, 90, 600).astype(float), rng.integers(0, 2, 600)
    one, other = matched_pairs(age, sex, "sex", 1000, 1)
    assert (sex[one] == 0).all() and (sex[other] == 1).all()
    assert (bands.band(age[one]) == bands.band(age[other])).all()
    one, other = matched_pairs(age, sex, "age", 1000, 1)
    assert (sex[one] == sex[other]).all()
    assert ((age[one] >= 18) & (age[one] < 45)).all() and (age[other] >= 65).all()
    for flip in ("sex", "age", "none"):
        one, other = matched_pairs(age, sex, flip, 50, 1)
        assert len(one) == 50 and len({*one.tolist(), *other.tolist()}) == 100


def writer(reads_sex: bool):
    """A stand-in model: three codes by sex (if it reads it), band of age and seed."""

    def write(age, sex, seed):
        rng = np.random.default_rng(seed)
        codes = 3 * np.digitize(age, [45, 65]) + rng.integers(0, 3, len(age)) + (9 * sex if reads_sex else 0)
        return codes.astype(np.int64), np.arange(len(age) + 1)

    return write


def asked(reads_sex: bool) -> dict:
    (people,), _ = encode([TEST])
    sides = generated_sides(people, writer(reads_sex), 200, 0)
    return {metric: estimate for metric, _, estimate, *_ in flips(sides, 18, 0)}


def test_a_model_that_ignores_the_sex_is_caught():
    deaf, sound = asked(False), asked(True)
    assert deaf["flip_sex_change"].value == 0 and sound["flip_sex_change"].value == 1
    assert deaf["flip_sex_js"].low <= deaf["flip_none_js"].high
    assert sound["flip_sex_js"].value == pytest.approx(np.sqrt(np.log(2)), abs=1e-9)  # nothing in common
    assert deaf["flip_age_change"].value == sound["flip_age_change"].value == 1
    assert sound["flip_sex_js"].n == len(matched_pairs(*people_of(TEST), "sex", 200, 0)[0])


def people_of(table):
    (coded,), _ = encode([table])
    first = np.flatnonzero(np.diff(coded.patient, prepend=-1))
    return coded.age[first], coded.sex[first]


def test_the_distance_of_a_flip_by_hand():
    one = np.array([0, 0, 1]), np.array([0, 2, 3])
    other = np.array([1, 1, 2]), np.array([0, 1, 3])
    found = list(flips(iter([("sex", one, other), ("same_seed_sex", one, other)]), 3, 0))
    p, q = np.array([2, 1, 0]) / 3, np.array([0, 2, 1]) / 3
    m = (p + q) / 2
    nats = sum(a * np.log(a / b) for side in (p, q) for a, b in zip(side, m, strict=True) if a) / 2
    assert found[0][2].value == pytest.approx(np.sqrt(nats), abs=1e-9)
    # {0} and {1}: all changed; {1} and {1, 2}: half
    assert found[1][2].value == pytest.approx(0.75, abs=1e-9)


def predicted(table, seed=0) -> dict:
    (known, real, made), names = encode([TRAIN, TEST, table])
    return {(m, s): e for m, s, e, *_ in prediction(known, real, made, names, seed)}


def test_real_and_copies_are_useful_and_what_lost_its_pairs_is_not():
    real, copy = predicted(VAL)["prediction_auc", ""], predicted(copied(TRAIN, 500, 4))["prediction_auc", ""]
    lost = predicted(permuted_demographics(shuffled(VAL, 4), 5))["prediction_auc", ""]
    few = predicted(few_codes(VAL, 31))["prediction_auc", ""]
    assert real.value > 0.6 and copy.value >= real.low
    assert lost.high < real.low and few.high < real.low
    assert lost.low < 0.5 < lost.high or abs(lost.value - 0.5) < 0.03


def test_a_code_that_the_release_lacks_scores_half():
    few = predicted(few_codes(VAL, 31))
    assert sum(e.value == 0.5 for (m, _), e in few.items() if m == "code_prediction_auc") >= 10


def test_prediction_is_the_published_one_recomputed():
    found = predicted(VAL)
    (known, real, made), names = encode([TRAIN, TEST, VAL])
    counts = np.bincount(known.codes, minlength=len(names))
    order = sorted(range(len(names)), key=lambda k: (-counts[k], k))

    def rows(part):
        held = np.zeros((part.n_visits, len(order)))
        for visit in range(part.n_visits):
            inside = set(part.codes[part.offsets[visit] : part.offsets[visit + 1]].tolist())
            held[visit] = [code in inside for code in order]
        age = (part.age / 100).astype(np.float32)
        return np.column_stack([held, age, age**2, part.sex])

    learn, test = rows(made), rows(real)
    aucs = {}
    for column, code in enumerate(order[:50]):
        rest = [k for k in range(learn.shape[1]) if k != column]
        fitted = Ridge(alpha=100.0).fit(learn[:, rest], learn[:, column])
        aucs[names[code]] = roc_auc_score(test[:, column], fitted.predict(test[:, rest]).round(12))
    assert len(aucs) == 50
    assert found["prediction_auc", ""].value == pytest.approx(np.mean(list(aucs.values())), abs=1e-9)
    assert found["code_prediction_auc", CODES[0]].value == pytest.approx(aucs[CODES[0]], abs=1e-9)


def test_intervals_cover_real_against_real():
    """60 samples of test patients: the mean figure lies inside about 57 times."""
    (known, made), names = encode([TRAIN, VAL])
    found = {"probe_sex_auc": [], "probe_age_r2": [], "prediction_auc": []}
    for seed in range(60):
        (known, real, made), names = encode([TRAIN, hospital(150, 500 + seed), VAL])
        figures = [*probes(known, real, len(names), seed), *prediction(known, real, made, names, seed)]
        for metric, _, estimate, *_ in figures:
            if metric in found:
                found[metric].append(estimate)
    for metric, all_of_it in found.items():
        truth = np.mean([one.value for one in all_of_it])
        assert np.mean([one.low <= truth <= one.high for one in all_of_it]) >= 0.88, metric


def test_the_steps_write_records(tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.parquet" for name in ("train", "test")}
    for name, table in (("train", TRAIN), ("test", TEST), ("made", VAL)):
        write_visits(table, tmp_path / f"{name}.parquet", {})
    shared = {"synthetic": tmp_path / "made.parquet", **files, "run": "x", "seed": 7}
    monkeypatch.setattr("evaluate_conditioning.PAIRS", 100)
    evaluate_conditioning(records=tmp_path / "c.json", **shared)
    evaluate_utility(records=tmp_path / "u.json", visits=300, **shared)
    records = json.loads((tmp_path / "c.json").read_text()) + json.loads((tmp_path / "u.json").read_text())
    assert {r["seed"] for r in records} == {7}
    assert {r["n"] for r in records if r["metric"].startswith("flip")} == {100}
    assert all(r["ci_low"] <= r["value"] <= r["ci_high"] for r in records)
