"""Training examples: histories, corruption, steps, and visits packed into rows."""

import numpy as np
import pytest

from cohortloom.data.examples import (
    N_PROMPTS,
    Examples,
    assign_rows,
    collate,
    corrupted_pairs,
    history,
    plain_pairs,
    steps,
)
from cohortloom.data.vocabulary import MASK, NOW, START
from test_model import world  # noqa: F401


def test_history_holds_earlier_visits_whole_and_counts_what_it_cut():
    data = Examples(
        np.array([7, 8, 9, 7]),
        np.array([0, 2, 3, 4]),
        np.array([5, 6, 4]),
        np.zeros(3),
        np.zeros(3, int),
        np.array([0, 1, 2]),
    )
    ids, lengths, dropped = history(data, 10)
    assert lengths.tolist() == [0, 3, 5] and ids.tolist() == [7, 8, 5, 7, 8, 5, 9, 6] and dropped == 0
    ids, lengths, dropped = history(data, 4)
    assert lengths.tolist() == [0, 3, 2] and ids.tolist() == [7, 8, 5, 9, 6] and dropped == 1


def test_revealed_codes_enter_the_encoder_and_leave_the_target(world):  # noqa: F811
    words, data, _ = world
    shown = np.zeros(len(data.ids), bool)
    shown[data.offsets[:-1]] = True
    pairs = plain_pairs(data, shown, 64)
    for row in range(20):
        codes = data.ids[data.offsets[row] : data.offsets[row + 1]]
        target = pairs.decoder_ids[pairs.decoder_offsets[row] : pairs.decoder_offsets[row + 1]]
        read = pairs.encoder_ids[pairs.encoder_offsets[row] : pairs.encoder_offsets[row + 1]]
        assert target.tolist() == [START, *codes[1:], data.terminator[row]]
        assert read[-2:].tolist() == [NOW, codes[0]]


def test_corruption_is_seeded_and_the_decoder_restores_it(world):  # noqa: F811
    words, data, _ = world
    make = lambda seed: corrupted_pairs(data, words, np.random.default_rng(seed), 64, 1.0, 0.2)  # noqa: E731
    once, again, other = make(1), make(1), make(2)
    assert (once.encoder_ids == again.encoder_ids).all() and (once.decoder_ids == again.decoder_ids).all()
    assert len(once.encoder_ids) != len(other.encoder_ids) or (once.encoder_ids != other.encoder_ids).any()
    assert (once.encoder_ids == MASK).any()
    for row in range(len(data)):
        codes = set(data.ids[data.offsets[row] : data.offsets[row + 1]].tolist())
        target = once.decoder_ids[once.decoder_offsets[row] : once.decoder_offsets[row + 1]][1:-1].tolist()
        read = once.encoder_ids[once.encoder_offsets[row] : once.encoder_offsets[row + 1]]
        intact = set(read[np.flatnonzero(read == NOW)[-1] + 1 :].tolist()) - set(target)
        assert codes <= set(target) | intact and set(target) <= codes


def test_steps_hold_every_row_once_within_the_budget(world):  # noqa: F811
    words, data, _ = world
    pairs = corrupted_pairs(data, words, np.random.default_rng(0), 64)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.arange(len(data)) % 7))
    made = steps(pairs, 64, rows)
    assert np.concatenate(made).tolist() == rows.tolist()
    tokens = [pairs.targets(part).sum() for part in made]
    assert max(tokens) <= 64 + pairs.targets(rows).max() and np.mean(tokens[:-1]) == pytest.approx(
        64, rel=0.1
    )


def test_long_histories_make_steps_small(world, monkeypatch):  # noqa: F811
    """Rejected: the same rows where a step may read any number of tokens."""
    pairs = plain_pairs(world[1], np.zeros(len(world[1].ids), bool), 64)
    rows, read = np.arange(len(world[1])), {}
    for most in (0.1, 100):
        monkeypatch.setattr("cohortloom.data.examples.READ", most)
        made = steps(pairs, 32, rows)
        assert np.concatenate(made).tolist() == rows.tolist()
        read[most] = max(np.diff(pairs.encoder_offsets)[part].sum() for part in made)
    assert read[0.1] <= 3.2 + np.diff(pairs.encoder_offsets).max() < read[100]


def test_rows_hold_whole_visits_side_by_side():
    lengths = np.array([[5, 3], [2, 6], [4, 4], [9, 1], [1, 1]])
    row = assign_rows(lengths, np.array([10, 8]))
    for used in np.unique(row):
        assert (lengths[row == used].sum(0) <= [10, 8]).all()
    assert len(np.unique(row)) == row.max() + 1 == 3


def test_a_visit_longer_than_a_row_widens_it(world):  # noqa: F811
    """All tokens are there once, in order, whatever the lengths."""
    words, data, model = world
    long = data.select(np.arange(6))
    long.ids = np.tile(long.ids[:1], 100)
    long.offsets = np.array([0, 90, 92, 94, 96, 98, 100])
    long.visit = np.zeros(6, int)
    batch = collate(long, plain_pairs(long, np.zeros(100, bool), 512), np.arange(6))
    assert batch["decoder_visit"].shape[1] == N_PROMPTS + 91
    for row in range(6):
        inside = batch["decoder_visit"] == row
        codes = long.ids[long.offsets[row] : long.offsets[row + 1]].tolist()
        assert batch["decoder_input_ids"][inside][N_PROMPTS:].tolist() == [START, *codes]
        assert batch["labels"][inside][N_PROMPTS:].tolist() == [*codes, long.terminator[row]]
