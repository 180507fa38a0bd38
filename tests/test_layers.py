"""A training step's parts in one pass: the states, losses and gradients of each part by itself."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import cohortloom.model.layers
from cohortloom.data.examples import batches, collate, corrupted_pairs
from cohortloom.data.vocabulary import END, NOW, START
from cohortloom.model.blocks import in_blocks
from cohortloom.model.layers import GRAIN, decode, dropout, encode, flat, split
from test_model import world  # noqa: F401

LOSSES = ("lm_loss", "age_loss", "sex_loss", "forbidden_loss", "loss")


@pytest.fixture
def parts(world):  # noqa: F811
    """Three parts of different lengths, with earlier visits and revealed codes, and forbidden codes."""
    words, data, _ = world
    pairs = corrupted_pairs(data, words, np.random.default_rng(0), 62, 0.5, 0.1, 0.1, 0.1)
    rows = batches(pairs, 64, np.random.default_rng(0), np.diff(data.offsets) > 0)[:3]
    made = [{k: torch.from_numpy(v) for k, v in collate(data, pairs, some).items()} for some in rows]
    assert len({part["labels"].shape[1] for part in made}) > 1
    assert len({part["input_ids"].shape[1] for part in made}) > 1
    chance = torch.Generator().manual_seed(0)
    for part in made:
        part["forbidden"] = torch.rand(len(part["labels"]), len(words), generator=chance) < 0.1
    return made


def gradients(model, parts, share=None):
    """Losses of the parts together, or each by itself weighed by `share`, and the gradients of the loss."""
    model.zero_grad()
    if share is None:
        out = model(parts=parts)
        out.loss.backward()
        losses = {name: float(getattr(out, name)) for name in LOSSES}
    else:
        losses = dict.fromkeys(LOSSES, 0.0)
        for part, weight in zip(parts, share, strict=True):
            out = model(**part)
            (out.loss * weight).backward()
            losses = {name: value + float(getattr(out, name)) * weight for name, value in losses.items()}
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("heads", ["states", "codes", "expected"])
def test_parts_together_are_the_parts_by_themselves(world, parts, monkeypatch, heads):  # noqa: F811
    model = world[2]
    monkeypatch.setattr(model.config, "forbidden_weight", 0.7)
    monkeypatch.setattr(model.config, "heads", heads)
    tokens = [int((part["labels"] != -100).sum()) for part in parts]
    share = [n / sum(tokens) for n in tokens]
    together, apart = gradients(model, parts), gradients(model, parts, share)
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    assert together[1].keys() == apart[1].keys()
    for name, found in together[1].items():
        assert torch.allclose(found, apart[1][name], rtol=1e-3, atol=1e-6), name
    # rejected: each part weighing the same
    wrong = gradients(model, parts, [1 / 3] * 3)
    assert together[0]["loss"] != pytest.approx(wrong[0]["loss"], rel=1e-4)
    model.zero_grad()


@pytest.mark.parametrize("weight", [None, 0.7])
@pytest.mark.parametrize("unordered", [False, True])
def test_losses_and_gradients_are_those_of_the_plain_logits(world, parts, monkeypatch, unordered, weight):  # noqa: F811
    """Of one part, by transformers' own forward, autograd and loops; recurrence and ending included."""
    model, part = world[2], dict(max(parts, key=lambda part: part["labels"].shape[1]))
    monkeypatch.setattr(model.config, "forbidden_weight", weight or 0.0)
    inputs = {
        name: part[name] for name in ("input_ids", "attention_mask", "decoder_input_ids", "x_num", "x_cat")
    }
    part["unordered"] = torch.arange(len(part["labels"])) % 2 == 0
    given = inputs | {"labels": part["labels"]}
    given |= {"unordered": part["unordered"]} if unordered else {}
    given |= {"forbidden": part["forbidden"]} if weight else {}
    losses, found = gradients(model, [given])
    model.zero_grad()
    shares, nats, masses = model(**inputs).logits.softmax(-1), [], []
    for visit, labels in enumerate(part["labels"].tolist()):
        for place, label in enumerate(labels):
            if label == -100:
                continue
            right = [label]
            if unordered and part["unordered"][visit]:
                right += [code for code in labels[place + 1 :] if code >= world[0].first_code]
            nats.append(-shares[visit, place, right].log().mean())
            masses.append(-(1 - shares[visit, place][part["forbidden"][visit]].sum()).log())
    lm, mass = torch.stack(nats).mean(), torch.stack(masses).mean()
    assert losses["lm_loss"] == pytest.approx(float(lm.detach()), rel=1e-4)
    assert losses["forbidden_loss"] == pytest.approx(float(mass.detach()) if weight else 0, rel=1e-4)
    out = model(parts=[given])
    model.zero_grad()
    model.combine(lm + (weight or 0.0) * mass, out.age_loss, out.sex_loss).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(p.grad, found[name], rtol=1e-3, atol=1e-6), name
    assert found["summary.recurrence"].any() and found["summary.ending"].any()
    # rejected: the gradient of the other loss
    table = "model.shared.weight"
    _, other = gradients(model, [inputs | {"labels": part["labels"]}])
    assert torch.allclose(found[table], other[table], rtol=1e-3, atol=1e-6) == (not weight and not unordered)
    model.zero_grad()


def test_nearly_nothing_permitted_has_a_finite_loss_and_gradient(world, parts, monkeypatch):  # noqa: F811
    model, part = world[2], parts[0]
    monkeypatch.setattr(model.config, "forbidden_weight", 1.0)
    forbidden = torch.ones_like(part["forbidden"])
    forbidden[:, 0] = False
    with torch.no_grad():
        model.summary.group_bias[:, 0] -= 200  # less than the smallest number in single precision
    losses, found = gradients(model, [{**part, "forbidden": forbidden}])
    with torch.no_grad():
        model.summary.group_bias[:, 0] += 200
    assert 20 < losses["forbidden_loss"] < 100
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    model.zero_grad()


def test_states_are_those_of_transformers(world, parts):  # noqa: F811
    """Encoder and decoder, part by part; rejected: without the mask of padding."""
    bart = world[2].model
    with torch.no_grad():
        read = [bart.shared(part["input_ids"]) for part in parts]
        seen = [part["attention_mask"] for part in parts]
        # What a part of one length lacks: rows of different lengths.
        seen[0] = seen[0].clone()
        seen[0][::2, -1] = 0
        written = [bart.shared(part["decoder_input_ids"]) for part in parts]
        encoded = encode(bart.encoder, read, seen)
        found = split(decode(bart.decoder, written, encoded, seen), [part.shape[:2] for part in written])
        for states, vectors, mask, to_write, decoded in zip(
            split(encoded, [part.shape[:2] for part in read]), read, seen, written, found, strict=True
        ):
            own = bart.encoder(inputs_embeds=vectors, attention_mask=mask)[0]
            assert torch.allclose(states[mask == 1], own[mask == 1], atol=1e-5)
            given = dict(inputs_embeds=to_write, encoder_hidden_states=own)
            assert torch.allclose(decoded, bart.decoder(**given, encoder_attention_mask=mask)[0], atol=1e-5)
        own = split(encoded, [mask.shape for mask in seen])[0]
        plain = bart.decoder(inputs_embeds=written[0], encoder_hidden_states=own)
        assert not torch.allclose(found[0], plain[0], atol=1e-4)


@pytest.mark.parametrize("width", [1, 7, 64])
def test_attention_of_all_parts_at_once_equals_that_part_by_part(world, parts, monkeypatch, width):  # noqa: F811
    """As a GPU makes it, here on this processor; rejected: sequences of a row that see each other."""
    model = world[2]
    parts[0]["attention_mask"][::2, -1] = 0
    by_parts = gradients(model, parts)
    groups = []

    class Together(cohortloom.model.layers._Together):
        def __init__(self, *given):
            super().__init__(*given)
            groups.append(len(self.bars))

    monkeypatch.setattr(cohortloom.model.layers, "_ByParts", Together)
    monkeypatch.setattr(cohortloom.model.layers, "WIDTH", width)
    together = gradients(model, parts)
    assert set(groups) == ({1, 2} if width == 7 else {1})  # 7: some parts are longer, some are not
    assert together[0] == pytest.approx(by_parts[0], rel=1e-5)
    for name, found in together[1].items():
        assert torch.allclose(found, by_parts[1][name], rtol=1e-3, atol=1e-6), name
    if width == 64:
        rows = cohortloom.model.layers._rows

        def all_one_visit(*given):
            return [(place, visit.clip(max=0)) for place, visit in rows(*given)]

        monkeypatch.setattr(cohortloom.model.layers, "_rows", all_one_visit)
        assert gradients(model, parts)[0] != pytest.approx(by_parts[0], rel=1e-4)
    model.zero_grad()


def test_one_long_sequence_widens_no_rows_of_others():
    shapes = [(200, 16), (100, 20), (1, 1000)]
    short, long = (cohortloom.model.layers._rows(shapes, shapes, parts) for parts in ([0, 1], [2]))
    entries = [sum(place.size for place, _ in group) for group in (short, long)]
    assert entries[0] == 2 * 64 * (50 + 34) and entries[1] == 2 * 1008
    reading = cohortloom.model.layers._Together(torch.zeros(1), shapes, shapes, None)
    assert [tuple(bar.shape) for bar in reading.bars] == [(84, 1, 64, 64), (1, 1, 1008, 1008)]
    # rejected: all in rows of one width
    (place, _), _ = cohortloom.model.layers._rows(shapes, shapes, [0, 1, 2])
    assert place.shape[1] == 1008


def test_dropout_falls_where_transformers_has_it(world, parts, monkeypatch):  # noqa: F811
    """With a stand-in that drops nothing and shrinks all; in training, encoder and decoder."""
    shrunk = lambda values, p=0.5, training=True: values * (1 - p) if training else values  # noqa: E731
    monkeypatch.setattr("cohortloom.model.layers.dropout", shrunk)
    monkeypatch.setattr("torch.nn.functional.dropout", shrunk)
    bart, part = world[2].model, parts[0]
    seen, read = part["attention_mask"], bart.shared(part["input_ids"])
    to_write = bart.shared(part["decoder_input_ids"])
    modules = [
        bart.encoder,
        bart.decoder,
        *bart.encoder.layers,
        *bart.decoder.layers,
    ]  # not attention: it has none
    for module in modules:
        monkeypatch.setattr(module, "dropout", 0.3)

    def both():
        encoded = encode(bart.encoder, [read], [seen])
        decoded = decode(bart.decoder, [to_write], encoded, [seen])
        own = bart.encoder(inputs_embeds=read, attention_mask=seen)[0]
        given = dict(inputs_embeds=to_write, encoder_hidden_states=own, encoder_attention_mask=seen)
        return split(decoded, [to_write.shape[:2]])[0], bart.decoder(**given)[0]

    plain, _ = both()
    bart.train()
    try:
        ours, theirs = both()
    finally:
        bart.eval()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_what_shown_codes_add_by_hand(world):  # noqa: F811
    """Codes twice in the history, or both there and revealed, masks, terminators and padding among them."""
    words, _, model = world
    chance = torch.Generator().manual_seed(0)
    first, size = words.first_code, len(words)
    early = torch.randint(2, min(size, first + 6), (40, 9), generator=chance)
    early[early == NOW] = END
    late = torch.randint(first, min(size, first + 6), (40, 4), generator=chance)
    ids = torch.cat([early, torch.full((40, 1), NOW), late, torch.zeros(40, 2, dtype=torch.long)], 1)
    prefix = torch.cat([torch.full((40, 1), START), torch.randint(first, size, (40, 5), generator=chance)], 1)
    person = (torch.full((40, 1), 50.0), torch.arange(40)[:, None] % 2)
    summary, recurrence = model.summary, model.summary.recurrence.detach().clone()
    with torch.no_grad():
        summary.recurrence.copy_(torch.randn(size, generator=chance))
        expected, twice = torch.zeros(40, size), torch.zeros(40, size)
        for row in range(40):
            before = [code for code in early[row].tolist() if code >= first]
            expected[row, sorted(set(before))] += summary.recurrence[sorted(set(before))]
            expected[row, sorted(set(late[row].tolist()))] += summary.repetition
            for code in before:
                twice[row, code] += summary.recurrence[code]
        _, token_bias, known = model.read(ids, *person)
        group = summary.group_bias[summary.group(*person)]
        assert torch.allclose(token_bias, group + expected, atol=1e-5)
        assert known.tolist() == [[int((early[row] >= first).sum()), 4] for row in range(40)]
        shown, value, _ = summary.shown(ids, *summary.codes(ids))
        lost = (summary.repetition - expected.gather(1, prefix)) * (prefix >= first)
        assert torch.allclose(summary.written_bias(token_bias, *person, prefix), lost, atol=1e-5)
        assert torch.allclose(summary.lost(shown, value, prefix), lost, atol=1e-5)
        # rejected: a code that stands twice counting twice
        assert not torch.allclose(token_bias, group + twice, atol=1e-2)
        summary.recurrence.copy_(recurrence)


def test_parts_with_other_inputs_are_refused(world, parts):  # noqa: F811
    del parts[1]["unordered"]
    with pytest.raises(ValueError, match="same inputs"):
        world[2](parts=parts)


def test_flat_and_split_undo_each_other():
    pieces = [torch.randn(3, 4, 2), torch.randn(5, 2, 2)]
    positions = flat(pieces)
    assert len(positions) == GRAIN and not positions[22:].any()
    assert all(map(torch.equal, split(positions, [(3, 4), (5, 2)]), pieces))


def test_dropout_leaves_the_share_and_keeps_the_mean():
    torch.manual_seed(0)
    values = torch.ones(1001, 301)
    made = dropout(values, 0.3, True)
    kept = int((made != 0).sum())
    assert binomtest(kept, made.numel(), 0.7).pvalue > 1e-3
    assert binomtest(kept, made.numel(), 0.71).pvalue < 1e-6
    assert made[made != 0].unique().tolist() == pytest.approx([1 / 0.7], rel=1e-4)
    assert abs(np.corrcoef(made[:, 0], made[:, 1])[0, 1]) < 0.15, "neighbours share a random number"
    assert torch.equal(dropout(values, 0.3, False), values)
    torch.manual_seed(0)
    assert torch.equal(dropout(values, 0.3, True), made)
    assert not torch.equal(dropout(values, 0.3, True), made)


def test_a_loss_in_blocks_is_the_loss_at_once(monkeypatch):
    """Gradients of states, weight and what stands beside, over blocks of 32 rows and in one."""
    torch.manual_seed(0)
    states, weight, bias = torch.randn(100, 8), torch.randn(50, 8), torch.randn(100)
    target = torch.randint(50, (100,))

    def loss_of(some, product, beside):
        logits = product + beside[:, None] * torch.arange(50)
        losses = torch.nn.functional.cross_entropy(logits, target[some], reduction="none")
        return losses.sum() / 100, losses, 2 * losses

    def score(some, *inputs):
        inputs = [values.detach().requires_grad_() for values in inputs]
        with torch.enable_grad():
            loss, *seen = loss_of(some, *inputs)
        return loss.detach(), *(values.detach() for values in seen), lambda: torch.autograd.grad(loss, inputs)

    found = []
    for cache in (0, 10**9):
        monkeypatch.setattr("cohortloom.model.blocks.CACHE", cache)
        given = [values.clone().requires_grad_() for values in (states, weight, bias)]
        total, losses, doubled = in_blocks(score, *given)
        (3 * total).backward()
        found.append([total, losses, doubled, *(values.grad for values in given)])
    given = [values.clone().requires_grad_() for values in (states, weight, bias)]
    total, losses, doubled = loss_of(slice(None), given[0] @ given[1].T, given[2])
    (3 * total).backward()
    plain = [total, losses, doubled, *(values.grad for values in given)]
    for some in found:
        for one, other in zip(some, plain, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(in_blocks(score, states, weight, bias)[0], plain[0])
