"""Records of how well a method recovers hidden codes at every number of guesses."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.errors import UserError
from cohortloom.base.files import read_json
from cohortloom.base.methods import FITTED, SCORING
from cohortloom.base.ragged import row_offsets
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.coded import encode
from cohortloom.data.guesses import best_threshold, highest
from cohortloom.data.linear import Linear
from cohortloom.data.reveal import revealed_mask, validation_mask
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.curve import HiddenCodes, curve
from cohortloom.evaluation.records import HEADLINE, of_column, save_figures
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
    model_dir: Path | None = None,
    prompt_prob: float = 0.5,
    generation_seed: int = 0,
    group_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Evaluate the scores that a naive method, or the model in `model_dir`, gives to hidden codes.

    The same codes of test visits are revealed as in reconstruction, by `prompt_prob` and `generation_seed`.
    The threshold of `curve_best_f1` is the best on validation visits. `counts` of the reconstruction by
    linear hold its penalty. `seed` is the run's; it is only recorded. `group_seed` draws the groups of the
    intervals.
    """
    if (model_dir is None) == (method is None) or (method == FITTED) != (counts is not None):
        raise UserError("evaluate_curve: give model_dir, or a method, and with the method linear its counts")
    tables = [read_visits(path) for path in (train, val, test)]
    (train_visits, *scored), names = encode(tables)
    masks = [
        draw(len(visits.codes), prompt_prob, generation_seed)
        for draw, visits in zip((validation_mask, revealed_mask), scored, strict=True)
    ]
    strata = TrainingStrata(train_visits, len(names))
    if method == FITTED:
        linear = Linear.learn(train_visits, len(names), read_json(counts)["penalty"])
        guesses = [linear.guesses(*part) for part in zip(scored, masks, strict=True)]
    elif method in SCORING:
        guesses = []
        for visits, is_revealed in zip(scored, masks, strict=True):
            prevalences = strata.prevalences(stratum_of(visits.age, visits.sex))
            guesses.append(highest(prevalences, visits.codes, visits.offsets, is_revealed))
    else:
        files = zip((val, test), tables[1:], scored, masks, strict=True)
        guesses = list(_guesses_of_model(model_dir, strata, files, prompt_prob, device))
    of_validation, of_test = guesses
    threshold, _ = best_threshold(of_validation, int((~masks[0]).sum()))
    group, _ = scored[1].groups(group_seed)
    hidden = HiddenCodes(scored[1].lengths, np.diff(row_offsets(masks[1])[scored[1].offsets]), group)
    figures = of_column(HEADLINE, curve(of_test, hidden, threshold))
    save_figures(records, figures, run, seed, "reconstruct")


def _guesses_of_model(model_dir: Path, strata: TrainingStrata, files, prompt_prob: float, device: str):
    """Guesses of a model for each of `files`: (path, table, visits, mask of revealed codes)."""
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.data.visits import code_lists
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import first_code_log_probs
    from cohortloom.runtime.devices import pick_device

    vocabulary = Vocabulary.load(model_dir / "vocabulary.json")
    device, _ = pick_device(device)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).eval().to(device)
    for path, table, visits, is_revealed in files:
        data = Examples.load(path)
        # `data` holds only the codes of the model's vocabulary.
        in_vocabulary = vocabulary.encode(code_lists(table)[0]) >= 0
        log_probs = first_code_log_probs(model, data, is_revealed[in_vocabulary])
        expected = strata.expected_hidden(visits, is_revealed, prompt_prob)
        batches = as_scores(log_probs, vocabulary.first_code, expected)
        codes = data.ids - vocabulary.first_code
        yield highest(batches, codes, data.offsets, is_revealed[in_vocabulary])


def as_scores(log_probs, first_code: int, expected: np.ndarray):
    """Batches of scores [n, codes] from log probabilities [n, vocabulary] of the first token.

    The model is trained to give each hidden code the same probability. Its probability of a code is therefore
    the expected share of the code among the hidden ones. Times the expected number of hidden codes
    (`expected` [n_visits]) it approximates the probability that the code is hidden, which is comparable
    between visits.
    """
    for rows, values in log_probs:
        yield rows, values[:, first_code:] + np.log(expected[rows])[:, None]


if __name__ == "__main__":
    main(evaluate_curve, globals().get("snakemake"), untracked="generate")
