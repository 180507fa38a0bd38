"""Fidelity metrics against independent computations, and what they must tell apart."""

import itertools
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from cohortloom.data.coded import encode, pairs_across, pairs_within, sample_patients
from cohortloom.data.visits import write_visits
from cohortloom.evaluation.fidelity import fidelity, histories, rarest, top_overlap
from evaluate_fidelity import evaluate_fidelity
from metric_tables import visits_of

TRAIN = [
    [("a b c", 0, 40, "F"), ("a b", 10, 40, "F"), ("a d e", 100, 41, "F")],
    [("a c", 0, 70, "M")],
    [("b c d f", 0, 70, "M"), ("b g", 400, 71, "M")],
    [("a", 0, 0, "F")],
    [("a b h", 0, 30, "F")],
]
SCORED = [
    [("a b", 0, 40, "F"), ("a c", 25, 40, "F")],
    [("c d b", 0, 70, "M")],
    [("a x", 0, 0, "F"), ("a b c", 5, 0, "F"), ("b", 300, 0, "F")],
]


def figures(train, scored, seed=0) -> dict:
    (known, made), codes = encode([train, scored])
    found = [*fidelity(known, made, len(codes), seed), *histories(known, made, seed)]
    return {(m, s): e for m, s, e, *_ in found}


def r2(truth: dict, other: dict, keys=None) -> float:
    """R² by its textbook formula over the keys that either holds."""
    keys = sorted(set(truth) | set(other)) if keys is None else sorted(keys)
    y, z = ([part.get(key, 0.0) for key in keys] for part in (truth, other))
    mean = sum(y) / len(y)
    return 1 - sum((a - b) ** 2 for a, b in zip(y, z, strict=True)) / sum((a - mean) ** 2 for a in y)


def sets_of(patients) -> list[list[list[str]]]:
    return [[content[0].split() for content in visits] for visits in patients]


def shares(items: list, n: int) -> dict:
    return {key: count / n for key, count in Counter(items).items()}


def code_shares(patients) -> dict:
    visits = [visit for one in sets_of(patients) for visit in one]
    return shares([code for visit in visits for code in visit], len(visits))


def pair_items(patients) -> list[list[tuple]]:
    return [list(itertools.combinations(sorted(visit), 2)) for one in sets_of(patients) for visit in one]


def test_code_metrics_by_hand():
    found = figures(visits_of(TRAIN), visits_of(SCORED))
    p = Counter(code for one in sets_of(TRAIN) for visit in one for code in visit)
    q = Counter(code for one in sets_of(SCORED) for visit in one for code in visit)
    union = sorted(set(p) | set(q))
    a, b = (np.array([c[code] + 1.0 for code in union]) for c in (p, q))
    a, b = a / a.sum(), b / b.sum()
    middle = (a + b) / 2
    nats = (a * np.log(a / middle)).sum() / 2 + (b * np.log(b / middle)).sum() / 2
    assert found["js_distance", ""].value == pytest.approx(np.sqrt(nats), abs=1e-9)
    assert found["js_divergence", ""].value == pytest.approx(nats / np.log(2), abs=1e-9)
    truth, other = code_shares(TRAIN), code_shares(SCORED)
    assert found["unigram_r2", ""].value == pytest.approx(r2(truth, other), abs=1e-9)
    # 8 training codes: the rarest 6 are all but a and b, which are the most frequent.
    assert found["rare_unigram_r2", ""].value == pytest.approx(r2(truth, other, "cdefgh"), abs=1e-9)
    assert found["distinct_codes", ""].value == 5
    assert found["top100_overlap", ""].value == pytest.approx(4 / 9, abs=1e-9)
    seen = [found["seen_codes", f"decile {k}"].value for k in range(1, 9)]
    assert seen == [1, 1, 1, 1, 0, 0, 0, 0]  # by frequency a b c d, then e f g h, which SCORED lacks
    first = ["a"]  # 8 codes in 10 parts: the first 8 parts hold one each
    assert found["prevalence_ratio", "decile 1"].value == pytest.approx(other["a"] / truth["a"], abs=1e-9), (
        first
    )


def test_pair_metrics_by_hand():
    found = figures(visits_of(TRAIN), visits_of(SCORED))
    train_visits, scored_visits = pair_items(TRAIN), pair_items(SCORED)
    truth = shares(sum(train_visits, []), len(train_visits))
    other = shares(sum(scored_visits, []), len(scored_visits))
    assert found["bigram_r2", ""].value == pytest.approx(r2(truth, other), abs=1e-9)
    count = Counter(sum(train_visits, []))
    scored = [np.mean([count[pair] for pair in visit]) for visit in scored_visits if visit]
    owner = [number for number, visits in enumerate(TRAIN) for _ in visits]
    real = []
    for patient, visit in zip(owner, train_visits, strict=True):
        others = Counter(pair for o, v in zip(owner, train_visits, strict=True) if o != patient for pair in v)
        if visit:
            real.append(np.mean([others[pair] for pair in visit]))
    assert found["cooccurrence_ratio", ""].value == pytest.approx(np.mean(scored) / np.mean(real), abs=1e-9)


def test_sequence_metrics_by_hand():
    found = figures(visits_of(TRAIN), visits_of(SCORED))

    def steps(patients):
        return [(x, y) for one in sets_of(patients) for x, y in zip(one, one[1:], strict=False)]

    def items(patients):
        return [pair for x, y in steps(patients) for pair in itertools.product(x, y)]

    truth, other = (shares(items(part), len(steps(part))) for part in (TRAIN, SCORED))
    assert found["sequential_bigram_r2", ""].value == pytest.approx(r2(truth, other), abs=1e-9)
    # SCORED: "a b" hands on a; "a x" hands on a; "a b c" hands on b: 3 of 7 codes.
    assert found["carried_codes", ""].value == pytest.approx(3 / 7, abs=1e-9)


def test_shape_metrics_by_hand():
    found = figures(visits_of(TRAIN), visits_of(SCORED))

    def ks(x, y):
        return max(abs(np.mean(np.array(x) <= t) - np.mean(np.array(y) <= t)) for t in [*x, *y])

    assert found["ks_codes_per_visit", ""].value == pytest.approx(
        ks([3, 2, 3, 2, 4, 2, 1, 3], [2, 2, 3, 2, 3, 1]), abs=1e-9
    )
    assert found["ks_visits_per_patient", ""].value == pytest.approx(ks([3, 1, 2, 1, 1], [2, 1, 3]), abs=1e-9)
    assert found["ks_gap_days", ""].value == pytest.approx(ks([10, 90, 400], [25, 5, 295]), abs=1e-9)
    assert found["mean_codes_per_visit", ""].value == pytest.approx(13 / 6, abs=1e-9)
    assert found["mean_visits_per_patient", ""].value == pytest.approx(2, abs=1e-9)
    assert found["mean_gap_days", ""].value == pytest.approx(325 / 3, abs=1e-9)


def test_strata_compare_like_with_like():
    found = figures(visits_of(TRAIN), visits_of(SCORED))
    men = [[v for v in visits if v[3] == "M"] for visits in TRAIN]
    made = [[v for v in visits if v[3] == "M"] for visits in SCORED]
    assert found["unigram_r2", "male"].value == pytest.approx(
        r2(code_shares(men), code_shares(made)), abs=1e-9
    )
    assert found["js_distance", "male"].n == 1
    assert np.isnan(found["js_distance", "age 1-17"].value)


def test_pairs_are_those_of_itertools():
    (coded,), names = encode([visits_of(TRAIN)])
    names = [name.removeprefix("ICD9CM:") for name in names]
    _, keys = pairs_within(coded, len(names))
    made = sorted((names[key // len(names)], names[key % len(names)]) for key in keys)
    assert made == sorted(sum(pair_items(TRAIN), []))
    owner, keys = pairs_across(coded, len(names))
    first = [(names[key // len(names)], names[key % len(names)]) for key in keys[owner == 0]]
    assert sorted(first) == sorted(itertools.product("abc", "ab"))
    assert set(owner.tolist()) == {0, 1, 4}


def test_rarest_and_top_break_ties_by_code():
    counts = np.array([5, 0, 1, 1, 1, 9, 1, 1])
    assert rarest(counts).tolist() == [2, 3, 4, 6, 7]  # round(0.75 * 7) = 5 of the 7 that occur
    assert rarest(counts, 0.5).tolist() == [3, 4, 6, 7]
    assert top_overlap(np.array([3, 2, 1, 0]), np.array([0, 3, 2, 0]), top=2) == pytest.approx(1 / 3)


def population(n: int, seed: int) -> list[list[tuple]]:
    """Patients with one of two kinds of disease, whose codes occur together."""
    rng = np.random.default_rng(seed)
    patients = []
    for _ in range(n):
        family = "pq"[rng.integers(2)]
        codes = [f"{family}{k}" for k in np.flatnonzero(rng.random(12) < np.linspace(0.8, 0.1, 12))]
        visits = [(" ".join(codes or [family + "0"]), 0, 60, "M")]
        if rng.random() < 0.5:
            visits.append((" ".join(codes[: max(1, len(codes) // 2)] or [family + "0"]), 90, 60, "M"))
        patients.append(visits)
    return patients


def test_copies_of_training_are_perfect_and_shuffled_codes_lose_the_pairs():
    patients = population(400, 1)
    train = visits_of(patients)
    same = figures(train, train)
    for metric in (
        "js_distance",
        "js_divergence",
        "ks_codes_per_visit",
        "ks_visits_per_patient",
        "ks_gap_days",
    ):
        assert same[metric, ""].value == pytest.approx(0, abs=1e-9)
    for metric in ("unigram_r2", "rare_unigram_r2", "bigram_r2", "sequential_bigram_r2", "top100_overlap"):
        assert same[metric, ""].value == pytest.approx(1, abs=1e-9)
    assert same["prevalence_ratio", "decile 3"].value == pytest.approx(1, abs=1e-9)
    rng = np.random.default_rng(2)
    swap = {"p": "q", "q": "p"}
    shuffled = [
        [
            (" ".join(swap[c[0]] + c[1:] if rng.random() < 0.5 else c for c in v[0].split()), *v[1:])
            for v in visits
        ]
        for visits in patients
    ]
    lost = figures(train, visits_of(shuffled))
    assert lost["unigram_r2", ""].value > 0.9
    assert lost["ks_codes_per_visit", ""].value == 0
    assert lost["bigram_r2", ""].value < 0.6
    assert lost["cooccurrence_ratio", ""].value < 0.8 * same["cooccurrence_ratio", ""].value
    assert lost["carried_codes", ""].value < 0.8 * same["carried_codes", ""].value


def test_the_sample_holds_whole_patients():
    table = visits_of(population(200, 3))
    sample = sample_patients(table, 50, 7)
    assert 50 <= sample.num_rows <= 51
    ids = sample["patient_id"].to_pylist()
    assert sum(one in set(ids) for one in table["patient_id"].to_pylist()) == len(ids)
    assert sample.equals(sample_patients(table, 50, 7))
    assert not sample.equals(sample_patients(table, 50, 8))
    assert sample_patients(table, 10**6, 7).equals(table)


def test_the_step_writes_records(tmp_path):
    train, made = tmp_path / "train.parquet", tmp_path / "made.parquet"
    write_visits(visits_of(TRAIN), train, {})
    write_visits(visits_of([[("a b", 0, 40, "F")], [("c", 0, 50, "M")]]), made, {})
    out = tmp_path / "fidelity.json"
    evaluate_fidelity(synthetic=made, train=train, records=out, run="x", seed=3, visits=5)
    records = {(r["metric"], r["subset"]): r for r in json.loads(out.read_text())}
    assert records["ks_gap_days", ""]["value"] is None  # one visit a patient has no gaps
    assert records["js_distance", ""]["n"] == 2 and records["js_distance", ""]["n_reference"] == 8
    assert records["js_distance", ""]["ci_low"] <= records["js_distance", ""]["value"]
    assert {r["seed"] for r in records.values()} == {3}
    assert pq.read_table(made).num_rows == 2
