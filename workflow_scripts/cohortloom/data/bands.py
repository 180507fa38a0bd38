"""Bands of age: fine ones for the naive methods, broad ones for the tables of the report."""

import numpy as np

DAY = 1 / 365.25
# Lower ends in years. Births, the first month and the rest of the first year have codes of their own.
FINE = (0.0, 28 * DAY, 1.0, 5.0, 12.0, 18.0, 25.0, 35.0, 45.0, 55.0, 65.0, 75.0, 85.0)
BROAD = (0.0, 1.0, 18.0, 45.0, 65.0)
BROAD_NAMES = ("age under 1", "age 1-17", "age 18-44", "age 45-64", "age 65 and over")
SEX_NAMES = ("female", "male")
N_GROUPS = 2 * len(FINE)  # of age and sex


def band(ages: np.ndarray, edges: tuple[float, ...] = FINE) -> np.ndarray:
    """Number of the band of each age in years; the float32 of the table rounds a day at most."""
    return np.searchsorted(np.asarray(edges) - DAY / 2, np.asarray(ages, np.float64), side="right") - 1


def group_of(ages: np.ndarray, sexes: np.ndarray) -> np.ndarray:
    """Group [n] of ages in years and sexes (0 F, 1 M): the bands of `FINE`, women first."""
    return sexes * len(FINE) + band(ages)
