"""Copies of sets of codes, and nearest neighbours by Jaccard distance, in blocks of sparse products.

Sets are the rows of 0/1 matrices. All pairs are compared, so the cost grows with the product of the numbers
of rows: callers work on stated samples.
"""

import numpy as np
from scipy import sparse

from cohortloom.base.ragged import row_of_value
from cohortloom.data.coded import Coded

COPY_CODES = 5  # shorter visits coincide by chance
BLOCK = 20_000_000  # pairs compared at once: some hundred megabytes


def set_matrix(items: np.ndarray, owner: np.ndarray, n_sets: int, n_items: int) -> sparse.csr_matrix:
    """0/1 matrix [n_sets, n_items] of flat items and the set that each belongs to."""
    ones = np.ones(len(items), np.float32)
    return sparse.csr_matrix((ones, (owner, items)), shape=(n_sets, n_items))


def nearest(
    sets: sparse.csr_matrix, others: sparse.csr_matrix, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard distance of each set to the nearest of the others, and which that is, [n_sets] each.

    Ties go to the first. An identical set is seen: its distance is 0. With `same` the two are one matrix, and
    a set is not its own neighbour. A set that shares nothing with any has distance 1 and neighbour -1.
    """
    size, other_size = (np.asarray(part.sum(axis=1)).ravel() for part in (sets, others))
    similarity, index = np.zeros(sets.shape[0]), np.full(sets.shape[0], -1)
    columns = others.T.tocsr()
    step = max(1, BLOCK // max(1, others.shape[0]))
    for start in range(0, sets.shape[0], step):
        common = sets[start : start + step] @ columns
        row = row_of_value(common.indptr)
        shared = common.data.astype(np.float64)  # in float32 equal distances would differ
        found = shared / (size[start + row] + other_size[common.indices] - shared)
        if same:
            found[common.indices == start + row] = -1.0
        held = np.flatnonzero(np.diff(common.indptr))
        if not len(held):
            continue
        starts = common.indptr[held]
        best = np.zeros(common.shape[0], found.dtype)
        best[held] = np.maximum.reduceat(found, starts)
        first = np.where(found == best[row], common.indices, others.shape[0])
        near = held[best[held] > 0]
        similarity[start + near] = best[near]
        index[start + near] = np.minimum.reduceat(first, starts)[best[held] > 0]
    return 1.0 - similarity, index


def copied(release: Coded, known: Coded, n_codes: int) -> np.ndarray:
    """Whether a released visit of 5 codes or more has the very set of codes of a known visit, [n_visits]."""
    names = np.random.default_rng(0xC0B1).integers(0, 2**63, n_codes, dtype=np.uint64)
    ours, theirs = (_fingerprints(part, names) for part in (release, known))
    return (release.lengths >= COPY_CODES) & np.isin(ours, theirs[known.lengths >= COPY_CODES])


def _fingerprints(visits: Coded, names: np.ndarray) -> np.ndarray:
    """A number for each visit's set of codes: sums of random 64-bit numbers, equal for equal sets."""
    sums = np.r_[np.uint64(0), np.cumsum(names[visits.codes], dtype=np.uint64)]
    return sums[visits.offsets[1:]] - sums[visits.offsets[:-1]]
