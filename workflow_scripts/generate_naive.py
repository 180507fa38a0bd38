"""Generate visits by a naive method; the output files are those of `generate`."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from cohortloom.base.errors import UserError
from cohortloom.base.files import sha256, write_json
from cohortloom.base.methods import FITTED, NAIVE
from cohortloom.base.ragged import positions_in_rows, ragged_range, row_of_value, row_offsets
from cohortloom.base.seeds import generator
from cohortloom.base.step import log, main
from cohortloom.base.version import VERSION
from cohortloom.data import linear
from cohortloom.data.coded import Coded, encode
from cohortloom.data.guesses import Guesses
from cohortloom.data.reveal import revealed_mask
from cohortloom.data.visits import (
    RECONSTRUCT_SCHEMA,
    SCHEMA,
    numbered_ids,
    read_visits,
    with_empty_columns,
    write_visits,
)
from cohortloom.generation.naive import (
    TrainingStrata,
    code_column,
    draw_visits,
    later_ages,
    stratum_of,
    visits_table,
)
from cohortloom.generation.requests import resampled_positions


def generate_naive(
    *,
    train: Path,
    test: Path,
    synthetic: Path,
    counts: Path,
    method: Literal["prevalence", "markov", "copy", "echo", "linear"],
    mode: Literal["synthesize", "reconstruct"],
    prompt_prob: float = 0.5,
    seed: int = 0,
    true_length: bool = False,
    patients: int | None = None,
    val: Path | None = None,
) -> None:
    """Generate visits by a naive method, and count them.

    mode synthesize: one patient for each test patient, with the age and sex of the first test visit (copy:
    those of the resampled training patient); `patients` resamples them to that number, as in `generate`. mode
    reconstruct: each test visit, with each code revealed with probability `prompt_prob`. `true_length` fills
    reconstructed visits to the length of the real ones. The method linear chooses penalty and threshold on
    the visits of `val`; both are in the counts.
    """
    if mode not in NAIVE[method]:
        raise UserError(f"method {method} has no mode {mode}; it has {' and '.join(NAIVE[method])}")
    if method == FITTED and (val is None or true_length):
        raise UserError(f"method {method} guesses above a threshold: give val, and no true_length")
    real = read_visits(test)
    (training_visits, held_out, *others), names = encode(
        [read_visits(part) for part in (train, test, val) if part]
    )
    rng = generator(f"{method} {mode}", seed)
    settings: dict[str, float | None] = {}
    if method == FITTED:
        fit = linear.fit_linear(training_visits, *others, len(names), prompt_prob, seed)
        # The threshold is infinite where no guess on validation visits is right; JSON has no infinity.
        threshold = fit.threshold if np.isfinite(fit.threshold) else None
        settings = {"penalty": fit.penalty, "threshold": threshold}
        mask = revealed_mask(len(held_out.codes), prompt_prob, seed)
        guesses = fit.linear.guesses(held_out, mask).at_least(fit.threshold)
        table = reconstructed(held_out, names, real, mask, with_guesses(held_out, mask, guesses))
    elif mode == "reconstruct":
        table = reconstruct(
            training_visits, held_out, names, real, method, prompt_prob, seed, true_length, rng
        )
    elif method == "copy":
        table = copy(training_visits, names, held_out.n_patients if patients is None else patients, rng)
    else:
        table = synthesize(training_visits, held_out, names, method, rng, patients, seed)
    metadata = {
        "source": method,
        "seed": str(seed),
        "inputs_sha256": ",".join(sha256(part) for part in (train, test, val) if part),
        "tool_version": VERSION,
    }
    write_visits(table, synthetic, metadata, RECONSTRUCT_SCHEMA if mode == "reconstruct" else SCHEMA)
    sizes = np.diff(table["diagnoses"].combine_chunks().offsets.to_numpy())
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
    training_visits: Coded,
    held_out: Coded,
    names: list[str],
    method: str,
    rng: np.random.Generator,
    patients: int | None = None,
    seed: int = 0,
) -> pa.Table:
    """New patients with the first ages and the sexes of the held-out patients; `patients` as in generate."""
    strata = TrainingStrata(training_visits, len(names))
    first = held_out.first_visits
    if patients is not None:
        first = first[resampled_positions(len(first), patients, seed)]
    patient, visit, days = strata.timelines(held_out.age[first], held_out.sex[first], rng)
    age, sex = later_ages(held_out.age[first][patient], days), held_out.sex[first][patient]
    key = stratum_of(age, sex)
    nothing_revealed = (np.zeros(0, np.int64), np.zeros(len(key) + 1, np.int64))
    lengths = strata.draw_lengths(key, rng)
    codes = draw_visits(method, strata, key, lengths, nothing_revealed, rng)
    return visits_table(numbered_ids("synthetic", patient), visit, days, age, sex, codes, names)


def copy(training_visits: Coded, names: list[str], n_patients: int, rng: np.random.Generator) -> pa.Table:
    """Whole training patients drawn with replacement."""
    drawn = rng.integers(0, training_visits.n_patients, n_patients)
    sizes = np.bincount(training_visits.patient)[drawn]
    row, visit = ragged_range(training_visits.first_visits[drawn], sizes), positions_in_rows(sizes)
    patients = numbered_ids("synthetic", row_of_value(row_offsets(sizes)))
    days, age, sex = training_visits.days[row], training_visits.age[row], training_visits.sex[row]
    return visits_table(patients, visit, days, age, sex, training_visits.codes_of(row), names)


def reconstruct(
    training_visits: Coded,
    held_out: Coded,
    names: list[str],
    real: pa.Table,
    method: str,
    prompt_prob: float,
    seed: int,
    true_length: bool,
    rng: np.random.Generator,
) -> pa.Table:
    """The held-out visits with some codes revealed and the rest filled in by the method."""
    strata = TrainingStrata(training_visits, len(names))
    mask = revealed_mask(len(held_out.codes), prompt_prob, seed)
    offsets = row_offsets(mask)[held_out.offsets]
    revealed = held_out.codes[mask], offsets
    key = stratum_of(held_out.age, held_out.sex)
    guessed = strata.guess_lengths(key, np.diff(offsets), prompt_prob, rng)
    lengths = held_out.lengths if true_length else guessed
    codes = revealed if method == "echo" else draw_visits(method, strata, key, lengths, revealed, rng, True)
    return reconstructed(held_out, names, real, mask, codes)


def with_guesses(held_out: Coded, mask: np.ndarray, guesses: Guesses) -> tuple[np.ndarray, np.ndarray]:
    """Revealed codes of each visit, then its guesses: flat codes and offsets [n_visits + 1]."""
    rows = np.concatenate([held_out.visit_of_code[mask], guesses.visit])
    order = np.argsort(rows, kind="stable")
    codes = np.concatenate([held_out.codes[mask], guesses.code])[order]
    return codes, row_offsets(np.bincount(rows, minlength=held_out.n_visits))


def reconstructed(
    held_out: Coded, names: list[str], real: pa.Table, mask: np.ndarray, codes: tuple[np.ndarray, np.ndarray]
) -> pa.Table:
    """The table of a reconstruction.

    codes: flat codes of the reconstructed visits and their offsets. mask: which codes of the held-out visits
    are revealed.
    """
    revealed = held_out.codes[mask], row_offsets(mask)[held_out.offsets]
    table = visits_table(
        numbered_ids("reconstructed", held_out.patient),
        real["visit"].to_numpy(),
        held_out.days,
        held_out.age,
        held_out.sex,
        codes,
        names,
    )
    source = [real["patient_id"], real["visit"], code_column(revealed, names)]
    for name, column in zip(("source_patient_id", "source_visit", "revealed_diagnoses"), source, strict=True):
        table = table.append_column(name, column)
    return with_empty_columns(table)


if __name__ == "__main__":
    main(generate_naive, globals().get("snakemake"))
