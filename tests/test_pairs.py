"""What a fresh model takes from pairs of codes: log ratios by hand, their factors, what logits gain."""

import numpy as np
import pytest
import torch

from cohortloom.data.coded import most_frequent
from cohortloom.data.examples import Examples
from cohortloom.data.vocabulary import END, Vocabulary
from cohortloom.model.initial import make_model
from cohortloom.model.pairs import STRENGTH, largest_eigenvalues, log_ratios

CODES = tuple(f"ICD9CM:{number:03d}" for number in range(1, 41))


def visits_of(lists, first=0) -> Examples:
    """One patient a visit, aged 50; codes count from `first`."""
    n = len(lists)
    return Examples(
        ids=np.concatenate(lists) + first,
        offsets=np.concatenate([[0], np.cumsum([len(codes) for codes in lists])]),
        terminator=np.full(n, END),
        age=np.full(n, 50.0),
        sex=np.arange(n) % 2,
        visit=np.zeros(n, np.int64),
    )


def test_log_ratios_by_hand():
    """Of four visits 7 and 8 share two, which by chance would be 3 * 2 / 4; 9 is never with another."""
    data = visits_of([[7, 8], [8, 7], [7], [9]])
    assert most_frequent(data.ids, 10, 2).tolist() == [7, 8] and not len(most_frequent(data.ids, 10, 9, 4))
    ratios = log_ratios(data, np.array([7, 8, 9]))
    expected = np.log([[1, 3 / 2.5, 1 / 1.75], [3 / 2.5, 1, 1 / 1.5], [1 / 1.75, 1 / 1.5, 1]])
    assert ratios == pytest.approx(expected, abs=1e-6)
    assert log_ratios(data, np.array([7, 9])) == pytest.approx(expected[[0, 2]][:, [0, 2]], abs=1e-6)


def test_the_largest_eigenvalues_of_either_sign():
    matrix = np.diag([1.0, -5.0, 3.0, 0.1]).astype(np.float32)
    values, vectors = largest_eigenvalues(matrix, 2, 0)
    assert sorted(values) == pytest.approx([-5.0, 3.0])
    assert (vectors * values) @ vectors.T == pytest.approx(np.diag([0, -5.0, 3.0, 0]), abs=1e-3)


def company(seed, shuffled=False) -> Examples:
    """2,000 visits of three codes; each even code comes with the next odd one. Shuffled, with any."""
    rng = np.random.default_rng(seed)
    even = 2 * rng.integers(0, 20, 2000)
    odd = even + 1
    if shuffled:
        odd = rng.permutation(odd)
    other = rng.integers(0, 40, 2000)
    vocabulary = Vocabulary(CODES, (1,) * 40)
    return visits_of(
        [np.unique(codes) for codes in zip(even, odd, other, strict=True)], vocabulary.first_code
    )


def gain(data, seed=0):
    """Mean gain in logit of a code once its partner is known, over that of other codes; untrained."""
    vocabulary = Vocabulary(CODES, (1,) * 40)
    model = make_model(vocabulary, data, "tiny", seed, 0.0).eval()
    table = model.model.shared.weight[vocabulary.first_code :].detach()
    logits = (model.summary.pairs.detach() * table) @ table.T
    partner = np.arange(40) ^ 1
    others = ~np.eye(40, dtype=bool)
    others[np.arange(40), partner] = False
    return float(logits[np.arange(40), partner].mean() - logits[torch.from_numpy(others)].mean())


def test_a_fresh_model_expects_the_codes_that_go_with_those_known():
    assert gain(company(0)) > 2 * STRENGTH
    assert abs(gain(company(0, shuffled=True))) < STRENGTH


def test_embeddings_keep_their_length_and_other_weights_stay(monkeypatch):
    data, vocabulary = company(0), Vocabulary(CODES, (1,) * 40)
    with_pairs = make_model(vocabulary, data, "tiny", 0, 0.0)
    monkeypatch.setattr("cohortloom.model.initial.initialize_pairs", lambda *_: None)
    without = make_model(vocabulary, data, "tiny", 0, 0.0)
    tables = [
        model.model.shared.weight[vocabulary.first_code :].norm(dim=1) for model in (with_pairs, without)
    ]
    assert tables[0].detach().numpy() == pytest.approx(float(tables[1].detach().mean()), rel=1e-4)
    changed = {
        key
        for key, value in with_pairs.state_dict().items()
        if not torch.equal(value, without.state_dict()[key])
    }
    tied = {"model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    assert changed == {*tied, "lm_head.weight", "summary.pairs"}
    assert not without.summary.pairs.any()


def test_the_seed_decides_and_a_single_code_stays_random():
    data, vocabulary = company(0), Vocabulary(CODES, (1,) * 40)
    one, again = (make_model(vocabulary, data, "tiny", 3, 0.0).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    alone = visits_of([[0]] * 5, vocabulary.first_code)
    assert not make_model(vocabulary, alone, "tiny", 0, 0.0).summary.pairs.any()
