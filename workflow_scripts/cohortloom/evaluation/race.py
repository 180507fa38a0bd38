"""Audit of the removal of race: how well the kept columns predict it, in rates.

Race is not passed on, and yet codes, age and sex may predict it. A regression trained on real training
patients says how well, and what mix of races the synthetic visits look like. The distance of each race's
held-out visits to the release says whom it represents worst.
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

    `race` are indices into `names` of the training and test visits [n_visits], negative where unknown. A
    race with fewer than `min_patients` in either set is not reported and not learnt. How well race is
    predicted is a figure of the real data: it is given where the release is `real`.
    """
    of_train, of_test = race
    sides = ((train.patient, of_train), (test.patient, of_test))
    reported = [
        number
        for number in range(len(names))
        if all(len(np.unique(patient[of == number])) >= min_patients for patient, of in sides)
    ]
    if len(reported) < 2:
        yield unknown(f"fewer than two groups have {min_patients} patients in training and held out")
        return
    codes = most_frequent(train.codes, n_codes, FEATURES)
    known = np.isin(of_train, reported)
    n_known = int(known.sum())
    model = LogisticRegression(max_iter=100).fit(_features(train, codes, n_codes)[known], of_train[known])
    if real:
        scored = np.isin(of_test, reported)
        probability = model.predict_proba(_features(test, codes, n_codes)[scored])
        groups, n_groups = test.groups(seed)
        for column, number in enumerate(model.classes_):
            truth, score = of_test[scored] == number, probability[:, column]
            found = replicates(lambda kept, t=truth, s=score: auc(t[kept], s[kept]), groups[scored], n_groups)
            yield Figure("race_auc", names[number], interval(found, len(truth), 0.0, 1.0), n_known)
    groups, n_groups = release.groups(seed)
    probability = model.predict_proba(_features(release, codes, n_codes))
    visits = np.bincount(groups, minlength=n_groups)
    for column, number in enumerate(model.classes_):
        share = ratio(np.bincount(groups, probability[:, column], n_groups), visits, release.n_visits, 1.0)
        yield Figure("race_predicted_share", names[number], share, n_known)
    counts = np.bincount(release.codes, minlength=n_codes)
    groups, n_groups = test.groups(seed)
    for number in reported:
        table = code_table(test, n_codes, groups, n_groups, of_test == number)
        distance = interval(distances(counts, table), int((of_test == number).sum()), 0.0)
        yield Figure("race_js_distance", names[number], distance, release.n_visits, False)


def unknown(reason: str) -> Figure:
    """The figure of an audit that cannot be made."""
    return Figure("race_auc", "", UNDEFINED, reason=reason)


def _features(visits: Coded, codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    parts = [code_matrix(visits, codes, n_codes), sparse.csr_matrix(demographics(visits))]
    return sparse.hstack(parts, format="csr").astype(np.float64)
