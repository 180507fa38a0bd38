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
from cohortloom.data.reveal import revealed_mask
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
from cohortloom.generation.requests import requested_patients


def generate(
    *,
    model: Path,
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
    terminator_bias: float = 0.0,
    constrained: Literal["none", "hard", "full"] = "none",
    rules: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> None:
    """Write synthetic visits of a model folder to parquet, and counts of faults on the raw ids to JSON.

    synthesize: one patient for each age and sex of `demographics` (test, train, or a CSV with columns age
    and sex), of `patients` a random choice or, beyond their number, each as often as any other; with
    `as_many_as_test` there are as many patients as in `test`; codes are drawn at `temperature`. reconstruct:
    each code of a test visit is revealed with `prompt_prob`, the earlier visits are the real ones, the model
    writes the likeliest of the rest; `terminator_bias` is added to the score of ending the visit. Of `shards`
    parts of the batches only part `shard` (from 1) is written. `constrained` forbids the codes that the hard
    or the full edit of `rules` bars at the patient's age and sex. Raises UserError for a repeated code and
    for demographics outside the training range.
    """
    if not 1 <= shard <= shards:
        raise UserError(f"shard: {shard} is not among 1 to {shards}; give one of these parts")
    if constrained != "none" and not rules:
        raise UserError(f"generate: constrained {constrained} needs a validity table; give rules")
    quiet_libraries()
    import torch

    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.runtime.devices import pick_device

    words = Vocabulary.load(model / "vocabulary.json")
    if as_many_as_test:
        patients = len(patient_starts(read_visits(test)))
    people = requested_patients(demographics, train, test, patients, seed) if mode == "synthesize" else None
    held_out = read_visits(test) if mode == "reconstruct" else None
    name, _ = pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    bart = PromptBartWithDemographicPrediction.from_pretrained(model).eval().to(name)
    options: dict = {"no_repeat_ngram_size": no_repeat_ngram_size, "do_sample": mode == "synthesize"}
    if mode == "synthesize":
        options["temperature"] = temperature
    elif terminator_bias:
        options["sequence_bias"] = [[[token], terminator_bias] for token in words.terminators]
    if constrained != "none":
        options["constraint"] = _constraint(words, rules, constrained, name)
    metadata = {"source": "model", "seed": str(seed), "inputs_sha256": sha256(model / "model.safetensors")}
    totals: dict[str, float] = {"patients": 0}
    if mode == "synthesize":
        options["shard"] = (shard, shards)
        tables = _synthesized(bart, words, *people, seed, batch_size, options, totals)
        schema, n = SCHEMA, len(people[0]) // shards
    else:
        cuts = _cuts(held_out, batch_size, shard, shards)
        tables = _reconstructed(bart, words, held_out, test, seed, cuts, prompt_prob, options, totals)
        schema, n = RECONSTRUCT_SCHEMA, sum(end - begin for begin, end in cuts)
    with (
        visits_writer(synthetic, metadata, schema) as writer,
        tqdm(total=n, unit="rows", mininterval=5) as bar,
    ):
        for done, table in tables:
            writer.write(table)
            bar.update(done)
    write_json(counts, totals)
    log.info("%s %s: %s", model.name, mode, ", ".join(f"{value} {key}" for key, value in totals.items()))


def _constraint(words: Vocabulary, rules: Path, tier: str, device: str):
    from cohortloom.data.forbidden import forbidden_table
    from cohortloom.data.validity import load_rules
    from cohortloom.generation.constrained import Constraint

    return Constraint(words, forbidden_table(words, load_rules(rules), tier == "hard"), device)


def _add(totals: dict[str, float], counts: dict[str, float]) -> None:
    for key, value in counts.items():
        totals[key] = totals.get(key, 0) + value


def _synthesized(bart, words, age, sex, seed, batch_size, options, totals) -> Iterator[tuple[int, pa.Table]]:
    from cohortloom.generation.synthesize import synthesize

    for record in synthesize(bart, words, age, sex, ("synthesize", seed), batch_size, **options):
        n = len(np.unique(record.patient))
        totals["patients"] += n
        _add(totals, record.counts)
        yield (
            n,
            with_empty_columns(
                pa.table(
                    {
                        "patient_id": numbered_ids("synthetic", record.patient),
                        "visit": pa.array(record.visit, pa.int16()),
                        "days": pa.array(record.days, pa.int32()),
                        "age": pa.array(record.age, pa.float32()),
                        "sex": sex_array(record.sex),
                        "diagnoses": list_column(words.decode(record.ids), record.offsets),
                    }
                )
            ),
        )


def _cuts(held_out: pa.Table, batch_size: int, shard: int, shards: int) -> list[tuple[int, int]]:
    """First and last row of each batch of a shard; whole patients, for the writer checks those."""
    from cohortloom.generation.synthesize import part_of

    starts, cuts, n = np.append(patient_starts(held_out), held_out.num_rows), [], held_out.num_rows
    while (begin := cuts[-1][1] if cuts else 0) < n:
        cuts.append((begin, int(starts[np.searchsorted(starts, min(begin + batch_size, n))])))
    return [cuts[number] for number in part_of(len(cuts), shard, shards)]


def _reconstructed(bart, words, held_out, test, seed, cuts, prompt_prob, options, totals):
    """The batches of held-out visits that `cuts` names, filled in."""
    from cohortloom.data.examples import Examples, plain_pairs
    from cohortloom.generation.synthesize import decode

    data = Examples.load(test)
    codes, offsets = code_lists(held_out)
    shown = revealed_mask(len(codes), prompt_prob, seed)
    known = words.encode(codes) >= 0
    pairs = plain_pairs(data, shown[known], bart.config.max_position_embeddings)
    lengths = np.diff(pairs.encoder_offsets)
    patient, code_row = patient_of_visit(data.visit), row_of_value(offsets)
    totals["echoed"] = 0
    for begin, end in cuts:
        rows = slice(begin, end)
        tokens = pairs.encoder_ids[pairs.encoder_offsets[begin] : pairs.encoder_offsets[end]]
        made = decode(
            bart,
            words,
            (tokens, lengths[rows]),
            data.age[rows],
            data.sex[rows],
            seed_of("reconstruct", seed, begin),
            **options,
        )
        _add(totals, made.counts)
        totals["patients"] += int((data.visit[rows] == 0).sum())
        inside = slice(offsets[begin], offsets[end])
        revealed_row = code_row[inside][shown[inside]] - begin
        revealed = codes[inside].filter(pa.array(shown[inside]))
        made_row = row_of_value(row_offsets(made.lengths))
        both_row, both, echoed = _together(revealed_row, revealed, made_row, words.decode(made.ids))
        totals["echoed"] += echoed
        part = held_out.slice(begin, end - begin)
        count = lambda row: row_offsets(np.bincount(row, minlength=end - begin))  # noqa: E731, B023
        yield (
            end - begin,
            with_empty_columns(
                pa.table(
                    {
                        "patient_id": numbered_ids("reconstructed", patient[rows]),
                        "visit": part["visit"],
                        "days": part["days"],
                        "age": part["age"],
                        "sex": part["sex"],
                        "diagnoses": list_column(both, count(both_row)),
                        "source_patient_id": part["patient_id"],
                        "source_visit": part["visit"],
                        "revealed_diagnoses": list_column(revealed, count(revealed_row)),
                    }
                )
            ),
        )


def _together(revealed_row, revealed, made_row, made) -> tuple[np.ndarray, pa.Array, int]:
    """Revealed codes, then written ones that are not among them: rows, codes, and how many were."""
    rows = np.concatenate([revealed_row, made_row])
    codes = pa.concat_arrays([revealed.cast(pa.string()), made.cast(pa.string())])
    keys = rows.astype(np.int64) << 32 | codes.dictionary_encode().indices.to_numpy()
    echo = np.zeros(len(keys), bool)
    echo[len(revealed_row) :] = np.isin(keys[len(revealed_row) :], keys[: len(revealed_row)])
    order = np.flatnonzero(~echo)
    order = order[np.argsort(rows[order], kind="stable")]
    return rows[order], codes.take(pa.array(order)), int(echo.sum())


if __name__ == "__main__":
    main(generate, globals().get("snakemake"), untracked="generate")
