"""Score what a model keeps of patients that were planted into its training, as records."""

from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from cohortloom.base.files import write_json
from cohortloom.base.ragged import row_of_value
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import code_lists, read_visits
from cohortloom.data.vocabulary import Vocabulary
from cohortloom.evaluation import canaries as metrics
from cohortloom.evaluation.neighbours import set_matrix
from cohortloom.evaluation.records import as_records

HELD_OUT = 1000  # invented patients that were not planted, beside whom the planted ones are ranked


def evaluate_canaries(
    *,
    model: Path,
    synthetic: Path,
    train: Path,
    vocabulary: Path,
    rules: Path,
    records: Path,
    run: str,
    canaries: int,
    canary_repeats: int,
    canary_seed: int,
    seed: int = 0,
    sample_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Rank the canaries planted into a training among HELD_OUT more; look for them in a release.

    `canaries`, `canary_repeats`, `canary_seed` and the files `train`, `vocabulary`, `rules` are those of the
    training: they say which patients were planted. `model` is the folder of the model that is asked,
    `synthetic` what it released: for a control, those of a training without canaries. Scores are those of
    evaluate_likelihood. `seed` is the run's own and only written down; `sample_seed` draws the groups.
    """
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import patient_log_likelihoods
    from cohortloom.runtime.devices import pick_device
    from cohortloom.training.canaries import invent, repeats_of

    repeats = repeats_of(canaries, canary_repeats)
    name, _ = pick_device(device)
    bart = PromptBartWithDemographicPrediction.from_pretrained(model).eval().to(name)
    words = Vocabulary.load(vocabulary)
    invented = invent(Examples.load(train), words, load_rules(rules), canary_seed, canaries, HELD_OUT)
    scores = [patient_log_likelihoods(bart, part) for part in invented]
    codes, offsets = code_lists(read_visits(synthetic))
    sets = [
        _sets(ids, starts, len(words))
        for ids, starts in ((invented[0].ids, invented[0].offsets), (words.encode(codes), offsets))
    ]
    figures = {
        "teacher_forced": metrics.ranked(*scores, repeats, sample_seed),
        "synthesize": metrics.extracted(*sets, repeats, sample_seed),
    }
    write_json(records, [one for mode, some in figures.items() for one in as_records(some, run, seed, mode)])


def _sets(ids: np.ndarray, offsets: np.ndarray, size: int) -> sparse.csr_matrix:
    """Matrix [n_visits, 1 + size] of ragged ids; its first column counts codes outside the vocabulary."""
    n = len(offsets) - 1
    return set_matrix(ids + 1, row_of_value(offsets), n, 1 + size)


if __name__ == "__main__":
    main(evaluate_canaries, globals().get("snakemake"), untracked="generate")
