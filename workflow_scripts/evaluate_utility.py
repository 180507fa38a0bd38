"""Records of how well models trained on a set of visits predict the codes of real ones."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.data.absent import has_demographics
from cohortloom.data.coded import encode, encode_columns, sample_patients, sample_size
from cohortloom.data.visits import read_visits, used_columns
from cohortloom.evaluation.records import HEADLINE, SCORED, Figure, of_column, save_figures
from cohortloom.evaluation.utility import cross_prediction, prediction


def evaluate_utility(
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
    """Predict the most frequent codes of `test` by models trained on a sample of `visits` of `synthetic`.

    Diagnoses from the other diagnoses of the visit; procedures and medications from its diagnoses.

    They are trained on no more visits than in `held_out`, the reference set of real visits. `train` gives
    only the most frequent codes. `seed` is the run's; it is only recorded. `sample_seed` draws the samples
    and the groups of the intervals.
    """
    reference, tested, release = (read_visits(path) for path in (train, test, synthetic))
    size = sample_size(visits, held_out)
    parts = [reference, *(sample_patients(p, n, sample_seed) for p, n in ((tested, visits), (release, size)))]
    figures: list[Figure] = []
    for column in SCORED:
        coded, names = encode(parts, column)
        figures += of_column(column, prediction(*coded, names, sample_seed, has_demographics(synthetic)))
    columns = used_columns(reference, tested)
    if columns[0] == HEADLINE:
        joint, _, number = encode_columns(parts, columns)
        for other, column in enumerate(columns[1:], start=1):
            of_codes = cross_prediction(*joint, number, other, sample_seed, has_demographics(synthetic))
            figures += of_column(column, of_codes)
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_utility, globals().get("snakemake"))
