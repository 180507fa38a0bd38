"""How well hidden codes are found at every number of guesses: F1 and Jaccard as curves.

A method gives each code of a visit a score. With one threshold for all visits, what lies above it is guessed;
the lower it is, the more guesses there are for each hidden code. Methods are compared at equal numbers of
guesses, whatever they would decide to write. F1 and Jaccard are those of evaluation/reconstruction.py.
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
class Truth:
    """Of each visit, [n_visits]: how many codes it has, how many are shown, its patient's jackknife group."""

    real: np.ndarray
    shown: np.ndarray
    group: np.ndarray

    @property
    def n_hidden(self) -> int:
        return int((self.real - self.shown).sum())


def curve(
    guesses: Guesses, truth: Truth, threshold: float, points: tuple[float, ...] = PER_HIDDEN_CODE
) -> Iterator[Figure]:
    """F1 at `threshold`, which was chosen on other visits, then F1 and Jaccard along the curve.

    A subset is the number of guesses for each hidden code; NaN where the method has fewer guesses.
    """
    order = np.argsort(-guesses.score, kind="stable")
    visit, right, score = guesses.visit[order], guesses.right[order], guesses.score[order]

    def at(count: int) -> np.ndarray:
        return _sums(visit[:count], right[:count], truth)

    chosen = int(np.searchsorted(-score, -threshold, side="right"))
    best = _f1(at(chosen), truth)
    yield Figure("curve_best_f1", "", best, higher_is_better=True, reason=NOTHING_HIDDEN)
    reason = NOTHING_HIDDEN if truth.n_hidden == 0 else "so many guesses are not made"
    for point in points:
        wanted, f1, jaccard = point * truth.n_hidden, *[Estimate(np.nan, np.nan, np.nan, len(truth.real))] * 2
        if 0 < wanted <= len(score):
            # Guesses of equal score are made together or not at all: in between, the sums are interpolated.
            last = -score[int(np.ceil(wanted)) - 1]
            before, after = (int(np.searchsorted(-score, last, side=side)) for side in ("left", "right"))
            part = (wanted - before) / (after - before)
            sums = (1 - part) * at(before) + part * at(after)
            visits = np.bincount(truth.group, minlength=sums.shape[1])
            f1, jaccard = _f1(sums, truth), ratio(sums[2], visits, len(truth.real), 1.0)
        yield Figure("curve_f1", f"{point:g}", f1, higher_is_better=True, reason=reason)
        yield Figure("curve_jaccard", f"{point:g}", jaccard, higher_is_better=True, reason=reason)


def _sums(visit: np.ndarray, right: np.ndarray, truth: Truth) -> np.ndarray:
    """Right guesses, guesses and Jaccard summed over the visits of each group, [3, groups]."""
    n = len(truth.real)
    guessed, found = np.bincount(visit, minlength=n), np.bincount(visit, weights=right, minlength=n)
    union = truth.real + guessed - found
    jaccard = np.divide(truth.shown + found, union, out=np.ones(n), where=union > 0)
    return np.stack([np.bincount(truth.group, weights=part) for part in (found, guessed, jaccard)])


def _f1(sums: np.ndarray, truth: Truth) -> Estimate:
    hidden = np.bincount(truth.group, weights=truth.real - truth.shown)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = 2 * without_each(sums[0]) / without_each(sums[1] + hidden)
    return interval(f1, len(truth.real), 0.0, 1.0)
