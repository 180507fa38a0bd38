"""The decoding loop of our own against that of transformers: the same scores, the same distribution."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare, kstest
from transformers import LogitsProcessor

import cohortloom.generation.sampling
from cohortloom.data.examples import N_PROMPTS
from cohortloom.data.forbidden import AGES
from cohortloom.data.vocabulary import END, NOW, START
from cohortloom.generation.constrained import Constraint
from cohortloom.generation.sampling import Clocks, draw_alarms, sample_tokens
from cohortloom.generation.synthesize import generate_visits, latest_visits, parse_ids
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.runtime.devices import fast_products
from test_model import visits_in_rows, world  # noqa: F401


class Scatter(LogitsProcessor):
    """Adds fixed numbers by the last token, so that an untrained model generates visits of many lengths."""

    def __init__(self, vocabulary):
        chance = torch.Generator().manual_seed(0)
        self.table = 5 * torch.randn(len(vocabulary), len(vocabulary), generator=chance)
        self.table[:, vocabulary.terminators] -= 4.0

    def __call__(self, input_ids, scores):
        return scores + self.table[input_ids[:, -1]]


PACKED = [(0.0, 1), (1 / 8, 1), (1 / 8, 16), (1.0, 1)]  # values of MIN_ENDED and ROW_MULTIPLE
ODDS = torch.tensor([0.5, 0.25, 0.15, 0.0999, 0.0001, 0.0]).log()


def written(world, n, seed=0, library=False, reveal=0.0, **options):  # noqa: F811
    """Ids [n, length] of visits of `n` training patients, by the library's loop or by ours."""
    torch.manual_seed(seed)
    own = {} if library else {"custom_generate": sample_tokens}
    return world[2].generate(**visits_in_rows(world, n, reveal), **own, **options)


def test_tokens_are_drawn_by_their_probability():
    torch.manual_seed(0)
    n = 200_000
    found = np.bincount(Clocks(n, 6).draw(ODDS.expand(n, -1)).numpy(), minlength=6)
    assert found[5] == 0, "minus infinity is never drawn"
    expected = n * ODDS.double().softmax(-1).numpy()[:5]
    assert chisquare(found[:5], expected).pvalue > 1e-3
    # rejected: the same draws at another temperature
    torch.manual_seed(0)
    found = np.bincount(Clocks(n, 6).draw((ODDS / 1.1).expand(n, -1)).numpy(), minlength=6)
    assert chisquare(found[:5], expected).pvalue < 1e-6


@pytest.mark.parametrize("fine", [True, False], ids=["alarms", "in single precision"])
def test_alarms_are_exponential_and_fine_near_zero(fine):
    """For a rare code the small alarms matter. Rejected: -log(1 - u) of numbers u of 24 bits."""
    torch.manual_seed(0)
    alarms = draw_alarms(2000, 2000, torch.device("cpu")) if fine else -torch.log1p(-torch.rand(2000, 2000))
    assert kstest(alarms.flatten()[:200_000].numpy(), "expon").pvalue > 1e-3
    small = alarms[alarms < 1e-4]
    assert 300 < len(small) < 500
    assert (len(small.unique()) == len(small)) is fine
    if fine:
        torch.manual_seed(0)
        assert torch.equal(alarms, draw_alarms(2000, 2000, torch.device("cpu"))), "torch's seed decides"
        assert not torch.equal(alarms, draw_alarms(2000, 2000, torch.device("cpu")))


@pytest.mark.parametrize("stopped", [False, True], ids=["clocks", "stopped clocks"])
def test_later_tokens_are_drawn_by_their_probability_given_the_earlier_ones(stopped):
    """Also where a token may be drawn again. Rejected: clocks that did not run while others were awaited."""
    torch.manual_seed(0)
    n, after = 200_000, torch.tensor([[-1.0, 0.0, 1.0], [0.5, -0.5, 0.0], [0.0, 1.0, -torch.inf]])
    clocks, scores, pvalues = Clocks(n, 3), torch.tensor([0.2, 0.5, 0.3]).log().expand(n, -1), []
    before = clocks.alarms.clone()
    for _ in range(2):
        first = clocks.draw(scores)
        if stopped:
            clocks.alarms.copy_(before)
        second = clocks.draw(scores := after[first])
        for token in range(3):
            share = after[token].double().softmax(-1).numpy()
            found = np.bincount(second[first == token].numpy(), minlength=3)
            assert found[share == 0].sum() == 0
            pvalues.append(chisquare(found[share > 0], found.sum() * share[share > 0]).pvalue)
        scores = after[second]
    assert min(pvalues) < 1e-6 if stopped else min(pvalues) > 1e-3


@pytest.mark.parametrize("anew", [False, True], ids=["clocks", "new clocks at each position"])
def test_a_forbidden_token_changes_no_other_draw(anew):
    """Six of twenty tokens without repeats: forbidding token 15 removes it and changes no other draw."""

    def written(barred):
        torch.manual_seed(0)
        clocks, scores = Clocks(500, 20), torch.linspace(-3, 3, 20).repeat(500, 1)
        scores[:, barred] = -torch.inf
        drawn = []
        for _ in range(6):
            clocks = Clocks(500, 20) if anew else clocks
            drawn.append(clocks.draw(scores))
            scores.scatter_(1, drawn[-1][:, None], -torch.inf)
        return torch.stack(drawn, 1).tolist()

    pairs = list(zip(written([]), written([15]), strict=True))
    without = [([token for token in free if token != 15], bound) for free, bound in pairs]
    assert sum(free != bound for free, bound in pairs) > 50
    assert all(free == bound[: len(free)] for free, bound in without) is not anew


def test_an_alarm_at_zero_draws_no_token_without_a_share():
    clocks = Clocks(2, 4)
    clocks.alarms[:] = torch.tensor([0.0, 0.0, 5.0, 0.0])
    assert clocks.draw(torch.tensor([[-torch.inf, -torch.inf, 0.0, -torch.inf]] * 2)).tolist() == [2, 2]


@pytest.mark.parametrize("scores", [[0.0, torch.nan], [-torch.inf, -torch.inf]], ids=["nan", "none"])
def test_scores_without_a_token_to_draw_are_refused(scores):
    with pytest.raises(ValueError, match="no permitted token"):
        Clocks(2, 2).draw(torch.tensor([[0.0, 0.0], scores]))


@pytest.mark.parametrize("reveal", [0.0, 0.5])
@pytest.mark.parametrize("leave, grain", PACKED)
def test_greedy_decoding_equals_the_librarys(world, monkeypatch, reveal, leave, grain):  # noqa: F811
    """For ended visits that leave the batch at once, at a share of it, or never, and for all lengths."""
    monkeypatch.setattr(cohortloom.generation.sampling, "MIN_ENDED", leave)
    monkeypatch.setattr(cohortloom.generation.sampling, "ROW_MULTIPLE", grain)
    options = {"do_sample": False, "logits_processor": [Scatter(world[0])]}
    ours, theirs = (written(world, 64, library=there, reveal=reveal, **options) for there in (False, True))
    lengths = parse_ids(theirs.numpy(), world[0]).lengths
    assert len(np.unique(lengths)) > 2
    assert torch.equal(ours, theirs)
    plain = written(world, 64, reveal=reveal, do_sample=False)
    assert not torch.equal(ours, plain), "the comparison sees what was written"


@pytest.mark.parametrize("repeats", [{}, {"no_repeat_ngram_size": 0}], ids=["without repeats", "with"])
def test_a_visit_does_not_depend_on_the_others_in_its_batch(world, monkeypatch, repeats):  # noqa: F811
    """Not on when ended visits leave nor on the other patients; another seed gives other draws."""
    options = {"do_sample": True, "logits_processor": [Scatter(world[0])], **repeats}
    made = []
    for leave, grain in PACKED:
        monkeypatch.setattr(cohortloom.generation.sampling, "MIN_ENDED", leave)
        monkeypatch.setattr(cohortloom.generation.sampling, "ROW_MULTIPLE", grain)
        made.append(written(world, 64, **options))
    assert all(torch.equal(made[0], other) for other in made[1:])
    assert not torch.equal(made[0], written(world, 64, seed=1, **options)[:, : made[0].shape[1]])

    batch = visits_in_rows(world, 64)
    batch["x_cat"] = torch.cat([1 - batch["x_cat"][:32], batch["x_cat"][32:]])
    torch.manual_seed(0)
    flipped = world[2].generate(**batch, custom_generate=sample_tokens, **options)
    length = min(flipped.shape[1], made[0].shape[1])
    assert torch.equal(flipped[32:, :length], made[0][32:, :length])
    assert not torch.equal(flipped[:32, :length], made[0][:32, :length])


def test_sampled_visits_are_distributed_as_the_librarys(world):  # noqa: F811
    """First code and number of codes of 20,000 visits of one patient; another temperature is detected."""
    model, n = world[2], 20_000
    given = {
        "input_ids": torch.tensor([[START, START, NOW]]).repeat(n, 1),
        "x_num": torch.full((n, 1), 40.0),
        "x_cat": torch.ones(n, 1, dtype=torch.long),
        "max_new_tokens": 6,
    }

    def tables(seed, **options):
        torch.manual_seed(seed)
        made = model.generate(**given, **options)
        lengths = parse_ids(made.numpy(), world[0]).lengths
        return np.bincount(made[:, N_PROMPTS + 1], minlength=len(world[0])), np.bincount(lengths, minlength=7)

    def pvalues(one, other):
        return [
            chi2_contingency(np.stack(pair)[:, np.stack(pair).sum(0) > 10]).pvalue
            for pair in zip(one, other, strict=True)
        ]

    theirs = tables(0)
    assert min(pvalues(theirs, tables(1, custom_generate=sample_tokens))) > 1e-3
    assert min(pvalues(theirs, tables(1, custom_generate=sample_tokens, temperature=0.5))) < 1e-6


def test_a_constraint_follows_its_rows_when_others_leave(world):  # noqa: F811
    """The rows of the mask stay with their visits: the same codes and mass as in the library's loop."""
    vocabulary = world[0]
    table = np.random.default_rng(0).random((2, AGES, len(vocabulary))) < 0.5
    table[..., : vocabulary.first_code] = False
    batch = visits_in_rows(world, 64)
    bound = Constraint(vocabulary, table)
    made = []
    for library in (False, True):
        processor = bound.processor(batch["x_num"][:, 0].numpy(), batch["x_cat"][:, 0].numpy())
        options = {"do_sample": False, "logits_processor": [Scatter(vocabulary), processor]}
        made.append((written(world, 64, library=library, **options), processor.counts()))
    (ours, counted), (theirs, expected) = made
    assert torch.equal(ours, theirs)
    assert counted["constrained_positions"] == expected["constrained_positions"]
    assert counted["removed_mass"] == pytest.approx(expected["removed_mass"], rel=1e-4)


@pytest.mark.parametrize("options", [{"max_time": 10.0}, {"use_cache": False}])
def test_unsupported_options_are_refused(world, options):  # noqa: F811
    with pytest.raises(ValueError, match="sample_tokens"):
        written(world, 4, **options)


PUBLISHED = Path(__file__).resolve().parents[1] / "published" / "nhds2010" / "model"


@pytest.mark.parametrize("wrong", [False, True], ids=["products in bf16", "weights in eight bits"])
def test_products_in_bf16_hardly_move_probabilities(monkeypatch, wrong):
    """Of the published model, over visits that it generates, in nats a token. Rejected: coarser products."""
    monkeypatch.setattr("cohortloom.runtime.devices.pick_device", lambda *asked: ("cpu", "bf16"))
    model = PromptBartWithDemographicPrediction.from_pretrained(PUBLISHED).float().eval()
    chance, n = np.random.default_rng(0), 100
    x_num = torch.from_numpy(chance.uniform(0, 90, (n, 1)).astype(np.float32))
    x_cat = torch.from_numpy(chance.integers(0, 2, (n, 1)))
    given = {"input_ids": torch.tensor([[START, START, NOW]]).repeat(n, 1), "x_num": x_num, "x_cat": x_cat}
    torch.manual_seed(0)
    ids = model.generate(**given, custom_generate=sample_tokens)[:, :-1]
    open_ = (~torch.isin(ids, torch.tensor(model.config.eos_token_id))).cumprod(1).bool()
    logits = []
    with torch.no_grad():
        for fast in (False, True):
            if wrong and fast:
                model.lm_head.weight.copy_(model.lm_head.weight.to(torch.float8_e4m3fn))
            with fast_products(torch.device("cpu")) if fast else contextlib.nullcontext():
                made = model(decoder_input_ids=ids, **given).logits
                logits.append(made[open_].log_softmax(-1))
    moved = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean().item()
    assert moved > 0
    assert (moved < 1e-4) is not wrong


@pytest.mark.parametrize("fast", [True, False])
def test_visits_are_generated_with_fast_products(world, monkeypatch, fast):  # noqa: F811
    """Only on a CPU with fast bf16; a visit does not depend on the others with them either."""
    monkeypatch.setattr(
        "cohortloom.runtime.devices.pick_device", lambda *asked: ("cpu", "bf16" if fast else "no")
    )
    found = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids, scores):
            found.append((torch.is_autocast_enabled("cpu"), scores.dtype))
            return scores

    vocabulary, n = world[0], 64
    rows = np.full(n, NOW), np.ones(n, np.int64)
    age, sex = np.linspace(0, 89, n), np.arange(n) % 2
    made = []
    for leave, grain in PACKED:
        monkeypatch.setattr(cohortloom.generation.sampling, "MIN_ENDED", leave)
        monkeypatch.setattr(cohortloom.generation.sampling, "ROW_MULTIPLE", grain)
        processors = [Look(), Scatter(vocabulary)]
        made.append(generate_visits(world[2], vocabulary, rows, age, sex, 0, logits_processor=processors))
    assert set(found) == {(fast, torch.float32)}
    assert all(np.array_equal(made[0].ids, other.ids) for other in made[1:])


def test_histories_are_cut_to_their_latest_whole_visits(world):  # noqa: F811
    vocabulary = world[0]
    a, b, c, d = range(vocabulary.first_code, vocabulary.first_code + 4)
    visits = [[a, b, END], [c, END], [b, c, d, END]]
    past = (np.array(sum(visits, []) + [a, END]), np.array([9, 2]))
    for longest, expected, cut in (
        (9, visits, 0),
        (8, visits[1:], 1),
        (6, visits[1:], 1),
        (5, visits[2:], 1),
    ):
        (tokens, lengths), shortened = latest_visits(past, longest, vocabulary)
        whole = sum(expected, [])
        assert tokens.tolist() == [*whole, a, END] and lengths.tolist() == [len(whole), 2]
        assert shortened == cut
    (tokens, lengths), shortened = latest_visits(past, 3, vocabulary)  # not even the last visit of the first
    assert tokens.tolist() == [a, END] and lengths.tolist() == [0, 2] and shortened == 1
