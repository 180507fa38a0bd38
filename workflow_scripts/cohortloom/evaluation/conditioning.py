"""How much the codes of a visit depend on age and sex.

Probes: regressions trained on real training visits predict age and sex from the codes of a visit. If the
codes of a release depend on age and sex as real codes do, its figures equal those of held-out real visits.

Flips: how much the codes of the same people change with the other sex, or another age. A model generates the
first visits of the same people twice, with both traits. With the same seeds a model that ignores the trait
generates identical visits: `change` is then 0. The `js` distance compares sides with different seeds, because
shared seeds correlate the sides and real data have no seed. Its reference comes from data with both sides:
visits of women and of men of the same age band, of young and of old adults of the same sex, matched one to
one. It depends on the number of pairs, so every set is cut to the same number.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from scipy.spatial.distance import jensenshannon
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score

from cohortloom.base.ragged import row_of_value
from cohortloom.data import bands
from cohortloom.data.coded import Coded, most_frequent, patient_groups
from cohortloom.evaluation.features import code_matrix
from cohortloom.evaluation.intervals import UNDEFINED, interval, ratio, without_each
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.scores import auc, replicates

FEATURES = 1000
YOUNG, OLD = (18.0, 45.0), (65.0, 91.0)  # years; the two sides of the flip of age
NO_PAIR = {
    "sex": "no woman and man of one band of age to compare",
    "age": "no adult under 45 and one of 65 and over of one sex to compare",
    "none": "no pair of patients to compare",
}
Codes = tuple[np.ndarray, np.ndarray]  # flat codes of n visits, offsets [n + 1]


def probes(train: Coded, scored: Coded, n_codes: int, seed: int) -> Iterator[Figure]:
    """How well codes predict sex (AUC) and age (R², mean error in years) of scored visits."""
    codes = most_frequent(train.codes, n_codes, FEATURES)
    train_rows, rows = (code_matrix(part, codes, n_codes) for part in (train, scored))
    groups, n_groups = scored.groups(seed)
    n, n_train = scored.n_visits, train.n_visits
    if not n or not len(codes):
        reason = "no training visit holds a code" if n else "there is no visit to score"
        for metric in ("probe_sex_auc", "probe_age_r2", "probe_age_error_years"):
            yield Figure(metric, "", replace(UNDEFINED, n=n), n_train, reason=reason)
        return
    men = scored.sex == 1
    if len(np.unique(train.sex)) < 2 or len(np.unique(men)) < 2:
        side = "training" if len(np.unique(train.sex)) < 2 else "scored"
        estimate, reason = replace(UNDEFINED, n=n), f"the {side} visits are of one sex alone"
    else:
        sex = LogisticRegression(max_iter=200).fit(train_rows, train.sex).decision_function(rows)
        aucs = replicates(lambda mask: auc(men[mask], sex[mask]), groups, n_groups)
        estimate, reason = interval(aucs, n, 0.0, 1.0), None
    yield Figure("probe_sex_auc", "", estimate, n_train, reason=reason)
    age = np.clip(Ridge(alpha=1.0).fit(train_rows, train.age).predict(rows), 0, 90)

    def r2(mask: np.ndarray) -> float:
        return r2_score(scored.age[mask], age[mask]) if len(np.unique(scored.age[mask])) > 1 else np.nan

    estimate = interval(replicates(r2, groups, n_groups), n, high=1.0)
    yield Figure("probe_age_r2", "", estimate, n_train, reason="the scored visits are of one age")
    error = np.abs(scored.age - age)
    means = replicates(lambda mask: error[mask].mean() if mask.any() else np.nan, groups, n_groups)
    yield Figure("probe_age_error_years", "", interval(means, n, 0.0), n_train)


def matched_pairs(
    age: np.ndarray, sex: np.ndarray, flip: str, max_pairs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of people, drawn at random: two arrays of row numbers, `max_pairs` at most.

    flip sex: a woman and a man of the same fine age band. flip age: a young and an old adult of the same sex.
    flip none: two people of the same age band and sex, which gives the distance by chance.
    """
    rng = np.random.default_rng([seed, 0xF11B])
    order = rng.permutation(len(age))
    band = bands.band(age)
    if flip == "sex":
        stratum, sides = band, (sex == 0, sex == 1)
    elif flip == "age":
        stratum = sex
        sides = tuple((age >= low) & (age < high) for low, high in (YOUNG, OLD))
    else:
        half = rng.random(len(age)) < 0.5
        stratum, sides = 2 * band + sex, (half, ~half)
    parts = []
    for number in np.unique(stratum):
        one, other = (order[(stratum[order] == number) & side[order]] for side in sides)
        n = min(len(one), len(other))
        parts.append(np.stack([one[:n], other[:n]], axis=1))
    joined = rng.permutation(np.concatenate(parts) if parts else np.empty((0, 2), np.int64))[:max_pairs]
    return joined[:, 0], joined[:, 1]


def observed_sides(visits: Coded, max_pairs: int, seed: int) -> Iterator[tuple[str, Codes, Codes]]:
    """(flip, codes of one side, codes of the other) of matched pairs of first visits in the data."""
    first = visits.first_visits
    for flip in ("sex", "age", "none"):
        one, other = matched_pairs(visits.age[first], visits.sex[first], flip, max_pairs, seed)
        yield flip, visits.codes_of(first[one]), visits.codes_of(first[other])


def generated_sides(
    people: Coded, generate: Callable[[np.ndarray, np.ndarray, int], Codes], max_pairs: int, seed: int
) -> Iterator[tuple[str, Codes, Codes]]:
    """(side, codes of one side, codes of the other) of visits that a model generates for the same people.

    The side is the flip, or `same_seed_<flip>` where the two sides have the same seeds. generate: takes ages,
    sexes and a seed and returns the codes of one first visit each. The people are those of the pairs of
    `observed_sides`, so that ages and the number of pairs agree. With flip `none` only the seed changes.
    """
    first = people.first_visits
    age, sex = people.age[first], people.sex[first]
    for flip in ("sex", "age"):
        one, other = matched_pairs(age, sex, flip, max_pairs, seed)
        if not len(one):
            empty = (np.empty(0, np.int64), np.zeros(1, np.int64))
            for name in (f"same_seed_{flip}", flip, *(["none"] if flip == "sex" else [])):
                yield name, empty, empty
            continue
        plain, again = (generate(age[one], sex[one], number) for number in (seed, seed + 1))
        flipped = (
            generate(age[one], 1 - sex[one], seed) if flip == "sex" else generate(age[other], sex[one], seed)
        )
        yield f"same_seed_{flip}", plain, flipped
        yield flip, again, flipped
        if flip == "sex":
            yield "none", plain, again


def flips(sides: Iterator[tuple[str, Codes, Codes]], n_codes: int, seed: int) -> Iterator[Figure]:
    """Distance of the two sides, with an interval over pairs.

    Jensen-Shannon distance (natural log) of the code counts; for sides with the same seeds the mean of
    1 - Jaccard of the two visits of a pair.
    """
    for side, one, other in sides:
        flip, n = side.removeprefix("same_seed_"), len(one[1]) - 1
        reason = "a side holds no code" if n else NO_PAIR[flip]
        groups = patient_groups(n, seed)
        n_groups = int(groups.max(initial=-1)) + 1
        if side != flip:
            change = _change(one, other, n_codes)
            sums = np.bincount(groups, change, n_groups), np.bincount(groups, minlength=n_groups)
            yield Figure(f"flip_{flip}_change", "", ratio(*sums, n, 1.0), n, reason=reason)
            continue
        tables = []
        for codes, offsets in (one, other):
            group = np.repeat(groups, np.diff(offsets))
            counts = np.bincount(codes * n_groups + group, minlength=n_codes * n_groups)
            tables.append(without_each(counts.reshape(n_codes, n_groups)).T)
        columns = zip(*tables, strict=True)
        distances = [jensenshannon(p, q) if p.any() and q.any() else np.nan for p, q in columns]
        yield Figure(f"flip_{flip}_js", "", interval(np.array(distances), n, 0.0), n, reason=reason)


def _change(one: Codes, other: Codes, n_codes: int) -> np.ndarray:
    """1 - Jaccard of each pair of visits, [n_pairs]; 0 for two empty visits."""
    keys = [np.unique(row_of_value(offsets) * n_codes + codes) for codes, offsets in (one, other)]
    n = len(one[1]) - 1
    common, either = (
        np.bincount(part // n_codes, minlength=n) for part in (np.intersect1d(*keys), np.union1d(*keys))
    )
    return 1 - np.divide(common, either, out=np.ones(n), where=either > 0)
