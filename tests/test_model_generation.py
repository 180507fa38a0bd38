"""The model as it generates: its cache, the order of rows, what it saves, how visits end."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from cohortloom.data.examples import N_PROMPTS
from cohortloom.data.vocabulary import END, MASK, NOW, START, Vocabulary
from cohortloom.generation.synthesize import generate_visits, parse_ids
from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
from test_model import first_batch, visits_in_rows, world  # noqa: F401


def test_cached_equals_uncached_logits(world):  # noqa: F811
    vocabulary, _, model = world
    given = visits_in_rows(world, 8, reveal=0.3)
    ids = torch.full((8, N_PROMPTS + 6), START)
    codes = np.random.default_rng(0).integers(vocabulary.first_code, len(vocabulary), (8, 5))
    ids[:, N_PROMPTS + 1 :] = torch.from_numpy(codes)
    with torch.no_grad():
        record = model.encode(**given)
        whole = model(decoder_input_ids=ids, encoder_outputs=record).logits
        cache, found = None, []
        for end in range(N_PROMPTS + 1, ids.shape[1] + 1):
            new = N_PROMPTS + 1 if cache is None else 1
            out = model(
                decoder_input_ids=ids[:, end - new : end],
                encoder_outputs=record,
                past_key_values=cache,
                prefix_ids=ids[:, :end],
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            found.append(out.logits)
    stepped = torch.cat(found, 1)
    assert torch.allclose(whole[:, N_PROMPTS:], stepped, atol=1e-5)
    # rejected: a step that starts without what the cache holds
    with torch.no_grad():
        lost = model(decoder_input_ids=ids[:, -1:], encoder_outputs=record).logits
    assert not torch.allclose(whole[:, -1:], lost, atol=1e-5)
    with pytest.raises(ValueError, match="prefix_ids"):
        model(decoder_input_ids=ids[:, -1:], encoder_outputs=record, past_key_values=cache, use_cache=True)


def test_ids_at_the_places_of_prompts_are_not_read(world):  # noqa: F811
    """Padding and codes there change nothing; a code behind them does."""
    model, given = world[2], visits_in_rows(world, 4, reveal=0.3)
    ids = torch.full((4, N_PROMPTS + 1), START)
    with torch.no_grad():
        expected = model(decoder_input_ids=ids, **given).logits
        for other in (0, world[0].first_code):
            read = given["input_ids"].clone()
            read[:, :N_PROMPTS] = other
            assert torch.equal(model(decoder_input_ids=ids, **{**given, "input_ids": read}).logits, expected)
        read = torch.cat([given["input_ids"][:, :N_PROMPTS], given["input_ids"].flip(1)], 1)
        assert not torch.equal(model(decoder_input_ids=ids, **{**given, "input_ids": read}).logits, expected)


def test_rows_may_be_reordered_during_generation(world):  # noqa: F811
    """As when generate() repeats or reorders rows: each row uses its own encoded visit."""
    model, given = world[2], visits_in_rows(world, 4, reveal=0.3)
    ids, order = torch.full((4, N_PROMPTS + 1), START), torch.tensor([2, 2, 0, 3])
    with torch.no_grad():
        record = model.encode(**given)
        expected = model(decoder_input_ids=ids, encoder_outputs=record).logits
        found = model(decoder_input_ids=ids, encoder_outputs=record.select(order)).logits
    assert torch.allclose(found, expected[order], atol=1e-5)
    assert not torch.allclose(found, expected, atol=1e-5)


def test_generate_samples_from_the_uncached_distribution(world):  # noqa: F811
    """Greedy generate() equals the arg max of uncached logits under the same ban on repeats."""
    vocabulary, data, model = world
    read = torch.tensor([[START, START, NOW, vocabulary.first_code], [START, START, NOW, 0]])
    person = {"x_num": torch.tensor([[30.0], [60.0]]), "x_cat": torch.tensor([[0], [1]])}
    made = model.generate(read, **person, do_sample=False)
    ids = torch.full((2, N_PROMPTS + 1), START)
    for step in range(N_PROMPTS + 1, made.shape[1]):
        with torch.no_grad():
            logits = model(input_ids=read, decoder_input_ids=ids, **person).logits
        last = logits[:, -1].scatter(1, ids, -torch.inf)
        open_rows = ~torch.isin(ids, torch.tensor(vocabulary.terminators)).any(1)
        assert (made[open_rows, step] == last.argmax(1)[open_rows]).all()
        ids = torch.cat([ids, made[:, step : step + 1]], 1)


def test_saved_model_loads_equal_and_keeps_headline_sampling(world, tmp_path):  # noqa: F811
    vocabulary, _, model = world
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("*model*")] == [".safetensors"]
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.do_sample, saved.temperature, saved.top_k, saved.top_p) == (True, 1.0, 0, 1.0)
    assert saved.no_repeat_ngram_size == 1
    assert saved.eos_token_id == vocabulary.terminators and START not in saved.eos_token_id
    assert saved.decoder_start_token_id == START
    again = PromptBartWithDemographicPrediction.from_pretrained(tmp_path).eval()
    batch = first_batch(world)
    assert torch.equal(model(**batch).loss, again(**batch).loss)


def test_every_terminator_is_reachable(world):  # noqa: F811
    """A model that is biased to a terminator ends its visits with it, whichever it is."""
    vocabulary, _, model = world
    assert len(vocabulary.terminators) > 2
    rows = (np.full(4, NOW), np.ones(4, np.int64))
    for terminator in vocabulary.terminators:
        made = generate_visits(
            model, vocabulary, rows, np.full(4, 40.0), np.zeros(4), 0, sequence_bias=[[[terminator], 50.0]]
        )
        assert (made.terminators == terminator).all() and (made.lengths == 0).all()
    made = generate_visits(
        model, vocabulary, rows, np.full(4, 40.0), np.zeros(4), 0, suppress_tokens=vocabulary.terminators
    )
    assert made.counts["cut_off"] == 4


def test_repeats_are_banned_and_counted(world):  # noqa: F811
    """The control without the ban repeats codes, and the count on the raw ids sees them."""
    vocabulary, _, model = world
    rows = (np.full(64, NOW), np.ones(64, np.int64))
    given = (rows, np.full(64, 40.0), np.zeros(64), 0)
    assert generate_visits(model, vocabulary, *given).counts["duplicates"] == 0
    assert generate_visits(model, vocabulary, *given, no_repeat_ngram_size=0).counts["duplicates"] > 0


def test_raw_ids_are_parsed():
    vocabulary = Vocabulary(
        ("A", "B", "C"), (3, 2, 1), ((1, 9), (10, 99))
    )  # ids: end 4, gaps 5 and 6, codes 7 to 9
    written = [[7, 8, 5, 0], [9, 9, 4, 0], [7, MASK, 8, 9], [4, 0, 0, 0]]
    raw = np.array([[START] * (N_PROMPTS + 1) + row for row in written])
    made = parse_ids(raw, vocabulary)
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
