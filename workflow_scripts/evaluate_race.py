"""Records of an audit of the removal of race: how well the remaining columns predict it, in rates only."""

from pathlib import Path

from cohortloom.base.step import main
from cohortloom.data.absent import NO_DEMOGRAPHICS, has_demographics
from cohortloom.data.coded import encode, sample_patients, sample_size
from cohortloom.data.visits import read_visits
from cohortloom.evaluation.race import audit, no_audit
from cohortloom.evaluation.records import SCORED, Figure, of_column, save_figures
from cohortloom.sources.race import RACES, race_of_patients, race_of_visits

# A rate of fewer people with the name of their group could identify them, and the interval of their AUC would
# reach from guessing to certainty.
MIN_PATIENTS = 20


def evaluate_race(
    *,
    raw_dir: Path,
    source: str,
    synthetic: Path,
    train: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    held_out: Path | None = None,
    visits: int = 20000,
    control: bool = False,
    sample_seed: int = 0,
) -> None:
    """Read race from the raw tables into memory, and record how well the visits predict it.

    A race with fewer than MIN_PATIENTS patients is not reported. With `control` the release is real, and the
    records include how well race is predicted from held-out visits. At most `visits` visits of each set, in
    whole patients, and of the release no more than in `held_out`, the reference set of real visits. `seed` is
    the run's; it is only recorded. `sample_seed` draws samples and the groups of the intervals.
    """
    recorded = race_of_patients(source, raw_dir)
    figures: list[Figure] = []
    if recorded is None:
        figures.append(no_audit("no raw table records race"))
    elif not has_demographics(synthetic):
        figures.append(no_audit(NO_DEMOGRAPHICS))
    else:
        sizes = ((train, visits), (test, visits), (synthetic, sample_size(visits, held_out)))
        parts = [sample_patients(read_visits(path), size, sample_seed) for path, size in sizes]
        race = tuple(race_of_visits(part, recorded) for part in parts[:2])
        for column in SCORED:
            coded, names = encode(parts, column)
            of_codes = audit(*coded, race, RACES, len(names), sample_seed, MIN_PATIENTS, control)
            figures += of_column(column, of_codes)
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_race, globals().get("snakemake"))
