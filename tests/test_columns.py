"""Whole visits: several columns of codes and several code systems in one model."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from build_dataset import dataset_schema, learn_vocabulary, systems_apart, with_ids
from cohortloom.base.errors import UserError
from cohortloom.data.examples import (
    N_PROMPTS,
    Examples,
    collate,
    corrupted_pairs,
    first_code_pairs,
    plain_pairs,
)
from cohortloom.data.reveal import revealed_masks
from cohortloom.data.visits import code_lists, read_visits, sex_array, with_empty_columns, write_visits
from cohortloom.data.vocabulary import NOW, START, Vocabulary
from cohortloom.generation.grammar import Grammar
from cohortloom.generation.hidden import ProbableCodes
from cohortloom.generation.synthesize import generate_visits, synthesize
from cohortloom.model.initial import make_model
from cohortloom.model.prompt_bart import MASKED
from cohortloom.model.scoring import as_tensors, first_code_log_probs, mean_losses
from evaluate_fidelity import evaluate_fidelity
from evaluate_reconstruction import evaluate_reconstruction
from generate import generate
from generate_naive import generate_naive
from grammar import BIRTH, IRON, PRESSURE, column_breaches, whole_visits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Visits of three columns, their vocabulary, the dataset and an untrained tiny model."""
    visits = whole_visits(600, 0)
    vocabulary = learn_vocabulary(visits, 5, 4)
    path = tmp_path_factory.mktemp("whole") / "train.parquet"
    metadata = {"first_ids": ",".join(map(str, vocabulary.first_ids))}
    write_visits(with_ids(visits, vocabulary), path, metadata, dataset_schema(vocabulary))
    data = Examples.load(path)
    losses = {"age_weight": 0.3, "sex_weight": 0.2, "age_loss_unit": "standardized"}
    return visits, vocabulary, data, make_model(vocabulary, data, "tiny", 0, 0.0, **losses).eval()


def test_the_vocabulary_is_written_column_by_column(whole, tmp_path):
    visits, vocabulary, data, _ = whole
    names = [name for name, _ in vocabulary.columns]
    assert names == ["diagnoses", "procedures", "medications"]
    assert vocabulary.boundaries == [vocabulary.first_code - 2, vocabulary.first_code - 1] == data.boundaries
    assert vocabulary.terminators[-1] + 1 == vocabulary.boundaries[0]
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    ids, offsets = vocabulary.encode_visits(visits)
    assert (ids == data.ids).all() and (offsets == data.offsets).all()
    lists = vocabulary.as_columns(ids, offsets)
    for name in names:
        assert lists[name].to_pylist() == visits[name].to_pylist()
    # a code string of one column is no code of another
    assert vocabulary.encode(pa.array([PRESSURE]), "diagnoses").tolist() == [-1]


def test_systems_that_no_visit_mixes_stay_apart(whole):
    assert ("ICD10CM", "ICD9CM") in whole[1].apart and ("ICD10PCS", "ICD9CM") in whole[1].apart
    assert not any("Drug" in pair for pair in whole[1].apart)
    # one visit with both brings them together; a system of a few visits says nothing
    rows = whole[0].to_pylist()
    rows[0]["diagnoses"] = [BIRTH, "ICD10CM:Z3800"]
    rows[1]["medications"] = ["NDC:00000000001"]
    apart = systems_apart(pa.Table.from_pylist(rows, schema=whole[0].schema))
    assert ("ICD10CM", "ICD9CM") not in apart and ("ICD10PCS", "ICD9CM") in apart
    assert not any("NDC" in pair for pair in apart)


def test_the_decoder_writes_column_by_column(whole):
    _, vocabulary, data, _ = whole
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), 64)
    for row in range(20):
        target = pairs.decoder_ids[pairs.decoder_offsets[row] : pairs.decoder_offsets[row + 1]].tolist()
        codes = data.ids[data.offsets[row] : data.offsets[row + 1]]
        column = vocabulary.column_of(codes)
        first, second = vocabulary.boundaries
        parts = [codes[column == number].tolist() for number in range(3)]
        expected = [START, *parts[0], first, *parts[1], second, *parts[2], data.terminator[row]]
        assert target == expected
    assert pairs.targets(np.arange(len(data))).sum() == data.n_targets


def test_each_column_is_revealed_to_its_own_degree(whole):
    """Random order keeps to the columns; the shares revealed of two columns are independent."""
    _, vocabulary, data, _ = whole
    pairs = corrupted_pairs(data, vocabulary, np.random.default_rng(0), 64, 1.0, 0.0)
    shown = np.zeros((len(data), 3), int)
    for row in range(len(data)):
        target = pairs.decoder_ids[pairs.decoder_offsets[row] + 1 : pairs.decoder_offsets[row + 1]]
        kinds = np.where(target < vocabulary.first_code, -1, vocabulary.column_of(target))
        inside = np.cumsum(kinds == -1)
        assert (inside[kinds >= 0] == kinds[kinds >= 0]).all()
        read = pairs.encoder_ids[pairs.encoder_offsets[row] : pairs.encoder_offsets[row + 1]]
        known = read[np.flatnonzero(read == NOW)[-1] + 1 :]
        shown[row] = np.bincount(vocabulary.column_of(known), minlength=3)
    full = data.lengths()
    both = (full[:, 0] > 0) & (full[:, 2] > 0)
    all_diagnoses_no_drug = (shown[:, 0] == full[:, 0]) & (shown[:, 2] == 0) & both
    assert all_diagnoses_no_drug.sum() > 0.05 * both.sum()


def test_only_the_column_and_its_end_have_probability(whole):
    _, vocabulary, data, model = whole
    pairs = plain_pairs(data, np.zeros(len(data.ids), bool), 64)
    batch = as_tensors(collate(data, pairs, np.arange(40)), CPU)
    with torch.no_grad():
        output = model(**batch)
    column = output.column
    assert set(column.tolist()) == {0, 1, 2}
    allowed = model.summary.column_of_token == column[:, None]
    assert allowed[torch.arange(len(column)), output.label].all()
    assert (output.logits[~allowed] < MASKED / 2).all() and (output.logits[allowed] > MASKED / 2).all()
    ends = output.logits[:, model.end_tokens()].exp().argmax(1) + model.end_tokens().start
    assert (model.summary.column_of_token[ends] == column).all()
    assert torch.isfinite(output.token_losses).all() and torch.isfinite(output.loss)


def test_cached_equals_uncached_logits_over_boundaries(whole):
    _, vocabulary, data, model = whole
    read = torch.tensor([[START, START, NOW, int(data.ids[0])], [START, START, NOW, 0]])
    person = {"x_num": torch.tensor([[30.0], [60.0]]), "x_cat": torch.tensor([[0], [1]])}
    first = vocabulary.first_ids
    written = [
        first[0] + 1,
        first[0] + 2,
        vocabulary.boundaries[0],
        first[1],
        vocabulary.boundaries[1],
        first[2],
    ]
    empty_first = [*vocabulary.boundaries, *range(first[2], first[2] + 2), vocabulary.terminators[0], 0]
    ids = torch.tensor([[START] * (N_PROMPTS + 1) + codes for codes in (written, empty_first)])
    with torch.no_grad():
        encoded = model.encode(read, **person)
        whole_logits = model(decoder_input_ids=ids, encoder_outputs=encoded).logits[:, N_PROMPTS:]
        cache, steps = None, []
        for end in range(N_PROMPTS + 1, ids.shape[1] + 1):
            new = N_PROMPTS + 1 if cache is None else 1
            out = model(
                decoder_input_ids=ids[:, end - new : end],
                encoder_outputs=encoded,
                past_key_values=cache,
                prefix_ids=ids[:, :end],
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            steps.append(out.logits)
    assert torch.allclose(whole_logits, torch.cat(steps, 1), atol=1e-5)


def test_every_boundary_is_reached_and_no_code_stands_twice(whole):
    _, vocabulary, _, model = whole
    rows = (np.full(64, NOW), np.ones(64, np.int64))
    given = (rows, np.full(64, 40.0), np.zeros(64), 0)
    made = generate_visits(model, vocabulary, *given, needs_code=True)
    assert made.counts["duplicates"] == made.counts["invalid_tokens"] == made.counts["empty"] == 0
    assert set(vocabulary.column_of(made.ids)) == {0, 1, 2}
    # Rejected: the ban on repeats lifted; and visits that need no code where the ends are likely.
    assert generate_visits(model, vocabulary, *given, no_repeat_ngram_size=0).counts["duplicates"] > 0
    ends = [[[end], 50.0] for end in (*vocabulary.boundaries, *vocabulary.terminators)]
    assert generate_visits(model, vocabulary, *given, sequence_bias=ends).counts["empty"] == 64
    forced = generate_visits(model, vocabulary, *given, sequence_bias=ends, needs_code=True)
    assert forced.counts["empty"] == 0 and (vocabulary.column_of(forced.ids) == 2).all()


def test_generated_visits_keep_systems_apart(whole):
    """An untrained model mixes ICD-9 and ICD-10 unless the grammar forbids it."""
    _, vocabulary, _, model = whole

    def mixed(words: Vocabulary) -> int:
        count = 0
        for batch in synthesize(model, words, np.full(200, 40.0), np.zeros(200, int), ("test", 0)):
            lists = words.as_columns(batch.ids, batch.offsets)
            columns = {"patient_id": pa.array([f"p{i}" for i in batch.patient]), "sex": sex_array(batch.sex)}
            columns |= {"visit": pa.array(batch.visit), "age": pa.array(batch.age)} | lists
            count += column_breaches(pa.table(columns))["systems"]
        return count

    assert mixed(vocabulary) == 0
    free = Vocabulary(vocabulary.codes, vocabulary.counts, vocabulary.gap_bins, vocabulary.columns)
    assert mixed(free) > 0


def test_revealed_codes_decide_the_system():
    words = Vocabulary(
        ("ICD10CM:I10", "ICD9CM:4019", "Drug:IRON"),
        (9, 9, 9),
        (),
        (("diagnoses", 2), ("medications", 1)),
        (("ICD10CM", "ICD9CM"),),
    )
    first = words.first_code
    rows = np.array([NOW, first, NOW, first + 1, NOW]), np.array([2, 2, 1])
    grammar = Grammar(words, rows, True, CPU)
    scores = grammar(torch.full((3, 3), START), torch.zeros(3, len(words)))
    forbidden = torch.isinf(scores[:, first:])
    assert forbidden.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    # the third visit holds no code yet, so it cannot end
    assert torch.isinf(scores[:, words.terminators]).tolist() == [[False], [False], [True]]
    grammar.keep_rows(torch.tensor([2]))
    scores = grammar(torch.tensor([[START, START, first + 1]]), torch.zeros(1, len(words)))
    assert torch.isinf(scores[0, first:]).tolist() == [True, False, False]
    assert not torch.isinf(scores[0, words.terminators]).any()


def test_hidden_codes_are_chosen_in_each_column(whole):
    """The scores of a column are those at its first position, times its own expected number."""
    _, words, _, _ = whole
    processor = ProbableCodes(np.array([[2.0, 1.0, 0.5]]), 0.25, words)
    first, ids = words.first_ids, torch.full((1, 3), START)

    def step(probabilities: dict[int, float]) -> int:
        nonlocal ids
        scores = torch.full((1, len(words)), -1e4)
        for token, value in probabilities.items():
            scores[0, token] = np.log(value)
        written = ids[0, N_PROMPTS + 1 :]
        scores[0, written] = -torch.inf
        token = processor(ids, scores).argmax(1)
        ids = torch.cat([ids, token[:, None]], 1)
        return int(token)

    diagnoses = {first[0]: 0.5, first[0] + 1: 0.15, first[0] + 2: 0.1, words.boundaries[0]: 0.25}
    assert step(diagnoses) == first[0]  # 2 x 0.5
    assert step(diagnoses) == first[0] + 1  # 2 x 0.15
    assert step(diagnoses) == words.boundaries[0]  # 2 x 0.1 is too little
    procedures = {first[1]: 0.2, words.boundaries[1]: 0.8}
    assert step(procedures) == words.boundaries[1]
    medications = {first[2]: 0.6, words.terminators[0]: 0.4}
    assert step(medications) == first[2]  # 0.5 x 0.6
    assert step(medications) == words.terminators[0]


def test_the_first_position_of_each_column_scores_its_codes(whole):
    _, words, data, model = whole
    shown = np.random.default_rng(1).random(len(data.ids)) < 0.5
    (rows, log_probs) = next(first_code_log_probs(model, data, shown))
    pairs = first_code_pairs(data, shown, model.config.max_position_embeddings)
    assert (np.diff(pairs.decoder_offsets) == 4).all()  # start, two boundaries, terminator
    for number, (begin, end) in enumerate(
        zip(words.first_ids, [*words.first_ids[1:], len(words)], strict=True)
    ):
        end_token = words.boundaries[number] if number < 2 else words.terminators
        total = np.exp(log_probs[:, begin:end]).sum(1) + np.exp(log_probs[:, np.atleast_1d(end_token)]).sum(1)
        assert total == pytest.approx(np.ones(len(rows)), abs=1e-4)


def test_a_trained_model_writes_whole_visits_and_a_wrong_grammar_is_rejected(whole, tmp_path):
    """Diagnoses, their treatments and systems go together; chronic codes return in later visits."""
    from train import train

    visits, vocabulary, data, _ = whole
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train", "val")}
    metadata = {"first_ids": ",".join(map(str, vocabulary.first_ids))}
    for name, seed in (("train", 1), ("val", 2)):
        table = with_ids(whole_visits(1500 if name == "train" else 300, seed), vocabulary)
        write_visits(table, paths[name], metadata, dataset_schema(vocabulary))
    vocabulary.save(tmp_path / "vocabulary.json")
    files = {"vocabulary": tmp_path / "vocabulary.json", "model_dir": tmp_path / "model"}
    train(
        **paths, **files, preset="tiny", tokens=120_000, batch_tokens=500, dropout=0.0, seed=0, device="cpu"
    )
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction

    model = PromptBartWithDemographicPrediction.from_pretrained(tmp_path / "model").eval()
    ages, sexes = data.age[data.visit == 0][:400], data.sex[data.visit == 0][:400]
    (batch,) = synthesize(model, vocabulary, ages, sexes, ("test", 0))
    columns = {"patient_id": pa.array([f"p{i}" for i in batch.patient]), "sex": sex_array(batch.sex)}
    columns |= {"visit": pa.array(batch.visit), "age": pa.array(batch.age)}
    made = pa.table(columns | vocabulary.as_columns(batch.ids, batch.offsets))
    found = column_breaches(made)
    assert found["systems"] == 0
    assert found["diagnoses"] < 0.1 * len(made) and found["treatments"] < 0.1 * len(made)
    later = made.filter(pa.array(batch.visit > 0)).to_pylist()
    drugs = [row["medications"] for row in later]
    assert len(drugs) > 50 and np.mean([sorted(row) == sorted([PRESSURE, IRON]) for row in drugs]) > 0.9
    # Rejected: the treatments of another visit.
    shuffled = np.random.default_rng(0).permutation(len(made))
    wrong = made.set_column(
        made.column_names.index("medications"), "medications", made["medications"].take(pa.array(shuffled))
    )
    assert column_breaches(wrong)["treatments"] > 0.3 * len(made)
    assert mean_losses(model, data)["lm"] < mean_losses(whole[3], data)["lm"]


@pytest.fixture(scope="module")
def files(whole, tmp_path_factory):
    """A model folder and the three splits of whole visits."""
    _, vocabulary, _, model = whole
    folder = tmp_path_factory.mktemp("files")
    model.save_pretrained(folder / "model")
    vocabulary.save(folder / "model" / "vocabulary.json")
    metadata = {"first_ids": ",".join(map(str, vocabulary.first_ids))}
    for seed, name in enumerate(("train", "val", "test")):
        table = with_ids(whole_visits(100, seed), vocabulary)
        write_visits(table, folder / f"{name}.parquet", metadata, dataset_schema(vocabulary))
    return folder


@pytest.mark.parametrize("method", ["model", "prevalence", "markov", "echo", "linear"])
def test_a_column_can_be_hidden_as_a_whole(files, tmp_path, method):
    """Medications from diagnoses and procedures: all of these are shown, and none of those."""
    splits = {name: files / f"{name}.parquet" for name in ("train", "test")}
    outputs = {"synthetic": tmp_path / "made.parquet", "counts": tmp_path / "counts.json"}
    given = splits | outputs | {"mode": "reconstruct", "hide": ["medications"]}
    if method == "model":
        generate(model_dir=files / "model", device="cpu", threshold=0.05, **given)
    else:
        generate_naive(method=method, val=files / "val.parquet", **given)
    made, real = read_visits(outputs["synthetic"]), read_visits(splits["test"])
    for column in ("diagnoses", "procedures"):
        assert made[f"revealed_{column}"].to_pylist() == real[column].to_pylist()
        assert len(code_lists(made, column)[0]) >= len(code_lists(real, column)[0])
    assert not len(code_lists(made, "revealed_medications")[0])
    assert (len(code_lists(made, "medications")[0]) > 0) == (method != "echo")
    records = tmp_path / "records.json"
    evaluate_reconstruction(reconstruct=outputs["synthetic"], test=splits["test"], records=records, run="x")
    found = {(row["column"], row["metric"]): row["value"] for row in json.loads(records.read_text())}
    assert found["procedures", "hidden_f1"] is None and found["procedures", "jaccard"] > 0.5
    if method == "linear":  # which drug goes with which diagnosis is the whole of it
        assert found["medications", "hidden_f1"] > 0.9
    if method in ("model", "echo"):
        assert found["medications", "hidden_f1"] < 0.9


def test_half_of_each_column_is_revealed_to_all_methods_alike(files, tmp_path):
    splits = {name: files / f"{name}.parquet" for name in ("train", "test")}
    outputs = {"synthetic": tmp_path / "made.parquet", "counts": tmp_path / "counts.json"}
    generate(model_dir=files / "model", device="cpu", mode="reconstruct", **splits, **outputs)
    by_model = read_visits(outputs["synthetic"])
    generate_naive(method="echo", mode="reconstruct", **splits, **outputs)
    by_echo, real = read_visits(outputs["synthetic"]), read_visits(splits["test"])
    for column in ("diagnoses", "procedures", "medications"):
        revealed = f"revealed_{column}"
        assert by_model[revealed].to_pylist() == by_echo[revealed].to_pylist()
        share = len(code_lists(by_echo, revealed)[0]) / len(code_lists(real, column)[0])
        assert 0.3 < share < 0.7


def test_every_column_has_its_figures(files, tmp_path):
    made, records = tmp_path / "made.parquet", tmp_path / "records.json"
    splits = {name: files / f"{name}.parquet" for name in ("train", "test")}
    outputs = {"synthetic": made, "counts": tmp_path / "counts.json"}
    generate(model_dir=files / "model", device="cpu", **splits, **outputs)
    evaluate_fidelity(synthetic=made, train=splits["train"], records=records, run="x")
    of_column = {}
    for row in json.loads(records.read_text()):
        of_column.setdefault(row["column"], {})[row["metric"]] = row["value"]
    names = {"diagnoses", "procedures", "medications"}
    assert set(of_column) == {*names, "all"}
    distances = [of_column[name]["js_distance"] for name in names]
    assert len(set(distances)) == 3 and all(0 < distance < 1 for distance in distances)
    # rejected: the drugs of a generator that writes none
    table = read_visits(made)
    empty = pa.array([[] for _ in range(len(table))], table.schema.field("medications").type)
    write_visits(table.set_column(table.column_names.index("medications"), "medications", empty), made, {})
    evaluate_fidelity(synthetic=made, train=splits["train"], records=records, run="x")
    for row in json.loads(records.read_text()):
        if (row["column"], row["metric"]) == ("medications", "mean_codes_per_visit"):
            assert row["value"] == 0


def test_a_column_that_the_visits_lack_cannot_be_hidden(whole):
    table = with_empty_columns(whole[0].drop_columns(["medications"]))
    with pytest.raises(
        UserError, match="hide: the visits hold no medications; hide of diagnoses, procedures"
    ):
        revealed_masks(table, 0.5, 0, ["medications"])
