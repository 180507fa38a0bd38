"""How much a model and its release reveal of planted patients (canaries), compared with held-out canaries.

Scores are log likelihoods. Planted and held-out canaries are drawn in the same way. A model trained on
neither ranks the planted ones at random among the held-out ones: AUC 0.5, exposure log2(e) = 1.44 bits on
average.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from cohortloom.data.coded import GROUPS, patient_groups
from cohortloom.evaluation.intervals import interval, ratio
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.scores import auc, replicates

MOST_CODES = 0.8  # share of a canary's codes in one visit that counts as most codes


def subsets(repeats: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name and mask [n] of the subsets: all planted canaries, then those of each number of repeats."""
    yield "", np.ones(len(repeats), bool)
    for number in np.unique(repeats):
        yield f"repeats {number}", repeats == number


def ranking_figures(
    planted: np.ndarray, held_out: np.ndarray, repeats: np.ndarray, seed: int
) -> Iterator[Figure]:
    """AUC and exposure from the scores of planted [n] and held-out canaries; repeats [n]."""
    for subset, is_member in subsets(repeats):
        scores = planted[is_member]
        n, n_held_out = len(scores), len(held_out)
        n_groups = min(GROUPS, n, n_held_out)
        groups = [patient_groups(size, seed + i, n_groups) for i, size in enumerate((n, n_held_out))]
        positive = np.repeat([True, False], [n, n_held_out])
        score, group = np.concatenate([scores, held_out]), np.concatenate(groups)
        aucs = replicates(lambda mask, p=positive, s=score: auc(p[mask], s[mask]), group, n_groups)
        yield Figure("canary_auc", subset, interval(aucs, n, 0.0, 1.0), n_held_out, False)
        bits = exposure(scores, held_out)
        means = replicates(lambda mask, b=bits: b[mask].mean(), groups[0], n_groups)
        estimate = interval(means, n, 0.0, max_exposure(n_held_out))
        yield Figure("canary_exposure", subset, estimate, n_held_out, False)


def exposure(planted: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Exposure in bits of each planted canary [n]: by how much its rank shortens a search for it.

    log2(number of held-out + 1) - log2(rank). The rank among the held-out ones is 1 for the highest score;
    half of those with an equal score rank before it.

    >>> exposure(np.array([9.0, 0.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [2.0, 0.0]
    """
    ordered = np.sort(held_out)
    above = len(ordered) - np.searchsorted(ordered, planted, "right")
    equal = len(ordered) - np.searchsorted(ordered, planted, "left") - above
    return max_exposure(len(ordered)) - np.log2(1 + above + equal / 2)


def max_exposure(held_out: int) -> float:
    """The highest exposure that can be measured with `held_out` held-out canaries, in bits."""
    return float(np.log2(held_out + 1))


def extraction_figures(
    canaries: sparse.csr_matrix, release: sparse.csr_matrix, repeats: np.ndarray, seed: int
) -> Iterator[Figure]:
    """Share of the canaries whose set of codes equals a released visit, or that share most codes with one.

    canaries [n, n_codes], release [n_visits, n_codes]: 0/1 matrices of sets of codes; repeats [n].
    """
    sizes, visit_sizes = (np.asarray(part.sum(axis=1)).ravel() for part in (canaries, release))
    shared = (canaries @ release.T).tocoo()
    has_equal, has_most = np.zeros((2, len(sizes)), bool)
    size = sizes[shared.row]
    has_equal[shared.row[(shared.data == size) & (visit_sizes[shared.col] == size)]] = True
    has_most[shared.row[shared.data >= MOST_CODES * size]] = True
    for subset, is_member in subsets(repeats):
        n = int(is_member.sum())
        groups = patient_groups(n, seed)
        group_sizes = np.bincount(groups)
        for metric, is_extracted in (("canary_extracted", has_equal), ("canary_extracted_80", has_most)):
            extracted = np.bincount(groups, is_extracted[is_member], len(group_sizes))
            yield Figure(metric, subset, ratio(extracted, group_sizes, n, 1.0), release.shape[0], False)
