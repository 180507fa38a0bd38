"""Privacy: attacks find what leaks, find nothing where nothing leaks, and are what their papers define."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest

from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import write_visits
from cohortloom.evaluation import privacy
from cohortloom.evaluation.neighbours import nearest, set_matrix
from evaluate_privacy import evaluate_privacy
from metric_tables import visits_of
from metric_worlds import copied, hospital, shuffled

TRAIN, VAL, TEST = hospital(1600, 1, "t"), hospital(400, 2, "v"), hospital(400, 3, "h")


def figures(release: pa.Table, seed: int = 0, train: pa.Table = TRAIN, test: pa.Table = TEST) -> dict:
    members = sample_patients(train, test.num_rows, seed)
    (known, inside, outside, made), names = encode([train, members, test, release])
    n = len(names)
    found = [
        *privacy.membership(inside, outside, made, n, seed, 0.8),
        *privacy.adversarial_accuracy(inside, outside, made, n, seed),
        *privacy.attribute_inference(known, inside, outside, made, n, seed),
        *privacy.copy_share(known, made, n, seed),
    ]
    return {metric: estimate for metric, _, estimate, *_ in found}


def test_held_out_patients_leak_nothing():
    found = figures(VAL)
    for metric, chance in (("membership_auc", 0.5), ("adversarial_risk", 0.0), ("attribute_risk", 0.0)):
        assert found[metric].low < chance < found[metric].high, metric
    assert found["membership_gain"].low < 0 < found["membership_gain"].high
    assert found["membership_tpr_1fpr"].value < 0.05


def test_copies_fail_every_measure():
    found, real = figures(copied(TRAIN, 1600, 4)), figures(VAL)
    for metric in (
        "membership_auc",
        "membership_tpr_1fpr",
        "membership_gain",
        "attribute_risk",
        "copy_share",
    ):
        assert found[metric].low > real[metric].high, metric
    assert found["copy_share"].value == 1
    assert figures(copied(TRAIN, 400, 4))["adversarial_risk"].low > 0


def test_shuffled_copies_leak_no_more_than_real():
    found = figures(shuffled(TRAIN, 5))
    assert found["membership_auc"].low < 0.5 < found["membership_auc"].high
    assert found["copy_share"].low <= figures(VAL)["copy_share"].high


def test_a_planted_tenth_is_detected():
    """A release of real patients with a tenth of training patients is outside the interval of real."""
    leaking, real = figures(privacy.with_planted_patients(VAL, TRAIN, 0.1, 6)), figures(VAL)
    assert leaking["copy_share"].low > real["copy_share"].high
    assert privacy.with_planted_patients(VAL, TRAIN, 0.1, 6).num_rows == pytest.approx(VAL.num_rows, rel=0.1)
    everything = figures(privacy.with_planted_patients(VAL, TRAIN, 1.0, 6))
    assert everything["copy_share"].value == 1


def test_a_release_of_all_members_is_detected_at_a_low_false_positive_rate():
    found = figures(TRAIN)
    assert found["membership_auc"].low > 0.75 and found["membership_tpr_1fpr"].low > 0.02


def test_intervals_cover_real_against_real():
    """100 releases of real patients: 0.5 and 0 lie inside about 95 times."""
    inside = {"membership_auc": [], "adversarial_risk": [], "attribute_risk": [], "membership_gain": []}
    for seed in range(100):
        parts = [hospital(120, 1000 + 3 * seed + k, "tvh"[k]) for k in range(3)]
        found = figures(parts[1], seed, train=parts[0], test=parts[2])
        for metric, hits in inside.items():
            chance = 0.5 if metric == "membership_auc" else 0.0
            hits.append(found[metric].low <= chance <= found[metric].high)
    assert {metric: np.mean(hits) for metric, hits in inside.items() if np.mean(hits) < 0.88} == {}


def jaccard(x: set, y: set) -> float:
    return 1 - len(x & y) / len(x | y)


SETS = [set("ab"), set("abc"), set("de"), set("abf"), set("x")]
OTHERS = [set("de"), set("ab"), set("bc"), set("ab"), set("xyz")]


def matrix_of(sets):
    names = sorted(set().union(*SETS, *OTHERS))
    owner = [row for row, one in enumerate(sets) for _ in one]
    items = [names.index(code) for one in sets for code in sorted(one)]
    return set_matrix(np.array(items), np.array(owner), len(sets), len(names))


def test_nearest_neighbours_by_hand(monkeypatch):
    expected = [[jaccard(x, y) for y in OTHERS] for x in SETS]
    for block in (1, 10**6):
        monkeypatch.setattr("cohortloom.evaluation.neighbours.BLOCK", block)
        distance, index = nearest(matrix_of(SETS), matrix_of(OTHERS))
        assert distance == pytest.approx(np.min(expected, axis=1), abs=1e-7)
        assert index.tolist() == [1, 1, 0, 1, 4]  # ties go to the first
        distance, index = nearest(matrix_of(SETS), matrix_of(SETS), same=True)
        own = [[jaccard(x, y) if i != j else 9 for j, y in enumerate(SETS)] for i, x in enumerate(SETS)]
        assert distance == pytest.approx(np.minimum(1, np.min(own, axis=1)), abs=1e-7)
        assert index.tolist() == [1, 0, -1, 0, -1]  # "de" and "x" share nothing with the others


def sets_of(table: pa.Table) -> list[set]:
    return [set(codes) for codes in table["diagnoses"].to_pylist()]


def test_membership_is_the_published_attack_recomputed():
    release, train, test = hospital(40, 7), hospital(60, 8), hospital(60, 9)
    (_, inside, outside, made), names = encode([train, train, test, release])
    found = {m: e for m, _, e, *_ in privacy.membership(inside, outside, made, len(names), 0, 0.8)}
    scores = []
    for table in (train, test):
        visits = [min(jaccard(one, other) for other in sets_of(release)) for one in sets_of(table)]
        ids = table["patient_id"].to_pylist()
        scores.append(
            [np.mean([v for v, i in zip(visits, ids, strict=True) if i == one]) for one in dict.fromkeys(ids)]
        )
    pairs = [0.5 if abs(a - b) < 1e-12 else float(a < b) for a, b in itertools.product(scores[0], scores[1])]
    assert found["membership_auc"].value == pytest.approx(np.mean(pairs), abs=1e-9)


def test_adversarial_accuracy_is_the_published_one_recomputed():
    train, test, release = (
        visits_of([[codes] for codes in part])
        for part in (
            ["a b", "a b c", "c d", "d e f"],
            ["a c", "b d", "e f", "a e"],
            ["a b", "a b c", "c e", "b f"],
        )
    )
    (inside, outside, made), names = encode([train, test, release])
    found = {m: e for m, _, e, *_ in privacy.adversarial_accuracy(inside, outside, made, len(names), 0)}

    def accuracy(real, synthetic):
        def share(own, other):
            return np.mean(
                [
                    min(jaccard(x, y) for y in other)
                    > min(jaccard(x, y) for j, y in enumerate(own) if j != i)
                    for i, x in enumerate(own)
                ]
            )

        return (share(real, synthetic) + share(synthetic, real)) / 2

    sets = [sets_of(part) for part in (train, test, release)]
    assert found["adversarial_accuracy"].value == pytest.approx(accuracy(sets[1], sets[2]), abs=1e-9)
    expected = accuracy(sets[1], sets[2]) - accuracy(sets[0], sets[2])
    assert found["adversarial_risk"].value == pytest.approx(expected, abs=1e-9)
    assert expected > 0  # two exact copies of training are seen


def test_attribute_inference_by_hand(monkeypatch):
    monkeypatch.setattr(privacy, "N_COMMON", 2)
    train = visits_of([["a b x"], ["a b y"], ["a z"], ["b w"]])  # a and b are the two known ones
    test = visits_of([["a q"], ["b x"]])
    release = visits_of([["a b x"], ["a q"], ["b r s"]])
    (known, inside, outside, made), names = encode([train, train, test, release])
    found = privacy.attribute_inference(known, inside, outside, made, len(names), 0)
    values = {m: e.value for m, _, e, *_ in found}
    # guesses for the members: x, x, q, r s; right 1, hidden 4, guessed 5
    assert values["attribute_f1"] == pytest.approx(2 * 1 / 9, abs=1e-9)
    # for the held-out ones: q, r s; right 1, hidden 2, guessed 3
    assert values["attribute_risk"] == pytest.approx((2 / 9 - 2 / 5) / (1 - 2 / 5), abs=1e-9)


def test_copies_are_sets_of_five_codes_or_more():
    train = visits_of([["a b c d e"], ["p q"], ["a b c d e f"]])
    release = visits_of([["e d c b a"], ["p q"], ["a b c d f"], ["f e d c b a"]])
    (known, made), names = encode([train, release])
    ((_, _, found, *_),) = privacy.copy_share(known, made, len(names), 0)
    assert found.value == pytest.approx(2 / 3, abs=1e-9) and found.n == 3


def test_the_control_is_computed_for_real_only(tmp_path):
    files = {}
    for name, table in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        files[name] = tmp_path / f"{name}.parquet"
        write_visits(table, files[name], {})
    found = {}
    for run in ("real", "x"):
        out = tmp_path / f"{run}.json"
        evaluate_privacy(
            synthetic=files["val"], **files, records=out, run=run, control=run == "real", visits=200
        )
        found[run] = {record["metric"]: record for record in json.loads(out.read_text())}
    assert set(found["real"]) - set(found["x"]) == {"membership_auc_control", "copy_share_control"}
    assert found["x"]["membership_auc"] == {**found["real"]["membership_auc"], "run": "x"}
    assert found["real"]["copy_share_control"]["value"] > found["real"]["copy_share"]["value"]
    assert found["x"]["membership_auc"]["n_reference"] <= 201
    for record in found["real"].values():
        assert record["ci_low"] <= record["value"] <= record["ci_high"]
