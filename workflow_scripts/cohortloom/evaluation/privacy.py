"""What a released set of visits says about the patients whom its generator was trained on.

Attacked are training patients (members) and as many held-out test patients of the same hospital, who differ
from them in nothing but that the generator never saw them: whatever the attack finds more often among
members is leaked. The reference is the same attack on a release of real validation patients, which knows
neither. Samples are whole patients; all distances are Jaccard distances of sets of codes.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from cohortloom.base.ragged import patient_of_visit, row_of_value
from cohortloom.data import bands
from cohortloom.data.coded import Coded, most_frequent, patient_groups
from cohortloom.data.visits import CODE_COLUMNS
from cohortloom.evaluation.intervals import UNDEFINED, interval, ratio
from cohortloom.evaluation.neighbours import COPY_CODES, copied, nearest, set_matrix
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.scores import auc, gain, hits_at, replicates

COMMON = 50  # codes that an attacker is taken to know of a patient


def membership(
    members: Coded, others: Coded, release: Coded, n_codes: int, seed: int, fraction: float
) -> Iterator[Figure]:
    """Attack by distance: a patient's score is how near the release comes to each visit, averaged."""
    if not release.n_visits:
        yield from _nothing_released("membership_auc", "membership_tpr_1fpr", "membership_gain")
        return
    sets = set_matrix(release.codes, release.visit_of_code, release.n_visits, n_codes)
    scores = []
    for part in (members, others):
        distance, _ = nearest(set_matrix(part.codes, part.visit_of_code, part.n_visits, n_codes), sets)
        mean = np.bincount(part.patient, distance) / np.bincount(part.patient)
        scores.append(-mean.round(9))  # equal means are to be ties whatever their last bit
    yield from attack("membership", *scores, release.n_visits, seed, fraction)


def attack(
    name: str, members: np.ndarray, others: np.ndarray, n_reference: int, seed: int, fraction: float
) -> Iterator[Figure]:
    """AUC, hits at 1% false alarms and gain of an attack, from scores of members and others [patients]."""
    positive = np.repeat([True, False], [len(members), len(others)])
    score = np.concatenate([members, others])
    groups = np.concatenate([patient_groups(len(members), seed), patient_groups(len(others), seed + 1)])
    statistics = {
        "auc": lambda kept: auc(positive[kept], score[kept]),
        "tpr_1fpr": lambda kept: hits_at(positive[kept], score[kept]),
        "gain": lambda kept: gain(positive[kept], score[kept], fraction),
    }
    for statistic, of_kept in statistics.items():
        found = replicates(of_kept, groups, int(groups.max(initial=-1)) + 1)
        low = -np.inf if statistic == "gain" else 0.0
        estimate, reason = interval(found, len(score), low, 1.0), "one side has no patient"
        yield Figure(f"{name}_{statistic}", "", estimate, n_reference, False, reason)


def adversarial_accuracy(
    members: Coded, others: Coded, release: Coded, n_codes: int, seed: int
) -> Iterator[Figure]:
    """Nearest-neighbour adversarial accuracy towards test less that towards training (Yale and others, 2020).

    Accuracy is the mean of two shares: real visits that lie nearer to another real one than to any released
    one, and released visits that lie nearer to another released one. 0.5 is indistinguishable, below it the
    release sits on the real visits. One visit a patient, as many in each set. Exact copies are neighbours at
    distance 0.
    """
    parts = [one_visit(part, seed) for part in (members, others, release)]
    n = min(len(offsets) for _, offsets in parts) - 1
    if n < 2:  # nobody has a neighbour of the same set
        reason = "a set has fewer than two patients"
        yield Figure("adversarial_accuracy", "", replace(UNDEFINED, n=n), n, reason=reason)
        yield Figure("adversarial_risk", "", replace(UNDEFINED, n=n), n, False, reason)
        return
    sets, groups = [], []
    for number, (codes, offsets) in enumerate(parts):
        sets.append(set_matrix(codes[: offsets[n]], row_of_value(offsets[: n + 1]), n, n_codes))
        groups.append(patient_groups(n, seed + number))
    known, held, made = sets
    within = nearest(made, made, same=True)[0]
    found = {}
    for side, real in (("training", known), ("test", held)):
        own = nearest(real, real, same=True)[0]
        found[side] = nearest(real, made)[0] > own, nearest(made, real)[0] > within
    n_groups = int(groups[0].max(initial=-1)) + 1

    def accuracies(without: int) -> list[float]:
        kept = [group != without for group in groups]
        return [
            (found[side][0][kept[number]].mean() + found[side][1][kept[2]].mean()) / 2
            for number, side in enumerate(("training", "test"))
        ]

    training, test = np.array([accuracies(without) for without in range(-1, n_groups)]).T
    yield Figure("adversarial_accuracy", "", interval(test, n, 0.0, 1.0), n)
    yield Figure("adversarial_risk", "", interval(test - training, n, -1.0, 1.0), n, False)


def one_visit(visits: Coded, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat codes and offsets of one visit a patient, drawn at random, in shuffled order of the patients."""
    rng = np.random.default_rng([seed, 0x0E])
    starts, counts = visits.first_visits, np.bincount(visits.patient)
    return visits.codes_of(rng.permutation(starts + (rng.random(len(starts)) * counts).astype(np.int64)))


def attribute_inference(
    train: Coded, members: Coded, others: Coded, release: Coded, n_codes: int, seed: int
) -> Iterator[Figure]:
    """How well the rest of a visit follows from what an attacker knows of it and the release.

    Known are the visit's codes among the 50 most frequent of training, the band of age and the sex; the
    guess for the other codes are those of the released visit that is nearest in what is known. F1 is summed
    over the visits. The risk is (F1 of members - F1 of held-out) / (1 - F1 of held-out) (Giomi and others,
    PoPETs 2023): what can be inferred about anybody is knowledge, what can be inferred about members alone
    is a leak.
    """
    if not release.n_visits:
        yield from _nothing_released("attribute_f1", "attribute_risk")
        return
    common = np.zeros(n_codes, bool)
    common[most_frequent(train.codes, n_codes, COMMON)] = True
    known = _known(release, common)
    secret = _secret(release, common)
    sums = []
    for number, part in enumerate((members, others)):
        row = nearest(_known(part, common), known)[1]
        guess = secret[np.maximum(row, 0)].multiply((row >= 0)[:, None]).tocsr()
        truth = _secret(part, common)
        counts = [truth.multiply(guess), truth, guess]
        group = patient_groups(part.n_patients, seed + number)[part.patient]
        sums.append([np.bincount(group, np.asarray(one.sum(axis=1)).ravel()) for one in counts])
    n_groups = min(len(part[0]) for part in sums)

    def f1(part: list[np.ndarray], without: int) -> float:
        right, hidden, guessed = (one.sum() - (one[without] if without >= 0 else 0.0) for one in part)
        return 2 * right / (hidden + guessed) if hidden + guessed else np.nan

    of_members, of_others = np.array(
        [[f1(part, without) for part in sums] for without in range(-1, n_groups)]
    ).T
    n = members.n_visits
    reason = "neither the visits nor the guesses hold another code than common ones"
    yield Figure("attribute_f1", "", interval(of_members, n, 0.0, 1.0), release.n_visits, reason=reason)
    with np.errstate(divide="ignore", invalid="ignore"):
        risk = (of_members - of_others) / (1 - of_others)
    if of_others[0] == 1:
        reason = "every code of the held-out patients is inferred: nothing is left to be a leak"
    yield Figure("attribute_risk", "", interval(risk, n, high=1.0), release.n_visits, False, reason)


def _nothing_released(*metrics: str) -> Iterator[Figure]:
    for metric in metrics:
        better = None if metric == "attribute_f1" else False
        yield Figure(metric, "", UNDEFINED, 0, better, "the release has no visit")


def _known(visits: Coded, common: np.ndarray):
    """Common codes, band of age and sex of each visit as sets."""
    n_codes = len(common)
    kept = common[visits.codes]
    every = np.arange(visits.n_visits)
    items = [visits.codes[kept], n_codes + bands.band(visits.age), n_codes + len(bands.FINE) + visits.sex]
    owners = [visits.visit_of_code[kept], every, every]
    n_items = n_codes + len(bands.FINE) + 2
    return set_matrix(np.concatenate(items), np.concatenate(owners), visits.n_visits, n_items)


def _secret(visits: Coded, common: np.ndarray):
    kept = ~common[visits.codes]
    return set_matrix(visits.codes[kept], visits.visit_of_code[kept], visits.n_visits, len(common))


def copy_share(train: Coded, release: Coded, n_codes: int, seed: int) -> Iterator[Figure]:
    """Share of released visits of 5 codes or more whose set of codes equals that of a training visit."""
    copies, long = copied(release, train, n_codes), release.lengths >= COPY_CODES
    groups, n_groups = release.groups(seed)
    sums = [np.bincount(groups[mask], minlength=n_groups) for mask in (copies, long)]
    share, reason = ratio(*sums, int(long.sum()), 1.0), f"no released visit has {COPY_CODES} codes or more"
    yield Figure("copy_share", "", share, train.n_visits, False, reason)


def plant(release: pa.Table, train: pa.Table, share: float, seed: int) -> pa.Table:
    """The release with a share of its patients replaced by whole training patients, drawn at random."""
    rng = np.random.default_rng([seed, 0xCA9A])
    columns = ["visit", "days", "age", "sex", *CODE_COLUMNS]
    patients = [patient_of_visit(part["visit"]) for part in (release, train)]
    n_release, n_train = (int(part[-1]) + 1 for part in patients)
    n = min(round(share * n_release), n_train)
    left, drawn = np.ones(n_release, bool), np.zeros(n_train, bool)
    left[rng.choice(n_release, n, replace=False)] = False
    drawn[rng.choice(n_train, n, replace=False)] = True
    kept = [left[patients[0]], drawn[patients[1]]]
    parts = zip((release, train), kept, strict=True)
    return pa.concat_tables([part.select(columns).filter(pa.array(mask)) for part, mask in parts])
