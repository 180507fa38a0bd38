"""The naive method linear: each code of a visit is predicted from all others by ridge regression.

EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"), with more inputs than outputs. For
inputs X [visits, inputs] of training visits, P = (X'X + penalty I)^-1 and B = I - P diag(1 / diag P). Column
j of B is the ridge regression of input j on all others, so no code predicts itself. Inputs are 0 or 1, in
three blocks: codes of this visit, codes of the patient's earlier visits, group of age and sex. Outputs are
the codes of this visit.

Penalty and threshold are chosen on validation visits; weights come from training visits alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from cohortloom.base.ragged import ragged_range
from cohortloom.data.bands import N_GROUPS, group_of
from cohortloom.data.coded import Coded, indicators, most_frequent
from cohortloom.data.guesses import NONE, Guesses, best_threshold, highest

PENALTIES = (10.0, 30.0, 100.0, 300.0)
MAX_CODES = 8000  # columns of a block of codes: memory grows with the square, time with the cube
MIN_VISITS = 5  # with a code: the penalty shrinks the weights of rarer codes to nothing
BATCH = 1024  # visits scored at once


class LinearFit(NamedTuple):
    """The model, and its penalty and the threshold of its scores as chosen on validation visits."""

    linear: "Linear"
    penalty: float
    threshold: float


@dataclass(frozen=True)
class Linear:
    """Weights [n_inputs, n_outputs] and the codes of its columns, out of a list of `n_codes`.

    present: codes of this visit, inputs and outputs. earlier: codes of earlier visits, inputs only.
    """

    weights: np.ndarray
    present: np.ndarray
    earlier: np.ndarray
    n_codes: int

    @classmethod
    def learn(cls, visits: Coded, n_codes: int, penalty: float) -> "Linear":
        """Weights fitted on training visits, whose codes index a list of `n_codes`."""
        present = most_frequent(visits.codes, n_codes, MAX_CODES, MIN_VISITS)
        earlier = most_frequent(earlier_codes(visits)[1], n_codes, MAX_CODES, MIN_VISITS)
        inputs = as_inputs(visits, present, earlier, n_codes)
        return cls(closed_form(inputs, len(present), penalty), present, earlier, n_codes)

    @property
    def of_present(self) -> np.ndarray:
        """Weights of the codes of this visit [present, n_outputs]."""
        return self.weights[: len(self.present)]

    @property
    def of_earlier(self) -> np.ndarray:
        """Weights of the codes of earlier visits [earlier, n_outputs]."""
        return self.weights[len(self.present) : len(self.present) + len(self.earlier)]

    @property
    def of_groups(self) -> np.ndarray:
        """Weights of the groups of age and sex [N_GROUPS, n_outputs]."""
        return self.weights[len(self.present) + len(self.earlier) :]

    def guesses(self, visits: Coded, revealed: np.ndarray) -> Guesses:
        """Scored guesses of the hidden codes of visits; `revealed` [codes of all visits] bool."""
        return highest(self.scores(visits, revealed), visits.codes, visits.offsets, revealed)

    def scores(self, visits: Coded, revealed: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of visit numbers [n] and the score of every code [n, n_codes]."""
        inputs = as_inputs(visits, self.present, self.earlier, self.n_codes, revealed)
        for start in range(0, visits.n_visits, BATCH):
            rows = np.arange(start, min(start + BATCH, visits.n_visits))
            scores = np.full((len(rows), self.n_codes), NONE, np.float32)
            scores[:, self.present] = inputs[rows] @ self.weights
            yield rows, scores


def fit_linear(
    visits: Coded,
    validation: Coded,
    n_codes: int,
    revealed: np.ndarray,
    penalties: tuple[float, ...] = PENALTIES,
) -> LinearFit:
    """The model with the penalty and the threshold of the best F1 on hidden codes of the validation visits.

    revealed [codes of the validation visits] bool: which are known.
    """
    n_hidden, best_f1, best_fit = int((~revealed).sum()), -1.0, None
    for penalty in penalties:
        linear = Linear.learn(visits, n_codes, penalty)
        threshold, f1 = best_threshold(linear.guesses(validation, revealed), n_hidden)
        if f1 > best_f1:
            best_f1, best_fit = f1, LinearFit(linear, penalty, threshold)
    return best_fit


def closed_form(inputs: sparse.csr_matrix, n_outputs: int, penalty: float) -> np.ndarray:
    """The first `n_outputs` columns of B, float32 [n_inputs, n_outputs]; `inputs` is X [visits, n_inputs]."""
    gram = (inputs.T @ inputs).toarray(order="F").astype(np.float64, copy=False)
    np.fill_diagonal(gram, gram.diagonal() + penalty)
    # The matrix is positive definite: Cholesky takes half the work of a general inverse, in the same memory.
    factor, _ = lapack.dpotrf(gram, lower=1, overwrite_a=1)
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)  # only the lower triangle is filled
    weights = inverse[:, :n_outputs].astype(np.float32)
    for j in range(n_outputs):
        weights[:j, j] = inverse[j, :j]
    weights /= -inverse.diagonal()[:n_outputs].astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return weights


def as_inputs(
    visits: Coded, present: np.ndarray, earlier: np.ndarray, n_codes: int, revealed: np.ndarray | None = None
) -> sparse.csr_matrix:
    """X [n_visits, present + earlier + groups] of 0 and 1. A code without a column is left out.

    revealed [codes of all visits] bool: the codes of this visit that are inputs, all by default. The codes of
    earlier visits are always inputs.
    """
    row, code = visits.visit_of_code, visits.codes
    if revealed is not None:
        row, code = row[revealed], code[revealed]
    all_visits = np.arange(visits.n_visits)
    group = group_of(visits.age, visits.sex)
    blocks = [
        indicators(row, code, present, n_codes, visits.n_visits),
        indicators(*earlier_codes(visits), earlier, n_codes, visits.n_visits),
        indicators(all_visits, group, np.arange(N_GROUPS), N_GROUPS, visits.n_visits),
    ]
    return sparse.hstack(blocks, format="csr")


def earlier_codes(visits: Coded) -> tuple[np.ndarray, np.ndarray]:
    """Visit and code [n] of every distinct code of a visit's earlier visits."""
    begin = visits.offsets[visits.first_visits[visits.patient]]
    lengths = visits.offsets[:-1] - begin
    width = int(visits.codes.max(initial=0)) + 1
    row = np.repeat(np.arange(visits.n_visits), lengths)
    return np.divmod(np.unique(row * width + visits.codes[ragged_range(begin, lengths)]), width)
