"""Two-sample classifier: can gradient boosting distinguish the scored visits from held-out real ones?

An AUC of 0.5 is guessing, 1 is always right. Features are the 500 most frequent training codes, the number of
codes, age and sex. Folds hold whole patients.

The interval is over the patients that are distinguished. Leaving some out with the classifiers fixed misses
that each fold is also what the other folds' classifiers were trained on: where nothing can be distinguished,
the mean of the folds is a sum over pairs of folds in which each pair comes twice, so that its variance is
twice the one with fixed classifiers. The interval is widened by the root of 2 therefore. Measured on real
against real (60 pairs of 200 patients) the fixed one covers 0.5 in 90%.
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
# Half of sklearn's rounds at twice its rate: half the time, and markov of the demo scores 0.61 either way.
BOOSTING = {"max_iter": 50, "learning_rate": 0.2, "early_stopping": False}


def two_sample(
    train: Coded, real: Coded, scored: Coded, n_codes: int, seed: int, known_demographics: bool = True
) -> Iterator[Figure]:
    """AUC with which held-out `real` visits and `scored` ones are distinguished.

    Only the frequency of codes is taken from `train`. Without `known_demographics` age and sex are left out.
    """
    codes = most_frequent(train.codes, n_codes, TOP)
    rows = np.concatenate([_features(part, codes, n_codes, known_demographics) for part in (real, scored)])
    made = np.repeat([False, True], [real.n_visits, scored.n_visits])
    # One seed for both sides would put copied patients into the groups of their originals.
    groups = np.concatenate([real.groups(seed)[0], scored.groups(seed + 1)[0]])
    n_groups = int(groups.max(initial=-1)) + 1
    fold = groups % FOLDS
    score = np.full(len(made), np.nan)
    for number in range(FOLDS):
        inside, outside = fold == number, fold != number
        if not inside.any() or len(np.unique(made[outside])) < 2:
            continue
        model = HistGradientBoostingClassifier(**BOOSTING, random_state=seed)
        score[inside] = model.fit(rows[outside], made[outside]).predict_proba(rows[inside])[:, 1]

    def mean_of_folds(kept: np.ndarray) -> float:
        parts = [kept & (fold == number) for number in range(FOLDS)]
        found = [auc(made[part], score[part]) for part in parts if not np.isnan(score[part]).any()]
        found = [one for one in found if not np.isnan(one)]
        return float(np.mean(found)) if found else np.nan

    kept = replicates(mean_of_folds, groups, n_groups)
    found = interval(kept[0] + np.sqrt(2) * (kept - kept[0]), scored.n_visits, 0.0, 1.0)
    yield Figure("classifier_auc", "", found, real.n_visits, False, TOO_FEW_PATIENTS)


def _features(visits: Coded, codes: np.ndarray, n_codes: int, known_demographics: bool) -> np.ndarray:
    """Rows [n_visits, codes + 1 or 3]."""
    parts = [code_matrix(visits, codes, n_codes).toarray(), visits.lengths[:, None].astype(np.float32)]
    return np.concatenate([*parts, *([demographics(visits)] if known_demographics else [])], axis=1)
