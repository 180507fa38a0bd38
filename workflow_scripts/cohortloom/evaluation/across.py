"""What holds between columns of codes: diagnoses with the procedures and medications of the same visit."""

from collections.abc import Iterator

import numpy as np

from cohortloom.data.coded import Coded, pairs_within
from cohortloom.evaluation.fidelity import pair_figures
from cohortloom.evaluation.records import Figure

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
