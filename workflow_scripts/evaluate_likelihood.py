"""Score how far the model's own likelihood tells its training patients from held-out ones, as records."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.ragged import patient_of_visit
from cohortloom.base.step import main, quiet_libraries
from cohortloom.evaluation.privacy import attack
from cohortloom.evaluation.records import save_figures

MODE = "teacher_forced"


def evaluate_likelihood(
    *,
    model: Path,
    train: Path,
    val: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    visits: int = 20000,
    sampling_fraction: float | None = None,
    control: bool = False,
    sample_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Attack training patients of `train` beside as many of `test` with the model in the folder `model`.

    A patient's score is the log likelihood a token of all visits, each after the earlier ones:
    teacher-forced, nothing revealed, dropout off. At most `visits` patients of each side. With `control` the
    patients of `val` stand for the training ones: what the attack finds where nobody was trained on.
    `sampling_fraction`: see evaluate_privacy. `seed` is the run's own and only written down; `sample_seed`
    draws samples and groups.
    """
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import patient_log_likelihoods
    from cohortloom.runtime.devices import pick_device

    name, _ = pick_device(device)
    bart = PromptBartWithDemographicPrediction.from_pretrained(model).eval().to(name)
    sets = [Examples.load(path) for path in (train, val, test)]
    sizes = [int((part.visit == 0).sum()) for part in sets]
    fraction = sampling_fraction or sizes[0] / sum(sizes)
    members, others = (sets[1] if control else sets[0]), sets[2]
    count = min(visits, *(int((part.visit == 0).sum()) for part in (members, others)))
    scores = [
        patient_log_likelihoods(bart, _some_patients(part, count, sample_seed)) for part in (members, others)
    ]
    figures = attack("likelihood", *scores, sizes[0], sample_seed, fraction)
    save_figures(records, figures, run, seed, MODE)


def _some_patients(data, count: int, seed: int):
    """`count` whole patients of an Examples, drawn at random, in their order."""
    patient = patient_of_visit(data.visit)
    chosen = np.zeros(int(patient[-1]) + 1, bool)
    chosen[np.random.default_rng([seed, 0x11E]).permutation(len(chosen))[:count]] = True
    return data.select(np.flatnonzero(chosen[patient]))


if __name__ == "__main__":
    main(evaluate_likelihood, globals().get("snakemake"), untracked="generate")
