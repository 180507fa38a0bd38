"""Score how like the training visits a set of visits is, as records."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.data.absent import absent
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import CODE_COLUMNS, read_visits
from cohortloom.evaluation.fidelity import fidelity
from cohortloom.evaluation.records import save_figures


def evaluate_fidelity(
    *,
    synthetic: Path,
    train: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    visits: int = 10000,
    sample_seed: int = 0,
) -> None:
    """Score how like the training visits a sample of whole patients of `visits` visits is.

    `seed` is the run's own and only written down; `sample_seed` draws the sample and the groups of the
    intervals.
    """
    parts = [read_visits(train), sample_patients(read_visits(synthetic), visits, sample_seed)]
    figures = []
    for column in CODE_COLUMNS:
        coded, names = encode(parts, column)
        figures += fidelity(*coded, len(names), sample_seed, absent(synthetic))
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_fidelity, globals().get("snakemake"))
