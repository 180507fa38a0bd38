"""Score how well a method finds hidden codes at every number of guesses, as records."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.base.methods import FITTED, SCORING
from cohortloom.base.ragged import row_offsets
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.coded import Coded, encode
from cohortloom.data.guesses import best_threshold, highest
from cohortloom.data.reveal import revealed_mask, validation_mask
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.curve import Truth, curve
from cohortloom.evaluation.records import HEADLINE, of_column, save_figures
from cohortloom.generation.linear import Linear
from cohortloom.generation.naive import TrainingStrata, stratum_of


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
    model: Path | None = None,
    prompt_prob: float = 0.5,
    generation_seed: int = 0,
    group_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Score a naive method, or the model in the folder `model`, by its scores of all codes that are hidden.

    The test visits show what they show in reconstruction, by `prompt_prob` and `generation_seed`. The one
    threshold of `curve_best_f1` is the best on validation visits. `counts` are those of linear's
    reconstruction, which hold its penalty. `seed` is the run's own and only written down; `group_seed` draws
    the groups of the intervals.
    """
    if (model is None) == (method is None) or (method == FITTED) != (counts is not None):
        raise UserError("evaluate_curve: give a model, or a method, and with the method linear its counts")
    tables = [read_visits(path) for path in (train, val, test)]
    (known, *others), names = encode(tables)
    masks = [
        draw(len(visits.codes), prompt_prob, generation_seed)
        for draw, visits in zip((validation_mask, revealed_mask), others, strict=True)
    ]
    training = TrainingStrata(known, len(names))
    if method == FITTED:
        linear = Linear.learn(known, len(names), read_json(counts)["penalty"])
        found = [linear.guesses(*part) for part in zip(others, masks, strict=True)]
    elif method in SCORING:
        found = [
            highest(
                training.prevalences(stratum_of(visits.age, visits.sex)), visits.codes, visits.offsets, shown
            )
            for visits, shown in zip(others, masks, strict=True)
        ]
    else:
        files = zip((val, test), tables[1:], others, masks, strict=True)
        found = list(_of_model(model, training, files, prompt_prob, device))
    hidden = int((~masks[0]).sum())
    threshold, _ = best_threshold(found[0], hidden)
    group, _ = others[1].groups(group_seed)
    truth = Truth(others[1].lengths, np.diff(row_offsets(masks[1])[others[1].offsets]), group)
    figures = of_column(HEADLINE, curve(found[1], truth, threshold))
    save_figures(records, figures, run, seed, "reconstruct")


def _of_model(folder: Path, training: TrainingStrata, files, prompt_prob: float, device: str):
    """Guesses of a model for each (file, its table, its visits, what is shown of them)."""
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.data.visits import code_lists
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import first_code_log_probs
    from cohortloom.runtime.devices import pick_device

    words = Vocabulary.load(folder / "vocabulary.json")
    name, _ = pick_device(device)
    bart = PromptBartWithDemographicPrediction.from_pretrained(folder).eval().to(name)
    for path, table, visits, shown in files:
        data = Examples.load(path)
        # The model knows the codes of its vocabulary alone.
        shown_ids = shown[words.encode(code_lists(table)[0]) >= 0]
        log_probs = first_code_log_probs(bart, data, shown_ids)
        batches = as_scores(
            log_probs, words.first_code, _expected_hidden(training, visits, shown, prompt_prob)
        )
        yield highest(batches, data.ids - words.first_code, data.offsets, shown_ids)


def as_scores(log_probs, first_code: int, expected: np.ndarray):
    """Batches of scores [n, codes] from log probabilities [n, vocabulary] of the first token.

    The model learns that each of the hidden codes is as good a next one. Its probability of a code is
    therefore the expected share of the code among the hidden ones: times how many are hidden (`expected`,
    [n_visits]) it comes near to the probability that the code is hidden, which is comparable between visits.
    """
    for rows, values in log_probs:
        yield rows, values[:, first_code:] + np.log(np.maximum(expected[rows], 1e-9))[:, None]


def _expected_hidden(
    training: TrainingStrata, visits: Coded, shown: np.ndarray, prompt_prob: float
) -> np.ndarray:
    revealed = np.diff(row_offsets(shown)[visits.offsets])
    return training.expected_hidden(stratum_of(visits.age, visits.sex), revealed, prompt_prob)


if __name__ == "__main__":
    main(evaluate_curve, globals().get("snakemake"), untracked="generate")
