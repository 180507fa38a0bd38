"""Audit of the removal of race: what the kept columns still tell of it, in rates.

Race is not passed on, and yet codes, age and sex may tell of it. A regression that learns race on real
training patients says how far, and what mix of groups the synthetic visits look like. The distance of each
group's held-out visits to the release says whom it resembles least.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from cohortloom.data.coded import Coded
from cohortloom.evaluation.features import code_matrix, demographics, frequent
from cohortloom.evaluation.fidelity import code_table, distances
from cohortloom.evaluation.intervals import Estimate, interval, ratio
from cohortloom.evaluation.scores import auc, replicates

FEATURES = 500
Figure = tuple[str, str, Estimate, int, bool | None]


def audit(
    train: Coded,
    test: Coded,
    release: Coded,
    groups: tuple[np.ndarray, np.ndarray],
    names: Sequence[str],
    n_codes: int,
    seed: int,
    least: int,
    real: bool,
) -> Iterator[Figure]:
    """Figures by group; `groups` are those of the training and test visits, below 0 where unknown.

    A group of fewer than `least` patients in either set is not reported, and counts among nobody. How well
    race is told is a figure of the real data: it is given where the release is `real`.
    """
    of_train, of_test = groups
    shown = [
        number
        for number in range(len(names))
        if min(
            len(np.unique(part.patient[of == number])) for part, of in ((train, of_train), (test, of_test))
        )
        >= least
    ]
    if len(shown) < 2:
        return
    codes = frequent(train, n_codes, FEATURES)
    rows = {name: _features(part, codes, n_codes) for name, part in (("train", train), ("test", test))}
    known = np.isin(of_train, shown)
    model = LogisticRegression(max_iter=100).fit(rows["train"][known], of_train[known])
    if real:
        inside = np.isin(of_test, shown)
        chance = model.predict_proba(rows["test"][inside])
        jackknife, n_groups = test.groups(seed)
        for column, number in enumerate(model.classes_):
            truth, score = of_test[inside] == number, chance[:, column]
            found = replicates(
                lambda kept, t=truth, s=score: auc(t[kept], s[kept]), jackknife[inside], n_groups
            )
            yield "race_auc", names[number], interval(found, len(truth), 0.0, 1.0), int(known.sum()), None
    jackknife, n_groups = release.groups(seed)
    chance = model.predict_proba(_features(release, codes, n_codes))
    visits = np.bincount(jackknife, minlength=n_groups)
    for column, number in enumerate(model.classes_):
        share = ratio(np.bincount(jackknife, chance[:, column], n_groups), visits, release.n_visits, 1.0)
        yield "race_predicted_share", names[number], share, int(known.sum()), None
    counts = np.bincount(release.codes, minlength=n_codes)
    of_patient, n_groups = test.groups(seed)
    for number in shown:
        chosen = of_test == number
        table = code_table(test, n_codes, of_patient, n_groups, chosen)
        n = int(chosen.sum())
        yield (
            "race_js_distance",
            names[number],
            interval(distances(counts, table), n, 0.0),
            release.n_visits,
            False,
        )


def _features(visits: Coded, codes: np.ndarray, n_codes: int) -> sparse.csr_matrix:
    parts = [code_matrix(visits, codes, n_codes), sparse.csr_matrix(demographics(visits))]
    return sparse.hstack(parts, format="csr").astype(np.float64)
