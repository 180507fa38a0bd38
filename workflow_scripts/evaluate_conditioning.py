"""Score whether age and sex decide which codes are written, as records."""

from pathlib import Path
from typing import Literal

import numpy as np

from cohortloom.base.ragged import row_offsets
from cohortloom.base.step import main, quiet_libraries
from cohortloom.data.absent import NO_DEMOGRAPHICS, has_demographics
from cohortloom.data.coded import encode, sample_patients, sample_size
from cohortloom.data.visits import MODELLED_COLUMNS, read_visits
from cohortloom.evaluation.conditioning import flips, observed, probes, written
from cohortloom.evaluation.intervals import UNDEFINED
from cohortloom.evaluation.records import Figure, of_column, save_figures

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
    model: Path | None = None,
    held_out: Path | None = None,
    visits: int = 20000,
    sample_seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Probe a sample of `visits` of `synthetic`, trained on one of `train`, and flip sex and age.

    No more are probed than `held_out` has, the real visits whose figures stand beside.
    With a `model` folder the first visits of PAIRS people of `test` are generated with the other sex or
    age and the same seeds; without one the distances are those of matched pairs in the sample. Age and sex
    must be known: for a foreign file without them no figure has a value. `seed` is the run's own and only
    written down; `sample_seed` draws samples, pairs, visits and groups.
    """
    if not has_demographics(synthetic):
        names = ("probe_sex_auc", "probe_age_r2", "flip_sex_js", "flip_age_js")
        nothing = [Figure(name, "", UNDEFINED, reason=NO_DEMOGRAPHICS) for name in names]
        save_figures(records, nothing, run, seed, mode)
        return
    reference, people, release = (read_visits(path) for path in (train, test, synthetic))
    known = sample_patients(reference, visits, sample_seed)
    sample = sample_patients(release, sample_size(visits, held_out), sample_seed)
    parts = [known, people, sample]
    figures: list[Figure] = []
    for column in MODELLED_COLUMNS:
        (training, asked, probed), names = encode(parts, column)
        found = [*probes(training, probed, len(names), sample_seed)]
        if model is None:
            sides, n_codes = observed(probed, PAIRS, sample_seed), len(names)
        else:
            write, n_codes = _writer(model, device)
            sides = written(asked, write, PAIRS, sample_seed)
        found += flips(sides, n_codes, sample_seed)
        figures += of_column(column, found)
    save_figures(records, figures, run, seed, mode)


def _writer(model: Path, device: str):
    """A function (ages, sexes, seed) -> codes of a first visit each, and how many ids there are."""
    quiet_libraries()
    from cohortloom.data.vocabulary import Vocabulary
    from cohortloom.generation.synthesize import synthesize
    from cohortloom.model.prompt_bart import PromptBartWithDemographicPrediction
    from cohortloom.runtime.devices import pick_device

    name, _ = pick_device(device)
    bart = PromptBartWithDemographicPrediction.from_pretrained(model).eval().to(name)
    words = Vocabulary.load(model / "vocabulary.json")

    def write(age: np.ndarray, sex: np.ndarray, seed: int):
        made = list(synthesize(bart, words, age, sex, ("conditioning", seed), max_visits=1))
        lengths = np.concatenate([np.diff(part.offsets) for part in made])
        return np.concatenate([part.ids for part in made]).astype(np.int64), row_offsets(lengths)

    return write, len(words)


if __name__ == "__main__":
    main(evaluate_conditioning, globals().get("snakemake"), untracked="generate")
