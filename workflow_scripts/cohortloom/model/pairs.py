"""Pairs of codes in a fresh model: embeddings and weights that start from how often two codes share a visit.

For each pair of codes, take the number of training visits with both over the number expected by chance; the
log ratios are a symmetric matrix. Its largest eigenvalues and their vectors give each code an embedding, and
the products of two embeddings approximate the log ratios. Word embeddings are trained towards the same (Levy
and Goldberg 2014); counting takes seconds.
"""

import numpy as np
import torch
from scipy.sparse.linalg import eigsh

from cohortloom.base.ragged import row_of_value
from cohortloom.base.seeds import generator
from cohortloom.data.coded import indicators, most_frequent
from cohortloom.data.examples import Examples

MAX_CODES = 8000  # the most frequent codes: the matrix of pairs is dense
STRENGTH = 0.15  # of the log ratios in the logits; below 1, for the known codes of a visit are correlated


@torch.no_grad()
def initialize_pairs(model, data: Examples, seed: int) -> None:
    """Set embeddings of codes and `summary.pairs` in place, from training visits `data`.

    Every embedding gets the mean length of the random ones, which the other layers expect.
    """
    table = model.model.shared.weight
    codes = np.sort(most_frequent(data.ids, int(data.ids.max()) + 1, MAX_CODES))
    size = min(table.shape[1], len(codes)) - 1
    if size < 1:
        return
    values, vectors = largest_eigenvalues(log_ratios(data, codes), size, seed)
    factors = vectors * np.sqrt(np.abs(values))  # [codes, size]
    norms = np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-9)
    length = float(table[codes].norm(dim=1).mean())
    table[codes] = 0.0
    table[codes, :size] = torch.from_numpy(length * factors / norms).to(table)
    model.summary.pairs[:size] = torch.from_numpy(
        STRENGTH * np.sign(values) * (norms.mean() / length) ** 2
    ).to(table)


def log_ratios(data: Examples, codes: np.ndarray) -> np.ndarray:
    """Log of (visits with both codes + 1) / (such visits expected by chance + 1), float32 [codes, codes].

    The added visit keeps the ratios of rare codes near 1. The diagonal is 0: no code occurs twice in a visit.
    """
    held = indicators(row_of_value(data.offsets), data.ids, codes, int(data.ids.max()) + 1, len(data))
    with_both, with_code = (held.T @ held).toarray(), np.asarray(held.sum(0)).ravel()
    ratios = np.log((with_both + 1) / (np.outer(with_code, with_code) / len(data) + 1))
    np.fill_diagonal(ratios, 0.0)
    return ratios.astype(np.float32)


def largest_eigenvalues(matrix: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The `size` eigenvalues of largest magnitude of a symmetric matrix [n, n]; vectors [n, size]."""
    start = generator("pairs", seed).standard_normal(len(matrix))
    return eigsh(matrix, size, which="LM", v0=start, tol=1e-3)
