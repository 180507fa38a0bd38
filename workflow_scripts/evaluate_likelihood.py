"""Records of how well the model's likelihood distinguishes training patients from held-out ones."""

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
    model_dir: Path,
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
    """Attack training patients of `train` and as many patients of `test` by the likelihood of the model.

    A patient's score is the mean log likelihood of a token over all visits, each given the earlier ones:
    teacher-forced, no code revealed, no dropout. At most `visits` patients of each side. With `control`,
    patients of `val` replace the training ones: the result of the attack without a leak. `sampling_fraction`:
    see evaluate_privacy. `seed` is the run's; it is only recorded. `sample_seed` draws samples and groups.
    """
    quiet_libraries()
    from cohortloom.data.examples import Examples
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.model.scoring import patient_log_likelihoods
    from cohortloom.runtime.devices import pick_device

    device, _ = pick_device(device)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).eval().to(device)
    sets = [Examples.load(path) for path in (train, val, test)]
    sizes = [int((part.visit == 0).sum()) for part in sets]
    fraction = sampling_fraction or sizes[0] / sum(sizes)
    members, others = (sets[1] if control else sets[0]), sets[2]
    count = min(visits, *(int((part.visit == 0).sum()) for part in (members, others)))
    samples = [_sample_patients(part, count, sample_seed) for part in (members, others)]
    scores = [patient_log_likelihoods(model, sample) for sample in samples]
    figures = attack("likelihood", *scores, sizes[0], sample_seed, fraction)
    save_figures(records, figures, run, seed, MODE)


def _sample_patients(data, count: int, seed: int):
    """Visits of `count` random patients of an Examples, in their order."""
    patient = patient_of_visit(data.visit)
    is_sampled = np.zeros(int(patient[-1]) + 1, bool)
    is_sampled[np.random.default_rng([seed, 0x11E]).permutation(len(is_sampled))[:count]] = True
    return data.select(np.flatnonzero(is_sampled[patient]))


if __name__ == "__main__":
    main(evaluate_likelihood, globals().get("snakemake"), untracked="generate")
