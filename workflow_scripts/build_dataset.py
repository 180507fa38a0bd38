"""Split the visits by patient, learn the vocabulary from the training patients, write token ids."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.base.files import sha256
from cohortloom.base.ragged import patient_of_visit, row_of_value, row_offsets
from cohortloom.base.step import log, main
from cohortloom.data.absent import days_metadata
from cohortloom.data.visits import (
    SCHEMA,
    code_lists,
    patient_starts,
    read_visits,
    with_modelled_codes,
    write_visits,
)
from cohortloom.data.vocabulary import END, Vocabulary, gap_bins

MAX_GAP_BINS = (
    12  # log-spaced over years: enough to distinguish days, weeks, months and years between two visits
)
DATASET_SCHEMA = pa.schema(
    [
        *SCHEMA,
        pa.field("diagnoses_ids", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("terminator", pa.int32(), nullable=False),
    ]
)


def build_dataset(
    *,
    visits: Path,
    train: Path,
    val: Path,
    test: Path,
    vocabulary: Path,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    min_patients_per_code: int = 5,
) -> None:
    """Split visits by patient, learn the vocabulary on train, write the three sets with token ids.

    A split file holds the columns of visits.parquet plus diagnoses_ids (vocabulary ids; codes of fewer
    than `min_patients_per_code` training patients are left out) and terminator (the id that closes the
    visit). Raises UserError where a split would be empty, or the validation visits without a known code.
    """
    table = read_visits(visits)
    if len(left := with_modelled_codes(table)) < len(table):
        log.info(
            "%d of %d visits hold no code that is modelled, and are left out",
            len(table) - len(left),
            len(table),
        )
        table = left
    split = split_of_visits(table, val_fraction, test_fraction, seed)
    for number, name in enumerate(("train", "val", "test")):
        if not (split == number).any():
            raise UserError(
                f"{visits}: too few patients to leave one for {name}; add patients or change the split"
            )
    words = learn_vocabulary(table.filter(split == 0), min_patients_per_code)
    if not words.codes:
        raise UserError(
            f"{visits}: column diagnoses: no code has {min_patients_per_code} training patients; "
            "lower dataset.min_patients_per_code"
        )
    if not (words.encode(code_lists(table.filter(split == 1))[0]) >= 0).any():
        raise UserError(
            f"{visits}: column diagnoses: no validation visit holds a code of the vocabulary; "
            "add patients or lower dataset.min_patients_per_code"
        )
    words.save(vocabulary)
    metadata = {"seed": str(seed), "inputs_sha256": sha256(visits), **days_metadata(visits)}
    for number, path in enumerate((train, val, test)):
        part = with_ids(table.filter(split == number), words)
        write_visits(part, path, metadata, DATASET_SCHEMA)
        kept, full = len(code_lists(part, "diagnoses_ids")[0]), len(code_lists(part)[0])
        log.info(
            "%s: %d patients, %d visits, %d codes, of which %d lie outside the vocabulary",
            path.name,
            len(patient_starts(part)),
            part.num_rows,
            full,
            full - kept,
        )
    log.info("vocabulary: %d codes, %d gap bins", len(words.codes), len(words.gap_bins))


def split_of_visits(table: pa.Table, val_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """0 train, 1 val or 2 test for each visit; all visits of a patient go together."""
    patient = patient_of_visit(table["visit"])
    n = int(patient[-1]) + 1 if len(patient) else 0
    order = np.random.default_rng([seed, 1]).permutation(n)
    n_val, n_test = round(n * val_fraction), round(n * test_fraction)
    group = np.zeros(n, np.int8)
    group[order[:n_val]] = 1
    group[order[n_val : n_val + n_test]] = 2
    return group[patient]


def learn_vocabulary(train: pa.Table, min_patients: int, max_bins: int = MAX_GAP_BINS) -> Vocabulary:
    """Codes of at least `min_patients` training patients, sorted, and the bins of the gaps."""
    values, offsets = code_lists(train)
    coded = values.dictionary_encode()
    n_codes = len(coded.dictionary)
    patient = patient_of_visit(train["visit"])[row_of_value(offsets)]
    of_code = patient * n_codes + coded.indices.to_numpy()
    counts = np.bincount(np.unique(of_code) % max(1, n_codes), minlength=n_codes)
    frequent = sorted(
        (code, int(n))
        for code, n in zip(coded.dictionary.to_pylist(), counts, strict=True)
        if n >= min_patients
    )
    days, follows = train["days"].to_numpy(), train["visit"].to_numpy() > 0
    gaps = np.diff(days, prepend=0)[follows]
    return Vocabulary(tuple(c for c, _ in frequent), tuple(n for _, n in frequent), gap_bins(gaps, max_bins))


def with_ids(table: pa.Table, words: Vocabulary) -> pa.Table:
    """The visits with the columns diagnoses_ids and terminator."""
    values, offsets = code_lists(table)
    ids = words.encode(values)
    known = ids >= 0
    kept = row_offsets(known)[offsets]
    days, visit = table["days"].to_numpy(), table["visit"].to_numpy()
    followed = np.append(visit[1:] > 0, False)
    terminators = np.full(len(days), END, np.int32)
    terminators[followed] = words.terminator_of_gap(np.diff(days, append=0)[followed])
    lists = pa.ListArray.from_arrays(
        pa.array(kept, pa.int32()), pa.array(ids[known]), type=DATASET_SCHEMA.field("diagnoses_ids").type
    )
    return table.append_column("diagnoses_ids", lists).append_column(
        "terminator", pc.cast(terminators, pa.int32())
    )


if __name__ == "__main__":
    main(build_dataset, globals().get("snakemake"))
