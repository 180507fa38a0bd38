"""Records of how well the hidden codes of held-out visits are recovered."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.data.visits import read_visits, used_columns
from cohortloom.evaluation.reconstruction import reconstruction
from cohortloom.evaluation.records import HEADLINE, Figure, of_column, save_figures


def evaluate_reconstruction(
    *, reconstruct: Path, test: Path, records: Path, run: str, seed: int = 0, group_seed: int = 0
) -> None:
    """Compare a reconstruct file with the held-out visits: recovered codes, Jaccard of each visit.

    `seed` is the run's; it is only recorded. `group_seed` draws the groups of the intervals.
    """
    reconstructed, real = read_visits(reconstruct), read_visits(test)
    figures: list[Figure] = []
    for column in dict.fromkeys((HEADLINE, *used_columns(real))):
        figures += of_column(column, reconstruction(reconstructed, real, reconstruct, group_seed, column))
    save_figures(records, figures, run, seed, "reconstruct")


if __name__ == "__main__":
    main(evaluate_reconstruction, globals().get("snakemake"))
