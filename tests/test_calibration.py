"""Visits end as often after each number of codes as training visits do."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cohortloom.base.seeds import generator
from cohortloom.data.examples import Examples, plain_pairs
from cohortloom.data.vocabulary import END, Vocabulary
from cohortloom.generation.synthesize import synthesize
from cohortloom.model.initial import make_model
from cohortloom.model.scoring import mean_losses, score_teacher_forced
from cohortloom.training.calibration import (
    BATCH_PATIENTS,
    ROUNDS,
    calibrate,
    calibrate_age,
    calibrate_ending,
    calibrate_frequencies,
    calibrate_lengths,
    calibrate_recurrence,
    carried_codes,
    generate_counts,
    score_validation,
)

CODES = tuple(f"ICD9CM:{code}" for code in ("2859", "4019", "5990", "60000", "64891", "66411", "7746"))


def made(gap_bins=(), seed=0, longer=0.0):
    """2,000 patients of two visits of 1 to 5 codes, first ones shorter; vocabulary; an untrained model.

    Without bins for the days in between, the model ends all records after one visit.
    """
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(CODES, (1,) * len(CODES), gap_bins)
    visit = np.tile([0, 1], 2000)
    lengths = 1 + rng.binomial(4, longer + np.where(visit == 0, 0.3, 0.6))
    ids = np.concatenate([rng.choice(len(CODES), n, replace=False) for n in lengths]) + vocabulary.first_code
    data = Examples(
        ids=ids,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        terminator=np.where(visit == 0, vocabulary.terminators[-1], END),
        age=rng.uniform(20, 80, 4000),
        sex=rng.integers(0, 2, 4000),
        visit=visit,
    )
    return vocabulary, data, make_model(vocabulary, data, "tiny", 0, 0.0).eval()


@pytest.fixture
def world():
    return made()


def carried(visits):
    """`carried_codes` of visits whose codes are of one column."""
    return carried_codes(visits, np.zeros(len(visits.ids), int), 1)


def ends(vocabulary, data, model, first):
    """Share of first (or later) visits that end after 1, 2, ... codes: expected by the model, and real."""
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), 64)
    lengths = np.diff(data.offsets)
    rows = np.flatnonzero((lengths > 0) & ((data.visit == 0) == first))
    max_count = model.config.max_count
    sums, counts = np.zeros(max_count), np.zeros(max_count)
    for _, output in score_teacher_forced(model, data, pairs, rows):
        ended = output.logits.softmax(-1)[:, vocabulary.terminators].sum(-1).numpy()
        written = output.end_cell.numpy() % max_count
        sums += np.bincount(written, ended, max_count)
        counts += np.bincount(written, minlength=max_count)
    expected = (sums[1:5] / counts[1:5]).tolist()
    return expected, [float((lengths[rows] == k).sum() / (lengths[rows] >= k).sum()) for k in range(1, 5)]


def test_expected_ends_become_the_observed(world):
    vocabulary, data, model = world
    with torch.no_grad():
        model.summary.ending += 1.0  # what was learnt about lengths went wrong
    for first in (True, False):
        expected, real = ends(vocabulary, data, model, first)
        assert max(np.abs(np.subtract(expected, real))) > 0.1
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calibrate_ending(model, score_validation(model, vocabulary, data, 0))
    for first in (True, False):
        expected, real = ends(vocabulary, data, model, first)
        assert expected == pytest.approx(real, abs=0.02)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["summary.ending"]


def test_ends_are_set_by_validation_visits(world, monkeypatch):
    """A model that has memorised its training visits would look calibrated there."""
    vocabulary, train, model = world
    monkeypatch.setattr("cohortloom.training.calibration.ROUNDS", 0)
    val = made(seed=1, longer=0.3)[1]
    calibrate(model, vocabulary, train, val, 0, SimpleNamespace(process_index=0, num_processes=1))
    for first in (True, False):
        expected, real = ends(vocabulary, val, model, first)
        assert expected == pytest.approx(real, abs=0.03)
        assert max(np.abs(np.subtract(expected, ends(vocabulary, train, model, first)[1]))) > 0.1


def test_tuning_shares_no_random_numbers_with_what_is_reported(world, monkeypatch):
    vocabulary, data, model = world
    seeds = []
    monkeypatch.setattr("torch.manual_seed", seeds.append)
    for turn in range(ROUNDS):
        generate_counts(model, vocabulary, data, 0, turn)
    tuning, seeds[:] = set(seeds), []
    for seed in range(5):
        list(synthesize(model, vocabulary, data.age[:9], data.sex[:9], ("synthesize", seed), BATCH_PATIENTS))
    assert tuning and len(set(seeds)) == 5
    assert not tuning & set(seeds)


def test_cells_that_few_visits_reach_are_not_shifted(world):
    vocabulary, data, model = world
    before = model.summary.ending.clone()
    calibrate_ending(model, score_validation(model, vocabulary, data, 0))
    most = int(np.diff(data.offsets).max())
    assert torch.equal(model.summary.ending[:, most + 1 :], before[:, most + 1 :])
    assert not torch.equal(model.summary.ending, before)


def test_expected_frequencies_become_the_observed(world):
    vocabulary, data, model = world
    with torch.no_grad():
        model.summary.group_bias[:, vocabulary.first_code] -= 1.0  # a code that came out far too rare

    def shares(counts):
        codes = np.asarray(counts)[vocabulary.first_code :]
        return codes / codes.sum()

    real = shares(np.bincount(data.ids, minlength=len(vocabulary)))
    expected = generate_counts(model, vocabulary, data, 0).codes
    assert np.abs(shares(expected) - real).max() > 0.05
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calibrate_frequencies(model, vocabulary, data, expected)
    # Codes of a visit exclude each other, so one shift does not remove the whole difference.
    assert np.abs(shares(generate_counts(model, vocabulary, data, 1).codes) - real).max() < 0.02
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["summary.group_bias"]
    bias = (model.summary.group_bias - before["summary.group_bias"])[:, : vocabulary.first_code]
    assert not bias.any()  # whether visits end is another matter


def test_generated_counts_add_up_over_shards(world):
    vocabulary, data, model = world
    both = generate_counts(model, vocabulary, data, 0)
    parts = [generate_counts(model, vocabulary, data, 0, 0, (i, 2)) for i in (1, 2)]
    assert torch.allclose(sum(part.codes for part in parts), both.codes)
    assert torch.equal(sum(part.lengths for part in parts), both.lengths)
    assert torch.equal(sum(part.carried for part in parts), both.carried)


def test_rounds_write_for_all_patients_what_the_model_writes():
    """Each for a third of them; expected codes and ends sum up to those that were drawn."""
    vocabulary, data, model = made(((30, 60),))
    rounds = [generate_counts(model, vocabulary, data, 0, turn) for turn in range(ROUNDS)]
    people = generator("calibration: patients", 0).permutation(np.flatnonzero(data.visit == 0))
    records = []
    for turn in range(ROUNDS):
        chosen = np.sort(people[turn::ROUNDS])
        seed = ("calibration", 0, turn)
        records += synthesize(model, vocabulary, data.age[chosen], data.sex[chosen], seed, BATCH_PATIENTS)
    codes, lengths, carried_on = (
        sum(getattr(each, name) for each in rounds) for name in ("codes", "lengths", "carried")
    )
    written = sum(len(record.ids) for record in records)
    visits = sum(len(record.offsets) - 1 for record in records)
    assert len(people) == 2000 < visits
    assert float(codes[vocabulary.first_code :].sum()) == pytest.approx(written, rel=0.02)
    assert float(codes[vocabulary.terminators].sum()) == pytest.approx(visits, rel=0.02)
    later = sum(int((record.visit > 0).sum()) for record in records)
    assert lengths.sum(-1).tolist() == [[visits - later, later]]
    assert carried_on.tolist() == sum(carried(record) for record in records).tolist()


def test_generated_visits_end_as_often_as_training_visits(world):
    """Where many ended; few ends move little, and no end nothing."""
    _, data, model = world
    later = np.diff(data.offsets)[data.visit > 0]
    n_cells = model.config.max_count
    real = np.bincount(later, minlength=n_cells)
    # What was written ends after each code with a chance of 0.6, and after five at the latest.
    chance = np.random.default_rng(0)
    lengths = np.minimum(chance.geometric(0.6, 5000), 5)
    written = torch.zeros(1, 2, n_cells, dtype=torch.int64)
    written[0, 1] = torch.from_numpy(np.bincount(lengths, minlength=n_cells))
    before = model.summary.ending.detach().clone()
    calibrate_lengths(model, data, written)
    shift = (model.summary.ending - before).detach().numpy()
    assert not shift[[0, 2]].any(), (
        "no first visit was written, and those of which a part is shown are another matter"
    )
    hazard = np.array([real[k] / real[k:].sum() for k in range(1, 4)])
    wanted = np.log(hazard / (1 - hazard)) - np.log(0.6 / 0.4)
    assert real[1] < 80 < real[2]
    assert shift[1, 2:4] == pytest.approx(wanted[1:], abs=0.25)
    assert wanted[0] < shift[1, 1] < 0.5 * wanted[0]
    assert not np.allclose(wanted, 0, atol=0.5)
    assert not shift[1, 6:].any(), "nothing was seen there"


def test_codes_carried_on_by_hand():
    """Patients of 3, 1 and 2 visits; a code that returns after a visit without it is not carried on."""
    visits = [[5, 6, 7], [6, 8], [5, 7, 8], [5], [6, 9], [6, 9, 5]]
    data = Examples(
        ids=np.concatenate(visits),
        offsets=np.concatenate([[0], np.cumsum([len(codes) for codes in visits])]),
        terminator=np.full(6, END),
        age=np.full(6, 50.0),
        sex=np.zeros(6, np.int64),
        visit=np.array([0, 1, 2, 0, 0, 1]),
    )
    # 6; then 8; then 6 and 9, of the 3, 2 and 2 codes of visits that another follows
    assert carried(data).tolist() == [[4, 3]]
    # the same codes as two columns, up to 7 and from 8 on
    assert carried_codes(data, (data.ids > 7).astype(int), 2).tolist() == [[2, 3], [2, 0]]


def test_codes_are_carried_on_as_often_as_in_training():
    vocabulary, data, model = made(((30, 60),))
    with torch.no_grad():
        model.summary.recurrence += 1.5  # what was learnt about recurring codes went wrong

    def share(counts):
        return float(counts[0, 0] / counts.sum())

    real, written = share(carried(data)), generate_counts(model, vocabulary, data, 0).carried
    assert share(written) > real + 0.1
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calibrate_recurrence(model, data, written)
    # Visits hold most of the seven codes, so one shift does not remove the whole difference.
    assert abs(share(generate_counts(model, vocabulary, data, 1).carried) - real) < 0.5 * (
        share(written) - real
    )
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["summary.recurrence"]


@pytest.mark.parametrize("n, weight", [(0, 0.0), (4, 4 / 24), (10**6, 1.0)])
def test_few_codes_carried_on_say_little(world, n, weight):
    """As many carried on as not, in what was written: the shift is the log odds of training, or a part."""
    _, data, model = world
    before, ((returning, others),) = model.summary.recurrence.clone(), carried(data)
    calibrate_recurrence(model, data, torch.tensor([[n, n]], dtype=torch.float64))
    shift = (model.summary.recurrence - before).detach().numpy()
    first = model.config.first_code_id
    assert min(returning, others) > 1000 and not shift[:first].any()
    assert shift[first:] == pytest.approx(weight * np.log(returning / others), rel=0.02)


def age_loss(data, model):
    """Mean squared error of the age head in years², nothing revealed."""
    return mean_losses(model, data)["age"] * model.config.age_std**2


def test_the_age_head_is_fitted_to_states_without_dropout(world):
    vocabulary, data, _ = world
    model = make_model(vocabulary, data, "mini", 0, 0.0).eval()  # of enough width to hold the age
    with torch.no_grad():
        model.decoder_prompt.projection.weight *= 20  # a prompt that attention cannot overlook
        model.age_predictor[-1].bias += 0.5  # standard deviations: what dropout may do to what the head reads
    before = age_loss(data, model)
    assert before > 0.25 * data.age.var()  # the fault is there to be mended
    body = {key: value.clone() for key, value in model.state_dict().items()}
    calibrate_age(model, score_validation(model, vocabulary, data, 0))
    fitted = age_loss(data, model)
    assert fitted < 0.5 * before and fitted < 0.5 * data.age.var()
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, body[key])]
    assert changed == ["age_predictor.3.weight", "age_predictor.3.bias"]
