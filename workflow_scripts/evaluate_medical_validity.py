"""Score how often a set of visits breaks the age and sex edits, as records."""

import math
from pathlib import Path

from cohortloom.base.files import read_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import NO_DEMOGRAPHICS, has_demographics
from cohortloom.data.coded import sample_patients, sample_size
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import MODELLED_COLUMNS, code_lists, read_visits
from cohortloom.evaluation.intervals import UNDEFINED, Estimate
from cohortloom.evaluation.medical_validity import medical_validity
from cohortloom.evaluation.records import Figure, of_column, save_figures


def evaluate_medical_validity(
    *,
    synthetic: Path,
    rules: Path,
    records: Path,
    counts: list[Path] | None = None,
    held_out: Path | None = None,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    group_seed: int = 0,
) -> None:
    """Score how often the visits of a file break the age and sex edits of a validity table.

    No more visits are scored than `held_out` has, the real ones whose rates stand beside: a sample of whole
    patients. A foreign file without age and sex cannot be scored: no figure has a value. `seed` is the run's
    own and only written down; `group_seed` draws the sample and the groups of the intervals. `counts` (one
    file) are those of the generation: with constrained decoding they say how much probability it removed.
    """
    figures: list[Figure] = []
    if has_demographics(synthetic):
        visits = read_visits(synthetic)
        visits = sample_patients(visits, sample_size(visits.num_rows, held_out), group_seed)
        table = load_rules(rules)
        for column in MODELLED_COLUMNS:
            codes, _ = code_lists(visits, column)
            if free := int((~table.apply_to(codes)).sum()):
                log.info("%s: %d of %d codes are of systems without limits", column, free, len(codes))
            found = medical_validity(visits, table, group_seed, column)
            figures += of_column(column, found)
        for kept in map(read_json, counts or []):
            if "removed_mass" in kept:
                n = kept["constrained_positions"]
                share = Estimate(kept["removed_mass"] / n if n else math.nan, math.nan, math.nan, n)
                # of all codes that the model could write
                figures.append(Figure("removed_mass", "", share, reason="nothing was generated"))
    else:
        names = ("age_violation_rate", "sex_violation_rate", "any_violation_rate", "restricted_share")
        figures += [Figure(name, "", UNDEFINED, reason=NO_DEMOGRAPHICS) for name in names]
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_medical_validity, globals().get("snakemake"))
