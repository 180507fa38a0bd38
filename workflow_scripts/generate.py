"""Generate visits with a trained model: new patients, or held-out visits with hidden codes filled in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from cohortloom.base.errors import UserError
from cohortloom.base.files import sha256, write_json
from cohortloom.base.ragged import patient_of_visit, row_of_value, row_offsets
from cohortloom.base.seeds import seed_of
from cohortloom.base.step import log, main, quiet_libraries
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.reveal import joint_mask, revealed_masks
from cohortloom.data.visits import (
    RECONSTRUCT_SCHEMA,
    SCHEMA,
    code_lists,
    list_column,
    numbered_ids,
    patient_starts,
    read_visits,
    sex_array,
    visits_writer,
    with_empty_columns,
)
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.generation.naive import expected_hidden
from cohortloom.generation.requests import requested_patients


def generate(
    *,
    model_dir: Path,
    train: Path,
    test: Path,
    synthetic: Path,
    counts: Path,
    mode: Literal["synthesize", "reconstruct"] = "synthesize",
    seed: int = 0,
    batch_size: int = 512,
    shard: int = 1,
    shards: int = 1,
    demographics: str = "test",
    patients: int | None = None,
    as_many_as_test: bool = False,
    temperature: float = 1.0,
    no_repeat_ngram_size: int = 1,
    prompt_prob: float = 0.5,
    threshold: float = 0.23,
    hide: list[str] | None = None,
    constrained: Literal["none", "hard", "full"] = "none",
    rules: list[Path] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> None:
    """Generate visits with the model in a folder: visits as parquet, counts of faults on the raw ids as JSON.

    mode synthesize: one patient for each age and sex of `demographics` (test, train, or a CSV with columns
    age and sex). `patients` resamples them to that number, `as_many_as_test` to the number of patients in
    `test`. Codes are drawn at `temperature`.

    mode reconstruct: each code of a test visit is revealed with probability `prompt_prob`, or all codes but
    those of the columns `hide`; earlier visits are the real ones. The model adds the codes whose probability
    of being hidden is `threshold` or more.

    Only part `shard` (from 1) of the `shards` parts of all batches is generated. `constrained` forbids the
    codes that the hard or the full edit of `rules` forbids at the patient's age and sex. Raises UserError for
    a repeated code and for demographics outside the training range.
    """
    if not 1 <= shard <= shards:
        raise UserError(f"shard: {shard} is not among 1 to {shards}; give one of these parts")
    if constrained != "none" and not rules:
        raise UserError(f"generate: constrained {constrained} needs validity tables; give rules")
    quiet_libraries()
    import torch

    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.runtime.devices import pick_device

    vocabulary = Vocabulary.load(model_dir / "vocabulary.json")
    if as_many_as_test:
        patients = len(patient_starts(read_visits(test)))
    if mode == "synthesize":
        age, sex = requested_patients(demographics, train, test, patients, seed)
    else:
        held_out = read_visits(test)
    device, _ = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).eval().to(device)
    options: dict = {"no_repeat_ngram_size": no_repeat_ngram_size, "do_sample": mode == "synthesize"}
    if mode == "synthesize":
        options["temperature"] = temperature
    if constrained != "none":
        options["constraint"] = _constraint(vocabulary, rules, constrained, device)
    metadata = {
        "source": "model",
        "seed": str(seed),
        "inputs_sha256": sha256(model_dir / "model.safetensors"),
    }
    totals: dict[str, float] = {"patients": 0}
    if mode == "synthesize":
        options["shard"] = (shard, shards)
        tables = _synthesized(model, vocabulary, age, sex, seed, batch_size, options, totals)
        schema, n = SCHEMA, len(age) // shards
    else:
        batches = _batches(held_out, batch_size, shard, shards)
        masks = revealed_masks(held_out, prompt_prob, seed, hide)
        columns = [column for column, _ in vocabulary.columns]
        expected = expected_hidden(read_visits(train), held_out, columns, masks, prompt_prob, hide)
        tables = _reconstructed(
            model,
            vocabulary,
            held_out,
            test,
            seed,
            batches,
            masks,
            expected,
            threshold,
            options,
            totals,
        )
        schema, n = RECONSTRUCT_SCHEMA, sum(end - begin for begin, end in batches)
    with (
        visits_writer(synthetic, metadata, schema) as writer,
        tqdm(total=n, unit="rows", mininterval=5) as bar,
    ):
        for n_done, table in tables:
            writer.write(table)
            bar.update(n_done)
    write_json(counts, totals)
    log.info("%s %s: %s", model_dir.name, mode, ", ".join(f"{value} {key}" for key, value in totals.items()))


def _constraint(vocabulary: Vocabulary, rules: list[Path], tier: str, device: str):
    from cohortloom.data.forbidden import forbidden_table
    from cohortloom.data.validity import load_rules
    from cohortloom.generation.constrained import Constraint

    return Constraint(vocabulary, forbidden_table(vocabulary, load_rules(rules), tier == "hard"), device)


def _add(totals: dict[str, float], counts: dict[str, float]) -> None:
    for key, value in counts.items():
        totals[key] = totals.get(key, 0) + value


def _synthesized(
    model, vocabulary, age, sex, seed, batch_size, options, totals
) -> Iterator[tuple[int, pa.Table]]:
    from cohortloom.generation.synthesize import synthesize

    """Tables of new patients, batch by batch, each with its number of patients; adds to `totals`."""
    for batch in synthesize(model, vocabulary, age, sex, ("synthesize", seed), batch_size, **options):
        n = len(np.unique(batch.patient))
        totals["patients"] += n
        _add(totals, batch.counts)
        yield (
            n,
            with_empty_columns(
                pa.table(
                    {
                        "patient_id": numbered_ids("synthetic", batch.patient),
                        "visit": pa.array(batch.visit, pa.int16()),
                        "days": pa.array(batch.days, pa.int32()),
                        "age": pa.array(batch.age, pa.float32()),
                        "sex": sex_array(batch.sex),
                        **vocabulary.as_columns(batch.ids, batch.offsets),
                    }
                )
            ),
        )


def _batches(held_out: pa.Table, batch_size: int, shard: int, shards: int) -> list[tuple[int, int]]:
    """First row and end of each batch of a shard: whole patients, as the writer demands."""
    from cohortloom.generation.synthesize import shard_batches

    starts, batches, n = np.append(patient_starts(held_out), held_out.num_rows), [], held_out.num_rows
    while (begin := batches[-1][1] if batches else 0) < n:
        batches.append((begin, int(starts[np.searchsorted(starts, min(begin + batch_size, n))])))
    return [batches[number] for number in shard_batches(len(batches), shard, shards)]


def _reconstructed(
    model, vocabulary, held_out, test, seed, batches, masks, expected, threshold, options, totals
):
    """Tables of held-out visits with hidden codes filled in, batch by batch, each with its number of rows.

    Adds to `totals`. batches: first row and end of each. masks: of each column, which codes of all held-out
    visits are revealed. expected [visits, columns]: hidden codes. threshold: of ProbableCodes.
    """
    from cohortloom.data.examples import Examples, plain_pairs
    from cohortloom.generation.hidden import ProbableCodes
    from cohortloom.generation.synthesize import generate_visits

    data = Examples.load(test)
    in_vocabulary = vocabulary.encode_visits(held_out)[0] >= 0
    is_revealed = joint_mask(held_out, masks, [column for column, _ in vocabulary.columns])
    pairs = plain_pairs(data, is_revealed[in_vocabulary], model.config.max_position_embeddings)
    lengths, patient = np.diff(pairs.encoder_offsets), patient_of_visit(data.visit)
    starts = {column: code_lists(held_out, column)[1] for column in CODE_COLUMNS}
    totals["echoed"] = 0
    for begin, end in batches:
        rows = slice(begin, end)
        tokens = pairs.encoder_ids[pairs.encoder_offsets[begin] : pairs.encoder_offsets[end]]
        generated = generate_visits(
            model,
            vocabulary,
            (tokens, lengths[rows]),
            data.age[rows],
            data.sex[rows],
            seed_of("reconstruct", seed, begin),
            logits_processor=[ProbableCodes(expected[rows], threshold, vocabulary)],
            **options,
        )
        _add(totals, generated.counts)
        totals["patients"] += int((data.visit[rows] == 0).sum())
        real = held_out.slice(begin, end - begin)
        columns = {
            "patient_id": numbered_ids("reconstructed", patient[rows]),
            **{name: real[name] for name in ("visit", "days", "age", "sex")},
        }
        source = {"source_patient_id": real["patient_id"], "source_visit": real["visit"]}
        added = vocabulary.as_columns(generated.ids, row_offsets(generated.lengths))
        for column in CODE_COLUMNS:
            shown = masks[column][starts[column][begin] : starts[column][end]]
            columns[column], source[f"revealed_{column}"], n_echoed = _fill_in(
                *code_lists(real, column), shown, added.get(column)
            )
            totals["echoed"] += n_echoed
        yield end - begin, pa.table(columns | source)


def _fill_in(
    values: pa.Array, offsets: np.ndarray, shown: np.ndarray, added: pa.ListArray | None
) -> tuple[pa.ListArray, pa.ListArray, int]:
    """A column of reconstructed visits, its revealed codes, and the number of echoed codes.

    values, offsets: codes of the real visits. shown: which are revealed. added: generated codes. The revealed
    codes of a visit come first. An echoed code is generated although it is revealed; it is left out.
    """
    row = row_of_value(offsets)[shown]
    revealed = values.filter(pa.array(shown)).cast(pa.string())
    shown_list = list_column(revealed, row_offsets(np.bincount(row, minlength=len(offsets) - 1)))
    if added is None:
        return shown_list, shown_list, 0
    rows = np.concatenate([row, row_of_value(added.offsets.to_numpy())])
    codes = pa.concat_arrays([revealed, added.values])
    keys = rows.astype(np.int64) << 32 | codes.dictionary_encode().indices.to_numpy()
    is_echo = np.zeros(len(keys), bool)
    is_echo[len(row) :] = np.isin(keys[len(row) :], keys[: len(row)])
    order = np.flatnonzero(~is_echo)
    order = order[np.argsort(rows[order], kind="stable")]
    lengths = np.bincount(rows[order], minlength=len(offsets) - 1)
    return list_column(codes.take(pa.array(order)), row_offsets(lengths)), shown_list, int(is_echo.sum())


if __name__ == "__main__":
    main(generate, globals().get("snakemake"), untracked="generate")
