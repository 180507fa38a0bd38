"""What a model and its release reveal of planted patients, compared with invented ones not planted.

Scores are log likelihoods. The held-out canaries are drawn in the same way, so that a model which saw neither
ranks the planted ones anywhere among them: AUC 0.5, exposure log2(e) = 1.44 bits on average.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from cohortloom.data.coded import GROUPS, patient_groups
from cohortloom.evaluation.intervals import interval, ratio
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.scores import auc, replicates

MOSTLY = 0.8  # share of a canary's codes in one visit that counts as most of it


def subsets(repeats: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and mask [n] of all planted canaries, and of those with each number of repeats."""
    yield "", np.ones(len(repeats), bool)
    for number in np.unique(repeats):
        yield f"repeats {number}", repeats == number


def ranked(planted: np.ndarray, held_out: np.ndarray, repeats: np.ndarray, seed: int) -> Iterator[Figure]:
    """AUC and exposure from scores of planted [n] and held-out canaries; repeats [n]."""
    for subset, chosen in subsets(repeats):
        ours = planted[chosen]
        n_groups = min(GROUPS, len(ours), len(held_out))
        groups = [patient_groups(len(part), seed + i, n_groups) for i, part in enumerate((ours, held_out))]
        positive = np.repeat([True, False], [len(ours), len(held_out)])
        score, group = np.concatenate([ours, held_out]), np.concatenate(groups)
        found = replicates(lambda kept, p=positive, s=score: auc(p[kept], s[kept]), group, n_groups)
        yield Figure("canary_auc", subset, interval(found, len(ours), 0.0, 1.0), len(held_out), False)
        bits = exposure(ours, held_out)
        found = replicates(lambda kept, b=bits: b[kept].mean(), groups[0], n_groups)
        ends = interval(found, len(ours), 0.0, ceiling(len(held_out)))
        yield Figure("canary_exposure", subset, ends, len(held_out), False)


def exposure(planted: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Exposure in bits of each planted canary [n]: how much smaller its rank makes a search for it.

    log2(held-out + 1) - log2(rank), where the rank among the held-out ones is 1 for the likeliest; of equals
    half rank before it.

    >>> exposure(np.array([9.0, 0.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [2.0, 0.0]
    """
    ordered = np.sort(held_out)
    above = len(ordered) - np.searchsorted(ordered, planted, "right")
    equal = len(ordered) - np.searchsorted(ordered, planted, "left") - above
    return ceiling(len(ordered)) - np.log2(1 + above + equal / 2)


def ceiling(held_out: int) -> float:
    """The highest exposure that so many held-out canaries can show, in bits."""
    return float(np.log2(held_out + 1))


def extracted(
    canaries: sparse.csr_matrix, release: sparse.csr_matrix, repeats: np.ndarray, seed: int
) -> Iterator[Figure]:
    """Share of the canaries whose codes occur in one released visit: exactly them, or most of them.

    canaries [n, n_codes], release [n_visits, n_codes]: 0/1 matrices of sets of codes; repeats [n].
    """
    sizes, visit_sizes = (np.asarray(part.sum(axis=1)).ravel() for part in (canaries, release))
    shared = (canaries @ release.T).tocoo()
    whole, most = np.zeros((2, len(sizes)), bool)
    ours = sizes[shared.row]
    whole[shared.row[(shared.data == ours) & (visit_sizes[shared.col] == ours)]] = True
    most[shared.row[shared.data >= MOSTLY * ours]] = True
    for subset, chosen in subsets(repeats):
        n = int(chosen.sum())
        groups = patient_groups(n, seed)
        each = np.bincount(groups)
        for metric, found in (("canary_extracted", whole), ("canary_extracted_80", most)):
            share = ratio(np.bincount(groups, found[chosen], len(each)), each, n, 1.0)
            yield Figure(metric, subset, share, release.shape[0], False)
