"""What the age and sex heads read, and the loss on codes that the edits forbid."""

import numpy as np
import pytest
import torch

from cohortloom.data.forbidden import age_row, forbidden_table
from cohortloom.data.validity import load_rules
from cohortloom.model.initial import make_model
from conftest import REPOSITORY
from test_model import first_batch, world  # noqa: F401

RULES = REPOSITORY / "resources" / "validity"


def model_with(world, **losses):  # noqa: F811
    vocabulary, data, _ = world
    weights = {"age_weight": 0.3, "sex_weight": 0.2, "age_loss_unit": "standardized"}
    return make_model(vocabulary, data, "tiny", 0, 0.0, **(weights | losses)).eval()


def table_of(world, batch):  # noqa: F811
    table = torch.from_numpy(forbidden_table(world[0], load_rules(RULES)))
    return table[batch["x_cat"][:, 0], age_row(batch["x_num"][:, 0].numpy())]


@pytest.mark.parametrize("heads, reads_the_prompt", [("states", True), ("codes", False), ("expected", True)])
def test_heads_on_codes_cannot_see_age_and_sex(world, heads, reads_the_prompt):  # noqa: F811
    model, batch = model_with(world, heads=heads), first_batch(world)
    other = {**batch, "x_num": 90 - batch["x_num"], "x_cat": 1 - batch["x_cat"]}
    with torch.no_grad():
        age, sex = (torch.stack([model(**b).age for b in (batch, other)]),) + (
            torch.stack([model(**b).sex_logits for b in (batch, other)]),
        )
    assert torch.equal(age[0], age[1]) != reads_the_prompt
    assert torch.equal(sex[0], sex[1]) != reads_the_prompt


@pytest.mark.parametrize("heads", ["states", "codes", "expected"])
def test_what_a_head_loss_moves(world, heads):  # noqa: F811
    """On codes the embeddings and the heads alone, else also the encoder, the prompts and the decoder."""
    model = model_with(world, heads=heads)
    out = model(**first_batch(world))
    (out.terms["age"] + out.terms["sex"]).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    inside = {name for name in moved if "shared" not in name and "predictor" not in name}
    assert {"model.shared.weight", "sex_predictor.weight"} <= moved or heads == "states"
    assert bool(inside) == (heads != "codes")
    # what is written moves only through the output distribution
    assert ("summary.output.weight" in inside) == (heads == "expected")


def test_heads_on_codes_equal_a_plain_mean(world):  # noqa: F811
    model, batch = model_with(world, heads="codes"), first_batch(world)
    ids = batch["decoder_input_ids"][batch["decoder_visit"] == 3]
    codes = ids[ids >= world[0].first_code]
    with torch.no_grad():
        score = model.age_predictor(model.model.shared.weight[codes].mean(0))[0]
        assert torch.allclose(
            model(**batch).age[3], score * model.config.age_std + model.config.age_mean, rtol=1e-5
        )


def test_heads_on_expected_codes_equal_a_plain_mean(world):  # noqa: F811
    """Over all scored positions of the visit, weighted by the probability of codes at each."""
    model, batch = model_with(world, heads="expected"), first_batch(world)
    with torch.no_grad():
        out = model(**batch)
        likely = out.logits[out.visit == 3].softmax(-1)[:, world[0].first_code :]
        table = model.model.shared.weight[world[0].first_code :]
        assert torch.allclose(out.pooled[3], (likely @ table).sum(0) / likely.sum(), rtol=1e-4, atol=1e-6)
        # rejected: every position weighs alike
        alike = (likely / likely.sum(1, keepdim=True) @ table).mean(0)
        assert not torch.allclose(out.pooled[3], alike, rtol=1e-4, atol=1e-6)


def test_the_forbidden_loss_enters_the_sum_by_its_weight(world):  # noqa: F811
    batch = first_batch(world)
    model = model_with(world, forbidden_weight=2.0)
    forbidden = table_of(world, batch)
    out, plain = model(**batch, forbidden=forbidden), model(**batch)
    mass = (plain.logits.softmax(-1) * forbidden[plain.visit]).sum(-1)
    term = out.terms["forbidden"]
    assert term.item() == pytest.approx(-(1 - mass).log().mean().item(), rel=1e-4) and mass.any()
    assert torch.allclose(out.loss - plain.loss, 2.0 * term, atol=1e-5)
    assert "forbidden" not in plain.terms and torch.equal(plain.loss, world[2](**batch).loss)


def test_a_few_steps_on_the_forbidden_mass_lower_it(world):  # noqa: F811
    batch = first_batch(world)
    model, forbidden = model_with(world, forbidden_weight=100.0), table_of(world, batch)
    optimizer, masses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(8):
        out = model(**batch, forbidden=forbidden)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        masses.append(out.terms["forbidden"].item())
    assert masses[-1] < 0.7 * masses[0]


def test_the_table_of_forbidden_codes_equals_the_rules(world):  # noqa: F811
    vocabulary = world[0]
    rules = load_rules(RULES)
    codes = rules.of(vocabulary.codes)
    for hard in (False, True):
        table = forbidden_table(vocabulary, rules, hard)
        assert table.shape == (2, 91, len(vocabulary)) and not table[..., : vocabulary.first_code].any()
        assert table.any() and not table.all(-1).any()
        for age in (0.0, 0.5, 11.0, 90.0):
            for sex in (0, 1):
                expected = codes.forbidden(np.arange(len(vocabulary.codes)), age, sex, hard)
                assert (table[sex, age_row(age), vocabulary.first_code :] == expected).all()
    assert (forbidden_table(vocabulary, rules) >= forbidden_table(vocabulary, rules, True)).all()
