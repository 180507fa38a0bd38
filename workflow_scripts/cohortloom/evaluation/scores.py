"""What a score distinguishes: AUC, hits among few false alarms, the worth of a guess; with replicates.

A case has a score and is positive or not; the higher the score, the more it is taken for a positive. Ties are
broken at random in expectation: the curves are straight between their points.
"""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve


def replicates(statistic: Callable[[np.ndarray], float], groups: np.ndarray, n_groups: int) -> np.ndarray:
    """A statistic of the kept cases, on all and without each jackknife group, [1 + groups].

    `statistic` takes a mask [n_cases] of bool, `groups` [n_cases] is the group of each case.
    """
    kept = [np.ones(len(groups), bool), *(groups != number for number in range(n_groups))]
    return np.array([statistic(mask) for mask in kept], float)


def auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half; NaN without both kinds."""
    if not len(positive) or positive.all() or not positive.any():
        return np.nan
    return float(roc_auc_score(positive, score))


def hits_at(positive: np.ndarray, score: np.ndarray, false_alarms: float = 0.01) -> float:
    """Share of the positives above the threshold that `false_alarms` of the negatives exceed."""
    if not len(positive) or positive.all() or not positive.any():
        return np.nan
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    return float(np.interp(false_alarms, fpr, tpr))


def gain(positive: np.ndarray, score: np.ndarray, fraction: float) -> float:
    """What naming the `fraction` of highest scores is worth where `fraction` of all people are positives.

    Cases are weighted so that the positives make up `fraction` of them. As many are named as there are
    positives, so that precision, recall and F1 are one figure F; guessing blindly has F = `fraction`.
    Returned is (F - fraction) / (1 - fraction): 0 is worth nothing, 1 names every positive and nobody else
    (El Emam and others, JAMIA Open 2022, ooac083, with the blind guesser who names as many).
    """
    if not len(positive) or positive.all() or not positive.any() or not 0 < fraction < 1:
        return np.nan
    weight = np.where(positive, fraction / positive.sum(), (1 - fraction) / (~positive).sum())
    _, block = np.unique(-score, return_inverse=True)
    named = np.r_[0, np.cumsum(np.bincount(block, weight))]
    right = np.r_[0, np.cumsum(np.bincount(block, weight * positive))]
    found = np.interp(fraction, named, right) / fraction
    return float((found - fraction) / (1 - fraction))
