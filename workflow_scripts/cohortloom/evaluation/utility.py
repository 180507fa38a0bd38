"""Dimension-wise prediction: does a model trained on the release predict the codes of real patients?

A ridge regression predicts each of the 50 most frequent training codes from the rest of the visit (the other
codes among the 500 most frequent, age, sex), as in Choi and others (medGAN, 2017). It is trained on the
release and tested on held-out real visits. The reference is a regression trained on real visits.

The interval is over both sets: each replicate trains without one group of patients of the release and tests
without one group of the real ones. Ridge makes this cheap: with P the inverse of X'X + 100 I over centred
columns, the weights that predict column j from the others are -P[:, j] / P[j, j], so one inverse gives all 50
models.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from cohortloom.data.coded import Coded, most_frequent
from cohortloom.evaluation.features import code_matrix, demographics
from cohortloom.evaluation.intervals import UNDEFINED, interval
from cohortloom.evaluation.records import Figure

PREDICTED = 50
FEATURES = 500
# With 1 the rare codes are memorised: real visits of the demo predict with AUC 0.73, with 100 0.79,
# with 300 0.80, and by logistic regression (sklearn's defaults) 0.78.
PENALTY = 100.0
MIN_VISITS = 5  # with a code and without it; a code with fewer is neither learned nor tested


def prediction(
    train: Coded, real: Coded, release: Coded, names: list[str], seed: int, known_demographics: bool = True
) -> Iterator[Figure]:
    """AUC on `real` of predicting each frequent code after training on `release`, and the mean of all.

    `train` gives only the most frequent codes. A code that is too rare in the release to be learned scores
    0.5; one that is too rare in the real visits to be tested is left out.
    """
    codes = most_frequent(train.codes, len(names), FEATURES)
    release_rows, real_rows = (
        _features(part, codes, len(names), known_demographics) for part in (release, real)
    )
    n_predicted = len(codes[:PREDICTED])  # the columns after the codes are age and sex
    truth = real_rows[:, :n_predicted].toarray() > 0
    tested = np.flatnonzero(np.minimum(truth.sum(axis=0), (~truth).sum(axis=0)) >= MIN_VISITS)
    if not len(tested) or not release.n_visits:
        reason = f"no frequent code has {MIN_VISITS} held-out visits with it and {MIN_VISITS} without"
        reason = reason if release.n_visits else "the release has no visit"
        estimate = replace(UNDEFINED, n=real.n_visits)
        yield Figure("prediction_auc", "", estimate, release.n_visits, True, reason)
        return
    groups = [part.groups(seed + number)[0] for number, part in enumerate((release, real))]
    values = []  # [1 + groups, tested codes]
    for without in range(-1, min(int(part.max(initial=-1)) for part in groups) + 1):
        in_training, in_test = (part != without for part in groups)
        weights = ridge_weights(release_rows[in_training], n_predicted)
        values.append(aucs(truth[in_test][:, tested], (real_rows[in_test] @ weights)[:, tested]))
    n, n_reference = real.n_visits, release.n_visits
    yield Figure("prediction_auc", "", interval(np.mean(values, axis=1), n, 0.0, 1.0), n_reference, True)
    for column, of_code in zip(tested, np.transpose(values), strict=True):
        estimate = interval(of_code, n, 0.0, 1.0)
        yield Figure("code_prediction_auc", names[codes[column]], estimate, n_reference, True)


def ridge_weights(rows: sparse.csr_matrix, predicted: int) -> np.ndarray:
    """Weights [columns, predicted] of the ridge regressions of the first columns, each on all others.

    There is no intercept, for the AUC needs only ranks. The weights of a column that is too rare or too
    frequent to be learned are 0.
    """
    n = max(1, rows.shape[0])
    mean = np.asarray(rows.mean(axis=0)).ravel()
    gram = (rows.T @ rows).toarray() - n * np.outer(mean, mean)
    inverse = np.linalg.inv(gram + PENALTY * np.eye(len(gram)))
    weights = -inverse[:, :predicted] / np.diag(inverse)[:predicted]
    weights[np.arange(predicted), np.arange(predicted)] = 0.0
    count = np.asarray(rows[:, :predicted].sum(axis=0)).ravel()
    weights[:, np.minimum(count, n - count) < MIN_VISITS] = 0.0
    return weights


def aucs(positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    """AUC of each column [columns] of scores [n, columns], from ranks; ties count half."""
    ranks = rankdata(score.round(12), axis=0)  # sums that differ by rounding are ties
    n_positive = positive.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_rank = (ranks * positive).sum(axis=0) / n_positive
        return (mean_rank - (n_positive + 1) / 2) / (len(positive) - n_positive)


def _features(visits: Coded, codes: np.ndarray, n_codes: int, known_demographics: bool) -> sparse.csr_matrix:
    """Feature rows [n_visits, columns]: the codes, then age, its square and sex."""
    parts = [code_matrix(visits, codes, n_codes)]
    if known_demographics:
        rows = demographics(visits)
        parts.append(sparse.csr_matrix(np.column_stack([rows[:, 0], rows[:, 0] ** 2, rows[:, 1]])))
    return sparse.hstack(parts, format="csr").astype(np.float64)


def cross_prediction(
    train: Coded,
    real: Coded,
    release: Coded,
    column: np.ndarray,
    other: int,
    seed: int,
    known_demographics: bool = True,
) -> Iterator[Figure]:
    """Mean AUC on `real` of predicting the frequent codes of column `other` from the diagnoses, age and sex.

    As in `prediction`, ridge regressions are trained on `release`; `train` gives only the most
    frequent codes; a code too rare in the release to be learned scores 0.5; the interval is over both sets.
    """
    n_codes = len(column)
    inputs, outputs = (
        most_frequent(train.codes[column[train.codes] == number], n_codes, most)
        for number, most in ((0, FEATURES), (other, PREDICTED))
    )
    rows = [_inputs(part, inputs, n_codes, known_demographics) for part in (release, real)]
    targets = [code_matrix(part, outputs, n_codes).toarray() for part in (release, real)]
    truth = targets[1] > 0
    tested = np.flatnonzero(np.minimum(truth.sum(0), (~truth).sum(0)) >= MIN_VISITS)
    if not len(tested) or not release.n_visits:
        reason = f"no frequent code has {MIN_VISITS} held-out visits with it and {MIN_VISITS} without"
        reason = reason if release.n_visits else "the release has no visit"
        yield Figure("cross_prediction_auc", "", UNDEFINED, release.n_visits, True, reason)
        return
    groups = [part.groups(seed + number)[0] for number, part in enumerate((release, real))]
    values = []
    for without in range(-1, min(int(part.max(initial=-1)) for part in groups) + 1):
        in_training, in_test = (part != without for part in groups)
        weights = ridge(rows[0][in_training], targets[0][in_training])
        values.append(aucs(truth[in_test][:, tested], (rows[1][in_test] @ weights)[:, tested]).mean())
    estimate = interval(np.array(values), real.n_visits, 0.0, 1.0)
    yield Figure("cross_prediction_auc", "", estimate, release.n_visits, True)


def ridge(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights [columns, targets] of ridge regressions on rows [n, columns], without intercept.

    The AUC needs only ranks. The weights of a target that is too rare or too frequent are 0.
    """
    centred = rows - rows.mean(0)
    gram = centred.T @ centred + PENALTY * np.eye(rows.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (targets - targets.mean(0)))
    count = targets.sum(0)
    weights[:, np.minimum(count, len(targets) - count) < MIN_VISITS] = 0.0
    return weights


def _inputs(visits: Coded, codes: np.ndarray, n_codes: int, known_demographics: bool) -> np.ndarray:
    parts = [code_matrix(visits, codes, n_codes).toarray()]
    if known_demographics:
        age, sex = demographics(visits).T
        parts.append(np.column_stack([age, age**2, sex]))
    return np.concatenate(parts, 1).astype(np.float64)
