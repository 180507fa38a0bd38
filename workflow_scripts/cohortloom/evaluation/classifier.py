"""Two-sample classifier: can gradient boosting distinguish the scored visits from held-out real ones?

AUC 0.5 is guessing, 1 is always right. Features are the 500 most frequent training codes, the number of
codes, age and sex. Folds hold whole patients.

The interval is over patients. The jackknife keeps the classifiers fixed and so ignores that each fold is also
training data of the other folds' classifiers. If the sets cannot be distinguished, the mean over folds counts
each pair of folds twice, and its variance is twice the one with fixed classifiers. The interval is therefore
widened by the square root of 2. Measured on real against real (60 pairs of 200 patients), the fixed one
covers 0.5 in 90%.
"""

from collections.abc import Iterator

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from cohortloom.data.coded import Coded, most_frequent
from cohortloom.evaluation.features import code_matrix, demographics
from cohortloom.evaluation.intervals import interval
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.scores import auc, replicates

TOP = 500
FOLDS = 5
TOO_FEW_PATIENTS = "too few patients on one side to train a classifier and test it on others"
# Half of sklearn's rounds at twice its rate take half the time; markov of the demo scores 0.61 either way.
BOOSTING = {"max_iter": 50, "learning_rate": 0.2, "early_stopping": False}


def two_sample(
    train: Coded, real: Coded, scored: Coded, n_codes: int, seed: int, known_demographics: bool = True
) -> Iterator[Figure]:
    """AUC of distinguishing held-out `real` visits from `scored` ones.

    `train` gives only the most frequent codes. Without `known_demographics` age and sex are no features.
    """
    codes = most_frequent(train.codes, n_codes, TOP)
    rows = np.concatenate([_features(part, codes, n_codes, known_demographics) for part in (real, scored)])
    is_scored = np.repeat([False, True], [real.n_visits, scored.n_visits])
    # With one seed for both sides, copied patients would be in the groups of their originals.
    groups = np.concatenate([real.groups(seed)[0], scored.groups(seed + 1)[0]])
    n_groups = int(groups.max(initial=-1)) + 1
    fold = groups % FOLDS
    score = np.full(len(is_scored), np.nan)
    for number in range(FOLDS):
        in_fold, others = fold == number, fold != number
        if not in_fold.any() or len(np.unique(is_scored[others])) < 2:
            continue
        model = HistGradientBoostingClassifier(**BOOSTING, random_state=seed)
        score[in_fold] = model.fit(rows[others], is_scored[others]).predict_proba(rows[in_fold])[:, 1]

    def mean_of_folds(mask: np.ndarray) -> float:
        parts = [mask & (fold == number) for number in range(FOLDS)]
        aucs = [auc(is_scored[part], score[part]) for part in parts if not np.isnan(score[part]).any()]
        aucs = [value for value in aucs if not np.isnan(value)]
        return float(np.mean(aucs)) if aucs else np.nan

    means = replicates(mean_of_folds, groups, n_groups)
    estimate = interval(means[0] + np.sqrt(2) * (means - means[0]), scored.n_visits, 0.0, 1.0)
    yield Figure("classifier_auc", "", estimate, real.n_visits, False, TOO_FEW_PATIENTS)


def _features(visits: Coded, codes: np.ndarray, n_codes: int, known_demographics: bool) -> np.ndarray:
    """Feature rows [n_visits, codes + 1], or + 3 with age and sex."""
    parts = [code_matrix(visits, codes, n_codes).toarray(), visits.lengths[:, None].astype(np.float32)]
    return np.concatenate([*parts, *([demographics(visits)] if known_demographics else [])], axis=1)
