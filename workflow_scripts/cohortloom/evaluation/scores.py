"""How well a score separates positives from negatives: AUC, TPR at a low FPR, gain; and jackknife replicates.

Each case has a score and is positive or negative; a higher score speaks for a positive. Ties count as if
broken at random: ROC curves are interpolated linearly.
"""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve


def replicates(statistic: Callable[[np.ndarray], float], groups: np.ndarray, n_groups: int) -> np.ndarray:
    """A statistic on all cases, then without each jackknife group, [1 + groups].

    statistic: takes a mask [n_cases] of bool. groups [n_cases]: group of each case.
    """
    masks = [np.ones(len(groups), bool), *(groups != number for number in range(n_groups))]
    return np.array([statistic(mask) for mask in masks], float)


def auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties count half; NaN unless there are both."""
    if not len(positive) or positive.all() or not positive.any():
        return np.nan
    return float(roc_auc_score(positive, score))


def tpr_at_fpr(positive: np.ndarray, score: np.ndarray, false_positive_rate: float = 0.01) -> float:
    """True positive rate at a false positive rate."""
    if not len(positive) or positive.all() or not positive.any():
        return np.nan
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)
    return float(np.interp(false_positive_rate, fpr, tpr))


def gain(positive: np.ndarray, score: np.ndarray, fraction: float) -> float:
    """Gain over guessing when the `fraction` of highest scores is named and `fraction` of all are positives.

    Cases are weighted so that positives make up `fraction` of them. As many cases are named as there are
    positives, so precision, recall and F1 are the same figure F; a blind guess has F = `fraction`. The gain
    is (F - fraction) / (1 - fraction): 0 for a blind guess, 1 if exactly the positives are named (El Emam and
    others, JAMIA Open 2022, ooac083, with a blind guesser who names as many).
    """
    if not len(positive) or positive.all() or not positive.any() or not 0 < fraction < 1:
        return np.nan
    weight = np.where(positive, fraction / positive.sum(), (1 - fraction) / (~positive).sum())
    _, block = np.unique(-score, return_inverse=True)
    named = np.r_[0, np.cumsum(np.bincount(block, weight))]
    right = np.r_[0, np.cumsum(np.bincount(block, weight * positive))]
    f1 = np.interp(fraction, named, right) / fraction
    return float((f1 - fraction) / (1 - fraction))
