"""The model: its inputs, its losses, what age and sex change."""

import numpy as np
import pytest
import torch

from build_dataset import learn_vocabulary, with_ids
from cohortloom.data.bands import FINE, group_of
from cohortloom.data.examples import (
    N_PROMPTS,
    Examples,
    collate,
    plain_pairs,
)
from cohortloom.data.visits import write_visits
from cohortloom.data.vocabulary import END, MASK, NOW, START
from cohortloom.model.initial import make_model
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from cohortloom.model.scoring import as_tensors
from grammar import grammar_visits


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Grammar visits, their vocabulary and an untrained tiny model."""
    from build_dataset import dataset_schema

    visits = grammar_visits(300, 0)
    vocabulary = learn_vocabulary(visits, 5, 4)
    path = tmp_path_factory.mktemp("world") / "train.parquet"
    write_visits(with_ids(visits, vocabulary), path, {}, dataset_schema(vocabulary))
    data = Examples.load(path)
    losses = {"age_weight": 0.3, "sex_weight": 0.2, "age_loss_unit": "standardized"}
    return vocabulary, data, make_model(vocabulary, data, "tiny", 0, 0.0, **losses).eval()


CPU = torch.device("cpu")


def first_batch(world, n=16, reveal=0.0):
    """The first n visits packed into rows."""
    vocabulary, data, _ = world
    pairs = plain_pairs(data, np.random.default_rng(0).random(len(data.ids)) < reveal, 64)
    return as_tensors(collate(data, pairs, np.arange(n)), CPU)


def batch_of(world, rows, reveal=0.0):
    """These visits packed into rows, the same codes revealed as in `first_batch`."""
    vocabulary, data, _ = world
    pairs = plain_pairs(data, np.random.default_rng(0).random(len(data.ids)) < reveal, 64)
    return as_tensors(collate(data, pairs, np.asarray(rows)), CPU)


def visits_in_rows(world, n=16, reveal=0.0):
    """Inputs of generate() for the first n visits, one in a row."""
    _, data, _ = world
    pairs = plain_pairs(data, np.random.default_rng(0).random(len(data.ids)) < reveal, 64)
    sequences = np.split(pairs.encoder_ids, pairs.encoder_offsets[1:-1])[:n]
    read = torch.zeros(n, N_PROMPTS + max(map(len, sequences)), dtype=torch.long)
    for row, sequence in zip(read, sequences, strict=True):
        row[: N_PROMPTS + len(sequence)] = torch.tensor([START] * N_PROMPTS + sequence.tolist())
    person = torch.from_numpy(data.age[:n, None]), torch.from_numpy(data.sex[:n, None])
    return {"input_ids": read, "x_num": person[0], "x_cat": person[1]}


def all_logits(model, batch):
    """Logits [rows, target, vocabulary] of all positions."""
    return model(**{key: value for key, value in batch.items() if key not in ("labels", "unordered")}).logits


def test_inputs_have_one_age_and_one_sex_a_visit(world):
    batch = first_batch(world)
    assert batch["x_num"].shape == batch["x_cat"].shape == (16, 1)
    assert world[2].config.cat_cardinalities == [2]
    assert set(batch["x_cat"][:, 0].tolist()) == {0, 1}
    with pytest.raises(IndexError):
        world[2](**{**batch, "x_cat": batch["x_cat"] + 2})


def test_a_code_is_one_token(world):
    vocabulary, data, _ = world
    assert len(data.ids) == len(vocabulary.decode(data.ids)) and data.ids.min() >= vocabulary.first_code


def test_the_loss_is_the_weighted_sum_of_its_terms(world):
    model, batch = world[2], first_batch(world)
    out = model(**batch)
    lm, age, sex = (out.terms[name] for name in ("lm", "age", "sex"))
    assert torch.allclose(out.loss, lm + 0.3 * age + 0.2 * sex)
    assert not torch.allclose(out.loss, lm + 0.2 * age + 0.3 * sex)
    years = ((out.age - batch["x_num"][:, 0]) ** 2).mean()
    assert torch.allclose(age * model.config.age_std**2, years, rtol=1e-4)
    model.config.age_loss_unit = "years"
    try:
        assert torch.allclose(model.weighted_sum(out.terms), lm + 0.3 * years + 0.2 * sex, rtol=1e-4)
    finally:
        model.config.age_loss_unit = "standardized"


def test_losses_equal_a_plain_computation(world):
    model, batch = world[2], first_batch(world)
    scored = batch["labels"] != -100
    log_probs = torch.log_softmax(all_logits(model, batch), -1)[scored]
    plain = -log_probs.gather(1, batch["labels"][scored][:, None]).mean()
    assert torch.allclose(model(**batch).terms["lm"], plain, rtol=1e-5)


def test_in_random_order_every_code_to_come_is_a_target(world):
    """The loss of a place is the mean over the orders of what follows; the terminator comes last as ever."""
    model, batch = world[2], first_batch(world, 8, reveal=0.5)
    losses = -torch.log_softmax(all_logits(model, batch), -1)
    unordered, labels, visit = torch.arange(8) % 2 == 0, batch["labels"], batch["decoder_visit"]
    expected = []
    for row, place in torch.nonzero(labels != -100).tolist():
        own = visit[row, place]
        rest = labels[row, place:][visit[row, place:] == own].tolist()
        to_come = [code for code in rest if code >= world[0].first_code]
        targets = to_come if unordered[own] and to_come else [labels[row, place].item()]
        expected.append(losses[row, place, targets].mean())
    found = model(**batch, unordered=unordered).token_losses
    assert torch.allclose(found, torch.stack(expected), rtol=1e-4)
    # rejected: the order as it happens to stand
    assert not torch.allclose(found, model(**batch).token_losses, rtol=1e-4)


def test_the_summary_distinguishes_this_visit_from_earlier_ones(world):
    """A code before <now> is history, after it part of this visit; masks and terminators are neither."""
    vocabulary, _, model = world
    code, person = vocabulary.first_code, (torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long))
    table = model.model.shared.weight
    sequences = {
        "nothing": [END, NOW, MASK],
        "before": [code, END, NOW],
        "now": [NOW, code],
        "padded": [NOW, code, 0, 0],
        "both": [code, END, NOW, code],
    }
    with torch.no_grad():
        model.summary.recurrence.fill_(1.0)
        fields = {
            name: model.summary.summarize(torch.tensor([ids]), table, *person)
            for name, ids in sequences.items()
        }
        model.summary.recurrence.zero_()
    before, now = model.summary.earlier(table[code]), model.summary.present(table[code])
    context = {name: part["context"][0] for name, part in fields.items()}
    assert torch.allclose(context["before"] - context["nothing"], before, atol=1e-6)
    assert torch.allclose(context["now"] - context["nothing"], now, atol=1e-6)
    assert torch.equal(context["padded"], context["now"])
    repetition = float(model.summary.repetition.detach())
    added = {
        name: [
            (int(one), round(float(value), 4))
            for one, value in zip(part["input_codes"][0], part["input_bias"][0], strict=True)
            if one
        ]
        for name, part in fields.items()
    }
    assert added["nothing"] == [] and added["before"] == [(code, 1.0)]
    assert added["now"] == added["padded"] == [(code, repetition)]
    assert sorted(added["both"]) == sorted([(code, 1.0), (code, repetition)])
    counts = {name: part["code_counts"].tolist() for name, part in fields.items()}
    assert counts == {
        "nothing": [[0, 0]],
        "before": [[1, 0]],
        "now": [[0, 1]],
        "padded": [[0, 1]],
        "both": [[1, 1]],
    }


def test_a_generated_code_loses_its_recurrence_bias(world):
    """By hand: a code of an earlier visit gains until it is generated; every generated code loses."""
    vocabulary, _, model = world
    code, other = vocabulary.first_code, vocabulary.first_code + 1
    shown, bias = torch.tensor([[[code, 0]] * 3]), torch.tensor([[[3.0, 0.0]] * 3])
    added = model.summary.repetition_bias(torch.tensor([[START, code, other]]), shown, bias)
    repetition = float(model.summary.repetition.detach())
    assert repetition < 0
    assert added[0].tolist() == pytest.approx([0, repetition - 3, repetition])


def test_the_bias_of_a_code_changes_only_its_own_logit(world):
    """By hand from the biases: a code of an earlier visit gains by recurrence until it is generated."""
    vocabulary, _, model = world
    code = vocabulary.first_code
    given = {"x_num": torch.tensor([[50.0]]), "x_cat": torch.tensor([[1]])}
    inputs = {"decoder_input_ids": torch.tensor([[START, START, START, code]]), **given}
    sequence = torch.tensor([[START, START, code, END, NOW]])
    with torch.no_grad():
        without = model(input_ids=sequence, **inputs).logits[0]
        model.summary.recurrence[code] = 3.0
        logits = model(input_ids=sequence, **inputs).logits[0]
        model.summary.recurrence[code] = 0.0
    gained = (logits - without)[:, code].tolist()
    assert gained == pytest.approx([3.0, 3.0, 3.0, 0.0], abs=1e-5)
    others = torch.arange(len(vocabulary)) != code
    assert torch.equal(logits[:, others], without[:, others])


def test_the_bias_on_ending_counts_codes_and_distinguishes_kinds_of_visits(world):
    """First visits, later ones and those with revealed codes have a row each; a column for each count."""
    vocabulary, data, model = world
    first, later = int(np.flatnonzero(data.visit == 0)[0]), int(np.flatnonzero(data.visit == 1)[0])
    shown = np.zeros(len(data.ids), bool)
    shown[data.offsets[later]] = True
    codes = int(np.diff(data.offsets)[later])
    for rows, revealed, expected in (
        ([first], np.zeros(len(data.ids), bool), [0, 1, 2]),
        ([later], np.zeros(len(data.ids), bool), [64, 65, 66]),
        ([later], shown, [129, 130, 131]),
    ):
        out = model(**as_tensors(collate(data, plain_pairs(data, revealed, 64), np.array(rows)), CPU))
        assert out.end_cell.tolist()[: codes - 1] == expected[: codes - 1]


def test_groups_of_age_and_sex_are_those_of_the_counts(world):
    """The model computes the group from float32 ages, the counts from exact ones; a day decides."""
    _, _, model = world
    ages = np.concatenate([np.array(FINE), np.array(FINE)[1:] - 1 / 365.25, [89.9]])
    ids = torch.full((len(ages), 1), NOW)
    for sex in (0, 1):
        sexes = np.full(len(ages), sex)
        person = torch.from_numpy(ages.astype(np.float32))[:, None], torch.from_numpy(sexes)[:, None]
        found = model.summary.summarize(ids, model.model.shared.weight, *person)["group"]
        assert found.tolist() == group_of(ages, sexes).tolist()


def test_packed_visits_give_the_same_result_as_single_ones(world):
    """Losses and gradients of packed visits are those of single ones."""
    model, n = world[2], 12
    packed = first_batch(world, n, reveal=0.3)
    assert len(packed["input_ids"]) < n and (packed["decoder_visit"] == -1).any()

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together = model(**packed)
    alone = [model(**batch_of(world, [row], reveal=0.3)) for row in range(n)]
    for row, out in enumerate(alone):
        assert torch.allclose(together.token_losses[together.visit == row], out.token_losses, atol=1e-5)
        assert torch.allclose(together.age[row], out.age[0], atol=1e-4)
        assert torch.allclose(together.sex_logits[row], out.sex_logits[0], atol=1e-5)
    tokens = sum(len(out.token_losses) for out in alone)
    readable = sum(int(out.has_codes[0]) for out in alone)
    expected = sum(
        out.terms["lm"] * len(out.token_losses) / tokens
        + (0.3 * out.terms["age"] + 0.2 * out.terms["sex"]) / readable
        for out in alone
    )
    assert float(together.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    whole, parts = gradient(together.loss), gradient(expected)
    assert (whole - parts).norm() < 1e-4 * parts.norm()
    # rejected: one visit that sees its neighbour in the row
    visit = packed["encoder_visit"].clone()
    row = int((visit.amax(1) > visit[:, 0]).nonzero()[0])
    place = int((visit[row] != visit[row, 0]).nonzero()[0])
    visit[row, place + N_PROMPTS] = visit[row, 0]
    seen = model(**{**packed, "encoder_visit": visit})
    assert not torch.allclose(seen.token_losses, together.token_losses, atol=1e-5)


def test_heads_pool_only_code_positions(world):
    """A visit without a code to pool adds nothing; the others count alone."""
    model, batch = world[2], first_batch(world)
    ids = batch["decoder_input_ids"].clone()
    ids[(batch["decoder_visit"] == 0) & (ids >= world[0].first_code)] = START
    out = model(**{**batch, "decoder_input_ids": ids})
    assert not out.has_codes[0] and out.has_codes[1:].all()
    error = ((out.age - batch["x_num"][:, 0]) / model.config.age_std)[1:]
    assert torch.allclose(out.terms["age"], (error**2).mean(), rtol=1e-4)


@pytest.mark.parametrize("name", ["x_num", "x_cat"])
def test_age_and_sex_change_the_distribution(world, name):
    model, batch = world[2], first_batch(world)
    other = {**batch, name: 1 - batch[name] if name == "x_cat" else batch[name] + 20}
    with torch.no_grad():
        here, there = (model(**given) for given in (batch, other))
    change = (here.logits.softmax(-1) - there.logits.softmax(-1)).abs().amax(1)
    assert min(change[here.visit == visit].max() for visit in range(16)) > 1e-5
    # rejected: a model whose prompts say nothing
    silent = PromptBartWithDemographicPrediction(model.config).eval()
    for prompt in (silent.encoder_prompt, silent.decoder_prompt, silent.summary.person):
        torch.nn.init.zeros_(prompt.projection.weight)
    with torch.no_grad():
        assert torch.equal(silent(**batch).logits, silent(**other).logits)


def test_nearby_ages_differ_where_it_matters(world):
    """Newborn and one year, 11 and 12 years are distinguished; prompts of the same age are equal."""
    prompt = world[2].encoder_prompt
    ages = torch.tensor([[0.0], [1.0], [11.0], [12.0], [12.0]])
    vectors = prompt(ages, torch.zeros(5, 1, dtype=torch.long))[:, 0]
    assert torch.allclose(vectors[3], vectors[4], atol=1e-6)  # rows of one product may round apart
    assert (vectors[0] - vectors[1]).norm() > 0 and (vectors[2] - vectors[3]).norm() > 0


def test_a_keyword_that_the_model_does_not_know_is_refused(world):
    """A mistyped name of an argument must not be a missing one."""
    model = world[2]
    with pytest.raises(TypeError, match="unordred"):
        model(input_ids=None, unordred=None)
