"""Guesses of hidden codes, each with a score: all methods that score codes are read out in this one way."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cohortloom.base.ragged import row_of_value, row_offsets

KEPT = 100  # guesses of a visit that are kept: several times the codes of nearly every visit
NONE = float("-inf")  # the score of a code that is never guessed


@dataclass(frozen=True)
class Guesses:
    """Flat guesses [n]: visit, code, score, and whether the code is hidden in the visit."""

    visit: np.ndarray
    code: np.ndarray
    score: np.ndarray
    right: np.ndarray

    def select(self, chosen: np.ndarray) -> "Guesses":
        """The guesses that `chosen` [n] marks, in their order."""
        return Guesses(self.visit[chosen], self.code[chosen], self.score[chosen], self.right[chosen])

    def at_least(self, threshold: float) -> "Guesses":
        """Those with this score or a higher one, visit by visit, the highest first."""
        chosen = np.flatnonzero(self.score >= threshold)
        order = chosen[np.lexsort((-self.score[chosen], self.visit[chosen]))]
        return Guesses(self.visit[order], self.code[order], self.score[order], self.right[order])


def highest(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    codes: np.ndarray,
    offsets: np.ndarray,
    shown: np.ndarray,
    kept: int = KEPT,
    column: np.ndarray | None = None,
) -> Guesses:
    """The `kept` highest scores of each visit and column of codes among the codes that are not shown.

    A batch is the numbers of its visits [n] and their scores [n, all codes], which are overwritten. `codes`
    and `offsets` [n_visits + 1] are those of the real visits, `shown` [codes] bool which of them are known.
    column [all codes]: number of the column of each; all are of one by default.
    """
    n_visits = len(offsets) - 1
    row, begin = row_of_value(offsets), row_offsets(shown)[offsets]
    known_row, known = row[shown], codes[shown]
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    place = np.full(n_visits, -1)
    width = int(codes.max(initial=0)) + 1
    of_column: list[np.ndarray] = []
    for visits, scores in batches:
        if not of_column:
            column = np.zeros(scores.shape[1], np.int64) if column is None else column
            of_column = [np.flatnonzero(column == number) for number in np.unique(column)]
        width = max(width, scores.shape[1])
        place[visits] = np.arange(len(visits))
        inside = np.concatenate([np.arange(begin[visit], begin[visit + 1]) for visit in visits])
        scores[place[known_row[inside]], known[inside]] = NONE
        for members in of_column:
            of_members, most = scores[:, members], min(kept, len(members))
            best = np.argpartition(of_members, -most, axis=1)[:, -most:]
            value = np.take_along_axis(of_members, best, 1)
            in_batch, rank = np.nonzero(value > NONE)
            parts.append((visits[in_batch], members[best[in_batch, rank]], value[in_batch, rank]))
    visit, code, score = (np.concatenate(part) for part in zip(*parts, strict=True))
    hidden = row[~shown] * width + codes[~shown]
    return Guesses(visit, code, score, np.isin(visit * width + code, hidden))


def best_threshold(guesses: Guesses, n_hidden: int) -> tuple[float, float]:
    """The lowest score to guess for the best F1 on `n_hidden` codes, and that F1.

    Infinite and 0 where no guess is right.
    """
    order = np.argsort(-guesses.score, kind="stable")
    score, right = guesses.score[order], np.cumsum(guesses.right[order])
    if not len(right) or not right[-1]:
        return np.inf, 0.0
    last = np.flatnonzero(np.append(score[1:] < score[:-1], True))  # of those with an equal score
    f1 = 2 * right[last] / (last + 1 + n_hidden)
    best = int(np.argmax(f1))
    return float(score[last[best]]), float(f1[best])
