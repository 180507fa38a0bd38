"""How like the training visits a set of visits is: codes, pairs, sequences, lengths, gaps.

Every figure compares the scored set (a sample of whole patients) with all training visits, and carries a
95% interval over the scored patients. `[1 + groups]` below means: on the whole sample, then without each
jackknife group. Figures depend on the size of the sample, so they are compared with real data at the same n.
"""

from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp
from sklearn.metrics import r2_score

from cohortloom.data import bands
from cohortloom.data.coded import Coded, count_by_group, pairs_across, pairs_within
from cohortloom.evaluation.intervals import interval, ratio, without_each
from cohortloom.evaluation.records import Figure

TOP = 100
RARE_SHARE = 0.75
FEW_CODES = "fewer than two codes or pairs to compare"


def fidelity(
    train: Coded, scored: Coded, n_codes: int, seed: int, known_demographics: bool = True
) -> Iterator[Figure]:
    """All figures of a scored set's codes; both sets share a list of `n_codes` codes.

    Without `known_demographics` the strata by age and sex are left out.
    """
    groups, n_groups = scored.groups(seed)
    yield from code_figures(train, scored, n_codes, groups, n_groups)
    yield from pair_figures(train, scored, n_codes, groups, n_groups)
    yield from sequence_figures(train, scored, n_codes, groups, n_groups)
    yield from _shape("codes_per_visit", train.lengths, scored.lengths, groups, n_groups)
    if not known_demographics:
        return
    for subset, of_train, of_scored in strata(train, scored):
        counts = np.bincount(train.codes[of_train[train.visit_of_code]], minlength=n_codes)
        table = code_table(scored, n_codes, groups, n_groups, of_scored)
        visits = np.bincount(groups[of_scored], minlength=n_groups)
        n, n_train = int(of_scored.sum()), int(of_train.sum())
        reason = _missing("with a code in this group", counts.any(), table.any())
        distance = interval(distances(counts, table), n, 0.0)
        yield Figure("js_distance", subset, distance, n_train, False, reason)
        r2 = r2_of_shares(np.arange(n_codes), counts, n_train, np.arange(n_codes), table, visits)
        yield Figure("unigram_r2", subset, interval(r2, n, high=1.0), n_train, True, reason or FEW_CODES)


def strata(train: Coded, scored: Coded) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Names of the bands of age and of the sexes, with the visits of either set that fall into them."""
    of_train, of_scored = bands.band(train.age, bands.BROAD), bands.band(scored.age, bands.BROAD)
    for number, name in enumerate(bands.BROAD_NAMES):
        yield name, of_train == number, of_scored == number
    for number, name in enumerate(bands.SEX_NAMES):
        yield name, train.sex == number, scored.sex == number


def _missing(what: str, train: int, scored: int) -> str | None:
    """Why a figure has no value: which set has no visits of a kind. None where both have some."""
    if train and scored:
        return None
    sides = "the scored set has" if train else "the training set has" if scored else "both sets have"
    return f"{sides} no visit {what}".rstrip()


def code_table(
    visits: Coded, n_codes: int, groups: np.ndarray, n_groups: int, chosen: np.ndarray | None = None
) -> np.ndarray:
    """Visits that hold each code, by group [n_codes, n_groups]; of the chosen visits alone where given."""
    owner = visits.visit_of_code
    codes, group = visits.codes, groups[owner]
    if chosen is not None:
        codes, group = codes[chosen[owner]], group[chosen[owner]]
    return np.bincount(codes * n_groups + group, minlength=n_codes * n_groups).reshape(n_codes, n_groups)


def code_figures(
    train: Coded, scored: Coded, n_codes: int, groups: np.ndarray, n_groups: int
) -> Iterator[Figure]:
    """Distances, overlap, R² and prevalence of single codes."""
    counts = np.bincount(train.codes, minlength=n_codes)
    table = code_table(scored, n_codes, groups, n_groups)
    visits = np.bincount(groups, minlength=n_groups)
    n, n_train, every = scored.n_visits, train.n_visits, np.arange(n_codes)
    reason = _missing("with a code", counts.any(), table.any())
    yield Figure("js_distance", "", interval(distances(counts, table), n, 0.0), n_train, False, reason)
    divergence = interval(distances(counts, table, base=2) ** 2, n, 0.0, 1.0)
    yield Figure("js_divergence", "", divergence, n_train, False, reason)
    top = np.array([top_overlap(counts, column) for column in without_each(table).T])
    yield Figure(f"top{TOP}_overlap", "", interval(top, n, 0.0, 1.0), n_train, True, reason)
    r2 = r2_of_shares(every, counts, n_train, every, table, visits)
    yield Figure("unigram_r2", "", interval(r2, n, high=1.0), n_train, True, reason or FEW_CODES)
    rare = rarest(counts)
    r2 = r2_of_shares(rare, counts[rare], n_train, rare, table[rare], visits)
    yield Figure("rare_unigram_r2", "", interval(r2, n, high=1.0), n_train, True, reason or FEW_CODES)
    distinct = (without_each(table) > 0).sum(axis=0)
    yield Figure("distinct_codes", "", interval(distinct, n, 0.0), n_train)
    order = np.argsort(-counts[counts > 0], kind="stable")
    for number, part in enumerate(np.array_split(np.flatnonzero(counts > 0)[order], 10), start=1):
        share = counts[part].sum() / n_train
        found = ratio(table[part].sum(axis=0), visits * share, n)
        none = "training has too few codes for ten parts" if not len(part) else reason
        yield Figure("prevalence_ratio", f"decile {number}", found, n_train, reason=none)
        seen = (without_each(table[part]) > 0).mean(axis=0) if len(part) else np.full(n_groups + 1, np.nan)
        yield Figure("seen_codes", f"decile {number}", interval(seen, n, 0.0, 1.0), n_train, True, none)


def distances(counts: np.ndarray, table: np.ndarray, base: float | None = None) -> np.ndarray:
    """Jensen-Shannon distance of code counts plus one over the union of both sets, [1 + groups]."""
    found = []
    for column in without_each(table).T:
        union = (counts > 0) | (column > 0)
        empty = not column.any() or not counts.any()
        found.append(np.nan if empty else jensenshannon(counts[union] + 1, column[union] + 1, base))
    return np.array(found)


def top_overlap(counts: np.ndarray, other: np.ndarray, top: int = TOP) -> float:
    """Jaccard of the two sets of the `top` most frequent codes; ties go to the earlier code."""
    sets = []
    for one in (counts, other):
        order = np.argsort(-one, kind="stable")[:top]
        sets.append(set(order[one[order] > 0].tolist()))
    union = sets[0] | sets[1]
    return len(sets[0] & sets[1]) / len(union) if union else np.nan


def rarest(counts: np.ndarray, share: float = RARE_SHARE) -> np.ndarray:
    """The rarest `share` of the codes that training holds, as indices; ties go to the later code."""
    known = np.flatnonzero(counts > 0)
    order = known[np.argsort(-counts[known], kind="stable")]
    return np.sort(order[len(order) - round(share * len(order)) :])


def r2_of_shares(
    train_keys: np.ndarray,
    train_counts: np.ndarray,
    n_train: int,
    keys: np.ndarray,
    table: np.ndarray,
    visits: np.ndarray,
) -> np.ndarray:
    """R² of the scored share of visits against training's, over what either set has seen, [1 + groups].

    `table` [keys, groups] counts visits that hold each key, `visits` [groups] the visits; keys are sorted.
    """
    union = np.union1d(train_keys, keys)
    truth = np.zeros(len(union))
    truth[np.searchsorted(union, train_keys)] = train_counts / max(1, n_train)
    place, found = np.searchsorted(union, keys), []
    for column, n in zip(without_each(table).T, without_each(visits), strict=True):
        share = np.zeros(len(union))
        share[place] = column / max(1, n)
        seen = (truth > 0) | (share > 0)
        enough = n > 0 and n_train > 0 and seen.sum() > 1
        found.append(r2_score(truth[seen], share[seen]) if enough else np.nan)
    return np.array(found)


def pair_figures(
    train: Coded, scored: Coded, n_codes: int, groups: np.ndarray, n_groups: int
) -> Iterator[Figure]:
    """R² of unordered pairs, and how often the pairs of a visit occur together in training."""
    train_owner, train_pairs = pairs_within(train, n_codes)
    keys, inverse, counts = np.unique(train_pairs, return_inverse=True, return_counts=True)
    owner, pairs = pairs_within(scored, n_codes)
    found, table = count_by_group(pairs, groups[owner], n_groups)
    visits = np.bincount(groups, minlength=n_groups)
    r2 = r2_of_shares(keys, counts, train.n_visits, found, table, visits)
    reason = _missing("with two codes", len(keys), len(pairs)) or FEW_CODES
    yield Figure("bigram_r2", "", interval(r2, scored.n_visits, high=1.0), train.n_visits, True, reason)
    # Real's own figure, on training: a pair is counted in the visits of the other patients.
    own = _per_patient(train.patient[train_owner], inverse, len(keys))
    real = visit_means(counts[inverse] - own, train_owner, train.n_visits)
    real = real[~np.isnan(real)].mean() if (~np.isnan(real)).any() else np.nan
    place = np.minimum(np.searchsorted(keys, pairs), max(0, len(keys) - 1))
    known = keys[place] == pairs if len(keys) else np.zeros(len(pairs), bool)
    means = visit_means(np.where(known, counts[place] if len(keys) else 0, 0), owner, scored.n_visits)
    held = ~np.isnan(means)
    above = np.bincount(groups[held], weights=means[held], minlength=n_groups)
    below = np.bincount(groups[held], minlength=n_groups) * real
    reason = _missing("with two codes", len(keys), len(pairs)) or "no pair occurs in two training patients"
    estimate = ratio(above, below, int(held.sum()))
    yield Figure("cooccurrence_ratio", "", estimate, train.n_visits, reason=reason)


def _per_patient(patients: np.ndarray, pairs: np.ndarray, n_pairs: int) -> np.ndarray:
    """For each occurrence of a pair, in how many visits of the same patient it occurs."""
    _, inverse, counts = np.unique(patients * n_pairs + pairs, return_inverse=True, return_counts=True)
    return counts[inverse]


def visit_means(values: np.ndarray, owner: np.ndarray, n_visits: int) -> np.ndarray:
    """Mean of the values of each visit [n_visits], NaN for a visit without any."""
    with np.errstate(invalid="ignore"):
        return np.bincount(owner, weights=values, minlength=n_visits) / np.bincount(owner, minlength=n_visits)


def sequence_figures(
    train: Coded, scored: Coded, n_codes: int, groups: np.ndarray, n_groups: int
) -> Iterator[Figure]:
    """R² of (code in visit t, code in visit t + 1), and the carry-forward rate of codes."""
    n, n_train = len(scored.followed), len(train.followed)
    owner, pairs = pairs_across(scored, n_codes)
    _, train_pairs = pairs_across(train, n_codes)
    keys, counts = np.unique(train_pairs, return_counts=True)
    found, table = count_by_group(pairs, groups[owner], n_groups)
    steps = np.bincount(groups[scored.followed], minlength=n_groups)
    r2 = r2_of_shares(keys, counts, n_train, found, table, steps)
    reason = _missing("that another visit of the patient follows", n_train, n) or FEW_CODES
    yield Figure("sequential_bigram_r2", "", interval(r2, n, high=1.0), n_train, True, reason)
    same = pairs // n_codes == pairs % n_codes
    carried = np.bincount(groups[owner[same]], minlength=n_groups)
    passed = np.bincount(groups[scored.followed], weights=scored.lengths[scored.followed], minlength=n_groups)
    estimate = ratio(carried, passed, n, 1.0)
    yield Figure(
        "carried_codes", "", estimate, n_train, reason="no scored visit with a code is followed by another"
    )


def histories(train: Coded, scored: Coded, seed: int, known_days: bool = True) -> Iterator[Figure]:
    """Visits a patient and, with `known_days`, days between visits: they are of no column of codes."""
    groups, n_groups = scored.groups(seed)
    last = np.append(np.flatnonzero(np.diff(scored.patient)), scored.n_visits - 1)
    visits = [np.bincount(part.patient) for part in (train, scored)]
    yield from _shape("visits_per_patient", *visits, groups[last] if scored.n_visits else groups, n_groups)
    if known_days:
        what = "that another visit of the patient follows"
        days = gaps(train), gaps(scored)
        yield from _shape("gap_days", *days, groups[scored.followed], n_groups, what)


def _shape(
    name: str, reference: np.ndarray, values: np.ndarray, group: np.ndarray, n_groups: int, what: str = ""
) -> Iterator[Figure]:
    """Kolmogorov-Smirnov distance of two sets of numbers, and the mean of the second, `values` by `group`.

    what: the kind of visits that have such a number, for the reason where a set has none.
    """
    reason = _missing(what, len(reference), len(values))
    distance = interval(ks_distances(reference, values, group, n_groups), len(values), 0.0, 1.0)
    yield Figure(f"ks_{name}", "", distance, len(reference), False, reason)
    sums = np.bincount(group, values, n_groups), np.bincount(group, minlength=n_groups)
    yield Figure(f"mean_{name}", "", ratio(*sums, len(values)), len(reference), reason=reason)


def gaps(visits: Coded) -> np.ndarray:
    """Days between each visit that has a next one and that next one."""
    return visits.days[visits.followed + 1] - visits.days[visits.followed]


def ks_distances(reference: np.ndarray, values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Largest distance of the two distribution functions, [1 + groups]; NaN where a side is empty.

    Asked for the greater of both sides, ks_2samp spares the two-sided p-value, which at a million visits took
    a quarter of the time of all of fidelity.
    """
    kept = [values, *(values[groups != number] for number in range(n_groups))]
    if not len(reference):
        return np.full(len(kept), np.nan)
    return np.array([_distance(reference, part) if len(part) else np.nan for part in kept])


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    sides = (ks_2samp(one, other, alternative, method="asymp") for alternative in ("less", "greater"))
    return max(side.statistic for side in sides)
