"""Two-sample classifier: blind to real against real, sees what a generator gets wrong."""

import json

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from cohortloom.data.coded import encode
from cohortloom.data.visits import write_visits
from cohortloom.evaluation.classifier import two_sample
from cohortloom.evaluation.scores import auc, gain, replicates, tpr_at_fpr
from cohortloom.reporting import scorecard
from evaluate_classifier import evaluate_classifier
from metric_worlds import CODES, copied, few_codes, hospital, permuted_demographics, shuffled
from summarize_inputs import RESOURCES, figure

TRAIN, TEST = hospital(2000, 1), hospital(500, 2)


def score(made, real=TEST, seed=0, **options):
    coded, names = encode([TRAIN, real, made])
    ((metric, _, estimate, _, better, *_),) = two_sample(*coded, len(names), seed, **options)
    assert (metric, better) == ("classifier_auc", False)
    return estimate


def test_held_out_patients_and_copies_are_not_distinguished_from_real():
    for made in (hospital(500, 3), copied(TRAIN, 500, 4)):
        found = score(made)
        assert found.low < 0.5 < found.high and found.high - found.low < 0.16


@pytest.mark.parametrize(
    ("fault", "least"), [(shuffled, 0.6), (permuted_demographics, 0.6), (lambda t, s: few_codes(t, 31), 0.6)]
)
def test_a_fault_is_detected(fault, least):
    assert score(fault(hospital(500, 3), 5)).low > least


def test_without_demographics_a_fault_of_demographics_is_not_detected():
    found = score(permuted_demographics(hospital(500, 3), 5), known_demographics=False)
    assert found.low < 0.5 < found.high


def test_the_interval_covers_real_against_real():
    """40 pairs of samples of one hospital: 0.5 lies inside about 38 times, and intervals are not endless."""
    found = [score(hospital(200, 100 + seed), hospital(200, 200 + seed), seed) for seed in range(40)]
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) >= 0.9
    spread = np.std([one.value for one in found])
    assert np.mean([one.high - one.low for one in found]) / 2 < 3.5 * spread


def test_the_figure_is_the_mean_of_the_folds_recomputed():
    made = shuffled(hospital(300, 3), 5)
    (train, real, scored), names = encode([TRAIN, hospital(300, 6), made])
    counts = np.bincount(train.codes, minlength=len(names))
    order = sorted(range(len(names)), key=lambda k: (-counts[k], k))[:500]
    rows, label, fold = [], [], []
    for part, name, seed in ((real, 0, 7), (scored, 1, 8)):
        groups = part.groups(seed)[0]
        for visit in range(part.n_visits):
            held = set(part.codes[part.offsets[visit] : part.offsets[visit + 1]].tolist())
            row = [float(code in held) for code in order]
            rows.append([*row, len(held), np.float32(part.age[visit] / 100), part.sex[visit]])
            label.append(name)
            fold.append(groups[visit] % 5)
    rows, label, fold = np.array(rows, np.float32), np.array(label), np.array(fold)
    found = []
    for number in range(5):
        model = HistGradientBoostingClassifier(
            max_iter=50, learning_rate=0.2, early_stopping=False, random_state=7
        )
        model.fit(rows[fold != number], label[fold != number])
        p = model.predict_proba(rows[fold == number])[:, 1]
        of_made, of_real = p[label[fold == number] == 1], p[label[fold == number] == 0]
        above = (of_made[:, None] > of_real).mean() + (of_made[:, None] == of_real).mean() / 2
        found.append(above)
    ((_, _, estimate, *_),) = two_sample(train, real, scored, len(names), 7)
    assert estimate.value == pytest.approx(np.mean(found), abs=1e-9)


def test_curves_by_hand():
    positive = np.array([True, True, False, False])
    score = np.array([0.9, 0.5, 0.5, 0.1])
    assert auc(positive, score) == pytest.approx(3.5 / 4, abs=1e-12)
    assert np.isnan(auc(positive[:2], score[:2]))
    # one positive above every negative; at 1% false alarms 2% of the way from (0, 0.5) to (0.5, 1)
    assert tpr_at_fpr(positive, score) == pytest.approx(0.5 + 0.01, abs=1e-12)
    # half of the people are positives: the named half is the first and half of the tie
    assert gain(positive, score, 0.5) == pytest.approx((0.75 - 0.5) / 0.5, abs=1e-12)
    assert gain(positive, np.zeros(4), 0.8) == pytest.approx(0, abs=1e-12)
    assert gain(positive, np.array([3, 2, 1, 0.0]), 0.2) == pytest.approx(1, abs=1e-12)
    found = replicates(lambda kept: kept.sum(), np.array([0, 0, 1]), 2)
    assert found.tolist() == [3, 1, 2]


@pytest.mark.parametrize(("markov", "passed"), [(0.71, True), (0.69, None), (None, None)])
def test_the_verdict_is_void_if_the_control_fails(markov, passed):
    metrics = scorecard.read_metrics(RESOURCES / "metrics.csv")
    records = [figure(run, "classifier_auc", value) for run, value in (("multitask", 0.5), ("real", 0.5))]
    records += [figure("markov", "classifier_auc", markov)] if markov else []
    found = scorecard.join(records, metrics)
    assert found[0]["pass"] is passed and found[0]["real"] == 0.5
    assert scorecard.failed_controls(records) == (
        [] if passed else [(("synthesize", "classifier_auc", "all"), markov)]
    )


def test_the_step_scores_as_many_of_each(tmp_path):
    for name, table in (("train", TRAIN), ("test", TEST), ("made", hospital(900, 3, "m"))):
        write_visits(table, tmp_path / f"{name}.parquet", {})
    files = {name: tmp_path / f"{name}.parquet" for name in ("train", "test")}
    out = tmp_path / "records.json"
    evaluate_classifier(synthetic=tmp_path / "made.parquet", **files, records=out, run="x", visits=300)
    (record,) = json.loads(out.read_text())
    assert 300 <= record["n"] <= 301 and 300 <= record["n_reference"] <= 301
    assert record["ci_low"] < record["value"] < record["ci_high"]
    assert len(CODES) == 60
