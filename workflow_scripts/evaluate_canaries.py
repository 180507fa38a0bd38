"""Records of how much a model memorised of patients that were planted into its training."""

from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from cohortloom.base.files import write_json
from cohortloom.base.ragged import row_of_value
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import read_visits
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.evaluation import canaries as metrics
from cohortloom.evaluation.neighbours import set_matrix
from cohortloom.evaluation.records import as_records

HELD_OUT = 1000  # invented patients that were not planted, among which the planted ones are ranked


def evaluate_canaries(
    *,
    model_dir: Path,
    synthetic: Path,
    train: Path,
    vocabulary: Path,
    rules: list[Path],
    records: Path,
    run: str,
    canaries: int,
    canary_repeats: int,
    canary_seed: int,
    seed: int = 0,
    sample_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Rank the canaries planted into a training among HELD_OUT others, and search for them in a release.

    `canaries`, `canary_repeats`, `canary_seed` and the files `train`, `vocabulary`, `rules` are those of the
    training; they determine the planted patients. `model_dir` and `synthetic` are the attacked model and its
    release; for a control, those of a training without canaries. Scores are those of evaluate_likelihood.
    `seed` is the run's; it is only recorded. `sample_seed` draws the groups of the intervals.
    """
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import patient_log_likelihoods
    from cohortloom.runtime.devices import pick_device
    from cohortloom.training.canaries import assign_repeats, invent_patients

    repeats = assign_repeats(canaries, canary_repeats)
    device, _ = pick_device(device)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).eval().to(device)
    vocab = Vocabulary.load(vocabulary)
    invented = invent_patients(
        Examples.load(train), vocab, load_rules(rules), canary_seed, canaries, HELD_OUT
    )
    scores = [patient_log_likelihoods(model, part) for part in invented]
    sets = [
        _sets(ids, starts, len(vocab))
        for ids, starts in (
            (invented[0].ids, invented[0].offsets),
            vocab.encode_visits(read_visits(synthetic)),
        )
    ]
    figures = {
        "teacher_forced": metrics.ranking_figures(*scores, repeats, sample_seed),
        "synthesize": metrics.extraction_figures(*sets, repeats, sample_seed),
    }
    rows = [row for mode, of_mode in figures.items() for row in as_records(of_mode, run, seed, mode)]
    write_json(records, rows)


def _sets(ids: np.ndarray, offsets: np.ndarray, size: int) -> sparse.csr_matrix:
    """0/1 matrix [n_visits, 1 + size] of ragged ids; the first column is for codes outside the vocabulary."""
    n = len(offsets) - 1
    return set_matrix(ids + 1, row_of_value(offsets), n, 1 + size)


if __name__ == "__main__":
    main(evaluate_canaries, globals().get("snakemake"), untracked="generate")
