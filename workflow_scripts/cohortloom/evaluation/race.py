"""Audit of the removal of race: how well the remaining columns predict it, in rates.

Race is removed, but codes, age and sex may predict it. A regression trained on real training patients
measures how well, and which mix of races it predicts for the synthetic visits. The distance of the held-out
visits of each race to the release shows which race is represented worst.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from cohortloom.data.coded import Coded, most_frequent
from cohortloom.evaluation.features import code_matrix, demographics
from cohortloom.evaluation.fidelity import code_table, distances
from cohortloom.evaluation.intervals import UNDEFINED, interval, ratio
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.scores import auc, replicates

FEATURES = 500


def audit(
    train: Coded,
    test: Coded,
    release: Coded,
    race: tuple[np.ndarray, np.ndarray],
    names: Sequence[str],
    n_codes: int,
    seed: int,
    min_patients: int,
    real: bool,
) -> Iterator[Figure]:
    """Figures by race, in the order of `names`.

    `race`: of the training and of the test visits [n_visits] each, indices into `names`, negative where
    unknown. A race with fewer than `min_patients` in either set is neither learned nor reported. How well
    race is predicted is a figure of the real data, computed only if the release is `real`.
    """
    of_train, of_test = race
    sides = ((train.patient, of_train), (test.patient, of_test))
    reported = [
        number
        for number in range(len(names))
        if all(len(np.unique(patient[of == number])) >= min_patients for patient, of in sides)
    ]
    if len(reported) < 2:
        yield no_audit(f"fewer than two groups have {min_patients} patients in training and held out")
        return
    codes = most_frequent(train.codes, n_codes, FEATURES)
    is_learned = np.isin(of_train, reported)
    n_learned = int(is_learned.sum())
    rows = _features(train, codes, n_codes)[is_learned]
    model = LogisticRegression(max_iter=100).fit(rows, of_train[is_learned])
    if real:
        scored = np.isin(of_test, reported)
        probability = model.predict_proba(_features(test, codes, n_codes)[scored])
        groups, n_groups = test.groups(seed)
        for column, number in enumerate(model.classes_):
            truth, score = of_test[scored] == number, probability[:, column]
            aucs = replicates(lambda mask, t=truth, s=score: auc(t[mask], s[mask]), groups[scored], n_groups)
            yield Figure("race_auc", names[number], interval(aucs, len(truth), 0.0, 1.0), n_learned)
    groups, n_groups = release.groups(seed)
    probability = model.predict_proba(_features(release, codes, n_codes))
    visits = np.bincount(groups, minlength=n_groups)
    for column, number in enumerate(model.classes_):
        share = ratio(np.bincount(groups, probability[:, column], n_groups), visits, release.n_visits, 1.0)
        yield Figure("race_predicted_share", names[number], share, n_learned)
    counts = np.bincount(release.codes, minlength=n_codes)
    groups, n_groups = test.groups(seed)
    for number in reported:
        table = code_table(test, n_codes, groups, n_groups, of_test == number)
        distance = interval(distances(counts, table), int((of_test == number).sum()), 0.0)
        yield Figure("race_js_distance", names[number], distance, release.n_visits, False)


def no_audit(reason: str) -> Figure:
    """The figure, without a value, of an audit that is not possible."""
    return Figure("race_auc", "", UNDEFINED, reason=reason)


def _features(visits: Coded, codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    parts = [code_matrix(visits, codes, n_codes), sparse.csr_matrix(demographics(visits))]
    return sparse.hstack(parts, format="csr").astype(np.float64)
