"""Figures of diagnoses together with procedures and medications."""

import numpy as np
import pyarrow as pa
import pytest

from cohortloom.data.coded import encode_columns
from cohortloom.evaluation.across import cross_pairs, pairs_between
from cohortloom.evaluation.fidelity import fidelity
from cohortloom.evaluation.utility import cross_prediction
from grammar import whole_visits

COLUMNS = ["diagnoses", "procedures", "medications"]


def shuffled(visits: pa.Table, column: str) -> pa.Table:
    """The visits with one column dealt out anew: its own figures stay, what goes with what is lost."""
    order = pa.array(np.random.default_rng(0).permutation(len(visits)))
    return visits.set_column(visits.column_names.index(column), column, visits[column].take(order))


def figures(release: pa.Table, other: int) -> dict[str, float]:
    """Figures of column `other` of a release against training and held-out visits."""
    tables = [whole_visits(3000, 1), whole_visits(800, 2), release]
    (train, real, scored), _, column = encode_columns(tables, COLUMNS)
    found = [
        *cross_pairs(train, scored, column, other, 0),
        *cross_prediction(train, real, scored, column, other, 0),
    ]
    own = [part.where(column == other) for part in (train, scored)]
    found += [f for f in fidelity(*own, len(column), 0) if f.metric in ("js_distance", "ks_codes_per_visit")]
    return {figure.metric: figure.estimate.value for figure in found if not figure.subset}


@pytest.mark.parametrize("other", [1, 2])
def test_shuffled_columns_keep_their_own_figures_and_lose_the_pairs(other):
    release = whole_visits(800, 3)
    good, bad = figures(release, other), figures(shuffled(release, COLUMNS[other]), other)
    for own in ("js_distance", "ks_codes_per_visit"):
        assert bad[own] == pytest.approx(good[own], abs=1e-9)
    assert 1 - bad["cross_pair_r2"] > 3 * (1 - good["cross_pair_r2"])
    assert abs(good["cross_cooccurrence_ratio"] - 1) < 0.1 < abs(bad["cross_cooccurrence_ratio"] - 1)
    assert good["cross_prediction_auc"] > 0.95 and bad["cross_prediction_auc"] < 0.8


def test_a_release_without_procedures_is_caught():
    release = whole_visits(800, 3)
    empty = pa.array([[] for _ in range(len(release))], pa.list_(pa.string()))
    release = release.set_column(release.column_names.index("procedures"), "procedures", empty)
    found = figures(release, 1)
    assert found["cross_prediction_auc"] == pytest.approx(0.5)
    assert np.isnan(found["cross_pair_r2"]) or found["cross_pair_r2"] < 0


def test_pairs_are_of_a_diagnosis_and_a_code_of_the_other_column():
    (visits,), names, column = encode_columns([whole_visits(200, 0)], COLUMNS)
    visit, keys = pairs_between(visits, column, 2)
    first, second = np.divmod(keys, len(names))
    assert set(column[first]) == {0} and set(column[second]) == {2}
    lengths = np.zeros((visits.n_visits, 3), int)
    np.add.at(lengths, (visits.visit_of_code, column[visits.codes]), 1)
    assert (np.bincount(visit, minlength=visits.n_visits) == lengths[:, 0] * lengths[:, 2]).all()
