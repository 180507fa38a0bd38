"""Intervals: as wide as the sampling makes figures vary, where a plain bootstrap misses the figure itself."""

import numpy as np
import pytest
from scipy import stats

from cohortloom.data.coded import patient_groups
from cohortloom.evaluation.fidelity import distances, ks_distances, r2_of_shares, top_overlap
from cohortloom.evaluation.intervals import interval, ratio, without_each
from cohortloom.evaluation.records import FIELDS, record

N_CODES, N_PATIENTS, GROUPS = 400, 800, 20


def draw(rng: np.random.Generator, n: int, probabilities: np.ndarray) -> np.ndarray:
    """Codes of n patients, [n, codes] of bool."""
    return rng.random((n, len(probabilities))) < probabilities


def world() -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    probabilities = 0.6 / np.arange(1, N_CODES + 1) ** 0.9
    return rng, probabilities, draw(rng, 8000, probabilities).sum(axis=0)


def by_group(sample: np.ndarray, seed: int) -> np.ndarray:
    groups = patient_groups(len(sample), seed)
    return np.stack([sample[groups == group].sum(axis=0) for group in range(GROUPS)], axis=1)


@pytest.mark.parametrize("metric", ["js_distance", "unigram_r2", "top", "ks"])
def test_intervals_cover_real_against_real(metric):
    rng, probabilities, reference = world()
    lengths = rng.poisson(7, 8000)
    found = []
    for seed in range(100):
        if metric == "ks":
            values, groups = rng.poisson(7.3, N_PATIENTS), patient_groups(N_PATIENTS, seed)
            replicates = ks_distances(lengths, values, groups, GROUPS)
        else:
            table = by_group(draw(rng, N_PATIENTS, probabilities), seed)
            visits = np.full(GROUPS, N_PATIENTS // GROUPS)
            every = np.arange(N_CODES)
            if metric == "js_distance":
                replicates = distances(reference, table)
            elif metric == "top":
                replicates = np.array([top_overlap(reference, column) for column in without_each(table).T])
            else:
                replicates = r2_of_shares(every, reference, 8000, every, table, visits)
        found.append(interval(replicates, N_PATIENTS))
    truth = np.mean([one.value for one in found])
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered >= 0.9
    # Never too narrow, and not so wide as to say nothing: a figure that jumps (an overlap) is the widest.
    spread = np.std([one.value for one in found])
    width = np.mean([one.high - one.low for one in found]) / 2 / stats.t.ppf(0.975, GROUPS - 1)
    assert 0.85 < width / spread < (3 if metric == "top" else 1.7)


def test_a_plain_bootstrap_misses_the_figure_itself():
    rng, probabilities, reference = world()
    inside = []
    for _ in range(20):
        sample = draw(rng, N_PATIENTS, probabilities)
        value = distances(reference, sample.sum(axis=0)[:, None])[0]
        drawn = [
            distances(reference, sample[rng.integers(0, N_PATIENTS, N_PATIENTS)].sum(axis=0)[:, None])[0]
            for _ in range(60)
        ]
        inside.append(np.percentile(drawn, 2.5) <= value <= np.percentile(drawn, 97.5))
        estimate = interval(distances(reference, by_group(sample, 1)), N_PATIENTS)
        assert estimate.low <= value <= estimate.high
    assert np.mean(inside) < 0.2


def test_the_jackknife_of_a_mean_is_the_textbook_interval():
    values = np.random.default_rng(1).normal(3, 1, GROUPS)
    estimate = ratio(values, np.ones(GROUPS), 77)
    half = stats.t.ppf(0.975, GROUPS - 1) * values.std(ddof=1) / np.sqrt(GROUPS)
    assert estimate.value == pytest.approx(values.mean(), abs=1e-9)
    assert (estimate.low, estimate.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=1e-9
    )
    assert estimate.n == 77


def test_a_rate_of_zero_has_an_upper_end():
    estimate = ratio(np.zeros(20), np.full(20, 50), 1000, 1.0)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, pytest.approx(3 / 1000))
    assert ratio(np.zeros(20), np.full(20, 50), 1000, per=1e5).high == pytest.approx(300)
    assert np.isnan(ratio(np.zeros(20), np.zeros(20), 0).value)
    assert ratio(np.zeros(20), np.full(20, 0.1), 0, 1.0).high == 1.0


def test_groups_are_even_seeded_and_no_more_than_patients():
    groups = patient_groups(103, 5)
    assert set(np.bincount(groups)) == {5, 6}
    assert (groups == patient_groups(103, 5)).all() and (groups != patient_groups(103, 6)).any()
    assert sorted(patient_groups(3, 0)) == [0, 1, 2]
    lonely = interval(np.array([0.5]), 1)
    assert lonely.value == 0.5 and np.isnan(lonely.low)


def test_records_hold_every_field_and_no_nan():
    made = record("r", 1, "synthesize", "m", "", float("nan"), -np.inf, 1.0, np.int64(5), None, True)
    assert tuple(made) == FIELDS
    assert made["value"] is None and made["ci_low"] is None and made["ci_high"] == 1.0
    assert type(made["n"]) is int and made["pass"] is None
