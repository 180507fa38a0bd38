"""Score how like the training visits a set of visits is, as records."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.data.absent import DEMOGRAPHICS, absent
from cohortloom.data.coded import encode, sample_patients, sample_size
from cohortloom.data.visits import MODELLED_COLUMNS, read_visits
from cohortloom.evaluation.fidelity import fidelity, histories
from cohortloom.evaluation.records import Figure, of_column, save_figures


def evaluate_fidelity(
    *,
    synthetic: Path,
    train: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    held_out: Path | None = None,
    visits: int = 20000,
    sample_seed: int = 0,
) -> None:
    """Score how like the training visits a sample of whole patients of `visits` visits is.

    No more are scored than `held_out` has: the real visits whose figures stand beside, which depend on n.
    `seed` is the run's own and only written down; `sample_seed` draws the sample and the groups of the
    intervals.
    """
    size, missing = sample_size(visits, held_out), absent(synthetic) | absent(train)
    parts = [read_visits(train), sample_patients(read_visits(synthetic), size, sample_seed)]
    figures: list[Figure] = []
    for column in MODELLED_COLUMNS:
        coded, names = encode(parts, column)
        found = fidelity(*coded, len(names), sample_seed, not DEMOGRAPHICS & missing)
        figures += of_column(column, found)
    figures += histories(*coded, sample_seed, "days" not in missing)
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_fidelity, globals().get("snakemake"))
