"""Feature matrices of visits for classifiers: codes, age and sex."""

import numpy as np
from scipy import sparse

from cohortloom.data.coded import Coded, indicators


def code_matrix(visits: Coded, codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    """0/1 matrix [n_visits, len(codes)]: 1 where a visit holds a code."""
    return indicators(visits.visit_of_code, visits.codes, codes, n_codes, visits.n_visits)


def demographics(visits: Coded) -> np.ndarray:
    """Age in units of 100 years and sex (0 F, 1 M), [n_visits, 2]."""
    return np.stack([visits.age / 100, visits.sex], axis=1).astype(np.float32)
