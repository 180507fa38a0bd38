"""Records of how much the codes of visits depend on age and sex."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.ragged import row_offsets
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.absent import NO_DEMOGRAPHICS, has_demographics
from cohortloom.data.coded import encode, sample_patients, sample_size
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.conditioning import flips, generated_sides, observed_sides, probes
from cohortloom.evaluation.intervals import UNDEFINED
from cohortloom.evaluation.records import SCORED, Figure, of_column, save_figures

PAIRS = 500  # of people whose sex or age is flipped, at most


def evaluate_conditioning(
    *,
    synthetic: Path,
    train: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    model_dir: Path | None = None,
    held_out: Path | None = None,
    visits: int = 20000,
    sample_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Probe a sample of `visits` of `synthetic` after training on one of `train`, and flip sex and age.

    No more visits are probed than in `held_out`, the reference set of real visits. With a model in
    `model_dir`, the first visits of PAIRS people of `test` are generated with the other sex or another age
    and the same seeds. Without one, matched pairs of the sample are compared. A foreign file without age and
    sex gives figures without a value. `seed` is the run's; it is only recorded. `sample_seed` draws samples,
    pairs, visits and groups.
    """
    if not has_demographics(synthetic):
        names = ("probe_sex_auc", "probe_age_r2", "flip_sex_js", "flip_age_js")
        undefined = [Figure(name, "", UNDEFINED, reason=NO_DEMOGRAPHICS) for name in names]
        save_figures(records, undefined, run, seed, mode)
        return
    training, people, release = (read_visits(path) for path in (train, test, synthetic))
    training = sample_patients(training, visits, sample_seed)
    release = sample_patients(release, sample_size(visits, held_out), sample_seed)
    figures: list[Figure] = []
    for column in SCORED:
        (train_visits, test_visits, scored), names = encode([training, people, release], column)
        of_probes = probes(train_visits, scored, len(names), sample_seed)
        if model_dir is None:
            sides, n_codes = observed_sides(scored, PAIRS, sample_seed), len(names)
        else:
            generate, n_codes = _generator(model_dir, column, device)
            sides = generated_sides(test_visits, generate, PAIRS, sample_seed)
        figures += of_column(column, [*of_probes, *flips(sides, n_codes, sample_seed)])
    save_figures(records, figures, run, seed, mode)


def _generator(model_dir: Path, column: str, device: str):
    """A function (ages, sexes, seed) -> codes of a column of one first visit each; the vocabulary's size."""
    quiet_libraries()
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.generation.synthesize import synthesize
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.runtime.devices import pick_device

    device, _ = pick_device(device)
    model = PromptBartWithDemographicPrediction.from_pretrained(model_dir).eval().to(device)
    vocabulary = Vocabulary.load(model_dir / "vocabulary.json")
    names = np.array([name for name, _ in vocabulary.columns])

    def generate(age: np.ndarray, sex: np.ndarray, seed: int):
        batches = list(synthesize(model, vocabulary, age, sex, ("conditioning", seed), max_visits=1))
        lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
        ids = np.concatenate([batch.ids for batch in batches]).astype(np.int64)
        of_column = names[vocabulary.column_of(ids)] == column
        return ids[of_column], row_offsets(of_column)[row_offsets(lengths)]

    return generate, len(vocabulary)


if __name__ == "__main__":
    main(evaluate_conditioning, globals().get("snakemake"), untracked="generate")
