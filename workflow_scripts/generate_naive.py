"""Generate visits by a naive method; the output files are those of `generate`."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.files import sha256, write_json
from cohortloom.base.methods import FITTED, NAIVE
from cohortloom.base.ragged import (
    patient_of_visit,
    positions_in_rows,
    ragged_range,
    row_of_value,
    row_offsets,
)
from cohortloom.base.seeds import generator
from cohortloom.base.step import log, main
from cohortloom.base.version import VERSION
from cohortloom.data import linear
from cohortloom.data.coded import Coded, as_lists, encode, encode_columns
from cohortloom.data.codes import CODE_COLUMNS
from cohortloom.data.reveal import joint_mask, revealed_masks, revealed_share, validation_masks
from cohortloom.data.visits import (
    RECONSTRUCT_SCHEMA,
    SCHEMA,
    code_lists,
    list_column,
    numbered_ids,
    read_visits,
    used_columns,
    with_empty_columns,
    write_visits,
)
from cohortloom.generation.naive import (
    TrainingStrata,
    draw_visits,
    later_ages,
    stratum_of,
    visits_table,
)
from cohortloom.generation.requests import resampled_positions

Columns = dict[str, tuple[Coded, Coded, list[str]]]  # of each column: training and test visits, codes


def generate_naive(
    *,
    train: Path,
    test: Path,
    synthetic: Path,
    counts: Path,
    method: Literal["prevalence", "markov", "copy", "echo", "linear"],
    mode: Literal["synthesize", "reconstruct"],
    prompt_prob: float = 0.5,
    hide: list[str] | None = None,
    seed: int = 0,
    true_length: bool = False,
    patients: int | None = None,
    val: Path | None = None,
) -> None:
    """Generate visits by a naive method, and count them.

    mode synthesize: one patient for each test patient, with the age and sex of the first test visit (copy:
    those of the resampled training patient); `patients` resamples them to that number, as in `generate`. mode
    reconstruct: each test visit, with each code revealed with probability `prompt_prob`, or all codes but
    those of the columns `hide`. `true_length` fills reconstructed visits to the length of the real ones. The
    method linear chooses penalty and threshold on the visits of `val`; both are in the counts.
    """
    if mode not in NAIVE[method]:
        raise UserError(f"method {method} has no mode {mode}; it has {' and '.join(NAIVE[method])}")
    if method == FITTED and (val is None or true_length):
        raise UserError(f"method {method} guesses above a threshold: give val, and no true_length")
    real, training = read_visits(test), read_visits(train)
    rng = generator(f"{method} {mode}", seed)
    settings: dict[str, float | None] = {}
    if method == FITTED:
        table, settings = fill_by_linear(training, real, read_visits(val), prompt_prob, hide, seed)
    else:
        columns: Columns = {}
        for column in used_columns(training, real):
            (known, held_out), names = encode([training, real], column)
            columns[column] = known, held_out, names
        if mode == "reconstruct":
            table = reconstruct(columns, real, method, prompt_prob, hide, seed, true_length, rng)
        elif method == "copy":
            _, held_out, _ = next(iter(columns.values()))
            table = copy(columns, held_out.n_patients if patients is None else patients, rng)
        else:
            table = synthesize(columns, method, rng, patients, seed)
    metadata = {
        "source": method,
        "seed": str(seed),
        "inputs_sha256": ",".join(sha256(part) for part in (train, test, val) if part),
        "tool_version": VERSION,
    }
    write_visits(table, synthetic, metadata, RECONSTRUCT_SCHEMA if mode == "reconstruct" else SCHEMA)
    sizes = np.sum([np.diff(code_lists(table, column)[1]) for column in CODE_COLUMNS], axis=0)
    totals = {
        "patients": int((table["visit"].to_numpy() == 0).sum()),
        "visits": table.num_rows,
        "codes": int(sizes.sum()),
        "duplicates": 0,
        "invalid_tokens": 0,
        "cut_off": 0,
        "empty": int((sizes == 0).sum()),
    }
    write_json(counts, totals | settings)
    log.info("%s %s: %d patients, %d visits, %d codes", method, mode, *list(totals.values())[:3])


def synthesize(
    columns: Columns, method: str, rng: np.random.Generator, patients: int | None = None, seed: int = 0
) -> pa.Table:
    """New patients with the first ages and the sexes of the test patients; `patients` as in generate."""
    strata = {name: TrainingStrata(known, len(codes)) for name, (known, _, codes) in columns.items()}
    of_first, (_, held_out, _) = next(iter(strata.values())), next(iter(columns.values()))
    first = held_out.first_visits
    if patients is not None:
        first = first[resampled_positions(len(first), patients, seed)]
    patient, visit, days = of_first.timelines(held_out.age[first], held_out.sex[first], rng)
    age, sex = later_ages(held_out.age[first][patient], days), held_out.sex[first][patient]
    key = stratum_of(age, sex)
    nothing_revealed = (np.zeros(0, np.int64), np.zeros(len(key) + 1, np.int64))
    donors, lists = of_first.draw_donors(key, rng), {}
    for name, (known, _, codes) in columns.items():
        drawn = draw_visits(method, strata[name], key, known.lengths[donors], nothing_revealed, rng)
        lists[name] = as_lists(*drawn, codes)
    return visits_table(numbered_ids("synthetic", patient), visit, days, age, sex, lists)


def copy(columns: Columns, n_patients: int, rng: np.random.Generator) -> pa.Table:
    """Whole training patients drawn with replacement."""
    known, _, _ = next(iter(columns.values()))
    drawn = rng.integers(0, known.n_patients, n_patients)
    sizes = np.bincount(known.patient)[drawn]
    row, visit = ragged_range(known.first_visits[drawn], sizes), positions_in_rows(sizes)
    patients = numbered_ids("synthetic", row_of_value(row_offsets(sizes)))
    lists = {name: as_lists(*visits.codes_of(row), codes) for name, (visits, _, codes) in columns.items()}
    return visits_table(patients, visit, known.days[row], known.age[row], known.sex[row], lists)


def reconstruct(
    columns: Columns,
    real: pa.Table,
    method: str,
    prompt_prob: float,
    hide: list[str] | None,
    seed: int,
    true_length: bool,
    rng: np.random.Generator,
) -> pa.Table:
    """The test visits with some codes revealed and the rest filled in by the method."""
    masks, lists = revealed_masks(real, prompt_prob, seed, hide), {}
    for name, (known, held_out, codes) in columns.items():
        strata, mask = TrainingStrata(known, len(codes)), masks[name]
        offsets = row_offsets(mask)[held_out.offsets]
        revealed = held_out.codes[mask], offsets
        key = stratum_of(held_out.age, held_out.sex)
        share = revealed_share(name, prompt_prob, hide)
        guessed = strata.guess_lengths(key, np.diff(offsets), share, rng)
        lengths = held_out.lengths if true_length else guessed
        filled = revealed
        if method != "echo":
            filled = draw_visits(method, strata, key, lengths, revealed, rng, True)
        lists[name] = as_lists(*filled, codes)
    return reconstructed(real, masks, lists)


def fill_by_linear(
    training: pa.Table,
    real: pa.Table,
    validation: pa.Table,
    prompt_prob: float,
    hide: list[str] | None,
    seed: int,
) -> tuple[pa.Table, dict[str, float | None]]:
    """The test visits with hidden codes filled in by the linear autoencoder of all columns together.

    Also returns the penalty and the threshold, which are chosen on the validation visits.
    """
    columns = used_columns(training, real)
    (known, held_out, val), names, of_column = encode_columns([training, real, validation], columns)
    masks = revealed_masks(real, prompt_prob, seed, hide)
    of_val = joint_mask(validation, validation_masks(validation, prompt_prob, seed, hide), columns)
    fit = linear.fit_linear(known, val, len(names), of_val)
    is_revealed = joint_mask(real, masks, columns)
    guesses = fit.linear.guesses(held_out, is_revealed).at_least(fit.threshold)
    row = np.concatenate([held_out.visit_of_code[is_revealed], guesses.visit])
    codes = np.concatenate([held_out.codes[is_revealed], guesses.code])
    order = np.argsort(row, kind="stable")
    row, codes, lists = row[order], codes[order], {}
    for number, column in enumerate(columns):
        chosen = of_column[codes] == number
        offsets = row_offsets(np.bincount(row[chosen], minlength=real.num_rows))
        lists[column] = as_lists(codes[chosen], offsets, names)
    # The threshold is infinite where no guess on validation visits is right; JSON has no infinity.
    threshold = fit.threshold if np.isfinite(fit.threshold) else None
    return reconstructed(real, masks, lists), {"penalty": fit.penalty, "threshold": threshold}


def reconstructed(real: pa.Table, masks: dict[str, np.ndarray], columns: dict[str, pa.ListArray]) -> pa.Table:
    """The table of a reconstruction of the test visits `real`, from its columns of codes.

    masks: of each column, which codes of the test visits are revealed.
    """
    patient = patient_of_visit(real["visit"])
    names = ("visit", "days", "age", "sex")
    table = pa.table(
        {
            "patient_id": numbered_ids("reconstructed", patient),
            **{name: real[name] for name in names},
            **columns,
            "source_patient_id": real["patient_id"],
            "source_visit": real["visit"],
        }
    )
    for column in columns:
        values, offsets = code_lists(real, column)
        revealed = list_column(values.filter(pa.array(masks[column])), row_offsets(masks[column])[offsets])
        table = table.append_column(f"revealed_{column}", revealed)
    return with_empty_columns(table)


if __name__ == "__main__":
    main(generate_naive, globals().get("snakemake"))
