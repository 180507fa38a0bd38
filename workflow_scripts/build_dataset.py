"""Split the visits by patient, learn the vocabulary from the training patients, write token ids."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cohortloom.base.errors import UserError
from cohortloom.base.files import sha256
from cohortloom.base.ragged import patient_of_visit, row_of_value, row_offsets
from cohortloom.base.step import log, main
from cohortloom.data.absent import days_metadata
from cohortloom.data.codes import CODE_COLUMNS, parts
from cohortloom.data.examples import IDS
from cohortloom.data.visits import SCHEMA, code_lists, patient_starts, read_visits, write_visits
from cohortloom.data.vocabulary import END, Vocabulary, gap_bins

MAX_GAP_BINS = (
    12  # log-spaced over years: enough to distinguish days, weeks, months and years between two visits
)
MIN_EXPECTED = 5.0  # visits that hold two systems by chance alone; with fewer, that none does says nothing
_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))


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

    A split file holds the columns of visits.parquet; for each column of codes that the vocabulary has, one of
    vocabulary ids (diagnoses_ids ...; codes of fewer than `min_patients_per_code` training patients are left
    out); and terminator (the id that closes the visit). Raises UserError where a split would be empty, or the
    validation visits without a known code.
    """
    table = read_visits(visits)
    split = split_of_visits(table, val_fraction, test_fraction, seed)
    for number, name in enumerate(("train", "val", "test")):
        if not (split == number).any():
            raise UserError(
                f"{visits}: too few patients to leave one for {name}; add patients or change the split"
            )
    words = learn_vocabulary(table.filter(split == 0), min_patients_per_code)
    if not words.codes:
        raise UserError(
            f"{visits}: no code has {min_patients_per_code} training patients; "
            "lower dataset.min_patients_per_code"
        )
    if not (words.encode_visits(table.filter(split == 1))[0] >= 0).any():
        raise UserError(
            f"{visits}: no validation visit holds a code of the vocabulary; "
            "add patients or lower dataset.min_patients_per_code"
        )
    words.save(vocabulary)
    metadata = {
        "seed": str(seed),
        "inputs_sha256": sha256(visits),
        "first_ids": ",".join(map(str, words.first_ids)),
        **days_metadata(visits),
    }
    schema = dataset_schema(words)
    for number, path in enumerate((train, val, test)):
        part = with_ids(table.filter(split == number), words)
        write_visits(part, path, metadata, schema)
        counts = []
        for column in CODE_COLUMNS:
            full = len(code_lists(part, column)[0])
            known = len(code_lists(part, column + IDS)[0]) if column + IDS in schema.names else 0
            if full:
                counts.append(f"{full} {column}, of which {full - known} lie outside the vocabulary")
        log.info(
            "%s: %d patients, %d visits, %s",
            path.name,
            len(patient_starts(part)),
            part.num_rows,
            ", ".join(counts),
        )
    sizes = ", ".join(f"{size} {column}" for column, size in words.columns)
    log.info("vocabulary: %s, %d gap bins", sizes, len(words.gap_bins))
    for one, other in words.apart:
        log.info("no training visit holds codes of both %s and %s, so no generated one will", one, other)


def dataset_schema(words: Vocabulary) -> pa.Schema:
    """The columns of a split file."""
    ids = [pa.field(column + IDS, _IDS, nullable=False) for column, _ in words.columns]
    return pa.schema([*SCHEMA, *ids, pa.field("terminator", pa.int32(), nullable=False)])


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
    """Codes of at least `min_patients` training patients, sorted within each column, and bins of the gaps."""
    columns, codes = [], []
    for column in CODE_COLUMNS:
        if frequent := frequent_codes(train, column, min_patients):
            columns.append((column, len(frequent)))
            codes += frequent
    days, follows = train["days"].to_numpy(), train["visit"].to_numpy() > 0
    gaps = np.diff(days, prepend=0)[follows]
    return Vocabulary(
        tuple(code for code, _ in codes),
        tuple(n for _, n in codes),
        gap_bins(gaps, max_bins),
        tuple(columns),
        systems_apart(train),
    )


def frequent_codes(train: pa.Table, column: str, min_patients: int) -> list[tuple[str, int]]:
    """The codes of a column that at least `min_patients` patients have, sorted, each with their number."""
    values, offsets = code_lists(train, column)
    coded = values.dictionary_encode()
    n_codes = len(coded.dictionary)
    patient = patient_of_visit(train["visit"])[row_of_value(offsets)]
    of_code = patient * n_codes + coded.indices.to_numpy()
    counts = np.bincount(np.unique(of_code) % max(1, n_codes), minlength=n_codes)
    return sorted(
        (code, int(n))
        for code, n in zip(coded.dictionary.to_pylist(), counts, strict=True)
        if n >= min_patients
    )


def systems_apart(train: pa.Table) -> tuple[tuple[str, str], ...]:
    """Pairs of code systems that no visit holds together, although MIN_EXPECTED visits would by chance.

    Hospitals changed from ICD-9 to ICD-10 on one day: no visit holds both.
    """
    visits_of: dict[str, np.ndarray] = {}
    for column in CODE_COLUMNS:
        values, offsets = code_lists(train, column)
        coded, row = values.dictionary_encode(), row_of_value(offsets)
        system = np.array([parts(code)[0] for code in coded.dictionary.to_pylist()], object)
        of_code = system[coded.indices.to_numpy()]
        for name in np.unique(system):
            holds = visits_of.setdefault(str(name), np.zeros(train.num_rows, bool))
            holds[row[of_code == name]] = True
    return tuple(
        (one, other)
        for one, other in combinations(sorted(visits_of), 2)
        if not (visits_of[one] & visits_of[other]).any()
        and visits_of[one].sum() * visits_of[other].sum() >= MIN_EXPECTED * train.num_rows
    )


def with_ids(table: pa.Table, words: Vocabulary) -> pa.Table:
    """The visits with the columns of ids and terminator."""
    for column, _ in words.columns:
        values, offsets = code_lists(table, column)
        ids = words.encode(values, column)
        known = ids >= 0
        kept = row_offsets(known)[offsets]
        lists = pa.ListArray.from_arrays(pa.array(kept, pa.int32()), pa.array(ids[known]), type=_IDS)
        table = table.append_column(column + IDS, lists)
    days, visit = table["days"].to_numpy(), table["visit"].to_numpy()
    followed = np.append(visit[1:] > 0, False)
    terminators = np.full(len(days), END, np.int32)
    terminators[followed] = words.terminator_of_gap(np.diff(days, append=0)[followed])
    return table.append_column("terminator", pc.cast(terminators, pa.int32()))


if __name__ == "__main__":
    main(build_dataset, globals().get("snakemake"))
