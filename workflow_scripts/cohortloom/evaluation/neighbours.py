"""Copies of sets of codes, and nearest neighbours by Jaccard distance, by blocks of sparse products.

Sets are the rows of 0/1 matrices. All pairs are compared, so the cost is the product of the numbers of rows;
callers pass samples.
"""

import numpy as np
from scipy import sparse

from cohortloom.base.ragged import row_of_value
from cohortloom.data.coded import Coded

COPY_CODES = 5  # least number of codes of a copy: shorter visits are equal by chance
BLOCK = 20_000_000  # pairs compared at once: some hundred megabytes


def set_matrix(items: np.ndarray, set_of_item: np.ndarray, n_sets: int, n_items: int) -> sparse.csr_matrix:
    """0/1 matrix [n_sets, n_items] of flat items and the set of each."""
    ones = np.ones(len(items), np.float32)
    return sparse.csr_matrix((ones, (set_of_item, items)), shape=(n_sets, n_items))


def nearest(
    sets: sparse.csr_matrix, others: sparse.csr_matrix, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard distance of each set to the nearest of the others, and the row of that one, [n_sets] each.

    Ties go to the first. An identical set counts, with distance 0. With `same` both are the same matrix, and
    a set is not its own neighbour. A set that shares no item with any other has distance 1 and neighbour -1.
    """
    size, other_size = (np.asarray(part.sum(axis=1)).ravel() for part in (sets, others))
    similarity, index = np.zeros(sets.shape[0]), np.full(sets.shape[0], -1)
    columns = others.T.tocsr()
    step = max(1, BLOCK // max(1, others.shape[0]))
    for start in range(0, sets.shape[0], step):
        common = sets[start : start + step] @ columns
        row = row_of_value(common.indptr)
        shared = common.data.astype(np.float64)  # in float32 equal distances would differ
        jaccard = shared / (size[start + row] + other_size[common.indices] - shared)
        if same:
            jaccard[common.indices == start + row] = -1.0
        non_empty = np.flatnonzero(np.diff(common.indptr))
        if not len(non_empty):
            continue
        starts = common.indptr[non_empty]
        best = np.zeros(common.shape[0], jaccard.dtype)
        best[non_empty] = np.maximum.reduceat(jaccard, starts)
        candidates = np.where(jaccard == best[row], common.indices, others.shape[0])
        has_neighbour = best[non_empty] > 0
        rows = non_empty[has_neighbour]
        similarity[start + rows] = best[rows]
        index[start + rows] = np.minimum.reduceat(candidates, starts)[has_neighbour]
    return 1.0 - similarity, index


def is_copy(release: Coded, real: Coded, n_codes: int) -> np.ndarray:
    """Bool [n_visits]: released visits of 5 codes or more whose set of codes a real visit has."""
    keys = np.random.default_rng(0xC0B1).integers(0, 2**63, n_codes, dtype=np.uint64)
    released_hash, real_hash = (_set_hashes(visits, keys) for visits in (release, real))
    return (release.lengths >= COPY_CODES) & np.isin(released_hash, real_hash[real.lengths >= COPY_CODES])


def _set_hashes(visits: Coded, keys: np.ndarray) -> np.ndarray:
    """A number for the set of codes of each visit: the sum of the codes' random 64-bit keys."""
    sums = np.r_[np.uint64(0), np.cumsum(keys[visits.codes], dtype=np.uint64)]
    return sums[visits.offsets[1:]] - sums[visits.offsets[:-1]]
