"""The model: its inputs, its losses, its cache, what age and sex change, the generation that it saves."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from build_dataset import learn_vocabulary, with_ids
from cohortloom.data.bands import FINE
from cohortloom.data.examples import Examples, batches, collate, corrupted_pairs, history, plain_pairs
from cohortloom.data.visits import write_visits
from cohortloom.data.vocabulary import END, MASK, NOW, START, Vocabulary
from cohortloom.generation.synthesize import decode, take_apart
from cohortloom.model.initial import make_model
from cohortloom.model.marginals import group_of
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from grammar import grammar_visits


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Grammar visits, their vocabulary and an untrained tiny model."""
    from build_dataset import DATASET_SCHEMA

    visits = grammar_visits(300, 0)
    words = learn_vocabulary(visits, 5, 4)
    path = tmp_path_factory.mktemp("world") / "train.parquet"
    write_visits(with_ids(visits, words), path, {}, DATASET_SCHEMA)
    data = Examples.load(path)
    losses = {"age_weight": 0.3, "sex_weight": 0.2, "age_loss_unit": "standardized"}
    return words, data, make_model(words, data, "tiny", 0, 0.0, 64, **losses).eval()


def first_batch(world, n=16, reveal=0.0):
    words, data, _ = world
    pairs = plain_pairs(data, np.random.default_rng(0).random(len(data.ids)) < reveal, 62)
    return {key: torch.from_numpy(value) for key, value in collate(data, pairs, np.arange(n)).items()}


def test_inputs_have_one_age_and_one_sex_a_visit(world):
    batch = first_batch(world)
    assert batch["x_num"].shape == batch["x_cat"].shape == (16, 1)
    assert world[2].config.cat_cardinalities == [2]
    assert set(batch["x_cat"][:, 0].tolist()) == {0, 1}
    with pytest.raises(IndexError):
        world[2](**{**batch, "x_cat": batch["x_cat"] + 2})


def test_a_code_is_one_token(world):
    words, data, _ = world
    assert len(data.ids) == len(words.decode(data.ids)) and data.ids.min() >= words.first_code


def test_losses_combine_as_the_config_says(world):
    model, batch = world[2], first_batch(world)
    out = model(**batch)
    lm, age, sex = out.lm_loss, out.age_loss, out.sex_loss
    assert torch.allclose(out.loss, lm + 0.3 * age + 0.2 * sex)
    assert not torch.allclose(out.loss, lm + 0.2 * age + 0.3 * sex)
    years = ((out.age - batch["x_num"][:, 0]) ** 2).mean()
    assert torch.allclose(age * model.config.age_std**2, years, rtol=1e-4)
    model.config.age_loss_unit = "years"
    try:
        assert torch.allclose(model.combine(lm, age, sex), lm + 0.3 * years + 0.2 * sex, rtol=1e-4)
    finally:
        model.config.age_loss_unit = "standardized"


def test_losses_equal_a_plain_computation(world):
    model, batch = world[2], first_batch(world)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits
    scored = batch["labels"] != -100
    plain = -torch.log_softmax(logits, -1)[scored].gather(1, batch["labels"][scored][:, None]).mean()
    assert torch.allclose(model(**batch).lm_loss, plain, rtol=1e-5)


def test_in_random_order_every_code_to_come_is_a_target(world):
    """The loss of a place is the mean over the orders of what follows; the terminator comes last as ever."""
    model, batch = world[2], first_batch(world, 8, reveal=0.5)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    losses = -torch.log_softmax(model(**inputs).logits, -1)
    unordered = torch.arange(8) % 2 == 0
    expected = []
    for row, place in torch.nonzero(batch["labels"] != -100).tolist():
        to_come = [code for code in batch["labels"][row, place:].tolist() if code >= world[0].first_code]
        targets = to_come if unordered[row] and to_come else [batch["labels"][row, place].item()]
        expected.append(losses[row, place, targets].mean())
    found = model(**batch, unordered=unordered).token_losses
    assert torch.allclose(found, torch.stack(expected), rtol=1e-4)
    # rejected: the order as it happens to stand
    assert not torch.allclose(found, model(**batch).token_losses, rtol=1e-4)


def test_summary_tells_this_visit_from_earlier_ones(world):
    """A code read before <now> is history, after it part of this visit; masks and terminators are neither."""
    words, _, model = world
    code, person = words.first_code, (torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long))
    with torch.no_grad():
        model.summary.recurrence.fill_(1.0)
        read = {
            name: model.read(torch.tensor([ids]), *person)
            for name, ids in {
                "nothing": [END, NOW, MASK],
                "before": [code, END, NOW],
                "now": [NOW, code],
                "padded": [NOW, code, 0, 0],
            }.items()
        }
        model.summary.recurrence.zero_()
    embedded = model.model.shared.weight[code]
    before, now = model.summary.earlier(embedded), model.summary.present(embedded)
    nothing = read["nothing"][0][0]
    assert torch.allclose(read["before"][0][0] - nothing, before, atol=1e-6)
    assert torch.allclose(read["now"][0][0] - nothing, now, atol=1e-6)
    assert torch.equal(read["padded"][0], read["now"][0])
    added = {name: (read[name][1] - read["nothing"][1])[0] for name in ("before", "now")}
    assert added["before"].nonzero().tolist() == [[code]] and added["before"][code] == pytest.approx(1)
    assert added["now"].nonzero().tolist() == [[code]] and added["now"][code] == pytest.approx(
        float(model.summary.repetition)
    )
    assert [read[name][2].tolist() for name in read] == [[[0, 0]], [[1, 0]], [[0, 1]], [[0, 1]]]


def test_a_written_code_gives_back_what_it_had_for_recurring(world):
    """By hand: bias of the group, more for a code of an earlier visit, less for all that is written."""
    words, _, model = world
    code, other = words.first_code, words.first_code + 1
    person = (torch.tensor([[50.0]]), torch.tensor([[1]]))
    with torch.no_grad():
        model.summary.recurrence.fill_(3.0)
        _, token_bias, _ = model.read(torch.tensor([[code, END, NOW]]), *person)
        added = model.summary.written_bias(token_bias, *person, torch.tensor([[1, code, other]]))
        model.summary.recurrence.zero_()
    group = model.summary.group_bias[model.summary.group(*person)]
    repetition = float(model.summary.repetition)
    assert repetition < 0
    assert torch.allclose(token_bias[0, code] - group[0, code], torch.tensor(3.0))
    assert added[0].tolist() == pytest.approx([0, repetition - 3, repetition])


def test_the_bias_on_ending_counts_codes_and_tells_kinds_of_visits_apart(world):
    words, _, model = world
    code = words.first_code
    kept = model.summary.ending.detach().clone()
    with torch.no_grad():
        model.summary.ending.copy_(torch.arange(3 * 64.0).view(3, 64))
        # first visit, later visit with four earlier codes, two codes revealed; then one and two more written
        known = torch.tensor([[0, 0], [4, 0], [4, 2]])
        found = model.summary.end_bias(known, torch.tensor([[1, code, code + 1]] * 3))
        model.summary.ending.copy_(kept)
    assert found.tolist() == [[0, 1, 2], [64, 65, 66], [130, 131, 132]]


def test_groups_of_age_and_sex_are_those_of_the_counts(world):
    """The model finds the group from float32 ages, the counts from exact ones; a day decides."""
    _, _, model = world
    ages = np.concatenate([np.array(FINE), np.array(FINE)[1:] - 1 / 365.25, [89.9]])
    for sex in (0, 1):
        sexes = np.full(len(ages), sex)
        found = model.summary.group(
            torch.from_numpy(ages.astype(np.float32))[:, None], torch.from_numpy(sexes)[:, None]
        )
        assert found.tolist() == group_of(ages, sexes).tolist()


def test_padding_changes_nothing(world):
    words, data, model = world
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), 62)
    rows = np.arange(8)
    together = model(**{k: torch.from_numpy(v) for k, v in collate(data, pairs, rows).items()})
    alone = [
        model(**{k: torch.from_numpy(v) for k, v in collate(data, pairs, rows[i : i + 1]).items()})
        for i in rows
    ]
    tokens = np.diff(pairs.decoder_offsets)[rows] - 1
    lm = sum(float(out.lm_loss) * n for out, n in zip(alone, tokens, strict=True)) / tokens.sum()
    assert float(together.lm_loss) == pytest.approx(lm, rel=1e-5)
    assert float(together.age_loss) == pytest.approx(
        np.mean([float(out.age_loss) for out in alone]), rel=1e-5
    )


def test_heads_read_code_positions_alone(world):
    """A visit without a code to pool adds nothing; the others count alone."""
    model, batch = world[2], first_batch(world)
    empty = batch["decoder_input_ids"].clone()
    empty[0, 1:] = 0
    out = model(**{**batch, "decoder_input_ids": empty})
    assert not out.has_codes[0] and out.has_codes[1:].all()
    error = ((out.age - batch["x_num"][:, 0]) / model.config.age_std)[1:]
    assert torch.allclose(out.age_loss, (error**2).mean(), rtol=1e-4)


def test_cached_equals_uncached_logits(world):
    model, batch = world[2], first_batch(world, reveal=0.3)
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "x_num", "x_cat")}
    encoded = model.encode(**given)
    ids = torch.full((16, 6), START)
    ids[:, 1:] = torch.from_numpy(
        np.random.default_rng(0).integers(world[0].first_code, len(world[0]), (16, 5))
    )
    with torch.no_grad():
        whole = model(decoder_input_ids=ids, encoder_outputs=encoded, **given).logits
        cache, steps = None, []
        for i in range(ids.shape[1]):
            out = model(
                decoder_input_ids=ids[:, i : i + 1],
                encoder_outputs=encoded,
                past_key_values=cache,
                prefix_ids=ids[:, : i + 1],
                use_cache=True,
                **given,
            )
            cache = out.past_key_values
            steps.append(out.logits)
    stepped = torch.cat(steps, 1)
    assert torch.allclose(whole, stepped, atol=1e-5)
    # rejected: the same steps without the prompts in the cache
    with torch.no_grad():
        lost = model(decoder_input_ids=ids[:, 1:2], encoder_outputs=encoded, **given).logits
    assert not torch.allclose(whole[:, 1:2], lost, atol=1e-5)
    with pytest.raises(ValueError, match="prefix_ids"):
        model(
            decoder_input_ids=ids[:, 5:],
            encoder_outputs=encoded,
            past_key_values=cache,
            use_cache=True,
            **given,
        )


def test_generate_samples_from_the_uncached_distribution(world):
    """Greedy generate() equals the arg max of uncached logits under the same ban on repeats."""
    words, data, model = world
    batch = first_batch(world, 4)
    made = model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        x_num=batch["x_num"],
        x_cat=batch["x_cat"],
        do_sample=False,
    )
    ids = torch.full((4, 1), START)
    for step in range(1, made.shape[1]):
        with torch.no_grad():
            logits = model(
                **{k: v for k, v in batch.items() if k != "labels"} | {"decoder_input_ids": ids}
            ).logits
        last = logits[:, -1].scatter(1, ids, -torch.inf)
        open_rows = ~torch.isin(ids, torch.tensor(words.terminators)).any(1)
        assert (made[open_rows, step] == last.argmax(1)[open_rows]).all()
        ids = torch.cat([ids, made[:, step : step + 1]], 1)


@pytest.mark.parametrize("name", ["x_num", "x_cat"])
def test_age_and_sex_change_the_distribution(world, name):
    model, batch = world[2], first_batch(world)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    other = {**inputs, name: 1 - inputs[name] if name == "x_cat" else inputs[name] + 20}
    with torch.no_grad():
        here, there = (model(**given).logits.softmax(-1) for given in (inputs, other))
    assert (here - there).abs().amax(dim=(1, 2)).min() > 1e-5
    # rejected: a model whose prompts say nothing
    silent = PromptBartWithDemographicPrediction(model.config).eval()
    for prompt in (silent.encoder_prompt, silent.decoder_prompt, silent.summary.person):
        torch.nn.init.zeros_(prompt.projection.weight)
    with torch.no_grad():
        assert torch.equal(silent(**inputs).logits, silent(**other).logits)


def test_nearby_ages_differ_where_it_matters(world):
    """Newborn and one year, 11 and 12 years are told apart; prompts of one age are equal."""
    prompt = world[2].encoder_prompt
    ages = torch.tensor([[0.0], [1.0], [11.0], [12.0], [12.0]])
    vectors = prompt(ages, torch.zeros(5, 1, dtype=torch.long))[:, 0]
    assert torch.allclose(vectors[3], vectors[4], atol=1e-6)  # rows of one product may round apart
    assert (vectors[0] - vectors[1]).norm() > 0 and (vectors[2] - vectors[3]).norm() > 0


def test_saved_model_loads_equal_and_keeps_headline_sampling(world, tmp_path):
    words, _, model = world
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*model*")] == [".safetensors"]
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.do_sample, saved.temperature, saved.top_k, saved.top_p) == (True, 1.0, 0, 1.0)
    assert saved.no_repeat_ngram_size == 1
    assert saved.eos_token_id == words.terminators and START not in saved.eos_token_id
    assert saved.decoder_start_token_id == START
    again = PromptBartWithDemographicPrediction.from_pretrained(tmp_path).eval()
    batch = first_batch(world)
    assert torch.equal(model(**batch).loss, again(**batch).loss)


def test_every_terminator_is_reachable(world):
    """A model that is biased to a terminator ends its visits with it, whichever it is."""
    words, _, model = world
    assert len(words.terminators) > 2
    rows = (np.full(4, NOW), np.ones(4, np.int64))
    for terminator in words.terminators:
        made = decode(
            model, words, rows, np.full(4, 40.0), np.zeros(4), [0], sequence_bias=[[[terminator], 50.0]]
        )
        assert (made.terminators == terminator).all() and (made.lengths == 0).all()
    made = decode(model, words, rows, np.full(4, 40.0), np.zeros(4), [0], suppress_tokens=words.terminators)
    assert made.counts["cut_off"] == 4


def test_repeats_are_banned_and_counted(world):
    """The control without the ban repeats codes, and the count on the raw ids sees them."""
    words, _, model = world
    rows = (np.full(64, NOW), np.ones(64, np.int64))
    given = (rows, np.full(64, 40.0), np.zeros(64), [0])
    assert decode(model, words, *given).counts["duplicates"] == 0
    assert decode(model, words, *given, no_repeat_ngram_size=0).counts["duplicates"] > 0


def test_raw_ids_are_taken_apart():
    words = Vocabulary(
        ("A", "B", "C"), (3, 2, 1), ((1, 9), (10, 99))
    )  # ids: end 4, gaps 5 and 6, codes 7 to 9
    raw = np.array([[START, 7, 8, 5, 0], [START, 9, 9, 4, 0], [START, 7, MASK, 8, 9], [START, 4, 0, 0, 0]])
    made = take_apart(raw, words)
    assert made.ids.tolist() == [7, 8, 9, 9, 7, 8, 9]
    assert made.lengths.tolist() == [2, 2, 3, 0]
    assert made.terminators.tolist() == [5, END, END, END]
    assert made.counts == {
        "visits": 4,
        "codes": 7,
        "duplicates": 1,
        "invalid_tokens": 1,
        "cut_off": 1,
        "empty": 1,
    }


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


def test_revealed_codes_enter_the_encoder_and_leave_the_target(world):
    words, data, _ = world
    shown = np.zeros(len(data.ids), bool)
    shown[data.offsets[:-1]] = True
    pairs = plain_pairs(data, shown, 62)
    for row in range(20):
        codes = data.ids[data.offsets[row] : data.offsets[row + 1]]
        target = pairs.decoder_ids[pairs.decoder_offsets[row] : pairs.decoder_offsets[row + 1]]
        read = pairs.encoder_ids[pairs.encoder_offsets[row] : pairs.encoder_offsets[row + 1]]
        assert target.tolist() == [START, *codes[1:], data.terminator[row]]
        assert read[-2:].tolist() == [NOW, codes[0]]


def test_corruption_is_seeded_and_the_decoder_restores_it(world):
    words, data, _ = world
    make = lambda seed: corrupted_pairs(data, words, np.random.default_rng(seed), 62, 1.0, 0.2, 0.2, 0.2)  # noqa: E731
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


def test_batches_hold_every_row_once_within_the_budget(world):
    words, data, _ = world
    pairs = corrupted_pairs(data, words, np.random.default_rng(0), 62, 0.5, 0.1, 0.1, 0.1)
    keep = np.arange(len(data)) % 7 != 0
    made = batches(pairs, 64, np.random.default_rng(0), keep)
    assert sorted(np.concatenate(made).tolist()) == np.flatnonzero(keep).tolist()
    longest = np.diff(pairs.decoder_offsets)
    assert max(len(rows) * longest[rows].max() for rows in made) <= 64


def test_long_histories_make_batches_small(world, monkeypatch):
    """Rejected: the same rows where a batch may read any number of tokens."""
    pairs = plain_pairs(world[1], np.zeros(len(world[1].ids), bool), 62)
    decoder, encoder = np.diff(pairs.decoder_offsets), np.diff(pairs.encoder_offsets)
    read = {}
    for most in (1, 100):
        monkeypatch.setattr("cohortloom.data.examples.READ", most)
        made = batches(pairs, 64, np.random.default_rng(0), np.ones(len(world[1]), bool))
        assert sorted(np.concatenate(made).tolist()) == list(range(len(world[1])))
        assert max(len(rows) * decoder[rows].max() for rows in made) <= 64
        read[most] = max(len(rows) * encoder[rows].max() for rows in made)
    assert read[1] <= 64 < read[100]
