"""Records of how often the codes of a set of visits break the age and sex edits."""

import math
from pathlib import Path

from cohortloom.base.files import read_json
from cohortloom.base.step import log, main
from cohortloom.data.absent import NO_DEMOGRAPHICS, has_demographics
from cohortloom.data.coded import sample_patients, sample_size
from cohortloom.data.validity import load_rules
from cohortloom.data.visits import code_lists, read_visits, used_columns
from cohortloom.evaluation.intervals import UNDEFINED, Estimate
from cohortloom.evaluation.medical_validity import medical_validity
from cohortloom.evaluation.records import HEADLINE, Figure, of_column, save_figures


def evaluate_medical_validity(
    *,
    synthetic: Path,
    rules: list[Path],
    records: Path,
    counts: list[Path] | None = None,
    held_out: Path | None = None,
    run: str,
    seed: int = 0,
    mode: str = "synthesize",
    group_seed: int = 0,
) -> None:
    """Count how often the codes of a file break the age and sex edits of the validity tables `rules`.

    No more visits are scored than in `held_out`, the reference set of real visits: a sample of whole
    patients. A foreign file without age and sex gives figures without a value. `counts` (one file) are those
    of generation; with constrained decoding they hold the probability mass removed. `seed` is the run's; it
    is only recorded. `group_seed` draws the sample and the groups of the intervals.
    """
    figures: list[Figure] = []
    if has_demographics(synthetic):
        visits = read_visits(synthetic)
        visits = sample_patients(visits, sample_size(visits.num_rows, held_out), group_seed)
        table = load_rules(rules)
        for column in dict.fromkeys((HEADLINE, *used_columns(visits))):
            codes, _ = code_lists(visits, column)
            if n_without := int((~table.apply_to(codes)).sum()):
                log.info("%s: %d of %d codes are of systems without limits", column, n_without, len(codes))
            of_codes = medical_validity(visits, table, group_seed, column)
            figures += of_column(column, of_codes)
        for totals in map(read_json, counts or []):
            if "removed_mass" in totals:
                n = totals["constrained_positions"]
                share = Estimate(totals["removed_mass"] / n if n else math.nan, math.nan, math.nan, n)
                # a figure of all columns of codes
                figures.append(Figure("removed_mass", "", share, reason="nothing was generated"))
    else:
        names = ("age_violation_rate", "sex_violation_rate", "any_violation_rate", "restricted_share")
        figures += [Figure(name, "", UNDEFINED, reason=NO_DEMOGRAPHICS) for name in names]
    save_figures(records, figures, run, seed, mode)


if __name__ == "__main__":
    main(evaluate_medical_validity, globals().get("snakemake"))
