"""What a released set of visits reveals about the patients that its generator was trained on.

Attacks target training patients (members) and as many held-out test patients of the same hospital. The only
difference is that the generator was not trained on the latter: what an attack finds more often among members
is a leak. The reference is the same attack with real validation patients as the release, which leaks neither.
Samples are whole patients; all distances are Jaccard distances of sets of codes.
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
from cohortloom.evaluation.neighbours import COPY_CODES, is_copy, nearest, set_matrix
from cohortloom.evaluation.records import Figure
from cohortloom.evaluation.scores import auc, gain, replicates, tpr_at_fpr

N_COMMON = 50  # most frequent codes, which the attacker is assumed to know of a patient


def membership(
    members: Coded, others: Coded, release: Coded, n_codes: int, seed: int, fraction: float
) -> Iterator[Figure]:
    """Attack by distance: a patient's score is minus the mean distance of the visits to the release."""
    if not release.n_visits:
        yield from _nothing_released("membership_auc", "membership_tpr_1fpr", "membership_gain")
        return
    sets = set_matrix(release.codes, release.visit_of_code, release.n_visits, n_codes)
    scores = []
    for part in (members, others):
        distance, _ = nearest(set_matrix(part.codes, part.visit_of_code, part.n_visits, n_codes), sets)
        mean = np.bincount(part.patient, distance) / np.bincount(part.patient)
        scores.append(-mean.round(9))  # means that differ by rounding are ties
    yield from attack("membership", *scores, release.n_visits, seed, fraction)


def attack(
    name: str, members: np.ndarray, others: np.ndarray, n_reference: int, seed: int, fraction: float
) -> Iterator[Figure]:
    """AUC, TPR at 1% FPR and gain of an attack, from the scores of members and others [patients]."""
    positive = np.repeat([True, False], [len(members), len(others)])
    score = np.concatenate([members, others])
    groups = np.concatenate([patient_groups(len(members), seed), patient_groups(len(others), seed + 1)])
    statistics = {
        "auc": lambda mask: auc(positive[mask], score[mask]),
        "tpr_1fpr": lambda mask: tpr_at_fpr(positive[mask], score[mask]),
        "gain": lambda mask: gain(positive[mask], score[mask], fraction),
    }
    for metric, statistic in statistics.items():
        values = replicates(statistic, groups, int(groups.max(initial=-1)) + 1)
        low = -np.inf if metric == "gain" else 0.0
        estimate, reason = interval(values, len(score), low, 1.0), "one side has no patient"
        yield Figure(f"{name}_{metric}", "", estimate, n_reference, False, reason)


def adversarial_accuracy(
    members: Coded, others: Coded, release: Coded, n_codes: int, seed: int
) -> Iterator[Figure]:
    """Nearest-neighbour adversarial accuracy on test patients, and the risk (Yale and others, 2020).

    Accuracy is the mean of two shares: of real visits nearer to another real visit than to any released one,
    and of released visits nearer to another released one than to any real one. At 0.5 the sets cannot be
    distinguished; below 0.5 released visits are copies of real ones or close to it. The risk is the accuracy
    on test patients minus that on training patients. One visit a patient, equally many in each set. An exact
    copy is a neighbour at distance 0.
    """
    parts = [sample_one_visit(part, seed) for part in (members, others, release)]
    n = min(len(offsets) for _, offsets in parts) - 1
    if n < 2:  # no visit has a neighbour in its own set
        reason = "a set has fewer than two patients"
        yield Figure("adversarial_accuracy", "", replace(UNDEFINED, n=n), n, reason=reason)
        yield Figure("adversarial_risk", "", replace(UNDEFINED, n=n), n, False, reason)
        return
    sets, groups = [], []
    for number, (codes, offsets) in enumerate(parts):
        sets.append(set_matrix(codes[: offsets[n]], row_of_value(offsets[: n + 1]), n, n_codes))
        groups.append(patient_groups(n, seed + number))
    *real_sets, released = sets
    within_release = nearest(released, released, same=True)[0]
    nearer_to_own_set = []  # for training and test: of the real visits, of the released ones
    for real in real_sets:
        within_real = nearest(real, real, same=True)[0]
        between = nearest(real, released)[0] > within_real, nearest(released, real)[0] > within_release
        nearer_to_own_set.append(between)
    n_groups = int(groups[0].max(initial=-1)) + 1

    def accuracies(without: int) -> list[float]:
        masks = [group != without for group in groups]
        return [
            (of_real[masks[number]].mean() + of_release[masks[2]].mean()) / 2
            for number, (of_real, of_release) in enumerate(nearer_to_own_set)
        ]

    training, test = np.array([accuracies(without) for without in range(-1, n_groups)]).T
    yield Figure("adversarial_accuracy", "", interval(test, n, 0.0, 1.0), n)
    yield Figure("adversarial_risk", "", interval(test - training, n, -1.0, 1.0), n, False)


def sample_one_visit(visits: Coded, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat codes and offsets of one random visit of each patient, patients in random order."""
    rng = np.random.default_rng([seed, 0x0E])
    starts, counts = visits.first_visits, np.bincount(visits.patient)
    return visits.codes_of(rng.permutation(starts + (rng.random(len(starts)) * counts).astype(np.int64)))


def attribute_inference(
    train: Coded, members: Coded, others: Coded, release: Coded, n_codes: int, seed: int
) -> Iterator[Figure]:
    """How well an attacker who knows part of a visit infers the rest from the release.

    Known are the visit's codes among the 50 most frequent of training, the age band and the sex. The guess is
    the other codes of the released visit that is nearest in the known items. F1 is micro-averaged over
    visits. The risk is (F1 of members - F1 of held-out) / (1 - F1 of held-out) (Giomi and
    others, PoPETs 2023): what can be inferred about any patient is general knowledge; what can be inferred
    about members only is a leak.
    """
    if not release.n_visits:
        yield from _nothing_released("attribute_f1", "attribute_risk")
        return
    common = np.zeros(n_codes, bool)
    common[most_frequent(train.codes, n_codes, N_COMMON)] = True
    known_of_release = _known_items(release, common)
    secret_of_release = _secret_items(release, common)
    sums = []  # of members and others: right guesses, secret codes, guesses, each by group
    for number, part in enumerate((members, others)):
        row = nearest(_known_items(part, common), known_of_release)[1]
        guess = secret_of_release[np.maximum(row, 0)].multiply((row >= 0)[:, None]).tocsr()
        secret = _secret_items(part, common)
        matrices = [secret.multiply(guess), secret, guess]
        group = patient_groups(part.n_patients, seed + number)[part.patient]
        sums.append([np.bincount(group, np.asarray(matrix.sum(axis=1)).ravel()) for matrix in matrices])
    n_groups = min(len(part[0]) for part in sums)

    def f1(part: list[np.ndarray], without: int) -> float:
        right, secret, guessed = (
            counts.sum() - (counts[without] if without >= 0 else 0.0) for counts in part
        )
        return 2 * right / (secret + guessed) if secret + guessed else np.nan

    of_members, of_others = np.array(
        [[f1(part, without) for part in sums] for without in range(-1, n_groups)]
    ).T
    n = members.n_visits
    reason = "visits and guesses hold none but common codes"
    yield Figure("attribute_f1", "", interval(of_members, n, 0.0, 1.0), release.n_visits, reason=reason)
    with np.errstate(divide="ignore", invalid="ignore"):
        risk = (of_members - of_others) / (1 - of_others)
    if of_others[0] == 1:
        reason = "every code of the held-out patients is inferred: a leak cannot be measured"
    yield Figure("attribute_risk", "", interval(risk, n, high=1.0), release.n_visits, False, reason)


def _nothing_released(*metrics: str) -> Iterator[Figure]:
    for metric in metrics:
        better = None if metric == "attribute_f1" else False
        yield Figure(metric, "", UNDEFINED, 0, better, "the release has no visit")


def _known_items(visits: Coded, common: np.ndarray):
    """The set of common codes, age band and sex of each visit, [n_visits, items]."""
    n_codes = len(common)
    is_common = common[visits.codes]
    all_visits = np.arange(visits.n_visits)
    items = [
        visits.codes[is_common],
        n_codes + bands.band(visits.age),
        n_codes + len(bands.FINE) + visits.sex,
    ]
    visit_of_item = [visits.visit_of_code[is_common], all_visits, all_visits]
    n_items = n_codes + len(bands.FINE) + 2
    return set_matrix(np.concatenate(items), np.concatenate(visit_of_item), visits.n_visits, n_items)


def _secret_items(visits: Coded, common: np.ndarray):
    """The set of all other codes of each visit, [n_visits, n_codes]."""
    is_secret = ~common[visits.codes]
    return set_matrix(visits.codes[is_secret], visits.visit_of_code[is_secret], visits.n_visits, len(common))


def copy_share(train: Coded, release: Coded, n_codes: int, seed: int) -> Iterator[Figure]:
    """Share of released visits of 5 codes or more whose set of codes equals that of a training visit."""
    copies, is_long = is_copy(release, train, n_codes), release.lengths >= COPY_CODES
    groups, n_groups = release.groups(seed)
    sums = [np.bincount(groups[mask], minlength=n_groups) for mask in (copies, is_long)]
    share, reason = ratio(*sums, int(is_long.sum()), 1.0), f"no released visit has {COPY_CODES} codes or more"
    yield Figure("copy_share", "", share, train.n_visits, False, reason)


def with_planted_patients(release: pa.Table, train: pa.Table, share: float, seed: int) -> pa.Table:
    """The release with a share of its patients replaced by random training patients."""
    rng = np.random.default_rng([seed, 0xCA9A])
    columns = ["visit", "days", "age", "sex", *CODE_COLUMNS]
    patients = [patient_of_visit(part["visit"]) for part in (release, train)]
    n_release, n_train = (int(part[-1]) + 1 for part in patients)
    n = min(round(share * n_release), n_train)
    stays, is_planted = np.ones(n_release, bool), np.zeros(n_train, bool)
    stays[rng.choice(n_release, n, replace=False)] = False
    is_planted[rng.choice(n_train, n, replace=False)] = True
    masks = [stays[patients[0]], is_planted[patients[1]]]
    parts = zip((release, train), masks, strict=True)
    return pa.concat_tables([part.select(columns).filter(pa.array(mask)) for part, mask in parts])
