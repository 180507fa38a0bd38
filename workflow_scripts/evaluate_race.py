"""Audit the removal of race: what the kept columns still tell of it, as records of rates, nothing of a
patient.
"""

from pathlib import Path
from typing import Literal

from cohortloom.base.files import write_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import absent
from cohortloom.data.coded import encode, sample_patients
from cohortloom.data.visits import CODE_COLUMNS, read_visits
from cohortloom.evaluation.race import audit
from cohortloom.evaluation.records import record
from cohortloom.sources.race import GROUPS, groups_of_patients, groups_of_visits


def evaluate_race(
    *,
    raw_dir: Path,
    source: Literal["simulated", "mimic3", "nhds2010"],
    synthetic: Path,
    train: Path,
    test: Path,
    records: Path,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    visits: int = 20000,
    least_patients: int = 20,
    control: bool = False,
    sample_seed: int = 0,
) -> None:
    """Read race from the raw tables, hold it in memory, and write how far the visits tell of it.

    Groups of fewer than `least_patients` are not reported. `control`: the release is real, and how well race
    is told from held-out visits is among the records. At most `visits` of each set, in whole patients.
    `seed` is the run's own and only written down; `sample_seed` draws samples and the groups of the
    intervals.
    """
    known = groups_of_patients(source, raw_dir)
    found = []
    if known is None or {"age", "sex"} & absent(synthetic):
        log.info("%s: nothing to audit: the tables tell no race, or the visits no age and sex", run)
    else:
        parts = [sample_patients(read_visits(path), visits, sample_seed) for path in (train, test, synthetic)]
        groups = tuple(groups_of_visits(part, known) for part in parts[:2])
        for column in CODE_COLUMNS:
            coded, names = encode(parts, column)
            figures = audit(*coded, groups, GROUPS, len(names), sample_seed, least_patients, control)
            for metric, subset, part, n_reference, better in figures:
                ends = (part.value, part.low, part.high, part.n)
                found.append(record(run, seed, mode, metric, subset, *ends, n_reference, better))
    write_json(records, found)
    for row in found:
        log.info("%s: %s %s %.4f, n %d", run, row["metric"], row["subset"], row["value"], row["n"])


if __name__ == "__main__":
    main(evaluate_race, globals().get("snakemake"))
