"""The linear autoencoder inside the model, its share, and hidden codes by probability."""

import numpy as np
import pytest
import torch

from cohortloom.data.coded import Coded
from cohortloom.data.linear import Linear
from cohortloom.data.vocabulary import END, START, Vocabulary
from cohortloom.generation.hidden import ProbableCodes
from cohortloom.model.initial import make_model
from cohortloom.model.linear import FLOOR, PENALTY, mix
from cohortloom.training.calibration import calibrate_linear_share
from test_pairs import CODES, company


def untrained(data, seed=0):
    vocabulary = Vocabulary(CODES, (1,) * len(CODES))
    return make_model(vocabulary, data, "tiny", seed=seed, dropout=0.0).eval(), vocabulary


def test_it_predicts_what_the_naive_method_predicts():
    """With 40 codes all weights are kept: the probabilities are its scores, where no floor lifts them."""
    data = company(0)
    model, vocabulary = untrained(data)
    visits = Coded(data.ids, data.offsets, np.arange(len(data)), np.zeros(len(data)), data.age, data.sex)
    revealed = np.random.default_rng(1).random(len(data.ids)) < 0.5
    naive = Linear.learn(visits, len(vocabulary), PENALTY)
    scores = np.concatenate([batch for _, batch in naive.scores(visits, revealed)])
    known = np.zeros((len(data), 3), np.int64)
    for visit in range(len(data)):
        codes = slice(*data.offsets[visit : visit + 2])
        seen = data.ids[codes][revealed[codes]]
        known[visit, : len(seen)] = seen
    present, group = torch.from_numpy(known), torch.from_numpy(13 * data.sex + 8)  # aged 50
    assert (model.linear.by_group[group] < 1).any()
    log_probability = model.linear(group, present, torch.zeros_like(present), torch.zeros(1))
    alone = model.linear.by_group[group].numpy()
    first = vocabulary.first_code
    lifted = scores < np.maximum(FLOOR * alone, alone - 1e-6)  # by FLOOR, or by MIN_SHARE without a code
    agree = np.isclose(log_probability.exp().numpy(), scores, atol=1e-5)
    assert agree[:, first:][~lifted[:, first:]].mean() > 0.9
    # rejected: the scores of visits that reveal something else
    other = np.roll(scores, 1, axis=0)
    assert np.isclose(log_probability.exp().numpy(), other, atol=1e-5)[:, first:].mean() < 0.5
    # a known code is as improbable again as any code that is known
    with_bias = model.linear(group, present, torch.zeros_like(present), torch.tensor([-2.0]))
    rows, columns = np.nonzero(known)
    difference = (with_bias - log_probability).numpy()
    assert difference[rows, known[rows, columns]] == pytest.approx(-2.0, abs=1e-4)
    assert np.count_nonzero(np.abs(difference) > 1e-4) == len(rows)


def test_the_mixture_is_the_geometric_mean_of_codes_alone():
    torch.manual_seed(0)
    logits, linear, everything = torch.randn(5, 12), torch.randn(5, 12), torch.ones(5, 12)
    mixed = mix(logits, linear, everything, 4, 0.3).softmax(1)
    network = logits.softmax(1)
    assert torch.allclose(mixed[:, :4], network[:, :4], atol=1e-6)
    expected = network[:, 4:] ** 0.7 * linear[:, 4:].softmax(1) ** 0.3
    expected *= (network[:, 4:].sum(1) / expected.sum(1))[:, None]
    assert torch.allclose(mixed[:, 4:], expected, atol=1e-6)
    assert torch.allclose(mix(logits, linear, everything, 4, 0.0).softmax(1), network, atol=1e-6)


def test_the_network_alone_decides_on_codes_that_do_not_belong():
    """However likely the linear autoencoder finds them; the other codes are mixed as before."""
    torch.manual_seed(0)
    logits, linear, belongs = torch.randn(1, 12), torch.randn(1, 12), torch.ones(1, 12)
    belongs[0, [6, 7]] = 0
    linear[0, 6] = 20.0
    free = mix(logits, linear, torch.ones(1, 12), 4, 0.3).softmax(1)[0]
    held = mix(logits, linear, belongs, 4, 0.3).softmax(1)[0]
    network = logits.softmax(1)[0]
    assert free[6] / free[7] > 10 * network[6] / network[7]
    assert held[6] / held[7] == pytest.approx(float(network[6] / network[7]), rel=1e-4)
    assert held[8] / held[9] == pytest.approx(float(free[8] / free[9]), rel=1e-4)


def test_the_share_is_larger_where_pairs_help_than_where_they_mislead():
    """The network knows the frequencies alone. Held-out visits have the pairs of training, or other pairs."""
    shares = []
    for held_out in (company(1), company(1, shuffled=True)):
        model, vocabulary = untrained(company(0))
        with torch.no_grad():
            model.model.shared.weight.zero_()
        assert model.config.linear_share == 0
        calibrate_linear_share(model, vocabulary, held_out, 0)
        shares.append(model.config.linear_share)
    assert shares[0] > 0.9 and shares[1] < 0.5, shares


def test_the_share_changes_scores_but_not_training():
    data = company(0)
    model, _ = untrained(data)
    ids = torch.from_numpy(np.tile([1, 1, 3, data.ids[0]], (2, 1)))
    inputs = dict(
        input_ids=ids,
        x_num=torch.full((2, 1), 50.0),
        x_cat=torch.zeros(2, 1, dtype=torch.int64),
        decoder_input_ids=torch.ones(2, 3, dtype=torch.int64),
    )
    with torch.no_grad():
        alone, in_training = model(**inputs).logits, model.train()(**inputs).logits
        model.config.linear_share = 0.4
        assert torch.allclose(in_training, model(**inputs).logits, atol=1e-5)
        assert not torch.allclose(alone, model.eval()(**inputs).logits, atol=1e-2)


WORDS = Vocabulary(("ICD9CM:1", "ICD9CM:2", "ICD9CM:3"), (1, 1, 1))  # ids 5 to 7, end 4


def hidden(scores, expected, threshold):
    """Codes written step by step by ProbableCodes: [batch] lists."""
    processor = ProbableCodes(np.array(expected)[:, None], threshold, WORDS)
    scores, written = torch.tensor(scores), [[] for _ in expected]
    for _ in range(scores.shape[1]):
        token = processor(torch.full((len(scores), 1), START), scores).argmax(1)
        for row, code in enumerate(token.tolist()):
            if not written[row] or written[row][-1] != END:
                written[row].append(code)
        scores = scores.scatter(1, token[:, None], -torch.inf)  # as the ban on repeats does
        scores[:, END] = 0.0
    return written


def test_hidden_codes_are_those_above_the_threshold():
    shares = np.log([[1e-9] * END + [0.2, 0.4, 0.3, 0.1], [1e-9] * END + [0.2, 0.1, 0.3, 0.4]])
    assert hidden(shares, [1.0, 1.0], 0.25) == [[5, 6, END], [7, 6, END]]
    assert hidden(shares, [2.0, 0.5], 0.25) == [[5, 6, END], [END]]
    assert hidden(shares, [2.6, 1.0], 0.25) == [[5, 6, 7, END], [7, 6, END]]
    forbidden = shares.copy()
    forbidden[:, 6] = -np.inf
    assert hidden(forbidden, [1.0, 1.0], 0.25)[1] == [7, END]


def test_hidden_codes_go_on_with_the_rows_that_are_left():
    shares = torch.log(torch.tensor([[0.1] * 7 + [0.5], [0.1] * 7 + [0.5], [0.1] * 6 + [0.5, 0.1]]))
    processor = ProbableCodes(np.ones((3, 1)), 0.25, WORDS)
    processor(torch.full((3, 1), START), shares)
    processor.keep_rows(torch.tensor([2]))
    assert processor(torch.full((1, 1), START), torch.zeros(1, 8)).argmax(1).tolist() == [6]
