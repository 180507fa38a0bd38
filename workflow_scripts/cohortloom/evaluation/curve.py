"""Recovery of hidden codes at every number of guesses: F1 and Jaccard as curves.

A method scores every code of a visit. All codes above one threshold, the same for all visits, are guesses; a
lower threshold gives more guesses for each hidden code. So methods are compared at equal numbers of guesses,
however many they add in reconstruction. F1 and Jaccard are those of evaluation/reconstruction.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cohortloom.data.guesses import Guesses
from cohortloom.evaluation.intervals import Estimate, interval, ratio, without_each
from cohortloom.evaluation.records import Figure

NOTHING_HIDDEN = "no code of the held-out visits is hidden"
PER_HIDDEN_CODE = (0.1, 0.2, 0.3, 0.4, 0.55, 0.8, 1.1)


@dataclass(frozen=True)
class HiddenCodes:
    """Of each visit [n_visits]: number of codes, number of revealed codes, jackknife group of its patient."""

    n_codes: np.ndarray
    n_revealed: np.ndarray
    group: np.ndarray

    @property
    def n_hidden(self) -> int:
        return int((self.n_codes - self.n_revealed).sum())


def curve(
    guesses: Guesses, hidden: HiddenCodes, threshold: float, points: tuple[float, ...] = PER_HIDDEN_CODE
) -> Iterator[Figure]:
    """F1 at `threshold`, chosen on validation visits, then F1 and Jaccard along the curve.

    The subset of a figure is the number of guesses for each hidden code; NaN where the method has fewer
    guesses.
    """
    order = np.argsort(-guesses.score, kind="stable")
    visit, right, score = guesses.visit[order], guesses.right[order], guesses.score[order]

    def at(count: int) -> np.ndarray:
        return _sums(visit[:count], right[:count], hidden)

    n_above = int(np.searchsorted(-score, -threshold, side="right"))
    best = _f1(at(n_above), hidden)
    yield Figure("curve_best_f1", "", best, higher_is_better=True, reason=NOTHING_HIDDEN)
    reason = NOTHING_HIDDEN if hidden.n_hidden == 0 else "the method makes fewer guesses"
    for point in points:
        n_guesses = point * hidden.n_hidden
        f1 = jaccard = Estimate(np.nan, np.nan, np.nan, len(hidden.n_codes))
        if 0 < n_guesses <= len(score):
            # Guesses of equal score come all together: between two scores the sums are interpolated.
            last = -score[int(np.ceil(n_guesses)) - 1]
            before, after = (int(np.searchsorted(-score, last, side=side)) for side in ("left", "right"))
            part = (n_guesses - before) / (after - before)
            sums = (1 - part) * at(before) + part * at(after)
            visits = np.bincount(hidden.group, minlength=sums.shape[1])
            f1, jaccard = _f1(sums, hidden), ratio(sums[2], visits, len(hidden.n_codes), 1.0)
        yield Figure("curve_f1", f"{point:g}", f1, higher_is_better=True, reason=reason)
        yield Figure("curve_jaccard", f"{point:g}", jaccard, higher_is_better=True, reason=reason)


def _sums(visit: np.ndarray, right: np.ndarray, hidden: HiddenCodes) -> np.ndarray:
    """Right guesses, guesses and Jaccard summed over the visits of each group, [3, groups]."""
    n = len(hidden.n_codes)
    guessed, n_right = np.bincount(visit, minlength=n), np.bincount(visit, weights=right, minlength=n)
    union = hidden.n_codes + guessed - n_right
    jaccard = np.divide(hidden.n_revealed + n_right, union, out=np.ones(n), where=union > 0)
    return np.stack([np.bincount(hidden.group, weights=part) for part in (n_right, guessed, jaccard)])


def _f1(sums: np.ndarray, hidden: HiddenCodes) -> Estimate:
    n_hidden = np.bincount(hidden.group, weights=hidden.n_codes - hidden.n_revealed)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = 2 * without_each(sums[0]) / without_each(sums[1] + n_hidden)
    return interval(f1, len(hidden.n_codes), 0.0, 1.0)
