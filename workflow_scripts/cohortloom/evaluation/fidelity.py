"""Fidelity: how similar a set of visits is to the training visits in codes, pairs, sequences, lengths, gaps.

Each figure compares the scored set (a sample of whole patients) with all training visits and has a 95%
interval over the scored patients. An array [1 + groups] holds the value on the whole sample, then without
each jackknife group. Figures depend on the size of the sample, so they are compared with real data of the
same size.
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
    """All figures of the codes of a scored set; both sets index the same list of `n_codes` codes.

    Without `known_demographics` there are no figures by age and sex.
    """
    groups, n_groups = scored.groups(seed)
    yield from code_figures(train, scored, n_codes, groups, n_groups)
    pairs = (pairs_within(part, n_codes) for part in (train, scored))
    yield from pair_figures(train, scored, *pairs, groups, n_groups)
    yield from sequence_figures(train, scored, n_codes, groups, n_groups)
    yield from _distribution("codes_per_visit", train.lengths, scored.lengths, groups, n_groups)
    share = ratio(
        np.bincount(groups[scored.lengths > 0], minlength=n_groups), np.bincount(groups), scored.n_visits, 1.0
    )
    yield Figure(
        "visits_with_code", "", share, train.n_visits, reason=_missing("", train.n_visits, scored.n_visits)
    )
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
    """Names of the age bands and sexes, each with masks of the training and of the scored visits in it."""
    of_train, of_scored = bands.band(train.age, bands.BROAD), bands.band(scored.age, bands.BROAD)
    for number, name in enumerate(bands.BROAD_NAMES):
        yield name, of_train == number, of_scored == number
    for number, name in enumerate(bands.SEX_NAMES):
        yield name, train.sex == number, scored.sex == number


def _missing(what: str, train: int, scored: int) -> str | None:
    """Reason for a figure without a value: which set has no visit of a kind; None if both have one."""
    if train and scored:
        return None
    sides = "the scored set has" if train else "the training set has" if scored else "both sets have"
    return f"{sides} no visit {what}".rstrip()


def code_table(
    visits: Coded, n_codes: int, groups: np.ndarray, n_groups: int, selected: np.ndarray | None = None
) -> np.ndarray:
    """Number of visits with each code, by group [n_codes, n_groups].

    selected [n_visits] bool: the visits that count, all by default.
    """
    visit = visits.visit_of_code
    codes, group = visits.codes, groups[visit]
    if selected is not None:
        codes, group = codes[selected[visit]], group[selected[visit]]
    return np.bincount(codes * n_groups + group, minlength=n_codes * n_groups).reshape(n_codes, n_groups)


def code_figures(
    train: Coded, scored: Coded, n_codes: int, groups: np.ndarray, n_groups: int
) -> Iterator[Figure]:
    """Distances, overlap, R² and prevalence of single codes."""
    counts = np.bincount(train.codes, minlength=n_codes)
    table = code_table(scored, n_codes, groups, n_groups)
    visits = np.bincount(groups, minlength=n_groups)
    n, n_train, all_codes = scored.n_visits, train.n_visits, np.arange(n_codes)
    reason = _missing("with a code", counts.any(), table.any())
    yield Figure("js_distance", "", interval(distances(counts, table), n, 0.0), n_train, False, reason)
    divergence = interval(distances(counts, table, base=2) ** 2, n, 0.0, 1.0)
    yield Figure("js_divergence", "", divergence, n_train, False, reason)
    top = np.array([top_overlap(counts, column) for column in without_each(table).T])
    yield Figure(f"top{TOP}_overlap", "", interval(top, n, 0.0, 1.0), n_train, True, reason)
    r2 = r2_of_shares(all_codes, counts, n_train, all_codes, table, visits)
    yield Figure("unigram_r2", "", interval(r2, n, high=1.0), n_train, True, reason or FEW_CODES)
    rare = rarest(counts)
    r2 = r2_of_shares(rare, counts[rare], n_train, rare, table[rare], visits)
    yield Figure("rare_unigram_r2", "", interval(r2, n, high=1.0), n_train, True, reason or FEW_CODES)
    distinct = (without_each(table) > 0).sum(axis=0)
    yield Figure("distinct_codes", "", interval(distinct, n, 0.0), n_train)
    order = np.argsort(-counts[counts > 0], kind="stable")
    for number, part in enumerate(np.array_split(np.flatnonzero(counts > 0)[order], 10), start=1):
        train_rate = counts[part].sum() / n_train
        prevalence = ratio(table[part].sum(axis=0), visits * train_rate, n)
        no_value = "training has too few codes for ten parts" if not len(part) else reason
        yield Figure("prevalence_ratio", f"decile {number}", prevalence, n_train, reason=no_value)
        present = (without_each(table[part]) > 0).mean(axis=0) if len(part) else np.full(n_groups + 1, np.nan)
        estimate = interval(present, n, 0.0, 1.0)
        yield Figure("seen_codes", f"decile {number}", estimate, n_train, True, no_value)


def distances(counts: np.ndarray, table: np.ndarray, base: float | None = None) -> np.ndarray:
    """Jensen-Shannon distance of code counts plus one, over the codes of either set, [1 + groups]."""
    values = []
    for column in without_each(table).T:
        union = (counts > 0) | (column > 0)
        is_empty = not column.any() or not counts.any()
        values.append(np.nan if is_empty else jensenshannon(counts[union] + 1, column[union] + 1, base))
    return np.array(values)


def top_overlap(counts: np.ndarray, other: np.ndarray, top: int = TOP) -> float:
    """Jaccard of the two sets of the `top` most frequent codes; ties go to the earlier code."""
    sets = []
    for part in (counts, other):
        order = np.argsort(-part, kind="stable")[:top]
        sets.append(set(order[part[order] > 0].tolist()))
    union = sets[0] | sets[1]
    return len(sets[0] & sets[1]) / len(union) if union else np.nan


def rarest(counts: np.ndarray, share: float = RARE_SHARE) -> np.ndarray:
    """Indices of the rarest `share` of the training codes; ties go to the later code."""
    codes = np.flatnonzero(counts > 0)
    order = codes[np.argsort(-counts[codes], kind="stable")]
    return np.sort(order[len(order) - round(share * len(order)) :])


def r2_of_shares(
    train_keys: np.ndarray,
    train_counts: np.ndarray,
    n_train: int,
    keys: np.ndarray,
    table: np.ndarray,
    visits: np.ndarray,
) -> np.ndarray:
    """R² of the share of scored visits with each key (a code or pair) against training's, [1 + groups].

    Over the keys of either set. Keys are sorted. train_counts [train_keys] and table [keys, groups]: number
    of visits with each key; n_train and visits [groups]: number of visits.
    """
    union = np.union1d(train_keys, keys)
    truth = np.zeros(len(union))
    truth[np.searchsorted(union, train_keys)] = train_counts / max(1, n_train)
    position, values = np.searchsorted(union, keys), []
    for column, n in zip(without_each(table).T, without_each(visits), strict=True):
        share = np.zeros(len(union))
        share[position] = column / max(1, n)
        present = (truth > 0) | (share > 0)
        is_defined = n > 0 and n_train > 0 and present.sum() > 1
        values.append(r2_score(truth[present], share[present]) if is_defined else np.nan)
    return np.array(values)


def pair_figures(
    train: Coded,
    scored: Coded,
    pairs_of_train: tuple[np.ndarray, np.ndarray],
    pairs_of_scored: tuple[np.ndarray, np.ndarray],
    groups: np.ndarray,
    n_groups: int,
    names: tuple[str, str] = ("bigram_r2", "cooccurrence_ratio"),
    what: str = "with two codes",
) -> Iterator[Figure]:
    """R² of unordered pairs, and how often the pairs of a visit occur in training visits.

    pairs_of_train, pairs_of_scored: visit and key of every pair. names: of the two figures. what: the kind of
    visits that have a pair.
    """
    train_visit, train_pairs = pairs_of_train
    keys, inverse, counts = np.unique(train_pairs, return_inverse=True, return_counts=True)
    visit, pairs = pairs_of_scored
    scored_keys, table = count_by_group(pairs, groups[visit], n_groups)
    visits = np.bincount(groups, minlength=n_groups)
    r2 = r2_of_shares(keys, counts, train.n_visits, scored_keys, table, visits)
    reason = _missing(what, len(keys), len(pairs)) or FEW_CODES
    yield Figure(names[0], "", interval(r2, scored.n_visits, high=1.0), train.n_visits, True, reason)
    # The same of training visits: a pair is counted in the visits of other patients.
    own_counts = _per_patient(train.patient[train_visit], inverse, len(keys))
    train_means = visit_means(counts[inverse] - own_counts, train_visit, train.n_visits)
    has_pair = ~np.isnan(train_means)
    train_mean = train_means[has_pair].mean() if has_pair.any() else np.nan
    position = np.minimum(np.searchsorted(keys, pairs), max(0, len(keys) - 1))
    in_training = keys[position] == pairs if len(keys) else np.zeros(len(pairs), bool)
    pair_counts = np.where(in_training, counts[position] if len(keys) else 0, 0)
    means = visit_means(pair_counts, visit, scored.n_visits)
    has_pair = ~np.isnan(means)
    above = np.bincount(groups[has_pair], weights=means[has_pair], minlength=n_groups)
    below = np.bincount(groups[has_pair], minlength=n_groups) * train_mean
    reason = _missing(what, len(keys), len(pairs)) or "no pair occurs in two training patients"
    estimate = ratio(above, below, int(has_pair.sum()))
    yield Figure(names[1], "", estimate, train.n_visits, reason=reason)


def _per_patient(patients: np.ndarray, pairs: np.ndarray, n_pairs: int) -> np.ndarray:
    """For each occurrence of a pair: number of visits of the same patient with the pair."""
    _, inverse, counts = np.unique(patients * n_pairs + pairs, return_inverse=True, return_counts=True)
    return counts[inverse]


def visit_means(values: np.ndarray, visit: np.ndarray, n_visits: int) -> np.ndarray:
    """Mean of the values of each visit [n_visits], NaN for a visit without values; visit: of each value."""
    with np.errstate(invalid="ignore"):
        return np.bincount(visit, weights=values, minlength=n_visits) / np.bincount(visit, minlength=n_visits)


def sequence_figures(
    train: Coded, scored: Coded, n_codes: int, groups: np.ndarray, n_groups: int
) -> Iterator[Figure]:
    """R² of pairs (code in visit t, code in visit t + 1), and the carry-forward rate of codes."""
    n, n_train = len(scored.followed), len(train.followed)
    visit, pairs = pairs_across(scored, n_codes)
    _, train_pairs = pairs_across(train, n_codes)
    keys, counts = np.unique(train_pairs, return_counts=True)
    scored_keys, table = count_by_group(pairs, groups[visit], n_groups)
    steps = np.bincount(groups[scored.followed], minlength=n_groups)
    r2 = r2_of_shares(keys, counts, n_train, scored_keys, table, steps)
    reason = _missing("that another visit of the patient follows", n_train, n) or FEW_CODES
    yield Figure("sequential_bigram_r2", "", interval(r2, n, high=1.0), n_train, True, reason)
    is_carried = pairs // n_codes == pairs % n_codes
    carried = np.bincount(groups[visit[is_carried]], minlength=n_groups)
    lengths = scored.lengths[scored.followed]
    codes = np.bincount(groups[scored.followed], weights=lengths, minlength=n_groups)
    estimate = ratio(carried, codes, n, 1.0)
    yield Figure(
        "carried_codes", "", estimate, n_train, reason="no scored visit with a code is followed by another"
    )


def histories(train: Coded, scored: Coded, seed: int, known_days: bool = True) -> Iterator[Figure]:
    """Visits a patient and, with `known_days`, days between visits; figures of no column of codes."""
    groups, n_groups = scored.groups(seed)
    last = np.append(np.flatnonzero(np.diff(scored.patient)), scored.n_visits - 1)
    visits = [np.bincount(part.patient) for part in (train, scored)]
    group = groups[last] if scored.n_visits else groups
    yield from _distribution("visits_per_patient", *visits, group, n_groups)
    if known_days:
        what = "that another visit of the patient follows"
        days = gaps(train), gaps(scored)
        yield from _distribution("gap_days", *days, groups[scored.followed], n_groups, what)


def _distribution(
    name: str, reference: np.ndarray, values: np.ndarray, group: np.ndarray, n_groups: int, what: str = ""
) -> Iterator[Figure]:
    """Kolmogorov-Smirnov distance of `values` from `reference`, and the mean of `values`.

    group: of each value. what: the kind of visits that have such a value, for the reason if there is none.
    """
    reason = _missing(what, len(reference), len(values))
    distance = interval(ks_distances(reference, values, group, n_groups), len(values), 0.0, 1.0)
    yield Figure(f"ks_{name}", "", distance, len(reference), False, reason)
    sums = np.bincount(group, values, n_groups), np.bincount(group, minlength=n_groups)
    yield Figure(f"mean_{name}", "", ratio(*sums, len(values)), len(reference), reason=reason)


def gaps(visits: Coded) -> np.ndarray:
    """Days from each visit that has a next one to the next one."""
    return visits.days[visits.followed + 1] - visits.days[visits.followed]


def ks_distances(reference: np.ndarray, values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Largest distance of the two distribution functions, [1 + groups]; NaN where a side is empty."""
    parts = [values, *(values[groups != number] for number in range(n_groups))]
    if not len(reference):
        return np.full(len(parts), np.nan)
    return np.array([_ks_distance(reference, part) if len(part) else np.nan for part in parts])


def _ks_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The two-sided statistic as the greater of the one-sided ones.

    This saves the two-sided p-value, which takes a quarter of the time of all of fidelity at a million
    visits.
    """
    sides = (ks_2samp(one, other, alternative, method="asymp") for alternative in ("less", "greater"))
    return max(side.statistic for side in sides)
