"""Records of how well a classifier distinguishes a set of visits from held-out real ones."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.data.absent import has_demographics
from cohortloom.data.coded import encode, sample_patients, sample_size
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.classifier import two_sample
from cohortloom.evaluation.records import SCORED, Figure, of_column, save_figures


def evaluate_classifier(
    *,
    synthetic: Path,
    train: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    held_out: Path | None = None,
    visits: int = 20000,
    sample_seed: int = 0,
) -> None:
    """Train classifiers to distinguish a sample of `synthetic` from as many visits of `test`, and test them.

    At most `visits` of each and no more than in `held_out`, the reference set of real visits. `train` gives
    only the most frequent codes. `seed` is the run's; it is only recorded. `sample_seed` draws samples, folds
    and classifiers.
    """
    reference, real, release = (read_visits(path) for path in (train, test, synthetic))
    size = min(sample_size(visits, held_out), real.num_rows, release.num_rows)
    parts = [reference, *(sample_patients(part, size, sample_seed) for part in (real, release))]
    figures: list[Figure] = []
    for column in SCORED:
        coded, names = encode(parts, column)
        figures += of_column(column, two_sample(*coded, len(names), sample_seed, has_demographics(synthetic)))
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_classifier, globals().get("snakemake"))
