"""What holds between columns of codes: diagnoses with the procedures and medications of the same visit."""

from collections.abc import Iterator

import numpy as np

from cohortloom.data.coded import Coded, most_frequent, pairs_within
from cohortloom.evaluation.features import code_matrix, demographics
from cohortloom.evaluation.fidelity import pair_figures
from cohortloom.evaluation.intervals import UNDEFINED, interval
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.utility import FEATURES, MIN_VISITS, PENALTY, PREDICTED, aucs

PAIRS = ("cross_pair_r2", "cross_cooccurrence_ratio")


def pairs_between(visits: Coded, column: np.ndarray, other: int) -> tuple[np.ndarray, np.ndarray]:
    """Visit and key of every pair of a code of column 0 and one of column `other` in the same visit.

    column [n_codes]: column of each code of the list, ascending.
    """
    chosen = (column == 0) | (column == other)
    visit, keys = pairs_within(visits.where(chosen), len(column))
    smaller, larger = np.divmod(keys, len(column))
    between = (column[smaller] == 0) & (column[larger] == other)
    return visit[between], keys[between]


def cross_pairs(train: Coded, scored: Coded, column: np.ndarray, other: int, seed: int) -> Iterator[Figure]:
    """R² and familiarity of the pairs of a diagnosis and a code of column `other`.

    Both sets index one list of the codes of several columns; column [n_codes] is that of each, 0 the
    diagnoses.
    """
    groups, n_groups = scored.groups(seed)
    pairs = (pairs_between(part, column, other) for part in (train, scored))
    what = "with a diagnosis and such a code"
    yield from pair_figures(train, scored, *pairs, groups, n_groups, PAIRS, what)


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

    As `prediction` in utility.py: ridge regressions are trained on `release`; `train` gives only the most
    frequent codes; a code too rare in the release to be learned scores 0.5; the interval is over both sets.
    """
    n_codes = len(column)
    inputs, outputs = (
        most_frequent(train.codes[column[train.codes] == number], n_codes, most)
        for number, most in ((0, FEATURES), (other, PREDICTED))
    )
    rows = [_rows(part, inputs, n_codes, known_demographics) for part in (release, real)]
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


def _rows(visits: Coded, codes: np.ndarray, n_codes: int, known_demographics: bool) -> np.ndarray:
    parts = [code_matrix(visits, codes, n_codes).toarray()]
    if known_demographics:
        age, sex = demographics(visits).T
        parts.append(np.column_stack([age, age**2, sex]))
    return np.concatenate(parts, 1).astype(np.float64)
