"""95% intervals over patients by the delete-a-group jackknife.

A percentile bootstrap draws patients repeatedly, so a replicate has fewer distinct codes than the sample:
distances grow, overlaps and R² shrink, and the interval misses the figure itself. The jackknife leaves out
one of 20 seeded groups of patients, which changes the size of the sample by only 5%, and uses the spread of
the replicates, not their centre: variance = (G - 1) / G * sum (replicate - mean of replicates)², with
Student's t on G - 1 degrees of freedom.

The interval covers the sampling of the scored patients; the reference set counts as fixed. Measured on real
against real (60 samples of 2,000 NHDS visits), its coverage is 98% for distances and R², 97% for KS, 95% for
means and 90% for the rarest deciles of codes; for overlaps of top codes it is twice too wide.
"""

import math
import statistics
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95% interval and the number of scored units; NaN where undefined."""

    value: float
    low: float
    high: float
    n: int


UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0)  # of a figure without any data


def without_each(counts: np.ndarray) -> np.ndarray:
    """Totals and leave-one-group-out totals [..., 1 + groups] of counts by group [..., groups]."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.concatenate([total, total - counts], axis=-1)


def interval(
    replicates: np.ndarray, n: int, low: float = -np.inf, high: float = np.inf, level: float = LEVEL
) -> Estimate:
    """Estimate from a statistic on the whole sample and without each group, [1 + groups].

    `low` and `high` are the bounds of the statistic. The interval is NaN for fewer than two groups and for an
    undefined replicate.
    """
    value, others = float(replicates[0]), np.asarray(replicates[1:], float)
    groups = len(others)
    if groups < 2 or not np.isfinite(others).all():
        return Estimate(value, np.nan, np.nan, n)
    spread = np.sqrt((groups - 1) / groups * ((others - others.mean()) ** 2).sum())
    half = stdtrit(groups - 1, (1 + level) / 2) * spread
    return Estimate(value, float(max(low, value - half)), float(min(high, value + half)), n)


def ratio(
    numerator: np.ndarray, denominator: np.ndarray, n: int, high: float = np.inf, per: float = 1.0
) -> Estimate:
    """Estimate of a rate per `per` units from sums by group [groups]; NaN if the denominator is 0.

    With a numerator of 0 the replicates cannot vary; the upper end is then 3 events over the denominator (the
    rule of three, a 95% bound).
    """
    above, below = without_each(np.asarray(numerator, float)), without_each(np.asarray(denominator, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = interval(per * above / below, n, 0.0, high)
    if above[0] == 0 and below[0] > 0:
        return Estimate(0.0, 0.0, float(min(high, per * 3.0 / below[0])), n)
    return estimate


def mean_interval(values: list[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Mean of the figures of several seeds, and Student's t interval; infinitely wide for one value.

    >>> [round(x, 2) for x in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, -np.inf, np.inf
    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(values) / n**0.5
    return mean, mean - half, mean + half
