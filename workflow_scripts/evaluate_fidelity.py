"""Records of the fidelity of a set of visits: how similar it is to the training visits."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.data.absent import DEMOGRAPHICS, absent
from cohortloom.data.coded import encode, encode_columns, sample_patients, sample_size
from cohortloom.data.visits import read_visits, used_columns
from cohortloom.evaluation.across import cross_pairs
from cohortloom.evaluation.fidelity import fidelity, histories
from cohortloom.evaluation.records import HEADLINE, Figure, of_column, save_figures


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
    """Compare a sample of `synthetic`, whole patients with `visits` visits, with the training visits.

    No more visits are scored than in `held_out`, the reference set of real visits, because figures depend on
    n. `seed` is the run's; it is only recorded. `sample_seed` draws the sample and the groups of the
    intervals.
    """
    size, missing = sample_size(visits, held_out), absent(synthetic) | absent(train)
    parts = [read_visits(train), sample_patients(read_visits(synthetic), size, sample_seed)]
    figures: list[Figure] = []
    columns = used_columns(parts[0])
    for column in columns:
        coded, names = encode(parts, column)
        of_codes = fidelity(*coded, len(names), sample_seed, not DEMOGRAPHICS & missing)
        figures += of_column(column, of_codes)
    if columns[0] == HEADLINE:
        joint, _, number = encode_columns(parts, columns)
        for other, column in enumerate(columns[1:], start=1):
            figures += of_column(column, cross_pairs(*joint, number, other, sample_seed))
    figures += histories(*coded, sample_seed, "days" not in missing)
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_fidelity, globals().get("snakemake"))
