"""Calibration after training: biases are set by counting, the age head by least squares.

Three things are fitted teacher-forced on validation visits; on training visits a model that has memorised
them looks calibrated.
- The share of the linear autoencoder in the distribution over codes (model/linear.py).
- The bias on ending a column (model/record.py). In training it lags behind the other weights: visits of one
  code came out a fifth to a half too rare.
- The age head. It is trained on states with dropout and used without.

Three things are fitted so that visits generated for the ages and sexes of training patients have the counts
of training visits: the frequency of each code (rare codes came out a tenth too rare), the number of codes of
each column in first and in later visits, and the carry-forward rate. No training visit is scored here, and
training counts have the least variance. Fidelity is measured against the same counts, so it partly shows this
calibration.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.linear_model import Ridge
from torch.nn import functional as F
from transformers import LogitsProcessor

from cohortloom.base.ragged import row_of_value
from cohortloom.base.seeds import generator
from cohortloom.data.examples import Examples, corrupted_pairs, lengths_by_column
from cohortloom.data.vocabulary import START, Vocabulary
from cohortloom.generation.synthesize import GeneratedPatients, synthesize
from cohortloom.model.record import N_KINDS
from cohortloom.model.scoring import score_teacher_forced, unrevealed_pairs

VISITS = 20_000  # scored at most
SHARE_VISITS = 1_000  # scored for the share; their logits of all codes are held, in four copies
PENALTY = 120.0  # of the change of the age head, in mean variances of its inputs
MIN_VISITS = 50  # of a cell of `ending`; with fewer it is not calibrated
PATIENTS = 10_000  # generated, in all rounds together
ROUNDS = 3  # of generating and shifting: each shift changes the other counts
BATCH_PATIENTS = 834  # four batches a round, for up to four processes; few patients have later visits
SHRINKAGE = 20  # a shift that rests on this number of events is halved


@dataclass
class ValidationScores:
    """Teacher-forced scores of validation visits, without dropout.

    Of each target token: cell [n] of `summary.ending`, log_odds [n] of ending, ended [n] whether the column
    ended. Of each visit: states [n_visits, 256] the input of the last layer of the age head, ages [n_visits]
    the true age in standard deviations from the mean.
    """

    cell: np.ndarray
    log_odds: np.ndarray
    ended: np.ndarray
    states: np.ndarray
    ages: np.ndarray


def calibrate(model, vocabulary: Vocabulary, train: Examples, val: Examples, seed: int, accelerator) -> None:
    """Calibrate a trained model in place.

    accelerator: accelerate's; its processes share the patients to generate.
    """
    calibrate_linear_share(model, vocabulary, val, seed)
    scores = score_validation(model, vocabulary, val, seed)
    calibrate_ending(model, scores)
    if model.config.age_weight > 0:
        calibrate_age(model, scores)
    shard = (accelerator.process_index + 1, accelerator.num_processes)
    for round_number in range(ROUNDS):
        counts = generate_counts(model, vocabulary, train, seed, round_number, shard)
        if accelerator.num_processes > 1:
            counts = GeneratedCounts(*(accelerator.reduce(sums, "sum") for sums in vars(counts).values()))
        calibrate_frequencies(model, vocabulary, train, counts.codes)
        calibrate_lengths(model, train, counts.lengths)
        calibrate_recurrence(model, train, counts.carried)


def score_validation(model, vocabulary: Vocabulary, data: Examples, seed: int) -> ValidationScores:
    """Score up to VISITS visits teacher-forced, once with no code and once with some codes revealed."""
    rng = generator("calibration: visits", seed)
    rows = np.sort(rng.permutation(np.flatnonzero(np.diff(data.offsets) > 0))[:VISITS])
    partly_revealed = corrupted_pairs(data, vocabulary, rng, model.config.max_position_embeddings, 1.0, 0.0)
    parts: list[tuple[np.ndarray, ...]] = []
    for pairs in (unrevealed_pairs(model, data), partly_revealed):
        for batch, output in score_teacher_forced(model, data, pairs, rows):
            is_end = torch.zeros(output.logits.shape[1], dtype=torch.bool, device=model.device)
            is_end[model.end_tokens()] = True
            log_ends = output.logits[:, is_end].logsumexp(1)
            log_others = output.logits.masked_fill(is_end, -torch.inf).logsumexp(1)
            has_codes = output.has_codes
            with torch.no_grad():
                states = model.age_predictor[:-1](output.pooled)[has_codes].float()
            tensors = (output.end_cell, log_ends - log_others, is_end[output.label], states)
            arrays = [tensor.cpu().numpy() for tensor in tensors]
            parts.append((*arrays, data.age[batch][has_codes.cpu().numpy()]))
    cell, log_odds, ended, states, ages = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    ages = (ages - model.config.age_mean) / model.config.age_std
    return ValidationScores(cell, log_odds.astype(np.float64), ended, states.astype(np.float64), ages)


def calibrate_linear_share(model, vocabulary: Vocabulary, data: Examples, seed: int) -> None:
    """Set `config.linear_share` to the share that makes the codes of validation visits the most probable.

    Half of the score comes from visits with nothing revealed, half from the same visits with some codes
    revealed. The logits of codes at any share follow from those of the network alone and of the linear
    autoencoder alone.
    """
    rng = generator("calibration: linear share", seed)
    rows = np.sort(rng.permutation(np.flatnonzero(np.diff(data.offsets) > 0))[:SHARE_VISITS])
    revealed = corrupted_pairs(data, vocabulary, rng, model.config.max_position_embeddings, 1.0, 0.0)
    both = unrevealed_pairs(model, data), revealed
    network, codes = code_logits(model, data, both, rows, 0.0)
    linear, _ = code_logits(model, data, both, rows, 1.0)

    def loss(share: float) -> float:
        return float(F.cross_entropy(torch.lerp(network, linear, share), codes))

    model.config.linear_share = float(minimize_scalar(loss, bounds=(0, 1), options={"xatol": 0.01}).x)


def code_logits(model, data: Examples, parts, rows: np.ndarray, share: float) -> tuple[torch.Tensor, ...]:
    """Logits [n, codes] and target [n] where a code is the target, at a share of the linear autoencoder."""
    model.config.linear_share = share
    first, logits, targets = model.config.first_code_id, [], []
    for pairs in parts:
        for _, output in score_teacher_forced(model, data, pairs, rows):
            is_code = output.label >= first
            logits.append(output.logits[is_code, first:].float())
            targets.append(output.label[is_code] - first)
    return torch.cat(logits), torch.cat(targets)


@torch.no_grad()
def calibrate_ending(model, scores: ValidationScores) -> None:
    """Shift `model.summary.ending` in place so that columns are expected to end as often as observed.

    In each cell the mean probability of ending becomes the observed share; the shift is found by bisection.
    Cells that fewer than MIN_VISITS visits reach are not shifted.
    """
    ending, cell = model.summary.ending, scores.cell
    reached, ended = (np.bincount(cell, weights, ending.numel()) for weights in (None, scores.ended))
    observed_share = (ended + 0.5) / (reached + 1)
    low, high = np.full(ending.numel(), -20.0), np.full(ending.numel(), 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        expected = np.bincount(cell, expit(scores.log_odds + middle[cell]), ending.numel())
        too_high = (expected + 0.5) / (reached + 1) > observed_share
        low, high = np.where(too_high, low, middle), np.where(too_high, middle, high)
    shift = np.where(reached >= MIN_VISITS, (low + high) / 2, 0.0)
    ending += torch.from_numpy(shift).to(ending).view_as(ending)


@torch.no_grad()
def calibrate_age(model, scores: ValidationScores) -> None:
    """Refit the last layer of `model.age_predictor` in place, by ridge regression on states without dropout.

    The head learns from states that dropout makes noisy and is biased on states without it: after 5 million
    tokens with dropout 0.2 its squared error was 4 years² in training and 9 without dropout.
    """
    last, states = model.age_predictor[-1], scores.states
    weight = last.weight[0].double().cpu().numpy()
    # The penalty keeps the change small where there are few visits or the states hardly vary.
    penalty = PENALTY * max(float(states.var(0).mean()), 1e-12)
    change = Ridge(alpha=penalty).fit(states, scores.ages - states @ weight)
    last.weight += torch.from_numpy(change.coef_[None]).to(last.weight)
    last.bias.fill_(float(change.intercept_))


class ExpectedCodes(LogitsProcessor):
    """Sums the probability of each token over all draws of generate(): `sums` [vocabulary].

    This is the expected number of each code, which has far less variance than the number drawn.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device):
        self.first_boundary = vocabulary.first_boundary
        self.sums = torch.zeros(len(vocabulary), dtype=torch.float64, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids[:, -1]
        is_open = (last == START) | (last >= self.first_boundary)
        self.sums += scores[is_open].float().softmax(-1).sum(0)
        return scores


@dataclass
class GeneratedCounts:
    """Counts of visits generated for training patients.

    codes [vocabulary]: expected number of each token. lengths [columns, 2, max_count]: number of first and
    of later visits with 0, 1, 2 ... codes. carried [columns, 2]: see `carried_codes`.
    """

    codes: torch.Tensor
    lengths: torch.Tensor
    carried: torch.Tensor


@torch.no_grad()
def generate_counts(
    model,
    vocabulary: Vocabulary,
    data: Examples,
    seed: int,
    round_number: int = 0,
    shard: tuple[int, int] = (1, 1),
) -> GeneratedCounts:
    """Counts of visits generated for the ages and sexes of up to PATIENTS / ROUNDS training patients.

    round_number: from 0; each round has other patients. shard: (i, k) for the i-th of k parts of them.
    """
    model.eval()
    device = next(model.parameters()).device
    expected, n_columns, max_count = ExpectedCodes(vocabulary, device), data.n_columns, model.config.max_count
    lengths, carried = np.zeros((n_columns, 2, max_count)), np.zeros((n_columns, 2))
    first = np.flatnonzero(data.visit == 0)
    chosen = np.sort(
        generator("calibration: patients", seed).permutation(first)[:PATIENTS][round_number::ROUNDS]
    )
    people = (data.age[chosen], data.sex[chosen], ("calibration", seed, round_number))
    options = {"shard": shard, "logits_processor": [expected]}
    for batch in synthesize(model, vocabulary, *people, BATCH_PATIENTS, **options):
        column = vocabulary.column_of(batch.ids)
        lengths += count_lengths(batch, column, n_columns, max_count)
        carried += carried_codes(batch, column, n_columns)
    return GeneratedCounts(
        expected.sums, *(torch.from_numpy(counts).to(device) for counts in (lengths, carried))
    )


def count_lengths(
    visits: Examples | GeneratedPatients, column: np.ndarray, n_columns: int, max_count: int
) -> np.ndarray:
    """Number of first and of later visits with 0, 1, 2 ... codes in each column: [n_columns, 2, max_count].

    column [n_codes]: of each code of `visits`.
    """
    lengths = np.minimum(lengths_by_column(visits.offsets, column, n_columns), max_count - 1)
    counts = np.zeros((n_columns, 2, max_count), np.int64)
    for number in range(n_columns):
        np.add.at(counts[number], ((visits.visit > 0).astype(int), lengths[:, number]), 1)
    return counts


def carried_codes(visits: Examples | GeneratedPatients, column: np.ndarray, n_columns: int) -> np.ndarray:
    """Codes that are carried forward into the patient's next visit, and those that are not: [n_columns, 2].

    Only visits with a next one count. column [n_codes]: of each code of `visits`.
    """
    row = row_of_value(visits.offsets)
    followed = np.append(visits.visit[1:] > 0, False)[row]
    size = int(visits.ids.max(initial=0)) + 1
    key, key_in_previous = row * size + visits.ids, (row - 1) * size + visits.ids
    is_carried = np.isin(key[followed], key_in_previous[visits.visit[row] > 0])
    counts = [np.bincount(column[followed], weights, n_columns) for weights in (is_carried, ~is_carried)]
    return np.stack(counts, 1)


@torch.no_grad()
def calibrate_recurrence(model, data: Examples, carried: torch.Tensor) -> None:
    """Shift the bias of codes of earlier visits in place to the carry-forward rates of training visits.

    carried [columns, 2]: of generated visits, summed over processes. The shift of each column shrinks towards
    0 where counts are small.
    """
    observed = carried_codes(data, data.column_of(data.ids), data.n_columns)
    counts = np.array([observed, carried.cpu().numpy()])
    log_odds = np.log((counts[..., 0] + 0.5) / (counts[..., 1] + 0.5))
    smallest = counts.min((0, 2))
    shift = (log_odds[0] - log_odds[1]) * smallest / (smallest + SHRINKAGE)
    recurrence, column = model.summary.recurrence, model.summary.column_of_token
    is_code = torch.arange(len(column), device=column.device) >= model.config.first_code_id
    recurrence += torch.where(is_code, torch.from_numpy(shift).to(recurrence)[column], 0.0)


@torch.no_grad()
def calibrate_lengths(model, data: Examples, generated: torch.Tensor) -> None:
    """Shift the bias on ending in place to the lengths of the columns of first and later training visits.

    generated [columns, 2, max_count]: of generated visits, summed over processes. A shift shrinks towards 0
    where few columns end.
    """
    n_columns, _, max_count = generated.shape
    observed = count_lengths(data, data.column_of(data.ids), n_columns, max_count)
    log_odds, weight = [], np.inf
    for lengths in (observed, generated.cpu().numpy()):
        reached = lengths[..., ::-1].cumsum(-1)[..., ::-1]
        log_odds.append(np.log((lengths + 0.5) / (reached - lengths + 0.5)))
        weight = np.minimum(weight, lengths / (lengths + SHRINKAGE))
    shift = torch.from_numpy((log_odds[0] - log_odds[1]) * weight)
    ending = model.summary.ending.view(n_columns, N_KINDS, max_count)
    ending[:, :2] += shift.to(ending)


@torch.no_grad()
def calibrate_frequencies(model, vocabulary: Vocabulary, data: Examples, expected: torch.Tensor) -> None:
    """Shift each code's bias in place, equally at all ages and sexes, by the log of observed over expected.

    expected [vocabulary]: of generated visits, summed over processes; in each column scaled to the observed
    total. One occurrence is added to both.
    """
    expected = expected.cpu().numpy()[vocabulary.first_code :]
    observed = np.bincount(data.ids, minlength=len(vocabulary))[vocabulary.first_code :]
    column = vocabulary.column_of(np.arange(vocabulary.first_code, len(vocabulary)))
    of_column = np.bincount(column, expected)  # 0 with fewer training patients than rounds: nothing generated
    scale = np.bincount(column, observed) / np.maximum(of_column, 1e-9)
    shift = np.log((observed + 1) / (expected * scale[column] + 1)) * (of_column > 0)[column]
    bias = model.summary.group_bias
    bias[:, vocabulary.first_code :] += torch.from_numpy(shift).to(bias)
