"""Records of how well a method recovers hidden codes at every number of guesses."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.base.methods import FITTED
from cohortloom.base.ragged import patient_of_visit, row_offsets
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.coded import encode_columns, patient_groups
from cohortloom.data.guesses import best_threshold, highest
from cohortloom.data.linear import Linear
from cohortloom.data.reveal import joint_mask, revealed_masks, validation_masks
from cohortloom.data.visits import code_lists, read_visits, used_columns
from cohortloom.evaluation.curve import HiddenCodes, curve
from cohortloom.evaluation.records import Figure, of_column, save_figures
from cohortloom.generation.naive import TrainingStrata, expected_hidden, stratum_of


def evaluate_curve(
    *,
    train: Path,
    val: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    method: Literal["prevalence", "linear"] | None = None,
    counts: Path | None = None,
    model_dir: Path | None = None,
    prompt_prob: float = 0.5,
    hide: list[str] | None = None,
    generation_seed: int = 0,
    group_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Evaluate the scores that a naive method, or the model in `model_dir`, gives to hidden codes.

    The same codes of test visits are revealed as in reconstruction, by `prompt_prob`, `hide` and
    `generation_seed`; each column of which codes are hidden has its curve. The threshold of `curve_best_f1`
    is the best on validation visits. `counts` of the reconstruction by linear hold its penalty. `seed` is the
    run's; it is only recorded. `group_seed` draws the groups of the intervals.
    """
    if (model_dir is None) == (method is None) or (method == FITTED) != (counts is not None):
        raise UserError("evaluate_curve: give model_dir, or a method, and with the method linear its counts")
    tables = [read_visits(path) for path in (train, val, test)]
    columns = used_columns(tables[0], tables[2])
    masks = [
        draw(table, prompt_prob, generation_seed, hide)
        for draw, table in zip((validation_masks, revealed_masks), tables[1:], strict=True)
    ]
    scored = list(zip((val, test), tables[1:], masks, strict=True))
    if model_dir is not None:
        guesses = list(_guesses_of_model(model_dir, tables[0], scored, prompt_prob, hide, device))
    else:
        guesses = list(_guesses_of_method(method, counts, tables, masks, columns))
    (of_val, column_of_val), (of_test, column_of_test) = guesses
    patient = patient_of_visit(tables[2]["visit"])
    group = patient_groups(int(patient.max(initial=-1)) + 1, group_seed)[patient]
    figures: list[Figure] = []
    for column in columns:
        n_hidden = [int((~mask[column]).sum()) for mask in masks]
        if hide and column not in hide:
            continue
        threshold, _ = best_threshold(of_val.select(column_of_val == column), n_hidden[0])
        offsets = code_lists(tables[2], column)[1]
        n_revealed = np.diff(row_offsets(masks[1][column])[offsets])
        hidden = HiddenCodes(np.diff(offsets), n_revealed, group)
        figures += of_column(column, curve(of_test.select(column_of_test == column), hidden, threshold))
    save_figures(records, figures, run, seed, "reconstruct")


def _guesses_of_method(method: str, counts: Path | None, tables, masks, columns: list[str]):
    """Guesses of a naive method for validation and test visits, and the column of each guess."""
    (train_visits, *scored), names, number = encode_columns(tables, columns)
    known = [joint_mask(table, mask, columns) for table, mask in zip(tables[1:], masks, strict=True)]
    if method == FITTED:
        linear = Linear.learn(train_visits, len(names), read_json(counts)["penalty"])
    else:
        strata = TrainingStrata(train_visits, len(names))
    for visits, is_revealed in zip(scored, known, strict=True):
        if method == FITTED:
            batches = linear.scores(visits, is_revealed)
        else:
            batches = strata.prevalences(stratum_of(visits.age, visits.sex))
        guesses = highest(batches, visits.codes, visits.offsets, is_revealed, column=number)
        yield guesses, np.array(columns, object)[number[guesses.code]]


def _guesses_of_model(model_dir: Path, train, scored, prompt_prob: float, hide, device: str):
    """Guesses of a model for each of `scored` (dataset file, visits, masks), and the column of each guess."""
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import first_code_log_probs
    from cohortloom.runtime.devices import pick_device

    vocabulary = Vocabulary.load(model_dir / "vocabulary.json")
    device, _ = pick_device(device)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).eval().to(device)
    columns = [column for column, _ in vocabulary.columns]
    number = vocabulary.column_of(np.arange(vocabulary.first_code, len(vocabulary)))
    for path, table, masks in scored:
        data = Examples.load(path)
        # `data` holds only the codes of the model's vocabulary.
        in_vocabulary = vocabulary.encode_visits(table)[0] >= 0
        is_revealed = joint_mask(table, masks, columns)[in_vocabulary]
        log_probs = first_code_log_probs(model, data, is_revealed)
        expected = expected_hidden(train, table, columns, masks, prompt_prob, hide)
        batches = as_scores(log_probs, vocabulary.first_code, expected, number)
        codes = data.ids - vocabulary.first_code
        guesses = highest(batches, codes, data.offsets, is_revealed, column=number)
        yield guesses, np.array(columns, object)[number[guesses.code]]


def as_scores(log_probs, first_code: int, expected: np.ndarray, column: np.ndarray):
    """Batches of scores [n, codes] from log probabilities [n, vocabulary] of each column's first token.

    column [codes]: number of the column of each code.

    The model is trained to give each hidden code the same probability. Its probability of a code is therefore
    the expected share of the code among the hidden ones of its column. Times the expected number of hidden
    codes (`expected` [n_visits, columns]) it approximates the probability that the code is hidden, which is
    comparable between visits.
    """
    for rows, values in log_probs:
        yield rows, values[:, first_code:] + np.log(expected[rows])[:, column]


if __name__ == "__main__":
    main(evaluate_curve, globals().get("snakemake"), untracked="generate")
