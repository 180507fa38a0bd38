"""Ragged arrays: rows of different lengths as one flat array of values and the offsets of the rows.

Row i of `values` is values[offsets[i] : offsets[i + 1]]. Visits are rows of codes, patients rows of visits.
"""

import numpy as np


def ragged_range(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of starts[i], starts[i] + 1, ... of lengths[i] numbers each."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def row_offsets(lengths: np.ndarray) -> np.ndarray:
    """Offsets [n + 1] of rows of these lengths."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def select_rows(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of `rows`, in that order."""
    lengths = np.diff(offsets)[rows]
    return values[ragged_range(offsets[:-1][rows], lengths)], row_offsets(lengths)


def join_rows(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Row-wise concatenation of ragged arrays (values, lengths); returns values and lengths."""
    lengths = np.sum([length for _, length in parts], axis=0).astype(np.int64)
    out = np.empty(int(lengths.sum()), np.int64)
    position = row_offsets(lengths)[:-1].copy()
    for values, length in parts:
        out[ragged_range(position, length)] = values
        position += length
    return out, lengths


def positions_in_rows(lengths: np.ndarray) -> np.ndarray:
    """0, 1 ... length - 1 for each row, end to end: the position of each value in its row [n_values]."""
    return ragged_range(np.zeros(len(lengths), np.int64), lengths)


def row_of_value(offsets: np.ndarray) -> np.ndarray:
    """Number of the row that holds each value [n_values]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def patient_of_visit(visit: np.ndarray) -> np.ndarray:
    """Number of the patient of each visit [n_visits], from the visits' own numbers 0, 1 ... in a patient."""
    return np.cumsum(np.asarray(visit) == 0) - 1
