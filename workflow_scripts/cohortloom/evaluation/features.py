"""Visits as rows of numbers that a classifier reads: the most frequent codes, their count, age and sex."""

import numpy as np
from scipy import sparse

from cohortloom.data.coded import Coded


def frequent(visits: Coded, n_codes: int, top: int) -> np.ndarray:
    """The `top` most frequent codes of a set, most frequent first; ties go to the earlier code."""
    counts = np.bincount(visits.codes, minlength=n_codes)
    order = np.argsort(-counts, kind="stable")[:top]
    return order[counts[order] > 0]


def code_matrix(visits: Coded, codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    """1 where a visit holds a code, [n_visits, len(codes)]."""
    column = np.full(n_codes, -1)
    column[codes] = np.arange(len(codes))
    where = column[visits.codes]
    known = where >= 0
    rows = visits.visit_of_code[known]
    shape = (visits.n_visits, len(codes))
    return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, where[known])), shape=shape)


def demographics(visits: Coded) -> np.ndarray:
    """Age in units of 100 years and sex (0 F, 1 M), [n_visits, 2]."""
    return np.stack([visits.age / 100, visits.sex], axis=1).astype(np.float32)
