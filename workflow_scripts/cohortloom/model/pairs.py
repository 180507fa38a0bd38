"""What a fresh model knows of two codes in one visit: embeddings and direct weights from counts of pairs.

The log ratio of how often two codes share a training visit to how often they would by chance is a symmetric
matrix. Its largest eigenvalues, with their vectors, give each code an embedding whose products with others
are near those log ratios: what word embeddings are trained towards (Levy and Goldberg 2014), here counted
within seconds instead of learnt.
"""

import numpy as np
import torch
from scipy.sparse.linalg import eigsh

from cohortloom.base.ragged import row_of_value
from cohortloom.base.seeds import generator
from cohortloom.data.coded import indicators, most_frequent
from cohortloom.data.examples import Examples

MOST_CODES = 8000  # the most frequent: the matrix of pairs is dense
STRENGTH = 0.15  # of the log ratios, in the logits at the start: known codes say partly the same


@torch.no_grad()
def start_from_pairs(model, data: Examples, seed: int) -> None:
    """Set embeddings of codes and `summary.pairs` in place, from training visits `data`.

    Every embedding keeps the length that embeddings have at random, which the other layers expect.
    """
    table = model.model.shared.weight
    codes = np.sort(most_frequent(data.ids, int(data.ids.max()) + 1, MOST_CODES))
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
    """Log of how often two codes share a visit over how often by chance, float32 [codes, codes].

    One visit is added to both, so that what is seldom expected says little. The diagonal is 0: no code
    occurs twice in a visit.
    """
    held = indicators(row_of_value(data.offsets), data.ids, codes, int(data.ids.max()) + 1, len(data))
    together, alone = (held.T @ held).toarray(), np.asarray(held.sum(0)).ravel()
    ratios = np.log((together + 1) / (np.outer(alone, alone) / len(data) + 1))
    np.fill_diagonal(ratios, 0.0)
    return ratios.astype(np.float32)


def largest_eigenvalues(matrix: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The `size` eigenvalues of a symmetric matrix [n, n] that are largest in size, and vectors [n, size]."""
    start = generator("pairs", seed).standard_normal(len(matrix))
    return eigsh(matrix, size, which="LM", v0=start, tol=1e-3)
