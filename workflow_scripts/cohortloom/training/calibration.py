"""After training: biases are set by counting, and the age head by least squares.

Teacher-forced, on validation visits, because a model that has memorised its training visits looks calibrated
there: the bias on ending a visit (model/record.py), which follows the other weights with a delay, so that
visits of one code came out a fifth to a half too rare; and the age head, which was trained on states with
dropout and will read states without it.

By what the model generates for training patients' ages and sexes, compared with counts of training visits:
how frequent each code is, since rare codes came out a tenth too rare; where later visits end; and how many
codes recur in the next visit. Nothing is scored on a training visit here, and training counts vary the least.
Fidelity is measured against these counts too, so it partly shows what was set here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from sklearn.linear_model import Ridge
from transformers import LogitsProcessor

from cohortloom.base.ragged import row_of_value
from cohortloom.base.seeds import generator
from cohortloom.data.examples import Examples, corrupted_pairs
from cohortloom.data.vocabulary import START, Vocabulary
from cohortloom.generation.synthesize import synthesize
from cohortloom.model.record import MAX_COUNT
from cohortloom.model.scoring import score_teacher_forced, unrevealed_pairs

VISITS = 20_000
PENALTY = 120.0  # of the change of the age head, in mean variances of what it reads
MIN_VISITS = 50  # that get so far; below, a count says too little
PATIENTS = 10_000  # whom the model writes to see what it writes, in all rounds together
ROUNDS = 3  # of generating and shifting: what is shifted first changes what else is generated
BATCH_PATIENTS = 834  # four batches a round, for up to four processes; few patients have later visits
FEW = 20  # ends, or codes carried on; a shift by so many is taken half


@dataclass
class Readings:
    """What a model makes of validation visits with dropout off.

    place, log_odds, ended [n]: cell of `summary.ending`, log odds of ending and whether the visit ended, for
    each token that the decoder writes. states [n_visits, 256], ages [n_visits]: what the last layer of the
    age head reads, and the truth in standard deviations.
    """

    place: np.ndarray
    log_odds: np.ndarray
    ended: np.ndarray
    states: np.ndarray
    ages: np.ndarray


def calibrate(model, vocabulary: Vocabulary, train: Examples, val: Examples, seed: int, accelerator) -> None:
    """Calibrate a trained model in place.

    Several processes share the patients whom the model generates; `accelerator` is accelerate's.
    """
    readings = read_visits(model, vocabulary, val, seed)
    calibrate_ending(model, readings)
    if model.config.age_weight > 0:
        calibrate_age(model, readings)
    shard = (accelerator.process_index + 1, accelerator.num_processes)
    for turn in range(ROUNDS):
        counts = generate_counts(model, vocabulary, train, seed, turn, shard)
        if accelerator.num_processes > 1:
            counts = GeneratedCounts(*(accelerator.reduce(sums, "sum") for sums in vars(counts).values()))
        calibrate_frequencies(model, vocabulary, train, counts.codes)
        calibrate_later_ending(model, train, counts.later)
        calibrate_recurrence(model, train, counts.carried)


def read_visits(model, vocabulary: Vocabulary, data: Examples, seed: int) -> Readings:
    """Score up to VISITS visits teacher-forced, once with nothing and once with some codes revealed."""
    rng = generator("calibration: visits", seed)
    rows = np.sort(rng.permutation(np.flatnonzero(np.diff(data.offsets) > 0))[:VISITS])
    part = corrupted_pairs(data, vocabulary, rng, model.config.max_position_embeddings, 1.0, 0.0)
    first, last = model.terminator_range()
    found: list[tuple[np.ndarray, ...]] = []
    for pairs in (unrevealed_pairs(model, data), part):
        for batch, output in score_teacher_forced(model, data, pairs, rows):
            is_end = torch.zeros(output.logits.shape[1], dtype=torch.bool, device=model.device)
            is_end[first : last + 1] = True
            ends = output.logits[:, is_end].logsumexp(1)
            others = output.logits.masked_fill(is_end, -torch.inf).logsumexp(1)
            has_codes = output.has_codes
            with torch.no_grad():
                states = model.age_predictor[:-1](output.pooled)[has_codes].float()
            read = (output.end_cell, ends - others, is_end[output.label], states)
            found.append(
                (*(values.cpu().numpy() for values in read), data.age[batch][has_codes.cpu().numpy()])
            )
    place, log_odds, ended, states, ages = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ages = (ages - model.config.age_mean) / model.config.age_std
    return Readings(place, log_odds.astype(np.float64), ended, states.astype(np.float64), ages)


@torch.no_grad()
def calibrate_ending(model, readings: Readings) -> None:
    """Shift `model.summary.ending` in place, so that visits are expected to end as often as they did.

    In each cell the shift is the one at which the mean probability of ending is the observed share, found by
    halving an interval. Cells that few visits reach are left alone.
    """
    ending, place = model.summary.ending, readings.place
    reached, ended = (np.bincount(place, weights, ending.numel()) for weights in (None, readings.ended))
    wanted = (ended + 0.5) / (reached + 1)
    low, high = np.full(ending.numel(), -20.0), np.full(ending.numel(), 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        expected = np.bincount(place, expit(readings.log_odds + middle[place]), ending.numel())
        too_high = (expected + 0.5) / (reached + 1) > wanted
        low, high = np.where(too_high, low, middle), np.where(too_high, middle, high)
    shift = np.where(reached >= MIN_VISITS, (low + high) / 2, 0.0)
    ending += torch.from_numpy(shift).to(ending).view_as(ending)


@torch.no_grad()
def calibrate_age(model, readings: Readings) -> None:
    """Fit the last layer of `model.age_predictor` again, in place, by least squares with dropout off.

    Under dropout the head learns from states that scatter, and reads the others with a bias: after 5 million
    tokens with dropout 0.2 it erred by 4 years² in training and by 9 without dropout.
    """
    last, states = model.age_predictor[-1], readings.states
    weight = last.weight[0].double().cpu().numpy()
    # The change stays small where visits are few and where states hardly vary.
    penalty = PENALTY * max(float(states.var(0).mean()), 1e-12)
    change = Ridge(alpha=penalty).fit(states, readings.ages - states @ weight)
    last.weight += torch.from_numpy(change.coef_[None]).to(last.weight)
    last.bias.fill_(float(change.intercept_))


class ExpectedCodes(LogitsProcessor):
    """Sums the probability of each token over all that generate() draws: `sums` [vocabulary].

    The expected number of times that each code is written varies far less than the number itself.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device):
        self.first_code = vocabulary.first_code
        self.sums = torch.zeros(len(vocabulary), dtype=torch.float64, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids[:, -1]
        going_on = (last == START) | (last >= self.first_code)
        self.sums += scores[going_on].float().softmax(-1).sum(0)
        return scores


@dataclass
class GeneratedCounts:
    """What a model writes for training patients.

    codes [vocabulary]: expected number of times that each token is written. later [MAX_COUNT]: number of
    visits after the first that hold 0, 1, 2 ... codes. carried [2]: number of codes that stand in the next
    visit of the patient too, and of those that do not, in visits that another follows.
    """

    codes: torch.Tensor
    later: torch.Tensor
    carried: torch.Tensor


@torch.no_grad()
def generate_counts(
    model, vocabulary: Vocabulary, data: Examples, seed: int, turn: int = 0, shard: tuple[int, int] = (1, 1)
) -> GeneratedCounts:
    """What the model writes for up to PATIENTS / ROUNDS training patients, told their age and sex alone.

    turn: number of the round, from 0; each has patients of its own. shard: (i, k) is the i-th of k parts of
    them.
    """
    model.eval()
    device = next(model.parameters()).device
    counted, later, carried = ExpectedCodes(vocabulary, device), np.zeros(MAX_COUNT), np.zeros(2)
    first = np.flatnonzero(data.visit == 0)
    chosen = np.sort(generator("calibration: patients", seed).permutation(first)[:PATIENTS][turn::ROUNDS])
    people = (data.age[chosen], data.sex[chosen], ("calibration", seed, turn))
    made = synthesize(model, vocabulary, *people, BATCH_PATIENTS, shard=shard, logits_processor=[counted])
    for record in made:
        later += _lengths(record)
        carried += carried_codes(record)
    return GeneratedCounts(
        counted.sums, *(torch.from_numpy(counts).to(device) for counts in (later, carried))
    )


def _lengths(visits) -> np.ndarray:
    """Number of later visits, of an Examples or a Record, that hold 0, 1, 2 ... codes: [MAX_COUNT]."""
    held = np.diff(visits.offsets)[visits.visit > 0]
    return np.bincount(np.minimum(held, MAX_COUNT - 1), minlength=MAX_COUNT)


def carried_codes(visits) -> np.ndarray:
    """Of the codes of visits that another follows, how many stand in that too and how many do not: [2]."""
    row = row_of_value(visits.offsets)
    followed = np.append(visits.visit[1:] > 0, False)[row]
    size = int(visits.ids.max(initial=0)) + 1
    here, there = row * size + visits.ids, (row - 1) * size + visits.ids
    carried = int(np.isin(here[followed], there[visits.visit[row] > 0]).sum())
    return np.array([carried, int(followed.sum()) - carried], float)


@torch.no_grad()
def calibrate_recurrence(model, data: Examples, carried: torch.Tensor) -> None:
    """Shift what all codes of earlier visits get, in place, so that as many are carried on as in training.

    carried: as `generate_counts` gives it, of all processes. Where few were the shift is drawn towards 0.
    """
    both = np.array([carried_codes(data), carried.cpu().numpy()])
    log_odds = np.log((both[:, 0] + 0.5) / (both[:, 1] + 0.5))
    least = both.min()
    model.summary.recurrence += float((log_odds[0] - log_odds[1]) * least / (least + FEW))


@torch.no_grad()
def calibrate_later_ending(model, data: Examples, later: torch.Tensor) -> None:
    """Shift the ends of later visits in place, so that what is written ends as often as training visits did.

    later: as `generate_counts` gives it, of all processes. Where few ended the shift is drawn towards 0.
    """
    log_odds, weight = [], np.inf
    for lengths in (_lengths(data), later.cpu().numpy()):
        reached = lengths[::-1].cumsum()[::-1]
        log_odds.append(np.log((lengths + 0.5) / (reached - lengths + 0.5)))
        weight = np.minimum(weight, lengths / (lengths + FEW))
    row = model.summary.ending[1]
    row += torch.from_numpy((log_odds[0] - log_odds[1]) * weight).to(row)


@torch.no_grad()
def calibrate_frequencies(model, vocabulary: Vocabulary, data: Examples, expected: torch.Tensor) -> None:
    """Shift each code's bias in place, at all ages and sexes alike, by the log of observed over expected.

    expected: the codes that `generate_counts` gives, of all processes. One occurrence is added to both sides.
    """
    found = expected.cpu().numpy().copy()
    found[: vocabulary.first_code] = 0
    if not found.any():  # fewer training patients than rounds: nobody was written in this one
        return
    observed = np.bincount(data.ids, minlength=len(vocabulary))
    shift = np.log((observed + 1) / (found / found.sum() * observed.sum() + 1))
    shift[: vocabulary.first_code] = 0
    model.summary.group_bias += torch.from_numpy(shift).to(model.summary.group_bias)
